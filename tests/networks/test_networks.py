import numpy as np
import pytest

from nowcast.networks import NETWORKS, build, settings_of

SMALL = {"convlstm": {"filters": [8, 4]}, "cnn_lstm": {"filters": [4, 8], "units": 16}}


@pytest.fixture(params=sorted(NETWORKS))
def name(request):
    return request.param


def _build(name, grid=(16, 24), **settings):
    return build(
        name, settings={**SMALL[name], **settings}, input_frames=3, lead_frames=5, grid=grid
    )


def test_frames_in_lead_frames_out(name):
    network = _build(name)
    frames = np.random.default_rng(0).random((2, 3, 16, 24, 2), np.float32)
    outputs = np.asarray(network(frames))
    assert outputs.shape == (2, 5, 16, 24, 1)
    assert np.isfinite(outputs).all()


def test_the_output_depends_on_every_input_frame(name):
    network = _build(name)
    frames = np.random.default_rng(0).random((1, 3, 16, 24, 2), np.float32)
    before = np.asarray(network(frames))
    for frame in range(3):
        changed = frames.copy()
        changed[:, frame] += 1.0
        assert np.abs(np.asarray(network(changed)) - before).max() > 1e-6


def test_a_few_steps_lower_the_loss(name):
    import keras

    keras.utils.set_random_seed(0)
    network = _build(name)
    network.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=False)
    frames = np.random.default_rng(0).random((4, 3, 16, 24, 2), np.float32)
    targets = np.repeat(frames[:, -1:, ..., :1], 5, axis=1)
    losses = [network.train_on_batch(frames, targets) for _ in range(20)]
    assert losses[-1] < 0.7 * losses[0]


def test_an_unknown_setting_is_named(name):
    with pytest.raises(ValueError, match=r"has no setting depth; it has .*filters"):
        settings_of(name, {"depth": 3})


def test_an_unknown_network_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="known are cnn_lstm, convlstm"):
        settings_of("transformer", {})


def test_a_grid_that_does_not_fit_is_refused(name):
    with pytest.raises(ValueError, match="multiples of 4"):
        _build(name, grid=(18, 24))


def test_patches_can_be_undone():
    from nowcast.networks.convlstm import from_patches, to_patches

    frames = np.random.default_rng(0).random((2, 3, 8, 12, 2), np.float32)
    patches = to_patches(frames, 4)
    assert patches.shape == (2, 3, 2, 3, 32)
    np.testing.assert_array_equal(np.asarray(from_patches(patches, 4)), frames)
    # The first patch holds the upper left square, row by row.
    np.testing.assert_array_equal(
        np.asarray(patches)[0, 0, 0, 0].reshape(4, 4, 2), frames[0, 0, :4, :4]
    )


def test_the_forecaster_starts_in_the_encoder_states():
    network = build(
        "convlstm", settings={"filters": [4]}, input_frames=2, lead_frames=1, grid=(8, 8)
    )
    recurrent = [layer for layer in network.layers if "lstm" in layer.name.lower()]
    assert len(recurrent) == 2
    encoder, forecaster = recurrent
    frames = np.random.default_rng(0).random((1, 2, 8, 8, 2), np.float32)
    before = np.asarray(network(frames))
    encoder.set_weights([np.zeros_like(weight) for weight in encoder.get_weights()])
    # The forecaster has no other input, so without states nothing depends on the frames.
    after = np.asarray(network(frames))
    other = np.asarray(network(frames + 1))
    assert np.abs(before - after).max() > 1e-6
    np.testing.assert_array_equal(after, other)
    assert forecaster.get_weights()
