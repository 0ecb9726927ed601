import numpy as np
import pandas as pd
import pytest

from nowcast.conventions import RAIN_RATE, REFLECTIVITY, Variable
from nowcast.rainrate import Transform, to_reflectivity
from nowcast.training import fit, masked_loss, prepare

TRANSFORM = Transform("log", reference=5.0, top=3.0)
TEMPERATURE = Variable("t2m", "K", "temperature", "air_temperature", 150.0, 350.0)


def _loss(kind, targets, forecasts, variable=RAIN_RATE, transform=TRANSFORM):
    shape = (1, 1, 1, len(targets), 1)
    scaled = [np.reshape(transform.forward(np.array(x)), shape).astype("f4")
              for x in (targets, forecasts)]  # fmt: skip
    return float(masked_loss(kind, variable, transform)(*scaled))


@pytest.mark.parametrize("kind", ["mse", "mae", "balanced"])
def test_a_missing_pixel_weighs_nothing(kind):
    with_missing = _loss(kind, [1.0, np.nan], [2.0, 50.0])
    assert with_missing == pytest.approx(_loss(kind, [1.0], [2.0]), rel=1e-6)
    assert _loss(kind, [np.nan, np.nan], [2.0, 50.0]) == 0.0


@pytest.mark.parametrize("kind", ["mse", "mae", "balanced"])
def test_a_missing_pixel_has_no_gradient(kind):
    import tensorflow as tf

    loss = masked_loss(kind, RAIN_RATE, TRANSFORM)
    targets = tf.constant([[0.5, np.nan, 0.1]])
    forecasts = tf.Variable([[0.1, 0.3, 0.6]])
    with tf.GradientTape() as tape:
        value = loss(targets, forecasts)
    gradient = tape.gradient(value, forecasts).numpy()[0]
    assert gradient[1] == 0.0
    assert np.isfinite(gradient).all()
    assert gradient[0] < 0 < gradient[2]


def test_heavier_rain_weighs_more_in_the_balanced_loss():
    light = _loss("balanced", [1.0], [0.0]) / _loss("mse", [1.0], [0.0])
    heavy = _loss("balanced", [20.0], [0.0]) / _loss("mse", [20.0], [0.0])
    extreme = _loss("balanced", [200.0], [0.0]) / _loss("mse", [200.0], [0.0])
    assert light == pytest.approx(2.0, rel=1e-4)
    assert heavy == pytest.approx(21.0, rel=1e-4)
    assert extreme == pytest.approx(24.0, rel=1e-4)


def test_the_balance_is_by_rain_rate_for_reflectivity_too():
    scale = Transform("linear", top=60.0)
    dbz = float(to_reflectivity(np.array([20.0]))[0])
    ratio = _loss("balanced", [dbz], [0.0], REFLECTIVITY, scale) / _loss(
        "mse", [dbz], [0.0], REFLECTIVITY, scale
    )
    assert ratio == pytest.approx(21.0, rel=1e-4)


def test_the_balanced_loss_is_for_rain_only():
    with pytest.raises(ValueError, match="is for rain"):
        masked_loss("balanced", TEMPERATURE, TRANSFORM)


def test_training_lowers_the_loss(small_config, small_observed, tmp_path):
    config = small_config.replace(["training.epochs=4", "training.patience=4"])
    figures = []
    fit(
        config,
        prepare(config, small_observed, work=tmp_path),
        on_epoch=lambda epoch, values: figures.append((epoch, values)),
        verbose=0,
    )
    assert [epoch for epoch, _ in figures] == [0, 1, 2, 3]
    assert figures[-1][1]["loss"] < 0.8 * figures[0][1]["loss"]
    assert {"val_loss", "seconds"} <= set(figures[0][1])


def test_the_same_seed_gives_the_same_weights(small_config, small_observed, tmp_path):
    prepared = prepare(small_config, small_observed, work=tmp_path)
    one, other = (fit(small_config, prepared, verbose=0) for _ in range(2))
    frames = small_observed["rain_rate"].values[None, :3]
    np.testing.assert_array_equal(one.forecast(frames), other.forecast(frames))


def test_training_stops_early_and_keeps_the_best_epoch(small_config, small_observed, tmp_path):
    config = small_config.replace(
        ["training.epochs=30", "training.patience=1", "training.learning_rate=0.5"]
    )
    losses = []
    prepared = prepare(config, small_observed, work=tmp_path)
    nowcaster = fit(
        config,
        prepared,
        on_epoch=lambda _, values: losses.append(values["val_loss"]),
        verbose=0,
    )
    assert len(losses) < 30
    assert losses[-1] > min(losses)
    assert _validation_loss(config, prepared, nowcaster) == pytest.approx(min(losses), rel=1e-3)


def _validation_loss(config, prepared, nowcaster):
    """Keras's mean over validation batches, weighted by their size, of this nowcaster."""
    from nowcast.frames import Batches
    from nowcast.networks import build
    from nowcast.training import window_of

    settings = nowcaster.settings
    network = build(
        settings.network,
        settings=settings.network_settings,
        input_frames=3,
        lead_frames=2,
        grid=settings.grid,
    )
    network.set_weights(nowcaster.weights)
    batches = Batches(
        prepared.frames,
        times=prepared.times,
        base_times=prepared.base_times(window_of(config), "validation"),
        window=window_of(config),
        transform=settings.transform,
        batch_size=config.training.batch_size,
    )
    loss = masked_loss(config.training.loss, settings.variable, settings.transform)
    parts = [
        (len(inputs), float(loss(targets, np.asarray(network(inputs)))))
        for inputs, targets in (batches[index] for index in range(len(batches)))
    ]
    return sum(count * value for count, value in parts) / sum(count for count, _ in parts)


def test_a_training_that_diverges_saves_nothing(small_config, small_observed, tmp_path):
    config = small_config.replace(["training.learning_rate=1e38"])
    with pytest.raises(ValueError, match=r"diverged.*training\.learning_rate"):
        fit(config, prepare(config, small_observed, work=tmp_path), verbose=0)


def test_training_stops_at_its_time_limit(small_config, small_observed, tmp_path):
    config = small_config.replace(["training.epochs=100000", "training.minutes=0.05"])
    seconds = []
    fit(
        config,
        prepare(config, small_observed, work=tmp_path),
        on_epoch=lambda _, values: seconds.append(values["seconds"]),
        verbose=0,
    )
    assert 3.0 <= seconds[-1] < 30.0


def test_a_crop_fits_the_network_on_a_grid_that_does_not(small_config, small_observed, tmp_path):
    odd = small_observed.isel(y=slice(14), x=slice(15))
    nowcaster = fit(small_config, prepare(small_config, odd, work=tmp_path), verbose=0)
    assert nowcaster.settings.grid == (12, 12)


def test_a_block_without_a_window_is_refused(small_config, small_observed, tmp_path):
    config = small_config.replace(["window.lead_frames=12"])
    prepared = prepare(config, small_observed, work=tmp_path)
    with pytest.raises(ValueError, match="holds no whole window"):
        fit(config, prepared, verbose=0)


def test_what_was_trained_on_is_saved_with_it(trained):
    _, made = trained
    provenance = made.nowcaster.settings.provenance
    assert len(provenance["data_fingerprint"]) == 16
    start, end = (pd.Timestamp(time) for time in provenance["train_block"].split("/"))
    assert start < end < pd.Timestamp(provenance["test_block"].split("/")[0])
