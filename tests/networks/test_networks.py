"""What every network keeps to under any backend; `test_backends` runs this file under each."""

import functools
import json
from importlib import import_module

import numpy as np
import pytest

from nowcast.conventions import RAIN_RATE
from nowcast.networks import NETWORKS, build, sees_motion, settings_of
from nowcast.networks.heads import FRAME_HEADS, Head
from nowcast.networks.losses import loss_of
from nowcast.rainrate import Transform

SMALL = {
    "cnn_lstm": {"filters": [4, 8], "units": 16},
    "convgru": {"features": 4, "filters": [6, 4], "strides": [2, 2], "kernel": 3},
    "convlstm": {"filters": [8, 4]},
    "fc_lstm": {"units": [32, 16]},
    "lagrangian": {"filters": [8, 8]},
    "predrnn": {"filters": 8, "layers": 2},
    "simvp": {"filters": 4, "translator_filters": 8, "depth": 2, "kernels": [3, 5], "groups": 2},
    "trajgru": {"features": 4, "filters": [6, 4], "strides": [2, 2], "links": 2, "flow_kernel": 3},
    "unet": {"filters": [8, 8], "dropout": 0.2},
}
LEVELS = Head("quantiles", levels=(0.1, 0.5, 0.9))
HEADS = (Head(), LEVELS, Head("exceedance", levels=(0.2, 0.8, 1.8)))
LOSSES = {"field": "mse", "quantiles": "quantile", "exceedance": "ordinal"}
INPUT_FRAMES, LEAD_FRAMES, GRID = 2, 3, (8, 12)


@pytest.fixture(params=sorted(NETWORKS))
def name(request):
    return request.param


def head_of(name):
    """Give the first of these heads that a network has."""
    known = getattr(import_module(NETWORKS[name]), "HEADS", FRAME_HEADS)
    return next(head for head in HEADS if head.kind in known)


def _build(name, grid=GRID, head=None, **settings):
    import keras

    keras.utils.set_random_seed(0)
    network = build(
        name,
        settings={**SMALL[name], **settings},
        input_frames=INPUT_FRAMES,
        lead_frames=LEAD_FRAMES,
        grid=grid,
        head=head or head_of(name),
    )
    return drawn(network)


def drawn(network):
    """Draw the kernels that start at nothing: behind them, what a network sees is hidden."""
    import keras

    random = np.random.default_rng(0)
    for weights in network.trainable_variables:
        if len(weights.shape) > 1 and not keras.ops.convert_to_numpy(weights.value).any():
            weights.assign(random.normal(0.0, 0.3, tuple(weights.shape)))
    return network


@functools.cache
def _built(name):
    """Give a network whose weights no test changes."""
    return _build(name)


def inputs_of(name, samples, grid=GRID):
    """Give frames, and their motion where a network sees that."""
    random = np.random.default_rng(0)
    frames = random.random((samples, INPUT_FRAMES, *grid, 2), np.float32)
    if not sees_motion(settings_of(name, SMALL[name])):
        return frames
    smooth = np.cumsum(random.normal(0.0, 0.1, (samples, 2, *grid)), axis=-1)
    return [frames, smooth.astype(np.float32)]


def _with_frames(inputs, frames):
    return [frames, *inputs[1:]] if isinstance(inputs, list) else frames


def _outputs(network, inputs):
    from keras import ops

    return ops.convert_to_numpy(network(inputs))


def _loss(name):
    head = head_of(name)
    kind = LOSSES[head.kind]
    return loss_of(kind, head=head, variable=RAIN_RATE, transform=Transform())


def _compile(name, network, optimizer):
    """Prepare steps that run eagerly: to trace such small networks takes longer than they do.

    Under JAX it is the other way round, since it compiles each operation of an eager step.
    """
    import keras

    network.compile(optimizer, _loss(name), run_eagerly=keras.backend.backend() != "jax")


@pytest.mark.parametrize("head", [None, LEVELS], ids=["own", "quantiles"])
def test_frames_in_raw_lead_frames_out(name, head):
    if head and head_of(name).kind == "exceedance":
        with pytest.raises(ValueError, match="has no head 'quantiles'; it has exceedance"):
            _build(name, head=head)
        return
    network, head = _build(name, head=head) if head else _built(name), head or head_of(name)
    assert network.output_shape == (None, LEAD_FRAMES, *GRID, head.outputs)
    for samples in (1, 2):
        outputs = _outputs(network, inputs_of(name, samples))
        assert outputs.shape == (samples, LEAD_FRAMES, *GRID, head.outputs)
        assert outputs.dtype == np.float32
        assert np.isfinite(outputs).all()
        assert outputs.min() < 0  # no rectifier, no sigmoid: that is the head's affair


def test_the_output_depends_on_every_input_frame(name):
    inputs = inputs_of(name, 1)
    before = _outputs(_built(name), inputs)
    for frame in range(INPUT_FRAMES):
        changed = (inputs[0] if isinstance(inputs, list) else inputs).copy()
        changed[:, frame] += 1.0
        after = _outputs(_built(name), _with_frames(inputs, changed))
        assert np.abs(after - before).max() > 1e-6


def test_a_sequence_does_not_depend_on_the_others_of_its_batch(name):
    inputs = inputs_of(name, 3)
    one = [each[1:2] for each in inputs] if isinstance(inputs, list) else inputs[1:2]
    alone = _outputs(_built(name), one)
    np.testing.assert_allclose(_outputs(_built(name), inputs)[1:2], alone, atol=1e-5)


def test_a_few_steps_lower_the_loss(name):
    import keras

    network = _build(name)
    _compile(name, network, keras.optimizers.Adam(2e-2))
    inputs = inputs_of(name, 2)
    frames = inputs[0] if isinstance(inputs, list) else inputs
    targets = np.repeat(frames[:, -1:, ..., :1], LEAD_FRAMES, axis=1)
    targets[:, :, :2] = np.nan
    losses = [float(network.train_on_batch(inputs, targets)) for _ in range(6)]
    assert losses[-1] < 0.8 * losses[0]


def test_a_missing_pixel_has_no_gradient(name):
    import keras

    class Added(keras.layers.Layer):
        """What is added to each output: a step moves it by that output's gradient."""

        def build(self, shape):
            self.added = self.add_weight(shape=shape[1:], initializer="zeros")

        def call(self, outputs):
            return outputs + self.added

    network, added = _build(name), Added()
    before = network.get_weights()
    model = keras.Model(network.input, added(network.output))
    _compile(name, model, keras.optimizers.SGD(1.0))
    targets = np.random.default_rng(1).random((1, LEAD_FRAMES, *GRID, 1), np.float32)
    missing = targets > 0.5
    model.train_on_batch(inputs_of(name, 1), np.full_like(targets, np.nan))
    for weights, same in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weights, same)
    model.train_on_batch(inputs_of(name, 1), np.where(missing, np.nan, targets))
    moved = np.abs(keras.ops.convert_to_numpy(added.added)).max(axis=-1, keepdims=True)
    assert (moved[missing[0]] == 0.0).all()
    assert np.count_nonzero(moved[~missing[0]]) > 0.99 * np.count_nonzero(~missing)
    assert all(np.isfinite(weights).all() for weights in network.get_weights())


@pytest.mark.parametrize(
    "policy", ["mixed_bfloat16", pytest.param("mixed_float16", marks=pytest.mark.proof)]
)
def test_mixed_precision_gives_32_bits_and_about_the_same(name, policy):
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        network = _build(name)
        outputs = _outputs(network, inputs_of(name, 1))
        _compile(name, network, keras.optimizers.Adam(1e-3))
        targets = np.zeros_like(outputs[..., :1])
        loss = float(network.train_on_batch(inputs_of(name, 1), targets))
    finally:
        keras.config.set_dtype_policy(before)
    assert outputs.dtype == np.float32
    assert {weight.dtype for weight in network.trainable_variables} == {"float32"}
    assert np.isfinite(loss)
    exact = _outputs(_built(name), inputs_of(name, 1))
    assert 0 < np.abs(outputs - exact).max() < 0.1 * np.ptp(exact)


def test_settings_and_weights_give_the_network_again(name, tmp_path):
    complete = settings_of(name, SMALL[name])
    written = json.loads(json.dumps(vars(complete)))
    assert settings_of(name, written) == complete
    _built(name).save_weights(tmp_path / "network.weights.h5")
    again = _build(name, **written)
    for weights in again.trainable_variables:
        weights.assign(weights + 0.1)
    inputs = inputs_of(name, 1)
    assert np.abs(_outputs(again, inputs) - _outputs(_built(name), inputs)).max() > 1e-4
    again.load_weights(tmp_path / "network.weights.h5")
    np.testing.assert_array_equal(_outputs(again, inputs), _outputs(_built(name), inputs))


def test_the_configuration_gives_the_network_again(name):
    import keras

    again = keras.Model.from_config(_built(name).get_config())
    again.set_weights(_built(name).get_weights())
    inputs = inputs_of(name, 1)
    np.testing.assert_array_equal(_outputs(again, inputs), _outputs(_built(name), inputs))


def test_weights_go_to_another_grid_where_the_settings_say_so(name):
    grid = (GRID[0], 2 * GRID[1])
    other = _build(name, grid=grid)
    shapes = [weights.shape for weights in _built(name).get_weights()]
    same = shapes == [weights.shape for weights in other.get_weights()]
    assert same == settings_of(name, SMALL[name]).any_grid
    if same:
        other.set_weights(_built(name).get_weights())
    outputs = head_of(name).outputs
    assert _outputs(other, inputs_of(name, 1, grid)).shape == (1, LEAD_FRAMES, *grid, outputs)


def test_a_grid_that_does_not_fit_is_refused(name):
    multiple = settings_of(name, SMALL[name]).grid_multiple
    if multiple == 1:
        assert _build(name, grid=(7, 9)).output_shape == (None, LEAD_FRAMES, 7, 9, 1)
        return
    with pytest.raises(ValueError, match=rf"multiples of {multiple} .*\({2 * multiple + 1}, 12\)"):
        _build(name, grid=(2 * multiple + 1, 12))


def test_an_unknown_setting_is_named(name):
    first = next(iter(SMALL[name]))
    with pytest.raises(ValueError, match=rf"has no setting colour; it has .*{first}"):
        settings_of(name, {"colour": 3})


def test_an_unknown_network_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=f"known are {', '.join(sorted(NETWORKS))}"):
        settings_of("transformer", {})


@pytest.mark.parametrize(
    ("name", "settings", "input_frames", "lead_frames", "parameters"),
    [
        # Almost 31.4 million, Ayzel et al. (2020).
        ("unet", {"filters": [64, 128, 256, 512, 1024], "dropout": 0.5}, 4, 1, 31_380_613),
        # As the authors' code counts; of its own Moving MNIST network, with a depth of 8: 30401153.
        ("simvp", {"filters": 64, "translator_filters": 256}, 10, 10, 9_718_913),
    ],
    ids=["rainnet", "simvp"],
)
def test_the_published_network_has_its_parameters(
    name, settings, input_frames, lead_frames, parameters
):
    network = build(
        name,
        settings=settings,
        input_frames=input_frames,
        lead_frames=lead_frames,
        grid=(32, 32),
        channels=1,
    )
    assert network.count_params() == parameters


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("unet", {"filters": []}, r"filters must list .*received \(\)"),
        ("unet", {"kernel": 4}, "kernel must be odd.*received 4.*try 3 or 5"),
        ("unet", {"dropout": 1.0}, "dropout is a part.*received 1.0"),
        ("unet", {"filters": [8, 8, 8, 8], "kernel": 5}, "kernel of 5 cannot fit .*2 x 3; at most"),
        ("simvp", {"groups": 3}, "filters must be a multiple of 6 with 3 groups; received 16"),
        ("simvp", {"translator_filters": 20}, "multiple of 8 with 4 groups; received 20; change"),
        ("simvp", {"translator_depth": 1}, "two inception blocks or more.*translator_depth=1"),
        ("simvp", {"kernels": [3, 6]}, "kernels must be odd.*received 6"),
        ("simvp", {"depth": 4}, "kernels of 11 cannot fit a layer's grid of 4 x 6; at most 7"),
    ],
)
def test_wrong_settings_are_refused_with_the_value_and_the_remedy(name, settings, message):
    with pytest.raises(ValueError, match=message):
        build(name, settings=settings, input_frames=3, lead_frames=5, grid=(16, 24))
