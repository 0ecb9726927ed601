"""The CNN to LSTM of the literature, in both styles, for all heads, with any front end."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from nowcast.networks import build, initialise, load_keras, settings_of
from nowcast.networks.heads import Head

SMALL = {"filters": [4, 8], "units": 8}
TEXTBOOK = {"filters": [1], "kernel": 2, "stride": 1, "pool": 2, "units": 50, "style": "whole"}
BACKBONE = {"backbone": "MobileNet", "backbone_alpha": 0.25, "filters": [4, 4, 4], "units": 4}
SERIES, CLASSES = Head("series", (), ("a", "b")), Head("classes", (), ("left", "right", "neither"))
HEADS = {"field": Head(), "series": SERIES, "classes": CLASSES}


@pytest.fixture(scope="module", autouse=True)
def keras():
    keras = load_keras()
    keras.utils.set_random_seed(0)
    return keras


def _build(settings, *, grid=(16, 24), head=None, frames=3, channels=2):
    return build(
        "cnn_lstm",
        settings=settings,
        input_frames=frames,
        lead_frames=5,
        grid=grid,
        head=head,
        channels=channels,
    )


def _frames(grid=(16, 24), frames=3):
    return np.random.default_rng(0).random((2, frames, *grid, 2), np.float32)


def _outputs(network, frames, *, training=False):
    import keras

    if keras.backend.backend() == "jax" and isinstance(network, keras.Model) and not training:
        return network.predict(frames, verbose=0)  # compiled as one, not operation by operation
    return keras.ops.convert_to_numpy(network(frames, training=training))


def _eagerly(keras):
    """Tell what makes a single step quick: JAX would compile each operation by itself."""
    return keras.backend.backend() != "jax"


@pytest.fixture(scope="module")
def frozen(pretrained):
    """A network that froze this backbone, and its settings."""
    settings = {**BACKBONE, "backbone_weights": str(pretrained[1]), "trainable": False}
    network = _build(settings, grid=(32, 32), head=SERIES, frames=1)
    initialise("cnn_lstm", network, settings)
    return network, settings


@pytest.fixture(scope="module")
def pretrained(keras, tmp_path_factory):
    """A network with a backbone that was trained for one step, and the file of its backbone."""
    network = _build(BACKBONE, grid=(32, 32), head=SERIES, frames=1)
    fresh = network.get_layer("backbone").get_weights()
    network.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=_eagerly(keras))
    network.train_on_batch(_frames((32, 32), 1), np.ones((2, 5, 2), np.float32))
    backbone = network.get_layer("backbone")
    moved = [
        np.abs(new - old).max() for new, old in zip(backbone.get_weights(), fresh, strict=True)
    ]
    assert max(moved) > 0.0
    path = tmp_path_factory.mktemp("backbone") / "mobilenet.weights.h5"
    backbone.layer.layers[-1].save_weights(path)
    return network, path


@pytest.mark.parametrize("grid", [(16, 24), (1, 24)])
@pytest.mark.parametrize("head", HEADS)
def test_both_styles_agree_to_the_last_bit(head, grid):
    styles = [
        _build({**SMALL, "style": style, "pool": 2, "stride": 1}, grid=grid, head=HEADS[head])
        for style in ("layers", "whole")
    ]
    styles[1].set_weights(styles[0].get_weights())
    frames = _frames(grid)
    layers, whole = (_outputs(network, frames) for network in styles)
    np.testing.assert_array_equal(layers, whole)
    assert np.abs(layers).max() > 0.0


def test_both_styles_agree_compiled_and_train_to_the_same_weights(keras):
    trained, given, start = [], [], _build(SMALL).get_weights()
    for style in ("layers", "whole"):
        network = _build({**SMALL, "style": style})
        network.set_weights(start)
        given.append(network.predict(_frames(), verbose=0))
        network.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=_eagerly(keras))
        network.train_on_batch(_frames(), np.ones((2, 5, 16, 24, 1), np.float32))
        trained.append(network.get_weights())
    np.testing.assert_array_equal(*given)
    for layers, whole in zip(*trained, strict=True):
        np.testing.assert_allclose(layers, whole, atol=1e-7)
    assert max(np.abs(new - old).max() for new, old in zip(trained[0], start, strict=True)) > 1e-3


def test_the_textbook_settings_give_the_textbook_network():
    network = _build(TEXTBOOK, grid=(10, 10), channels=1, head=Head("classes", (), ("l", "r")))
    cnn = network.get_layer("cnn").layer
    shapes = [layer.output.shape for layer in cnn.layers]
    assert shapes == [(None, 10, 10, 1), (None, 10, 10, 1), (None, 5, 5, 1), (None, 25)]
    kinds = [type(layer).__name__ for layer in cnn.layers[1:]]
    assert kinds == ["Conv2D", "MaxPooling2D", "Flatten"]
    assert [type(layer).__name__ for layer in network.layers[1:]] == [
        "TimeDistributed",
        "LSTM",
        "Dense",
    ]
    assert cnn.layers[1].get_config()["activation"] == "relu"
    assert cnn.layers[1].kernel_size == (2, 2)
    # By hand: 2*2*1*1 + 1; 4 * 50 * (25 + 50 + 1); 2 * (50 + 1).
    assert network.count_params() == 5 + 15_200 + 102


def test_the_network_of_before_is_the_default():
    network = build("cnn_lstm", settings={}, input_frames=4, lead_frames=6, grid=(64, 64))
    assert network.count_params() == 1_218_891


def test_classes_are_told_from_the_order_of_the_frames():
    network = _build(SMALL, head=CLASSES)
    frames = _frames()
    assert network.output_shape == (None, 3)
    assert np.abs(_outputs(network, frames) - _outputs(network, frames[:, ::-1])).max() > 1e-6


def test_the_forecaster_of_a_series_starts_in_the_encoders_states():
    network = _build(SMALL, head=SERIES)
    assert network.output_shape == (None, 5, 2)
    forecaster = network.get_layer("forecaster")
    kernel, recurrent, bias = forecaster.get_weights()
    before = _outputs(network, _frames())
    forecaster.set_weights([np.zeros_like(kernel), recurrent, bias])  # so it gets no input
    first, other = _outputs(network, _frames()), _outputs(network, 1.0 - _frames())
    assert np.abs(first - before).max() > 1e-6
    assert np.abs(first - other).max() > 1e-6


@pytest.mark.parametrize("grid", [(1, 24), (24, 1)])
def test_on_a_row_convolutions_go_along_it(grid):
    network = _build(SMALL, grid=grid)
    assert network.output_shape == (None, 5, *grid, 1)
    assert network.weights[0].shape == (3, 2, 4)
    along = _frames((1, 24))
    across = along.reshape(2, 3, *grid, 2)
    same = _build(SMALL, grid=(1, 24))
    same.set_weights(network.get_weights())
    np.testing.assert_allclose(
        _outputs(network, across).ravel(), _outputs(same, along).ravel(), atol=1e-6
    )


def test_without_skips_the_decoder_sees_the_states_alone():
    frames = _frames()
    for skips in (True, False):
        network = _build({**SMALL, "skips": skips})
        for name in ("encoder", "forecaster"):
            lstm = network.get_layer(name)
            lstm.set_weights([np.zeros_like(weight) for weight in lstm.get_weights()])
        changed = np.abs(_outputs(network, frames) - _outputs(network, 1.0 - frames)).max()
        assert (changed > 1e-6) == skips


def test_the_mean_of_the_features_makes_a_smaller_network():
    network = _build({**SMALL, "features": "mean"}, head=CLASSES)
    assert network.get_layer("encoder").weights[0].shape == (8, 4 * 8)
    flat = _build(SMALL, head=CLASSES)
    assert flat.get_layer("encoder").weights[0].shape == (4 * 6 * 8, 4 * 8)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("head", HEADS)
def test_mixed_precision_gives_outputs_of_32_bits(keras, head, policy):
    network = _build(SMALL, head=HEADS[head])
    keras.mixed_precision.set_global_policy(policy)
    try:
        mixed = _build({**SMALL, "style": "whole"}, head=HEADS[head])
    finally:
        keras.mixed_precision.set_global_policy("float32")
    mixed.set_weights(network.get_weights())
    outputs = _outputs(mixed, _frames())
    assert outputs.dtype == np.float32
    expected = _outputs(network, _frames())
    assert 0.0 < np.abs(outputs - expected).max() < 0.02


def test_it_is_rebuilt_from_its_configuration(keras):
    network = _build({**SMALL, "style": "whole"}, grid=(1, 24))
    again = keras.Model.from_config(network.get_config())
    again.set_weights(network.get_weights())
    frames = _frames((1, 24))
    np.testing.assert_array_equal(_outputs(again, frames), _outputs(network, frames))


def test_fields_become_the_pictures_that_a_backbone_knows(keras):
    from nowcast.networks.backbones import backbone

    adapted = backbone("MobileNet", grid=(16, 20), alpha=0.25)
    picture = keras.Model(adapted.input, adapted.layers[-2].output)
    values = np.zeros((1, 16, 20, 1), np.float32)
    values[0, 3, 5] = 1.0
    seen = _outputs(picture, values)
    # 16 pixels become 32 by doubling; MobileNet's own scale is from -1 to 1, for 0 to 255.
    assert seen.shape == (1, 32, 40, 3)
    np.testing.assert_allclose(seen[0, 6:8, 10:12], 1.0)
    assert (seen == -1.0).mean() == 1.0 - 4 / (32 * 40)


def test_what_was_observed_passes_by_the_backbone(pretrained):
    network, _ = pretrained
    frames = np.zeros((1, 1, 32, 32, 2), np.float32)
    observed = frames.copy()
    observed[:, :, :8, :8, 1] = 1.0
    assert np.abs(_outputs(network, observed) - _outputs(network, frames)).max() > 1e-6
    # 256 features, and the observed part of each of the 4 x 4 squares of 8 pixels.
    assert network.get_layer("encoder").weights[0].shape == (256 + 16, 4 * 4)


def test_a_pretrained_backbone_is_frozen_as_its_file_has_it(keras, pretrained, frozen):
    (network, _), (frozen, _) = pretrained, frozen
    backbone = frozen.get_layer("backbone")
    assert not backbone.trainable_weights
    trained = {id(weight) for weight in frozen.trainable_weights}
    assert not trained & {id(weight) for weight in backbone.weights}
    before = backbone.get_weights()
    for held, given in zip(before, network.get_layer("backbone").get_weights(), strict=True):
        np.testing.assert_array_equal(held, given)
    values = _frames((32, 32), 1)[..., :1]
    given = _outputs(network.get_layer("backbone"), values)
    np.testing.assert_array_equal(_outputs(backbone, values), given)
    # Its batch normalisation stays in inference in training too, and learns nothing.
    np.testing.assert_array_equal(_outputs(backbone, values, training=True), given)
    frozen.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=_eagerly(keras))
    frozen.train_on_batch(_frames((32, 32), 1), np.ones((2, 5, 2), np.float32))
    for held, now in zip(before, backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(held, now)


def test_a_saved_network_with_a_backbone_needs_no_other_file(frozen, tmp_path):
    network, settings = frozen
    network.save_weights(tmp_path / "network.weights.h5")
    elsewhere = {**settings, "backbone_weights": "gone.weights.h5"}
    rebuilt = _build(elsewhere, grid=(32, 32), head=SERIES, frames=1)
    rebuilt.load_weights(tmp_path / "network.weights.h5")
    frames = _frames((32, 32), 1)
    np.testing.assert_array_equal(_outputs(rebuilt, frames), _outputs(network, frames))


def test_weights_of_another_backbone_are_refused_with_what_they_are(pretrained):
    _, path = pretrained
    settings = {**BACKBONE, "backbone_alpha": 0.5, "backbone_weights": str(path)}
    other = _build(settings, grid=(32, 32), head=SERIES, frames=1)
    needs = "mobilenet.weights.h5 holds 135 arrays of 218,544 values .* needs 135 arrays of 829,536"
    with pytest.raises(ValueError, match=needs):
        initialise("cnn_lstm", other, settings)


def test_a_file_in_the_form_that_keras_offers_is_read(pretrained, tmp_path):
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    trained = pretrained[0].get_layer("backbone")
    with h5py.File(tmp_path / "mobilenet_notop.h5", "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, trained.layer.layers[-1])
    settings = {**BACKBONE, "backbone_weights": str(tmp_path / "mobilenet_notop.h5")}
    network = _build(settings, grid=(32, 32), head=SERIES, frames=1)
    initialise("cnn_lstm", network, settings)
    read = network.get_layer("backbone").get_weights()
    for given, held in zip(trained.get_weights(), read, strict=True):
        np.testing.assert_array_equal(given, held)


def test_the_settings_file_is_that_of_the_tutorial():
    from pathlib import Path

    from nowcast.config import load
    from nowcast.reproductions import tutorial

    assert load(Path(__file__).parents[2] / "configs" / "cnn_lstm_textbook.toml") == tutorial()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("absent.weights.h5", None, "is no file; give the weights of MobileNet on this machine"),
        ("pickle.weights.h5", b"\x80\x04K\x01.", "is no HDF5 file, so no weights of Keras"),
        ("cut.weights.h5", b"\x89HDF\r\n\x1a\n" + bytes(8), "cannot be read: .* save it again"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(pretrained, tmp_path, name, content, message):
    network, _ = pretrained
    path = tmp_path / name
    if content:
        path.write_bytes(content)
    settings = {**BACKBONE, "backbone_weights": str(path)}
    with pytest.raises(ValueError, match=message):
        initialise("cnn_lstm", network, settings)


def test_an_absent_file_of_weights_stops_a_training_before_it_starts(
    small_config, small_observed, tmp_path
):
    from nowcast.training import fit, prepare

    missing = "{backbone='MobileNet', backbone_alpha=0.25, filters=[4], backbone_weights='no.h5'}"
    changes = ["network.name=cnn_lstm", f"network.settings={missing}"]
    config = small_config.replace(changes)
    prepared = prepare(config, small_observed, work=tmp_path)
    with pytest.raises(ValueError, match=r"backbone_weights='no\.h5' is no file"):
        fit(config, prepared, verbose=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trainable": False}, "trainable=false freezes a backbone .* set backbone and"),
        ({"trainable": False, "backbone": "VGG16"}, "trainable=false freezes a backbone"),
        ({"backbone_weights": "a.h5"}, "'a.h5' .* none is set; set backbone"),
        ({"backbone": "VGG16", "backbone_weights": "a.keras"}, "'a.keras' .* ends in .weights.h5"),
        ({"backbone_alpha": -1.0}, "a width above 0, .* received -1.0"),
        ({"filters": []}, "filters must list a whole number above 0"),
        ({"kernel": 0}, "kernel must be a whole number above 0; received 0"),
        ({"style": "both"}, "unknown style 'both'; known are layers, whole"),
        ({"features": "max"}, "unknown features 'max'; known are flatten, mean"),
    ],
)
def test_settings_that_make_no_network_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        settings_of("cnn_lstm", settings)


@pytest.mark.parametrize(
    ("settings", "grid", "message"),
    [
        ({"kernel": 9}, (16, 16), "kernel of 9 .* 4 pixels wide .* set a kernel of 7 at most"),
        ({}, (1, 1), r"more than one pixel to convolve; received a grid of \(1, 1\)"),
        ({}, (1, 12), "in multiples of 8 pixels"),
        ({"backbone": "VGG61"}, (16, 16), "unknown backbone 'VGG61'; .* has VGG16, VGG19"),
        ({"backbone": "VGG16"}, (1, 32), "sees rows and columns; the grid is one row of 32"),
        (
            {"backbone": "VGG16", "backbone_alpha": 0.5},
            (16, 16),
            "'VGG16' comes in one width; received backbone_alpha=0.5",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_build(settings, grid, message):
    with pytest.raises(ValueError, match=message):
        _build(settings, grid=grid)


@pytest.mark.proof
@pytest.mark.parametrize("name", ["VGG16", "EfficientNetB0", "MobileNetV3Small", "ResNet50V2"])
def test_other_backbones_are_read_frozen_and_called_once(keras, name, tmp_path):
    from nowcast.networks import backbones

    path = tmp_path / "backbone.weights.h5"
    source = backbones.backbone(name, grid=(16, 16))
    source.layers[-1].save_weights(path)
    settings = {
        "backbone": name,
        "backbone_weights": str(path),
        "trainable": False,
        "filters": [4],
        "units": 4,
    }
    network = _build(settings, grid=(16, 16), head=SERIES)
    initialise("cnn_lstm", network, settings)
    backbone, calls = network.get_layer("backbone"), []
    called = backbone.layer.call
    backbone.layer.call = lambda *args, **kwargs: calls.append(1) or called(*args, **kwargs)
    values = _frames((16, 16))[..., :1]
    outputs = _outputs(backbone, values, training=True)
    assert len(calls) == 1
    backbone.layer.call = called
    expected = np.stack([_outputs(source, values[:, frame]) for frame in range(3)], axis=1)
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-4)
    again = keras.Model.from_config(network.get_config())
    again.set_weights(network.get_weights())
    np.testing.assert_array_equal(
        _outputs(again, _frames((16, 16))), _outputs(network, _frames((16, 16)))
    )


@pytest.mark.proof
def test_every_application_names_its_least_size():
    from nowcast.networks import backbones

    sides = {
        name: backbones._least_side(backbones._application(name, 0.0)) for name in backbones.names()
    }
    assert {"VGG16", "MobileNetV2", "ResNet50", "EfficientNetV2B0", "NASNetMobile"} <= set(sides)
    assert all(32 <= side <= 75 for side in sides.values())


@pytest.mark.proof
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_the_same_holds_under_another_backend(backend):
    if not importlib.util.find_spec(backend):
        pytest.skip(f"{backend} is not installed: pip install nowcast[backends]")
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-p", "no:cacheprovider"]
    environment = {**os.environ, "KERAS_BACKEND": backend}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout
