"""Recurrent layers against Keras's own and against steps written in NumPy, on any backend."""

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from nowcast.networks import load_keras

keras = load_keras()

from nowcast.networks import convolution, layers  # noqa: E402

BACKEND = keras.backend.backend()
TIMES = np.array([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1]], bool)  # of two samples
WAYS = {
    "same": {"padding": "same"},
    "valid": {"padding": "valid"},
    "strided": {"padding": "same", "strides": 2},
    "dilated": {"padding": "valid", "dilation_rate": 2},
    "backwards": {"padding": "same", "go_backwards": True},
    "without bias": {"padding": "same", "use_bias": False},
    "other activations": {"activation": "relu", "recurrent_activation": "hard_sigmoid"},
    "forgetful": {"unit_forget_bias": False, "bias_initializer": "random_normal"},
}


@pytest.fixture(params=["convolved", "tiled", "gate by gate"])
def convolved(request, monkeypatch):
    """Every way of convolving, whatever pays."""
    monkeypatch.setattr(convolution, "FEWEST", 0 if request.param == "tiled" else 10**9)
    monkeypatch.setattr(convolution, "LARGE", 0 if request.param == "gate by gate" else 10**9)


def _frames(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def _array(tensor):
    return keras.ops.convert_to_numpy(tensor)


def _pair(shape, filters=4, kernel_size=3, **settings):
    """Keras's layer and ours, with the same weights."""
    stock = keras.layers.ConvLSTM2D(filters, kernel_size, **settings)
    ours = layers.ConvLSTM2D(filters, kernel_size, **settings)
    for layer in (stock, ours):
        layer.build(shape)
    stock.set_weights([_frames(*weight.shape, seed=7) / 4 for weight in stock.get_weights()])
    ours.set_weights(stock.get_weights())
    return stock, ours


def _trained(layer, frames, targets):
    """The weights after a step down the gradient, and the loss."""
    inputs = keras.Input(frames.shape[1:])
    network = keras.Model(inputs, layer(inputs))
    # As large a step as shows the gradient itself.
    network.compile(keras.optimizers.SGD(1.0), loss="mse", jit_compile=False)
    loss = float(network.train_on_batch(frames, targets))
    return [loss, *network.get_weights()]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.usefixtures("convolved")
def test_the_layer_gives_keras_numbers(way):
    frames = _frames(2, 5, 9, 6, 3)
    stock, ours = _pair(frames.shape, return_sequences=True, return_state=True, **WAYS[way])
    for theirs, own in zip(stock(frames), ours(frames), strict=True):
        assert np.abs(_array(theirs)).max() > 0.1
        np.testing.assert_allclose(_array(own), _array(theirs), atol=1e-5)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.usefixtures("convolved")
def test_the_layer_has_keras_gradients(kernel_size):
    frames, targets = _frames(2, 4, 8, 9, 3), _frames(2, 4, 8, 9, 4, seed=1)
    pair = _pair(frames.shape, kernel_size=kernel_size, padding="same", return_sequences=True)
    before = pair[0].get_weights()
    theirs, own = (_trained(layer, frames, targets) for layer in pair)
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(before, theirs[1:], strict=True))
    for left, right in zip(theirs, own, strict=True):
        np.testing.assert_allclose(right, left, atol=1e-5)


def test_ten_steps_at_the_size_of_the_paper_stay_within_rounding():
    frames = _frames(1, 10, 16, 16, 64)
    stock = keras.layers.ConvLSTM2D(64, 5, padding="same", return_sequences=True)
    ours = layers.ConvLSTM2D(64, 5, padding="same", return_sequences=True)
    theirs = _array(stock(frames))
    ours.build(frames.shape)
    ours.set_weights(stock.get_weights())
    np.testing.assert_allclose(_array(ours(frames)), theirs, atol=1e-5)


@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("grid", [(4, 4), (7, 13), (16, 5)])
def test_tiles_give_the_convolution_on_grids_of_any_size(kernel_size, grid, monkeypatch):
    monkeypatch.setattr(convolution, "FEWEST", 0)
    fields, kernel = _frames(2, *grid, 3), _frames(kernel_size, kernel_size, 3, 5, seed=1)
    kernel = keras.ops.convert_to_tensor(kernel)
    tiled = convolution.repeated(kernel, grid=grid)(fields)
    np.testing.assert_allclose(
        _array(tiled), _array(keras.ops.conv(fields, kernel, padding="same")), atol=1e-4
    )


@pytest.mark.parametrize(
    ("shape", "dtype", "grid", "pays"),
    [
        ((5, 5, 64, 256), "float32", (16, 16), True),
        ((3, 3, 64, 256), "float32", (16, 16), True),
        ((3, 3, 16, 64), "float32", (16, 16), False),
        ((1, 1, 1024, 256), "float32", (16, 16), False),
        ((5, 3, 64, 256), "float32", (16, 16), False),
        ((5, 5, 64, 256), "float16", (16, 16), False),
        ((5, 5, 64, 256), "float32", (256, 16), False),
        ((5, 5, 64, 256), "float32", (None, 16), False),
    ],
)
def test_tiles_are_used_where_they_pay(shape, dtype, grid, pays, monkeypatch):
    monkeypatch.setattr(convolution, "_tiled", lambda *_: "tiled")
    convolve = convolution.repeated(keras.ops.zeros(shape, dtype), grid=grid)
    assert (convolve == "tiled") == pays


@pytest.mark.parametrize(
    ("channels", "grid", "pays"),
    [
        (32, (64, 64), True),
        (32, (32, 32), False),  # few numbers
        (64, (64, 64), False),  # tiles pay
        (64, (128, 128), True),
        (32, (None, 64), False),
    ],
)
def test_gates_go_one_by_one_on_large_fields_without_tiles(channels, grid, pays):
    kernel = keras.ops.zeros((3, 3, channels, 4 * channels))
    assert convolution.pays_apart(kernel, grid) == pays


@pytest.mark.skipif(BACKEND == "jax", reason="Keras's ConvLSTM2D takes no mask under jax")
@pytest.mark.parametrize("way", ["same", "backwards"])
@pytest.mark.parametrize("return_sequences", [False, True])
def test_masked_frames_are_passed_over_as_keras_does(way, return_sequences):
    frames = _frames(2, 5, 6, 5, 3)
    settings = {"return_sequences": return_sequences, "return_state": True, **WAYS[way]}
    stock, ours = _pair(frames.shape, **settings)
    for theirs, own in zip(stock(frames, mask=TIMES), ours(frames, mask=TIMES), strict=True):
        np.testing.assert_allclose(_array(own), _array(theirs), atol=1e-5)


@pytest.mark.parametrize("kind", [layers.ConvLSTM2D, layers.ConvGRU2D])
def test_a_masked_frame_counts_as_one_that_is_not_there(kind):
    frames = _frames(2, 4, 6, 5, 3)
    layer = kind(4, 3, padding="same", return_sequences=True, zero_output_for_mask=True)
    mask = np.array([[True, False, True, True]] * 2)
    masked, without = _array(layer(frames, mask=mask)), _array(layer(frames[:, [0, 2, 3]]))
    np.testing.assert_allclose(masked[:, [0, 2, 3]], without, atol=1e-6)
    assert not masked[:, 1].any()


@pytest.mark.parametrize("rates", [(0.4, 0.0), (0.0, 0.4), (0.3, 0.3)])
def test_the_same_seed_drops_out_what_keras_drops_out(rates):
    frames = _frames(2, 3, 6, 5, 3)
    settings = {"dropout": rates[0], "recurrent_dropout": rates[1], "seed": 3}
    stock, ours = _pair(frames.shape, padding="same", return_sequences=True, **settings)
    theirs, own = (_array(layer(frames, training=True)) for layer in (stock, ours))
    np.testing.assert_allclose(own, theirs, atol=1e-5)
    assert np.abs(own - _array(ours(frames))).max() > 1e-3


def test_a_stateful_layer_goes_on_where_it_stopped():
    frames = _frames(2, 6, 6, 5, 3)
    layer = layers.ConvLSTM2D(4, 3, padding="same", stateful=True)
    first, second = _array(layer(frames[:, :3])), _array(layer(frames[:, 3:]))
    layer.reset_state()
    np.testing.assert_allclose(_array(layer(frames)), second, atol=1e-6)
    assert np.abs(first - second).max() > 1e-3


@pytest.mark.parametrize("kind", [layers.ConvLSTM2D, layers.ConvGRU2D])
def test_states_handed_over_continue_a_sequence(kind):
    frames = _frames(2, 6, 6, 5, 3)
    layer = kind(4, 3, padding="same", return_sequences=True, return_state=True)
    whole, *_ = layer(frames)
    first, *states = layer(frames[:, :2])
    second, *_ = layer(frames[:, 2:], initial_state=states)
    halves = np.concatenate([_array(first), _array(second)], axis=1)
    np.testing.assert_allclose(halves, _array(whole), atol=1e-6)


def test_another_number_of_states_is_refused():
    with pytest.raises(ValueError, match="has 1 states; received 2"):
        layers.ConvGRU2D(4, 3, steps=2)([_frames(1, 4, 4, 4)] * 2)


def _sigmoid(values):
    return 1.0 / (1.0 + np.exp(-values))


def _split(values, parts):
    return np.split(values, parts, axis=-1)


@pytest.mark.usefixtures("convolved")
def test_peepholes_see_the_cell_as_in_the_paper():
    frame, hidden, cell = (_frames(2, 4, 5, 3, seed=seed) for seed in range(3))
    layer = layers.ConvLSTM2D(3, 1, peepholes=True, return_state=True)
    layer.build((2, 1, 4, 5, 3))
    weights = [_frames(*weight.shape, seed=9) for weight in layer.get_weights()]
    kernel, recurrent, bias, (to_input, to_forget, to_output) = weights
    layer.set_weights(weights)
    i, f, c, o = _split(frame @ kernel[0, 0] + hidden @ recurrent[0, 0] + bias, 4)
    after = _sigmoid(f + to_forget * cell) * cell + _sigmoid(i + to_input * cell) * np.tanh(c)
    shown = _sigmoid(o + to_output * after) * np.tanh(after)
    outputs = layer(frame[:, None], initial_state=[hidden, cell])
    for output, expected in zip(outputs, [shown, shown, after], strict=True):
        np.testing.assert_allclose(_array(output), expected, atol=1e-5)


@pytest.mark.parametrize("reset_after", [False, True])
def test_a_gru_resets_the_state_before_or_after_the_convolution(reset_after):
    frame, hidden = (_frames(2, 4, 5, 3, seed=seed) for seed in range(2))
    layer = layers.ConvGRU2D(3, 1, reset_after=reset_after, bias_initializer="random_normal")
    layer.build((2, 1, 4, 5, 3))
    kernel, recurrent, bias = layer.get_weights()
    seen = _split(frame @ kernel[0, 0] + bias, 3)
    to_z, to_r, to_candidate = _split(recurrent[0, 0], 3)
    z, r = _sigmoid(seen[0] + hidden @ to_z), _sigmoid(seen[1] + hidden @ to_r)
    reset = r * (hidden @ to_candidate) if reset_after else (r * hidden) @ to_candidate
    expected = z * hidden + (1 - z) * np.tanh(seen[2] + reset)
    output = layer(frame[:, None], initial_state=[hidden])
    np.testing.assert_allclose(_array(output), expected, atol=1e-5)


@pytest.mark.usefixtures("convolved")
def test_without_input_the_layer_is_keras_layer_fed_with_zeros():
    states = [_frames(2, 6, 5, 4, seed=seed) for seed in range(2)]
    zeros = np.zeros((2, 3, 6, 5, 1), "float32")
    stock, _ = _pair(zeros.shape, padding="same", return_sequences=True, return_state=True)
    ours = layers.ConvLSTM2D(4, 3, steps=3, return_sequences=True, return_state=True)
    ours.build([(None, 6, 5, 4)] * 2)
    ours.set_weights(stock.get_weights()[1:])
    for theirs, own in zip(stock(zeros, initial_state=states), ours(states), strict=True):
        np.testing.assert_allclose(_array(own), _array(theirs), atol=1e-5)


@pytest.mark.usefixtures("convolved")
def test_a_kernel_between_states_may_have_a_size_of_its_own():
    layer = layers.ConvLSTM2D(8, 9, padding="same", recurrent_kernel_size=1)
    layer.build((None, 4, 16, 16, 3))
    assert [tuple(weight.shape) for weight in layer.weights] == [
        (9, 9, 3, 32),
        (1, 1, 8, 32),
        (32,),
    ]


@pytest.mark.parametrize("kind", [layers.ConvLSTM2D, layers.ConvGRU2D])
def test_height_and_width_may_be_unknown(kind):
    inputs = keras.Input((3, None, None, 2))
    hidden, *states = kind(4, 3, padding="same", return_state=True)(inputs)
    outputs = kind(4, 3, steps=2, return_sequences=True)(states)
    network = keras.Model(inputs, [hidden, outputs])
    for grid in ((6, 5), (9, 8)):
        last, sequence = network(_frames(1, 3, *grid, 2))
        assert tuple(last.shape) == (1, *grid, 4)
        assert tuple(sequence.shape) == (1, 2, *grid, 4)


@pytest.mark.parametrize("kind", [layers.ConvLSTM2D, layers.ConvGRU2D])
@pytest.mark.parametrize("masked", [False, True])
def test_a_long_loop_gives_what_the_unrolled_one_gives(kind, masked, monkeypatch):
    frames, mask = _frames(2, 5, 6, 5, 3), TIMES if masked else None
    layer = kind(4, 3, padding="same", return_sequences=True, return_state=True)
    without = kind(4, 3, steps=5, return_sequences=True)
    unrolled = [*layer(frames, mask=mask), without(layer(frames)[1:])]
    monkeypatch.setattr(layers, "UNROLLED", 2)
    looped = [*layer(frames, mask=mask), without(layer(frames)[1:])]
    for left, right in zip(unrolled, looped, strict=True):
        np.testing.assert_allclose(_array(right), _array(left), atol=1e-6)


@pytest.mark.skipif(BACKEND == "torch", reason="torch takes the number of frames as it comes")
def test_the_number_of_frames_may_be_unknown():
    inputs = keras.Input((None, 6, 5, 3))
    layer = layers.ConvLSTM2D(4, 3, padding="same", return_sequences=True)
    network = keras.Model(inputs, layer(inputs))
    frames = _frames(2, 7, 6, 5, 3)
    np.testing.assert_allclose(network.predict(frames, verbose=0), _array(layer(frames)), atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("kind", [layers.ConvLSTM2D, layers.ConvGRU2D])
def test_mixed_precision_comes_near_the_whole(policy, kind):
    frames = _frames(2, 4, 8, 6, 3)
    whole = kind(4, 3, padding="same", return_sequences=True)
    mixed = kind(4, 3, padding="same", return_sequences=True, dtype=policy)
    expected = _array(whole(frames))
    mixed.build(frames.shape)
    mixed.set_weights(whole.get_weights())
    outputs = mixed(frames)
    assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix("mixed_")
    assert {weight.dtype for weight in mixed.trainable_variables} == {"float32"}
    np.testing.assert_allclose(_array(outputs).astype("float32"), expected, atol=0.02)


def test_weights_that_keras_layer_saved_load(tmp_path):
    frames, made = _frames(1, 2, 6, 5, 3), []
    for kind in (keras.layers.ConvLSTM2D, layers.ConvLSTM2D):
        inputs = keras.Input(frames.shape[1:])
        made.append(keras.Model(inputs, kind(4, 3, padding="same", name="recurrent")(inputs)))
    stock, ours = made
    stock.save_weights(tmp_path / "stock.weights.h5")
    ours.load_weights(tmp_path / "stock.weights.h5")
    np.testing.assert_allclose(_array(ours(frames)), _array(stock(frames)), atol=1e-6)


@pytest.mark.parametrize(
    "layer",
    [
        layers.ConvLSTM2D(4, 5, recurrent_kernel_size=3, peepholes=True, padding="same"),
        layers.ConvGRU2D(4, 3, reset_after=True, padding="same", activation="relu"),
    ],
)
def test_a_layer_comes_back_from_its_configuration(layer):
    frames = _frames(1, 2, 6, 5, 3)
    expected = _array(layer(frames))
    again = keras.layers.deserialize(keras.layers.serialize(layer))
    again.build(frames.shape)
    again.set_weights(layer.get_weights())
    np.testing.assert_allclose(_array(again(frames)), expected, atol=1e-6)


def test_a_stateful_layer_without_input_is_refused():
    with pytest.raises(ValueError, match="not stateful"):
        layers.ConvLSTM2D(4, 3, steps=2, stateful=True)


@pytest.mark.proof
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_layers_are_the_same_under_other_backends(backend):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed; install nowcast[backends]")
    command = [sys.executable, "-m", "pytest", "-q", "-m", "not proof", __file__]
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
