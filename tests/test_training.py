import dataclasses
import subprocess
import sys
from pathlib import Path

import dask
import numpy as np
import pandas as pd
import pytest

from nowcast.cache import Coding, open_cache
from nowcast.config import validate
from nowcast.conventions import RAIN_RATE, REFLECTIVITY
from nowcast.devices import computing_in, feed, feed_tf_data, on_codes
from nowcast.experiments import continuing
from nowcast.frames import Batches, Window, as_inputs
from nowcast.networks import version_of
from nowcast.networks.heads import Head
from nowcast.networks.losses import loss_of
from nowcast.nowcasters.motions import motions_of
from nowcast.nowcasters.neural import NeuralNowcaster
from nowcast.rainrate import Transform
from nowcast.tracking import Tracking
from nowcast.training import (
    _batches,
    _optimizer,
    _weights_for,
    blocks_of,
    checkpoint_of,
    fit,
    plan_of,
    prepare,
    prepared_of,
    train,
    window_of,
)

TRANSFORM = Transform("log", reference=5.0, top=3.0)
# Of a network that sees motion, as that of the fixture `doubtful`.
LAGRANGIAN = [
    "network.name=lagrangian",
    "network.settings={filters=[4, 8]}",
    "network.head=exceedance",
    "network.levels=[0.2, 1.0, 5.0]",
    "training.loss=ordinal",
]


def test_codes_become_what_the_network_takes_on_the_device():
    import keras

    coding = Coding("uint16", 0.5, 0.0, 100.0, "mm h-1")
    frames = np.array([[[[0.0, np.nan, 2.5], [100.0, 0.5, np.nan]]]], np.float32)
    same = keras.Sequential([keras.Input((1, 2, 3, 2)), keras.layers.Activation("linear")])
    model = on_codes(same, None, coding=coding, transform=TRANSFORM)
    given = np.asarray(model(coding.encode(frames)))
    np.testing.assert_allclose(given, as_inputs(TRANSFORM.forward(frames)), rtol=1e-6)


@pytest.mark.parametrize("kind", ["mse", "mae", "balanced"])
def test_the_loss_of_codes_is_that_of_their_values(kind):
    import keras

    coding = Coding("uint16", 0.02, 0.0, 1000.0, "mm h-1")
    values = np.array([[0.0, np.nan, 2.5, 999.98, 30.0]])
    forecasts = np.array([[0.2, 0.3, 0.4, 0.5, 0.6]], np.float32)
    loss = loss_of(kind, head=Head(), variable=RAIN_RATE, transform=TRANSFORM)
    same = keras.Sequential([keras.Input((1, 2, 3, 2)), keras.layers.Activation("linear")])
    model = on_codes(same, loss, coding=coding, transform=TRANSFORM)
    of_codes = model.compute_loss(None, coding.encode(values), forecasts)
    of_values = loss(TRANSFORM.forward(values).astype("f4"), forecasts)
    assert float(of_codes) == pytest.approx(float(of_values), rel=1e-6)


def test_a_loss_that_does_not_fit_the_head_is_refused_before_anything_is_read(
    small_config, small_observed
):
    from nowcast.training import train

    def refuse(*_, **__):
        raise AssertionError("computed")

    wrong = {
        "'balanced' does not fit the head 'quantiles'": ["quantiles", "network.levels=[0.1, 0.9]"],
        "needs network.levels, rising thresholds": ["exceedance"],
    }
    for message, (head, *others) in wrong.items():
        config = small_config.replace([f"network.head={head}", *others])
        with dask.config.set(scheduler=refuse), pytest.raises(ValueError, match=message):
            train(config, small_observed.chunk(time=1), tracking=None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["network.settings.kernel=63"], "kernel of 63 cannot fit .* 4 x 4"),
        (
            ["network.settings.kernel=5", "training.crop_pixels=8"],
            "kernel of 5 cannot fit .* 2 x 2",
        ),
        (["training.devices=2"], r"training\.devices=2 needs the backend jax"),
        (["transform.offset=0.61"], r"valid_min=0\.0 .* no network would learn from it"),
    ],
)
def test_what_cannot_be_built_or_shared_out_is_refused_before_anything_is_read(
    small_config, small_observed, tmp_path, changes, message
):
    def refuse(*_, **__):
        raise AssertionError("computed")

    config, tracking = small_config.replace(changes), Tracking(tmp_path / "work")
    with dask.config.set(scheduler=refuse), pytest.raises(ValueError, match=message):
        train(config, small_observed.chunk(time=1), tracking=tracking, verbose=0)
    assert not tracking.work.exists()


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


@pytest.mark.parametrize("workers", [1, 2])
def test_keras_gets_every_batch_in_order_and_whole(small_config, small_observed, tmp_path, workers):
    """The codes pass unchanged through threads, queues and memory that is used again."""
    import keras

    prepared = prepare(small_config, small_observed, work=tmp_path)
    batches = Batches(
        prepared.cache,
        plan_of(small_config, prepared, "train"),
        window=window_of(small_config),
        batch_size=1,
        seed=4,
    )
    expected = [int(batches[index][0].sum()) for index in range(len(batches))]
    codes = keras.Input((3, 16, 16), dtype="uint16")
    total = keras.ops.sum(keras.ops.cast(codes, "int32"), axis=(1, 2, 3))
    model = keras.Model(codes, total)
    found = model.predict(feed(batches, workers=workers), verbose=0)
    assert found.tolist() == expected


def test_keras_gets_the_motion_with_every_batch(small_config, small_observed, tmp_path):
    import keras

    config = small_config.replace([*LAGRANGIAN, "training.augment=true", "training.batch_size=2"])
    prepared = prepare(config, small_observed, work=tmp_path)
    batches = _batches(config, prepared, "train", seed=4)
    expected = [
        (int(frames.sum()), float(motion[:, 0].sum()))
        for frames, motion in (batches[index][0] for index in range(len(batches)))
    ]
    codes = keras.Input((3, 16, 16), dtype="uint16")
    motion = keras.Input((2, 16, 16))
    sums = [
        keras.ops.sum(keras.ops.cast(codes, "float32"), axis=(1, 2, 3)),
        keras.ops.sum(motion[:, 0], axis=(1, 2)),
    ]
    model = keras.Model([codes, motion], sums)
    found = model.predict(feed(batches, workers=2), verbose=0)
    both = [one[: 2 * (len(one) // 2)].reshape(-1, 2).sum(axis=1) for one in found]
    whole = expected[: len(both[0])]
    np.testing.assert_allclose(np.stack(both, axis=1), whole, rtol=1e-5, atol=1e-3)
    assert np.abs(both[1]).max() > 1.0
    # It is that of the base times, neither of the first nor of the last frames.
    first = plan_of(config, prepared, "train").first[batches._order[:2]]
    plain = motions_of(prepared.cache, RAIN_RATE)[first + 2]
    np.testing.assert_allclose(
        np.abs(batches[0][0][1]).sum(axis=(1, 2, 3)),
        np.abs(plain.astype(np.float32)).sum(axis=(1, 2, 3)),
        rtol=1e-4,
    )


def _drawn(config, prepared, **settings):
    """Batches of two, of which the last of an epoch is smaller."""
    planned = plan_of(config, prepared, "train")
    assert len(planned) % 2
    window = window_of(config)
    return Batches(prepared.cache, planned, window=window, batch_size=2, seed=4, **settings)


def test_tf_data_gives_every_byte_of_two_epochs_while_memory_is_used_again(
    small_config, small_observed, tmp_path
):
    prepared = prepare(small_config, small_observed, work=tmp_path)
    batches = _drawn(small_config, prepared, augment=True)
    expected = []
    for _ in range(2):
        batches.next_epoch()
        expected.append([[part.copy() for part in batches[n]] for n in range(len(batches))])
    dataset = feed_tf_data(_drawn(small_config, prepared, augment=True), workers=3)
    # Kept until all are read: one that aliased memory given away would have been overwritten.
    kept = [list(dataset) for _ in range(2)]
    for epoch, wanted in zip(kept, expected, strict=True):
        assert len(epoch) == len(wanted)
        for found, parts in zip(epoch, wanted, strict=True):
            for mine, its in zip(found, parts, strict=True):
                assert mine.dtype == its.dtype
                np.testing.assert_array_equal(mine.numpy(), its)
    assert any(
        (one[0] != other[0]).any()
        for one, other in zip(expected[0][:-1], expected[1][:-1], strict=True)
    )


def test_tf_data_gives_the_motion_too(small_config, small_observed, tmp_path):
    prepared = prepare(small_config, small_observed, work=tmp_path)
    motions = motions_of(prepared.cache, RAIN_RATE)
    dataset = feed_tf_data(_drawn(small_config, prepared, motions=motions), workers=2)
    (frames, motion), targets = dataset.element_spec
    assert frames.shape.as_list() == [None, 3, 16, 16]
    assert motion.shape.as_list() == [None, 2, 16, 16]
    assert targets.shape.as_list() == [None, 2, 16, 16, 1]
    batches = _drawn(small_config, prepared, motions=motions)
    batches.next_epoch()
    for index, (inputs, leads) in enumerate(dataset):
        wanted, its = batches[index]
        for mine, expected in zip((*inputs, leads), (*wanted, its), strict=True):
            np.testing.assert_array_equal(mine.numpy(), expected)


def test_tf_data_knows_shapes_and_counts(small_config, small_observed, tmp_path):
    prepared = prepare(small_config, small_observed, work=tmp_path)
    batches = _drawn(small_config, prepared)
    dataset = feed_tf_data(batches, workers=2, limit=3)
    inputs, targets = dataset.element_spec
    assert inputs.shape.as_list() == [None, 3, 16, 16]
    assert targets.shape.as_list() == [None, 2, 16, 16, 1]
    assert dataset.cardinality() == len(list(dataset)) == 3
    assert feed_tf_data(batches).cardinality() == len(batches)


def test_whatever_the_feed_and_its_threads_a_seed_gives_the_same_weights(
    small_config, small_observed, tmp_path, monkeypatch
):
    """And the same losses, to the last digit."""
    prepared = prepare(small_config, small_observed, work=tmp_path)
    settings = ["training.epochs=2", "training.augment=true", "training.sampling=wet"]
    histories, weights = [], []
    for one, workers in ((feed, 1), (feed, 3), (feed_tf_data, 2)):
        monkeypatch.setattr("nowcast.training.feed", one)
        history = []
        fitted = fit(
            small_config.replace([*settings, f"training.workers={workers}"]),
            prepared,
            on_epoch=lambda _, figures, to=history: to.append(
                (figures["loss"], figures["val_loss"])
            ),
            verbose=0,
        )
        histories.append(history)
        weights.append(fitted.weights)
    assert histories[0] == histories[1] == histories[2]
    assert len(set(histories[0])) == 2
    for mine, *others in zip(*weights, strict=True):
        for its in others:
            np.testing.assert_array_equal(mine, its)


def test_no_frame_outside_of_the_periods_is_read(small_config, small_observed, tmp_path):
    times = small_observed["time"].to_index()
    periods = {"train": (0, 18), "validation": (19, 30), "test": (38, 50)}
    config = small_config.replace(
        [f"split.{name}={times[a].isoformat()}/{times[b].isoformat()}"
         for name, (a, b) in periods.items()]
    )  # fmt: skip
    holed = small_observed.copy(deep=True)
    holed["rain_rate"][31:38] = 5000.0  # would be refused if it were read
    prepared = prepare(config, holed.chunk(time=1), work=tmp_path)
    inside = [place for a, b in periods.values() for place in range(a, b + 1)]
    assert list(prepared.cache.times) == list(times[inside])
    assert prepared.provenance["train_block"] == f"{times[0].isoformat()}/{times[18].isoformat()}"


def test_stretches_are_dealt_and_no_window_reaches_over_two(small_config, small_observed, tmp_path):
    shares = ["split.validation_fraction=0.3", "split.test_fraction=0.3"]
    config = small_config.replace([*shares, "split.stretch_hours=1", "split.guard_minutes=10"])
    prepared = prepare(config, small_observed, work=tmp_path)
    assert sum(len(block.pieces) for block in prepared.blocks.values()) == 12  # three events
    times = small_observed["time"].to_index()
    assert prepared.blocks == blocks_of(config, small_observed)
    offsets = window_of(config).offsets
    for name, block in prepared.blocks.items():
        bases = plan_of(config, prepared, name).base_times
        # Of the six frames of an hour the last one is the guard; windows of five have one place.
        assert len(bases) > 0
        assert ((bases + offsets[-1]).floor("h") == (bases + offsets[0]).floor("h")).all()
        assert block.holds(bases + offsets[0], bases + offsets[-1]).all()
    assert len(prepared.cache.times) == len(times)
    assert prepared.provenance["test_block"].count("/") == len(prepared.blocks["test"].pieces)


def test_several_periods_are_read_and_what_lies_between_is_not(
    small_config, small_observed, tmp_path
):
    times = small_observed["time"].to_index()

    def period(*ends):
        return " ".join(f"{times[a].isoformat()}/{times[b].isoformat()}" for a, b in ends)

    config = small_config.replace(
        [
            f"split.train={period((0, 8), (19, 30))}",
            f"split.validation={period((10, 18))}",
            f"split.test={period((38, 50))}",
        ]
    )
    holed = small_observed.copy(deep=True)
    holed["rain_rate"][[9, *range(31, 38)]] = 5000.0  # would be refused if it were read
    prepared = prepare(config, holed.chunk(time=1), work=tmp_path)
    inside = [*range(9), *range(10, 31), *range(38, 51)]
    assert list(prepared.cache.times) == list(times[inside])
    bases = plan_of(config, prepared, "train").base_times
    assert list(bases) == [*times[2:7], *times[21:29]]
    assert prepared.provenance["train_block"] == period((0, 8), (19, 30))


def test_a_validation_is_thinned_evenly_and_the_training_is_not(
    small_config, small_observed, tmp_path
):
    config = small_config.replace(["training.validation_windows=5"])
    prepared = prepare(config, small_observed, work=tmp_path)
    every, few = (plan_of(one, prepared, "validation").base_times for one in (small_config, config))
    places = every.get_indexer(few)
    assert places[[0, -1]].tolist() == [0, len(every) - 1]
    assert len(few) == 5
    assert np.ptp(np.diff(places)) <= 1
    for block in ("train", "test"):
        assert len(plan_of(config, prepared, block)) == len(plan_of(small_config, prepared, block))


def test_an_epoch_has_as_many_steps_as_are_asked_for_and_a_validation_its_windows(
    small_config, small_observed, tmp_path, monkeypatch
):
    import keras

    config = small_config.replace(
        [
            "training.epochs=2",
            "training.batch_size=4",
            "training.steps_per_epoch=9",
            "training.validation_windows=5",
        ]
    )
    prepared = prepare(config, small_observed, work=tmp_path)
    assert len(plan_of(config, prepared, "train")) < 9 * 4
    steps, validated, fitted = [], [], keras.Model.fit

    def watched(self, *arguments, callbacks, **settings):
        class Watch(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
                steps.append(batch)

            def on_test_batch_end(self, batch, logs=None):  # noqa: ARG002
                validated.append(batch)

        return fitted(self, *arguments, callbacks=[*callbacks, Watch()], **settings)

    monkeypatch.setattr(keras.Model, "fit", watched)
    fit(config, prepared, verbose=0)
    assert steps == [*range(9), *range(9)]
    assert validated == [0, 1, 0, 1]  # batches, of four windows and of one


def test_a_cache_made_elsewhere_is_divided_in_the_same_way(small_config, small_observed, tmp_path):
    prepared = prepare(small_config, small_observed, work=tmp_path)
    again = prepared_of(small_config, open_cache(prepared.cache.folder))
    assert again.blocks == prepared.blocks
    assert again.provenance == prepared.provenance


def test_a_cache_with_another_coding_is_refused(small_config, small_observed, tmp_path):
    prepared = prepare(small_config, small_observed, work=tmp_path)
    with pytest.raises(ValueError, match="prepare the data again"):
        prepared_of(small_config.replace(["data.step=0.1"]), prepared.cache)


def test_sampling_by_wetness_is_for_rain_only(small_config, small_observed, tmp_path):
    prepared = prepare(small_config, small_observed, work=tmp_path)
    config = small_config.replace(
        [
            "variable={name='t2m', units='K', long_name='t2m', valid_min=180, valid_max=340}",
            "training.sampling=wet",
        ]
    )
    with pytest.raises(ValueError, match="is for rain, not 't2m'"):
        plan_of(config, prepared, "train")
    assert plan_of(config, prepared, "validation").chances is None


def test_the_chances_of_windows_are_logged(small_config, small_observed, tmp_path):
    from nowcast.tracking import Tracking
    from nowcast.training import train

    config = small_config.replace(["training.sampling=intense"])
    tracking = Tracking(tmp_path)
    made = train(config, small_observed, tracking=tracking, verbose=0)
    client = tracking.connect().MlflowClient()
    logged = client.get_run(made.run_id).data.params
    planned = plan_of(config, prepare(config, small_observed, work=tmp_path), "train")
    assert logged["sampled.kind"] == "intense"
    assert float(logged["sampled.highest_chance"]) == pytest.approx(
        planned.summary()["highest_chance"]
    )
    table = client.download_artifacts(made.run_id, "windows.csv", str(tmp_path))
    assert Path(table).read_text() == planned.table()


def _without(modules, code):
    """Run code where some modules cannot be imported; give the last word it prints."""
    blocked = "import sys\n" + "".join(f"sys.modules[{name!r}] = None\n" for name in modules)
    done = subprocess.run([sys.executable, "-c", blocked + code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


OPENED = """
from nowcast import training
from nowcast.cache import open_cache
from nowcast.config import Config
config = Config.model_validate_json({settings!r})
prepared = training.prepared_of(config, open_cache({folder!r}))
"""


def test_fitting_from_a_cache_needs_neither_dask_nor_mlflow_nor_netcdf(
    small_config, small_observed, tmp_path
):
    prepared = prepare(small_config, small_observed, work=tmp_path)
    opened = OPENED.format(
        settings=small_config.model_dump_json(), folder=str(prepared.cache.folder)
    )
    fitted = (
        "weights = training.fit(config, prepared, verbose=0).weights\n"
        "print(sum(float(weight.sum()) for weight in weights))"
    )
    modules = ("dask", "distributed", "mlflow", "netCDF4", "h5netcdf", "zarr")
    here = sum(float(weight.sum()) for weight in fit(small_config, prepared, verbose=0).weights)
    assert float(_without(modules, opened + fitted)) == pytest.approx(here, rel=1e-4)


def test_a_cache_is_opened_planned_and_read_without_tensorflow(
    small_config, small_observed, tmp_path
):
    prepared = prepare(small_config, small_observed, work=tmp_path)
    opened = OPENED.format(
        settings=small_config.model_dump_json(), folder=str(prepared.cache.folder)
    )
    read = "print(int(training._batches(config, prepared, 'train', seed=0)[0][0].sum()))"
    found = int(_without(("tensorflow", "keras", "dask", "mlflow", "netCDF4"), opened + read))
    batches = Batches(
        prepared.cache,
        plan_of(small_config, prepared, "train"),
        window=window_of(small_config),
        batch_size=small_config.training.batch_size,
        seed=0,
    )
    assert found == int(batches[0][0].sum())


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
    from nowcast.networks import build

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
        prepared.cache,
        plan_of(config, prepared, "validation"),
        window=window_of(config),
        batch_size=config.training.batch_size,
    )
    decode = prepared.cache.coding.decode
    loss = loss_of(
        config.training.loss,
        head=settings.head,
        variable=settings.variable,
        transform=settings.transform,
    )
    parts = [
        (len(inputs), float(loss(targets, np.asarray(network(as_inputs(inputs))))))
        for inputs, targets in (
            [settings.transform.forward(decode(codes)) for codes in batches[index]]
            for index in range(len(batches))
        )
    ]
    return sum(count * value for count, value in parts) / sum(count for count, _ in parts)


def test_a_training_that_diverges_saves_nothing(small_config, small_observed, tmp_path):
    config = small_config.replace(["training.learning_rate=1e38"])
    with pytest.raises(ValueError, match=r"diverged.*training\.learning_rate"):
        fit(config, prepare(config, small_observed, work=tmp_path), verbose=0)


def test_training_stops_at_its_time_limit(small_config, small_observed, tmp_path):
    config = small_config.replace(["training.epochs=100000", "training.minutes=0.02"])
    seconds = []
    fit(
        config,
        prepare(config, small_observed, work=tmp_path),
        on_epoch=lambda _, values: seconds.append(values["seconds"]),
        verbose=0,
    )
    assert 1.2 <= seconds[-1] < 30.0


def test_a_square_that_fits_the_network_is_trained_on_where_the_grid_does_not(
    small_config, small_observed, tmp_path
):
    odd = small_observed.isel(y=slice(14), x=slice(15))
    config = small_config.replace(["training.crop_pixels=12"])
    nowcaster = fit(config, prepare(config, odd, work=tmp_path), verbose=0)
    assert nowcaster.settings.grid == (12, 12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            ["network.settings={filters=[8], patch=3}"],
            r"multiples of 3 .* set training.crop_pixels=15",
        ),
        (["training.crop_pixels=7"], r"crop_pixels is 7; set it to 8"),
        (["network.settings={filters=[8], kernel=4}"], "kernel must be odd.* try 3 or 5"),
        (["network.settings={filters=[8], kernel=17}"], "kernel of 17 cannot fit .* 8 x 8"),
        (["network.name=cnn_lstm", "network.settings={backbone='VGG61'}"], "VGG61.*VGG16"),
        (["network.head=classes"], "learns from labels"),
        (["network.head=series"], "network 'convlstm' has no head 'series'"),
        (["training.loss=crps"], "does not fit the head 'field'"),
        (["training.loss=ordinal"], "does not fit the head 'field'"),
        ([*LAGRANGIAN, "network.settings={kernel=4}"], "kernel must be odd.* try 3 or 5"),
        ([*LAGRANGIAN, "network.settings={kernel=5}"], "kernel of 5 cannot fit .* 2 x 2"),
        ([*LAGRANGIAN, "training.crop_pixels=7"], r"multiples of 2 .* is 7; set it to 8"),
    ],
)
def test_wrong_settings_are_refused_before_a_training_starts(
    small_config, small_observed, tmp_path, changes, message
):
    config, epochs = small_config.replace(changes), []
    with pytest.raises(ValueError, match=message):
        fit(
            config,
            prepare(config, small_observed, work=tmp_path),
            on_epoch=lambda *_: epochs.append(1),
            verbose=0,
        )
    assert not epochs


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


@pytest.mark.parametrize("together", [1, 4])
def test_the_learning_rate_falls_to_nothing_however_many_steps_are_taken_together(
    small_config, small_observed, tmp_path, monkeypatch, together
):
    import keras

    rates = []
    changes = ["training.epochs=3", f"training.steps_per_execution={together}"]
    config = small_config.replace([*changes, "training.batch_size=2", "training.steps_per_epoch=6"])
    prepared = prepare(config, small_observed, work=tmp_path)
    fitted = keras.Model.fit

    def watched(self, *arguments, callbacks, **settings):
        class Watch(keras.callbacks.Callback):
            def on_train_batch_end(self, batch, logs=None):  # noqa: ARG002
                rates.append(float(self.model.optimizer.learning_rate))

        return fitted(self, *arguments, callbacks=[*callbacks, Watch()], **settings)

    monkeypatch.setattr(keras.Model, "fit", watched)
    fit(config, prepared, verbose=0)
    assert len(rates) == 3 * (6 if together == 1 else 2)
    done = 17 if together == 1 else 16  # of 18 steps, before the last execution
    expected = config.training.learning_rate * np.cos(done / 18 * np.pi / 2) ** 2
    assert rates[-1] == pytest.approx(expected, rel=1e-4)


def test_rmsprop_steps_alike_however_small_the_gradients_of_a_mean_are(small_config):
    import keras

    section = small_config.replace(["training.optimizer=rmsprop"]).training
    moved = []
    for scale in (1.0, 1 / 40_960):  # a sum over a sequence of 10 frames of 64 x 64, and the mean
        optimizer, weight = _optimizer(section), keras.Variable([1.0])
        for gradient in (0.3, -0.1, 0.2):
            optimizer.apply([keras.ops.array([gradient * scale])], [weight])
        moved.append(float(weight[0]) - 1.0)
    mean = 0.0
    expected = 0.0
    for gradient in (0.3, -0.1, 0.2):
        mean = 0.9 * mean + 0.1 * gradient**2
        expected -= section.learning_rate * gradient / np.sqrt(mean)
    assert moved == pytest.approx([expected, expected], rel=1e-3)


def test_a_constant_learning_rate_does_not_fall(
    small_config, small_observed, tmp_path, monkeypatch
):
    import keras

    models = []
    compiled = keras.Model.compile
    monkeypatch.setattr(
        keras.Model, "compile", lambda self, **given: (models.append(self), compiled(self, **given))
    )
    prepared = prepare(small_config, small_observed, work=tmp_path)
    fit(small_config.replace(["training.schedule=constant"]), prepared, verbose=0)
    (optimizer,) = (model.optimizer for model in models)
    assert int(optimizer.iterations) > 1
    assert float(optimizer.learning_rate) == pytest.approx(small_config.training.learning_rate)


def _watched_fit(config, observed, folder, **settings):
    """Fit, and give the nowcaster, the Keras model that was compiled, and the validation losses."""
    import keras

    models, losses, compiled = [], [], keras.Model.compile
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(
            keras.Model,
            "compile",
            lambda self, **given: (models.append(self), compiled(self, **given)),
        )
        nowcaster = fit(
            config,
            prepare(config, observed, work=folder),
            on_epoch=lambda _, figures: losses.append(figures["val_loss"]),
            verbose=0,
            **settings,
        )
    return nowcaster, models[0], losses


@pytest.fixture(scope="module")
def begun(doubtful):
    """A nowcaster whose weights are like no others."""
    plain = NeuralNowcaster.load(doubtful)
    random = np.random.default_rng(7)
    weights = [random.normal(0.0, 0.1, one.shape).astype(np.float32) for one in plain.weights]
    return NeuralNowcaster(plain.settings, weights, sha256="of these weights")


@pytest.fixture(scope="module")
def gone_on(begun, small_config, small_observed, tmp_path_factory):
    """Train on from it in 16 bits, with next to no learning; and the Keras model fitted."""
    slow = ["training.learning_rate=1e-7", "training.schedule=constant"]
    config = small_config.replace([*LAGRANGIAN, *slow, "training.precision=mixed_bfloat16"])
    folder = tmp_path_factory.mktemp("gone_on")
    nowcaster, model, _ = _watched_fit(config, small_observed, folder, start=begun)
    return nowcaster, model


def test_layers_compute_in_the_precision_and_weights_have_32_bits(gone_on):
    import keras

    assert keras.config.dtype_policy().name == "float32"  # as it was before
    nowcaster, model = gone_on
    network = next(layer for layer in model.layers if layer.name == "lagrangian")
    kinds = {layer.name.split("_")[0]: layer.compute_dtype for layer in network.layers}
    assert kinds["conv2d"] == "bfloat16"
    exact = ("moved", "surer", "moving", "standing", "believed")  # where small differences count
    assert {kinds[name] for name in exact} == {"float32"}
    assert {weights.dtype for weights in nowcaster.weights} == {np.dtype(np.float32)}
    assert {variable.dtype for variable in model.trainable_variables} == {"float32"}


def test_a_training_goes_on_from_the_weights_of_a_nowcaster(gone_on, begun):
    nowcaster, model = gone_on
    steps = int(model.optimizer.iterations)
    pairs = zip(nowcaster.weights, begun.weights, strict=True)
    assert 0.0 < max(np.abs(one - other).max() for one, other in pairs) < 2e-7 * steps
    assert nowcaster.settings.provenance["started_from_sha256"] == "of these weights"
    assert nowcaster.postprocessing is None


def test_what_was_trained_in_16_bits_issues_in_32(gone_on, small_observed, tmp_path):
    fitted, _ = gone_on
    loaded = NeuralNowcaster.load(fitted.save(tmp_path / "saved"))
    network = loaded._network((16, 16))
    assert {layer.compute_dtype for layer in network.layers} == {"float32"}
    frames = small_observed["rain_rate"].values[None, 2:5]
    found = loaded.forecast(frames)
    np.testing.assert_array_equal(found, fitted.forecast(frames))
    assert np.nanmax(found) > 0.0


@pytest.mark.proof
def test_16_bits_change_little_of_what_is_learnt(small_config, small_observed, tmp_path):
    exact, rough = (
        _watched_fit(
            small_config.replace(
                [*LAGRANGIAN, "training.epochs=2", f"training.precision={precision}"]
            ),
            small_observed,
            tmp_path,
        )[2]
        for precision in ("float32", "mixed_bfloat16")
    )
    assert rough == pytest.approx(exact, rel=0.02)
    assert rough != exact
    assert exact[1] < exact[0]


@pytest.mark.proof
def test_gradients_of_16_bits_with_little_range_are_scaled(small_config, small_observed, tmp_path):
    """Else all that are below 6e-8 would be nothing; and the learning rate falls as ever."""
    config = small_config.replace([*LAGRANGIAN, "training.precision=mixed_float16"])
    nowcaster, model, _ = _watched_fit(config, small_observed, tmp_path)
    assert type(model.optimizer).__name__ == "LossScaleOptimizer"
    assert 0.0 < float(model.optimizer.learning_rate) < 0.8 * config.training.learning_rate
    assert all(np.isfinite(weights).all() for weights in nowcaster.weights)


def test_the_precision_is_what_it_was_though_a_network_cannot_be_built():
    import keras

    class WrongError(Exception):
        pass

    def wrong():
        with computing_in("mixed_bfloat16"):
            assert keras.config.dtype_policy().name == "mixed_bfloat16"
            raise WrongError

    with pytest.raises(WrongError):
        wrong()
    assert keras.config.dtype_policy().name == "float32"


def test_weights_of_something_else_are_refused_before_a_training_starts(
    small_config, small_observed, tmp_path, begun
):
    config, epochs = small_config.replace([*LAGRANGIAN, "network.levels=[0.2, 1.0, 6.0]"]), []
    prepared = prepare(config, small_observed, work=tmp_path)
    with pytest.raises(ValueError, match="goes on from weights of the same head; the settings"):
        fit(config, prepared, start=begun, on_epoch=lambda *_: epochs.append(1), verbose=0)
    assert not epochs


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("network", "unet"),
        ("network_version", 7),
        ("network_settings", {"filters": [4, 4]}),
        ("network_settings", {"filters": [4, 8], "standing": False}),
        ("head", Head("exceedance", (0.2, 1.0, 6.0))),
        ("variable", REFLECTIVITY),
        ("transform", Transform("log", top=10.0)),
        ("window", Window(2, 2, pd.Timedelta("10min"))),
        ("window", Window(3, 2, pd.Timedelta("5min"))),
        ("channels", 1),
    ],
)
def test_weights_of_something_else_are_refused_by_the_name_of_the_field(begun, name, value):
    other = dataclasses.replace(begun.settings, **{name: value})
    with pytest.raises(ValueError, match=f"goes on from weights of the same {name}; the settings"):
        _weights_for(other, begun)


def test_weights_fit_whatever_grid_and_with_every_setting_said(begun):
    """Of those that are not said the defaults are meant, as of networks saved before a setting."""
    said = {"filters": [4, 8], "standing": True, "kernel": 3, "dropout": 0.0}
    complete = dataclasses.replace(begun.settings, network_settings=said, grid=(32, 64))
    assert _weights_for(complete, begun) is begun.weights


def test_lead_frames_of_the_same_step_are_what_a_training_goes_on_to(begun, small_config):
    longer = small_config.replace([*LAGRANGIAN, "window.lead_frames=4"])
    assert continuing(longer, begun).window.lead_frames == 4
    shorter = longer.replace(["window.lead_frames=1"])
    assert continuing(shorter, begun).window.lead_frames == 1
    said = longer.model_dump(exclude_unset=True)
    del said["window"]["lead_frames"]
    assert continuing(validate(said, source="said"), begun).window.lead_frames == 2
    another = longer.replace(["window.step_minutes=5"])  # whose lead frames mean something else
    assert continuing(another, begun).window.lead_frames == begun.settings.window.lead_frames
    window = dataclasses.replace(begun.settings.window, lead_frames=4)
    wanted = dataclasses.replace(begun.settings, window=window)
    assert _weights_for(wanted, begun) is begun.weights


@pytest.mark.proof
def test_a_training_goes_on_to_more_lead_frames(begun, small_config, small_observed, tmp_path):
    longer = small_config.replace([*LAGRANGIAN, "window.lead_frames=4"])
    config = continuing(longer, begun).replace(
        ["training.learning_rate=1e-7", "training.steps_per_epoch=1", "training.epochs=1"]
    )
    nowcaster, _, _ = _watched_fit(config, small_observed, tmp_path, start=begun)
    assert nowcaster.settings.window == dataclasses.replace(begun.settings.window, lead_frames=4)
    frames = small_observed["rain_rate"].values[None, 2:5]
    found, before = (
        one.forecasts(frames)["probability_of_exceedance"] for one in (nowcaster, begun)
    )
    assert found.shape[2] == 4
    np.testing.assert_allclose(found[:, :, :2], before, atol=1e-3)


def test_more_lead_times_are_learnt_beside_those_that_are_kept(
    begun, small_config, small_observed, tmp_path
):
    longer = small_config.replace([*LAGRANGIAN, "window.lead_frames=4"])
    kept = ["training.keep_lead_times=true", "training.steps_per_epoch=2", "training.epochs=1"]
    config = continuing(longer, begun).replace(kept)
    nowcaster, model, _ = _watched_fit(config, small_observed, tmp_path, start=begun)
    for found, before in zip(nowcaster._for_leads(2).weights, begun.weights, strict=True):
        np.testing.assert_array_equal(found, before)
    at_first = begun._for_leads(4).weights
    for found, before in zip(nowcaster.weights[-6:], at_first[-6:], strict=True):
        changed = (found != before).reshape(-1, 4, found.shape[-1] // 4).any(axis=(0, 2))
        assert changed.tolist() == [False, False, True, True]
    learnt = {variable.path.split("/")[-2] for variable in model.trainable_variables}
    assert learnt == {"surer", "moving", "standing"}


@pytest.mark.parametrize("leads", [2, 4])
def test_lead_times_are_kept_where_there_are_some_and_more(
    begun, small_config, small_observed, tmp_path, leads
):
    config = small_config.replace(
        [*LAGRANGIAN, f"window.lead_frames={leads}", "training.keep_lead_times=true"]
    )
    prepared = prepare(config, small_observed, work=tmp_path)
    start, told = (begun, "2 lead frames to go on") if leads == 2 else (None, "nothing to go on")
    refused = rf"received .*{told} from, and window.lead_frames={leads}"
    with pytest.raises(ValueError, match=refused):
        fit(config, prepared, start=start, verbose=0)
    with pytest.raises(ValueError, match=refused):
        train(config, small_observed, tracking=Tracking(tmp_path / "new"), start=start, verbose=0)
    assert not (tmp_path / "new").exists()  # told before frames are read


def test_weights_of_one_grid_go_on_there_alone(begun):
    flat = dataclasses.replace(
        begun.settings, network="cnn_lstm", network_version=version_of("cnn_lstm")
    )
    flat = dataclasses.replace(flat, network_settings={"filters": [4, 8], "units": 16})
    start = NeuralNowcaster(flat, [])
    assert _weights_for(flat, start) == []
    larger = dataclasses.replace(flat, grid=(32, 32))
    with pytest.raises(ValueError, match=r"grids of \(16, 16\) alone.* have \(32, 32\)"):
        _weights_for(larger, start)


def test_a_training_that_starts_elsewhere_has_another_checkpoint(
    small_config, small_observed, tmp_path, begun
):
    config = small_config.replace(LAGRANGIAN)
    prepared = prepare(config, small_observed, work=tmp_path)
    mine = checkpoint_of(config, prepared, work=tmp_path, start=begun).path
    assert checkpoint_of(config, prepared, work=tmp_path, start=begun).path == mine
    other = NeuralNowcaster(begun.settings, begun.weights, sha256="of others")
    assert checkpoint_of(config, prepared, work=tmp_path, start=other).path != mine
    assert checkpoint_of(config, prepared, work=tmp_path).path != mine


def test_how_a_nowcaster_is_scored_makes_no_other_training(small_config, small_observed, tmp_path):
    prepared = prepare(small_config, small_observed, work=tmp_path)
    scored, trained = (
        small_config.replace([setting])
        for setting in ("verification.batch_cases=1", "training.epochs=7")
    )
    mine = checkpoint_of(small_config, prepared, work=tmp_path).path
    assert checkpoint_of(scored, prepared, work=tmp_path).path == mine
    assert checkpoint_of(trained, prepared, work=tmp_path).path != mine
