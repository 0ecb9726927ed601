"""Equal to Keras's layer in all numbers; called once where that is the same."""

import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest

from nowcast.networks import load_keras

FRAMES = np.random.default_rng(0).random((2, 5, 6, 8, 3), np.float32)
SERIES = np.random.default_rng(1).random((2, 5, 7, 3), np.float32)


@pytest.fixture(scope="module")
def keras():
    keras = load_keras()
    keras.utils.set_random_seed(0)
    return keras


def _both(keras, make, *, name="sequence", shape=FRAMES.shape[1:], batch_size=None):
    """Give networks of our wrapper and of Keras's around equal layers with the same weights."""
    from nowcast.networks.layers import TimeDistributed

    networks = []
    for wrapper in (TimeDistributed, keras.layers.TimeDistributed):
        sequence = keras.Input(shape, batch_size=batch_size, name=name)
        networks.append(keras.Model(sequence, wrapper(make())(sequence)))
    ours, stock = networks
    stock.set_weights(ours.get_weights())
    return ours, stock


def _numpy(tensor):
    from keras import ops

    return ops.convert_to_numpy(tensor)


def _counting(layer, calls):
    """Let a layer count its calls."""
    called = layer.call

    def call(*args, **kwargs):
        calls.append(1)
        return called(*args, **kwargs)

    layer.call = call
    return layer


def _cnn(keras, *layers):
    frame = keras.Input(FRAMES.shape[2:])
    field = frame
    for layer in layers:
        field = layer(field)
    return keras.Model(frame, field)


STATELESS = {
    "convolution": lambda k: k.layers.Conv2D(4, 3, strides=2, activation="relu"),
    "transposed": lambda k: k.layers.Conv2DTranspose(4, 4, strides=2, padding="same"),
    "pooling": lambda k: k.layers.MaxPooling2D(2),
    "flatten": lambda k: k.layers.Flatten(),
    "dense": lambda k: k.layers.Dense(4),
    "normalisation of one sample": lambda k: k.layers.LayerNormalization(),
    "network": lambda k: _cnn(
        k, k.layers.Conv2D(4, 3), k.layers.MaxPooling2D(2), k.layers.Flatten()
    ),
    "sequential": lambda k: k.Sequential([k.layers.Conv2D(2, 3), k.layers.Flatten()]),
}


@pytest.mark.parametrize("kind", STATELESS)
def test_the_numbers_are_those_of_keras_forward_and_in_gradients(keras, kind):
    ours, stock = _both(keras, lambda: STATELESS[kind](keras))
    assert ours.output_shape == stock.output_shape
    outputs = _numpy(ours(FRAMES))
    np.testing.assert_allclose(outputs, _numpy(stock(FRAMES)), atol=1e-6)
    if not ours.trainable_weights:
        return
    before = ours.get_weights()
    for network in (ours, stock):
        network.compile(keras.optimizers.SGD(1.0), "mse", run_eagerly=True)
        network.train_on_batch(FRAMES, np.ones_like(outputs))
    # With a rate of 1 the weights have moved by the gradients.
    assert any(
        np.abs(new - old).max() > 1e-3 for new, old in zip(ours.get_weights(), before, strict=True)
    )
    for new, of_keras in zip(ours.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_allclose(new, of_keras, atol=1e-5)


@pytest.mark.parametrize("training", [False, True])
def test_a_layer_without_a_state_is_called_once(keras, training):
    from nowcast.networks.layers import TimeDistributed

    wrapped, calls = TimeDistributed(_counting(keras.layers.Conv2D(2, 3), [])), []
    _counting(wrapped.layer, calls)
    wrapped(FRAMES, training=training)
    assert len(calls) == 1


def test_batch_and_number_of_frames_may_be_unknown(keras):
    from nowcast.networks.layers import TimeDistributed

    sequence = keras.Input((None, *FRAMES.shape[2:]))
    layer = keras.layers.Conv2D(4, 3)
    network = keras.Model(sequence, TimeDistributed(layer)(sequence))
    assert network.output_shape == (None, None, 4, 6, 4)
    for frames in (FRAMES, FRAMES[:1, :2]):
        one_by_one = [_numpy(layer(frames[:, frame])) for frame in range(frames.shape[1])]
        np.testing.assert_allclose(
            network.predict(frames, verbose=0), np.stack(one_by_one, axis=1), atol=1e-6
        )


def test_height_and_width_may_be_unknown(keras):
    ours, _ = _both(keras, lambda: keras.layers.Conv2D(4, 3), shape=(None, None, None, 3))
    assert ours.predict(FRAMES, verbose=0).shape == (2, 5, 4, 6, 4)
    assert ours.predict(FRAMES[:, :, :5, :4], verbose=0).shape == (2, 5, 3, 2, 4)


def test_batch_normalisation_in_training_is_by_frame_as_in_keras(keras):
    from nowcast.networks.layers import TimeDistributed

    frames = FRAMES * np.arange(1, 6, dtype=np.float32)[:, None, None, None]
    ours, stock = _both(keras, keras.layers.BatchNormalization)
    outputs = _numpy(ours(frames, training=True))
    np.testing.assert_array_equal(outputs, _numpy(stock(frames, training=True)))
    for new, of_keras in zip(ours.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_array_equal(new, of_keras)
    # Had the frames been one batch, the brighter ones would still be the brighter ones.
    np.testing.assert_allclose(outputs.mean(axis=(0, 2, 3)), 0.0, atol=1e-3)
    assert np.abs(ours.get_weights()[2]).max() > 0.0
    calls = []
    wrapped = TimeDistributed(_counting(keras.layers.BatchNormalization(), calls))
    wrapped(frames, training=True)
    assert len(calls) == 5


@pytest.mark.parametrize("frozen", [True, False])
def test_batch_normalisation_at_rest_is_called_once(keras, frozen):
    from nowcast.networks.layers import TimeDistributed

    layer, calls = keras.layers.BatchNormalization(trainable=not frozen), []
    wrapped = TimeDistributed(_cnn(keras, _counting(layer, calls)))
    wrapped.build(FRAMES.shape)
    calls.clear()
    outputs = _numpy(wrapped(FRAMES, training=frozen))
    assert len(calls) == 1
    np.testing.assert_allclose(outputs, FRAMES / np.sqrt(1.001), rtol=1e-5)


def test_dropout_is_drawn_for_each_frame_as_in_keras(keras):
    ours, stock = _both(keras, lambda: keras.layers.Dropout(0.5, seed=3))
    ones = np.ones_like(FRAMES)
    outputs = _numpy(ours(ones, training=True))
    np.testing.assert_array_equal(outputs, _numpy(stock(ones, training=True)))
    assert (outputs[:, 0] != outputs[:, 1]).any()
    np.testing.assert_array_equal(_numpy(ours(ones, training=False)), ones)


def test_a_stateful_layer_keeps_its_state_from_frame_to_frame_as_in_keras(keras):
    ours, stock = _both(
        keras, lambda: keras.layers.LSTM(4, stateful=True), shape=SERIES.shape[1:], batch_size=2
    )
    first, second = _numpy(ours(SERIES)), _numpy(ours(SERIES))
    np.testing.assert_allclose(first, _numpy(stock(SERIES)), atol=1e-6)
    np.testing.assert_allclose(second, _numpy(stock(SERIES)), atol=1e-6)
    assert np.abs(first - second).max() > 1e-4


def test_a_state_that_is_not_known_is_kept_frame_by_frame(keras):
    from nowcast.networks.layers import TimeDistributed

    class Numbering(keras.layers.Layer):
        def build(self, _shape):
            self.number = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, inputs):
            self.number.assign(self.number + 1.0)
            return inputs * 0.0 + self.number

    numbered = _numpy(TimeDistributed(_cnn(keras, Numbering()))(FRAMES))
    assert numbered[0, :, 0, 0, 0].tolist() == [1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_mask_reaches_the_layer(keras):
    from nowcast.networks.layers import TimeDistributed

    mask = np.arange(7) < np.array([[[3]] * 5, [[6]] * 5])
    ours = TimeDistributed(keras.layers.LSTM(4))
    masked = _numpy(ours(SERIES, mask=keras.ops.convert_to_tensor(mask)))
    stock = keras.layers.TimeDistributed(keras.layers.LSTM(4))
    stock.build(SERIES.shape)
    stock.set_weights(ours.get_weights())
    of_keras = _numpy(stock(SERIES, mask=keras.ops.convert_to_tensor(mask)))
    np.testing.assert_allclose(masked, of_keras, atol=1e-6)
    # What is masked does not count: the same as if the sequence ended there.
    np.testing.assert_allclose(masked[0], _numpy(ours(SERIES[:, :, :3]))[0], atol=1e-6)


def test_a_mask_of_other_frames_is_refused(keras):
    from nowcast.networks.layers import TimeDistributed

    with pytest.raises(ValueError, match="incompatible with the input"):
        TimeDistributed(keras.layers.LSTM(4))(SERIES, mask=keras.ops.ones((2, 4, 7), "bool"))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_is_that_of_keras(keras, policy):
    ours, stock = _both(keras, lambda: keras.layers.Conv2D(4, 3, dtype=policy))
    stock.layers[-1].dtype_policy = policy
    outputs = ours(FRAMES)
    assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix("mixed_")
    given = _numpy(keras.ops.cast(outputs, "float32"))
    of_keras = _numpy(keras.ops.cast(stock(FRAMES), "float32"))
    np.testing.assert_array_equal(given, of_keras)


def test_a_layer_of_32_bits_stays_so_in_a_network_of_mixed_precision(keras):
    from nowcast.networks.layers import TimeDistributed

    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        outputs = TimeDistributed(keras.layers.Dense(2, dtype="float32"))(FRAMES)
        halved = TimeDistributed(keras.layers.Dense(2))(FRAMES)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert keras.backend.standardize_dtype(outputs.dtype) == "float32"
    assert keras.backend.standardize_dtype(halved.dtype) == "bfloat16"


def test_it_is_rebuilt_from_its_configuration(keras):
    ours, _ = _both(keras, lambda: STATELESS["network"](keras))
    again = keras.Model.from_config(ours.get_config())
    again.set_weights(ours.get_weights())
    np.testing.assert_array_equal(_numpy(again(FRAMES)), _numpy(ours(FRAMES)))


def test_weights_saved_from_keras_layer_load(keras, tmp_path):
    ours, stock = _both(keras, lambda: STATELESS["network"](keras))
    stock.set_weights([weight + 1.0 for weight in stock.get_weights()])
    stock.save_weights(tmp_path / "stock.weights.h5")
    ours.load_weights(tmp_path / "stock.weights.h5")
    for new, of_keras in zip(ours.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_array_equal(new, of_keras)


def test_a_network_may_give_several_outputs(keras):
    from nowcast.networks.layers import TimeDistributed

    frame = keras.Input(FRAMES.shape[2:])
    field = keras.layers.Conv2D(2, 3)(frame)
    sequence = keras.Input(FRAMES.shape[1:])
    both = TimeDistributed(keras.Model(frame, [field, keras.layers.Flatten()(field)]))(sequence)
    assert [output.shape for output in both] == [(None, 5, 4, 6, 2), (None, 5, 48)]
    fields, flat = keras.Model(sequence, both)(FRAMES)
    np.testing.assert_array_equal(_numpy(fields).reshape(2, 5, 48), _numpy(flat))


def test_a_frozen_network_is_out_of_training_whatever_the_call_says(keras):
    from nowcast.networks.layers import Frozen

    calls = []
    layers = keras.layers.BatchNormalization(), keras.layers.Dropout(0.5), keras.layers.Dense(2)
    frozen = Frozen(_cnn(keras, *layers))
    before = frozen.get_weights()
    _counting(frozen.layer, calls)
    outputs = _numpy(frozen(FRAMES, training=True))
    np.testing.assert_array_equal(outputs, _numpy(frozen(FRAMES, training=False)))
    assert len(calls) == 2
    assert not frozen.trainable_weights
    for old, new in zip(before, frozen.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


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
