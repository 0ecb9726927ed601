import dataclasses
import json
import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nowcast.cli import main
from nowcast.config import Config
from nowcast.conventions import RAIN_RATE, grid_id
from nowcast.data.labels import UNKNOWN, classes_of, labels_of, with_labels
from nowcast.data.moving_line import moving_lines
from nowcast.data.series import names_of, series_of
from nowcast.data.synthetic import REGIMES, synthesise
from nowcast.experiments import synthetic
from nowcast.frames import Window
from nowcast.networks import build, version_of
from nowcast.networks.heads import Head
from nowcast.nowcasters import open_nowcaster
from nowcast.nowcasters.saved import NeuralSettings
from nowcast.predictors import FREQUENCIES, SequencePredictor, open_trained
from nowcast.rainrate import Transform
from nowcast.testing import check_nowcaster, check_predictor
from nowcast.tracking import Tracking
from nowcast.training import _batches, fit, plan_of, prepare, train

STEP = pd.Timedelta("10min")
NETWORK = {"filters": [2], "units": 4}
POINTS = ((7000.0, -7000.0), (-3000.0, 1000.0))
HEADS = {
    "area": (Head("series", labels=names_of([])), ()),
    "points": (Head("series", labels=names_of(POINTS)), POINTS),
    "classes": (Head("classes", labels=("calm", "wild")), ()),
}
SMALL = [
    "synthetic.events=3",
    "synthetic.hours=2",
    "synthetic.size=8",
    "window.input_frames=3",
    "window.lead_frames=2",
    "split.validation_fraction=0.3",
    "split.test_fraction=0.3",
    "network.name=cnn_lstm",
    "network.settings={filters=[2], units=4}",
    "network.head=series",
    "training.loss=mse",
    "training.epochs=1",
    "training.steps_per_epoch=1",
]


@pytest.fixture(scope="module")
def observed():
    return synthesise(hours=2, size=8).load()


def _predictor(kind, observed, *, seed=0, network="cnn_lstm", head=None):
    """Give a predictor of random weights: how good it is matters to no promise."""
    wanted, points = HEADS[kind]
    settings = NeuralSettings(
        network=network,
        network_version=version_of(network),
        network_settings=NETWORK,
        head=head or wanted,
        variable=RAIN_RATE,
        transform=Transform(),
        window=Window(3, 2, STEP),
        grid=(observed.sizes["y"], observed.sizes["x"]),
        grid_spacing=2000.0,
        grid_units="m",
        points=points,
        provenance={"grid_id": grid_id(observed)},
    )
    built = build(
        network,
        settings=NETWORK,
        input_frames=3,
        lead_frames=2,
        grid=settings.padded(settings.grid),
        head=settings.head,
    )
    random = np.random.default_rng(seed)
    weights = [0.3 * random.standard_normal(one.shape) for one in built.get_weights()]
    return SequencePredictor(settings, weights)


@pytest.fixture(scope="module", params=sorted(HEADS))
def predictor(request, observed):
    return _predictor(request.param, observed)


def _config(*settings):
    return Config().replace([*SMALL, *settings])


def _labelled(observed, labels):
    return with_labels(observed, np.asarray(labels), ["calm", "wild"])


def test_predictors_of_every_head_keep_the_contract(predictor, observed):
    check_predictor(predictor, observed)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lambda _, data, values: values + float(data["rain_rate"].isel(time=-1).mean()), "ahead"),
        (lambda times, _, values: values + len(times), "alone gives another"),
        (lambda *_: np.full((2, 2, 1), -1.0), "outside of the valid range"),
        (lambda _, __, values: np.nan_to_num(values), "almost unseen"),
    ],
)
def test_a_predictor_that_breaks_a_promise_is_found_out(observed, fault, told):
    class Faulty(SequencePredictor):
        def predict(self, observed, *, base_times):
            honest = super().predict(observed, base_times=base_times)
            values = fault(base_times, observed, honest["rain_rate"].values)
            return honest.assign(rain_rate=honest["rain_rate"].copy(data=values))

    sound = _predictor("area", observed)
    with pytest.raises(AssertionError, match=told):
        check_predictor(Faulty(sound.settings, sound.weights), observed)


def test_a_series_says_when_and_where_it_is(observed):
    bases = observed["time"].to_index()[3:5]
    series = _predictor("points", observed).predict(observed, base_times=bases)
    assert series["rain_rate"].dims == ("base_time", "lead_time", "point")
    assert series["rain_rate"].attrs["units"] == "mm h-1"
    assert series["point"].values.tolist() == ["y=7000 x=-7000", "y=-3000 x=1000"]
    assert series["x"].values.tolist() == [-7000.0, 1000.0]
    assert pd.Timestamp(series["valid_time"].values[1, 1]) == bases[1] + 2 * STEP


def test_a_saved_predictor_predicts_the_same(predictor, observed, tmp_path):
    bases = observed["time"].to_index()[3:5]
    loaded = open_trained(predictor.save(tmp_path / "saved"))
    assert loaded.settings == predictor.settings
    assert loaded.sha256 == predictor.sha256
    assert loaded.predict(observed, base_times=bases).identical(
        predictor.predict(observed, base_times=bases)
    )


def test_a_saved_predictor_that_was_changed_is_refused(observed, tmp_path):
    folder = _predictor("area", observed).save(tmp_path / "saved")
    settings = folder / "settings.json"
    settings.write_text(settings.read_text().replace("mm h-1", "mm/h"))
    with pytest.raises(ValueError, match="not what was saved"):
        SequencePredictor.load(folder)


def test_a_predictor_is_no_nowcaster_and_a_nowcaster_no_predictor(observed, tmp_path):
    predictor = _predictor("area", observed)
    folder = predictor.save(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"a predictor of series.*`nowcast verify`"):
        open_nowcaster(folder)
    frames = dataclasses.replace(predictor.settings, head=Head())
    with pytest.raises(ValueError, match="'field' gives frames"):
        SequencePredictor(frames, predictor.weights)


def test_another_grid_is_refused_even_a_larger_one(observed):
    predictor = _predictor("area", observed)
    larger = synthesise(hours=2, size=16)
    with pytest.raises(ValueError, match=r"whole grid of \(8, 8\) pixels.*have \(16, 16\)"):
        predictor.predict(larger, base_times=larger["time"].to_index()[3:4])


def test_other_pixels_are_refused(observed):
    coarse = synthesise(hours=2, size=8, grid_spacing_m=4000.0)
    with pytest.raises(ValueError, match="trained on pixels of 2000 m"):
        _predictor("area", observed).predict(coarse, base_times=coarse["time"].to_index()[3:4])


def test_points_are_of_the_grid_that_was_trained_on(observed):
    bases = observed["time"].to_index()[3:4]
    flipped = observed.isel(y=slice(None, None, -1))
    with pytest.raises(ValueError, match="series of points on the grid"):
        _predictor("points", observed).predict(flipped, base_times=bases)
    elsewhere = observed.assign_coords(x=observed["x"] + 1e6)
    elsewhere["x"].attrs = observed["x"].attrs
    with pytest.raises(ValueError, match=r"point \(7000.0, -7000.0\) lies outside"):
        _predictor("points", observed).predict(elsewhere, base_times=bases)


def test_a_grid_that_the_network_cannot_take_is_padded_with_missing_pixels():
    observed = synthesise(hours=2, size=7)
    predictor = _predictor("area", observed)
    check_predictor(predictor, observed)
    frames = observed["rain_rate"].values[None, :3]
    whole = dataclasses.replace(predictor.settings, grid=(8, 8))
    padded = np.pad(frames, [(0, 0), (0, 0), (0, 1), (0, 1)], constant_values=np.nan)
    by_hand = SequencePredictor(whole, predictor.weights).forecast(padded)
    np.testing.assert_array_equal(predictor.forecast(frames), by_hand)


@pytest.fixture(scope="module")
def three_events():
    """Synthetic rain of the settings; a pixel is missing in one frame, most of another."""
    observed = synthetic(_config()).load()
    observed["rain_rate"][3, 0, 0] = np.nan
    observed["rain_rate"][4, :5] = np.nan
    return observed


def _targets(config, observed, work):
    """Give the targets of training in the order of time, and the base times they belong to."""
    prepared = prepare(config, observed, work=work)
    batches = _batches(config, prepared, "train", seed=None)
    targets = np.concatenate([batches[index][1] for index in range(len(batches))])
    return targets, observed["time"].to_index().get_indexer(
        plan_of(config, prepared, "train").base_times
    )


@pytest.mark.parametrize("points", [(), POINTS])
def test_targets_of_a_series_are_its_values_at_the_lead_times(three_events, tmp_path, points):
    config = _config(f"network.points={[list(point) for point in points]}")
    targets, bases = _targets(config, three_events, tmp_path)
    series = Transform().forward(series_of(three_events["rain_rate"], points).values)
    expected = np.stack([series[base + 1 : base + 3] for base in bases])
    np.testing.assert_allclose(targets, expected, atol=0.01)  # codes are 0.02 mm/h apart
    assert 0.0 < np.isnan(targets).mean() < 0.5


def test_the_label_of_a_window_is_that_of_its_base_time(three_events, tmp_path):
    labels = np.arange(39) % 2
    labels[3] = UNKNOWN
    config = _config("network.head=classes", "training.loss=cross_entropy")
    targets, bases = _targets(config, _labelled(three_events, labels), tmp_path)
    np.testing.assert_array_equal(targets, np.where(bases == 3, np.nan, labels[bases]))
    assert np.isnan(targets).sum() == 1


def test_a_block_without_any_label_is_refused(three_events, tmp_path):
    labels = np.where(np.arange(39) < 20, UNKNOWN, np.arange(39) % 2)
    config = _config("network.head=classes", "training.loss=cross_entropy")
    with pytest.raises(ValueError, match="none of the base times from 2024-01-01 00:20:00"):
        _targets(config, _labelled(three_events, labels), tmp_path)


def test_classes_without_labels_are_refused_before_anything_is_read(three_events, tmp_path):
    config = _config("network.head=classes", "training.loss=cross_entropy")
    unreadable = three_events.copy()
    unreadable["rain_rate"] = three_events["rain_rate"].chunk().map_blocks(_explode)
    with pytest.raises(ValueError, match="learns from labels, and the observations have none"):
        train(config, unreadable, tracking=Tracking(tmp_path), verbose=0)


def _explode(block):
    if block.size:
        raise AssertionError("it was read")
    return block


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (["training.loss=cross_entropy"], "'cross_entropy' does not fit the head 'series'"),
        (["training.crop_pixels=4"], "not of squares of 4 pixels; set training.crop_pixels=0"),
        (["network.points=[[0,0]]", "training.augment=true"], "set training.augment=false"),
        (["network.head=field", "network.points=[[0,0]]"], "of the head 'series', not of 'field'"),
        (["network.points=[[0,9000]]"], r"point \(0.0, 9000.0\) lies outside of the grid"),
        (["network.levels=[1]"], "the head 'series' has no levels"),
        (["network.name=convlstm", "network.settings={filters=[2]}"], "has no head 'series'"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_remedy(
    three_events, tmp_path, settings, told
):
    def trained():
        config = _config(*settings)
        return fit(config, prepare(config, three_events, work=tmp_path), verbose=0)

    with pytest.raises(ValueError, match=told):
        trained()


def test_an_areal_mean_may_be_learnt_from_flipped_frames():
    assert _config("training.augment=true").training.augment


def _transect(hours):
    """Rain along one row of pixels, as of a line of gauges."""
    rain = synthesise(events=3, hours=hours, size=16).isel(y=[8])
    return rain.assign(rain_rate=rain["rain_rate"].where(rain["x"] != rain["x"][3]))


@pytest.mark.parametrize("head", ["series", "field"])
def test_a_transect_goes_all_the_way(tmp_path, head):
    observed = _transect(2)
    crop = 8 if head == "field" else 0
    config = _config(f"network.head={head}", f"training.crop_pixels={crop}")
    config = config.replace([f"training.augment={'true' if crop else 'false'}"])
    made = fit(config, prepare(config, observed, work=tmp_path), verbose=0)
    if head == "series":
        check_predictor(made, observed)
        return
    assert made.settings.grid == (1, 8)
    check_nowcaster(made, observed)


def test_the_whole_line_of_a_predictor_by_hand(capsys, tmp_path):
    """Train, verify by URI and by folder; issue and promote refuse it."""
    settings = tmp_path / "regimes.toml"
    wanted = ["network.head=classes", "training.loss=cross_entropy", "promotion.model_name=signs"]
    wanted.append("promotion.first_lead_minutes=10")
    settings.write_text(_toml(_config(*wanted)))
    run = {"capsys": capsys, "work": tmp_path / "work", "config": settings}
    status, made, _ = _run("train", settings, "--json", **{**run, "config": None})
    assert (status, json.loads(made)["uri"]) == (0, "models:/signs/1")
    uri, folder, scores = "models:/signs/1", json.loads(made)["folder"], tmp_path / "scores.nc"
    status, printed, told = _run("verify", "--nowcaster", uri, folder, "--out", scores, **run)
    assert (status, told) == (0, "")
    assert {"accuracy", "climatology", uri, "initiating"} <= set(printed.split())
    with xr.open_dataset(scores) as file:
        assert file["accuracy"].sel(nowcaster=uri) == file["accuracy"].sel(nowcaster=folder)
        assert int(file["confusion"].sel(nowcaster=uri).sum()) == int(file["number"][0])
    for words, code, expected in (
        (("issue", "--nowcaster", uri, "--out", tmp_path), 1, "is a predictor of classes"),
        (("promote", "--candidate", uri), 1, "score it with `nowcast verify`"),
        (("verify", "--nowcaster", uri, "persistence"), 2, "persistence tell no labels"),
    ):
        status, _, told = _run(*words, **run)
        assert (status, expected in told) == (code, True), told
    shares = json.loads(open_trained(folder).settings.provenance[FREQUENCIES])
    assert tuple(shares) == REGIMES
    assert sum(shares.values()) == pytest.approx(1.0)


def _run(*words, capsys, work, config):
    options = ["--config", str(config)] if config else []
    with pytest.raises(SystemExit) as ended:
        main([*map(str, words), *options, "--work", str(work), "-q"])
    printed = capsys.readouterr()
    return ended.value.code, printed.out, printed.err


def _toml(config):
    """Give settings as TOML: every one that was set."""
    content = config.model_dump(mode="json", exclude_unset=True)
    plain = {name: value for name, value in content.items() if not isinstance(value, dict)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in plain.items()]
    for section, values in content.items():
        if isinstance(values, dict):
            lines += [f"[{section}]"]
            lines += [f"{name} = {_value(value)}" for name, value in values.items()]
    return "\n".join(lines)


def _value(value):
    if not isinstance(value, dict):
        return json.dumps(value)
    return "{" + ", ".join(f"{key} = {json.dumps(one)}" for key, one in value.items()) + "}"


TRAINING = """
import sys
from pathlib import Path
import numpy as np
from nowcast.cache import open_cache
from nowcast.config import load
from nowcast.training import fit, prepared_of
settings, cache, folder = map(Path, sys.argv[1:])
config = load(settings)
predictor = fit(config, prepared_of(config, open_cache(cache)), verbose=0)
predictor.save(folder)
np.save(folder / "predicted.npy", predictor.forecast(np.load(cache / "frames_seen.npy")))
"""


@pytest.mark.proof
@pytest.mark.parametrize("backend", ["jax", "torch"])
@pytest.mark.parametrize("head", ["series", "classes"])
def test_a_predictor_trained_under_another_backend_predicts_the_same_here(tmp_path, backend, head):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed; it comes with the extra backends")
    loss = "cross_entropy" if head == "classes" else "mse"
    config = _config(f"network.head={head}", f"training.loss={loss}")
    settings = tmp_path / "settings.toml"
    settings.write_text(_toml(config))
    observed = synthetic(config).load()
    cache = prepare(config, observed, work=tmp_path).cache.folder
    frames = np.stack([observed["rain_rate"].values[at : at + 3] for at in range(4)])
    np.save(cache / "frames_seen.npy", frames)
    subprocess.run(
        [sys.executable, "-c", TRAINING, settings, cache, tmp_path / "saved"],
        check=True,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    there = np.load(tmp_path / "saved" / "predicted.npy")
    here = open_trained(tmp_path / "saved").forecast(frames)
    np.testing.assert_allclose(here, there, atol=1e-5)
    assert np.isfinite(here).all()


def test_a_network_that_sees_the_order_of_frames_tells_which_way_a_line_goes(tmp_path):
    lines = moving_lines(sequences=200, size=10)
    config = Config().replace(
        [
            "variable={name='brightness', units='1', long_name='brightness', standard_name='', "
            "valid_min=0, valid_max=1}",
            "transform={name='linear', top=1}",
            "window={input_frames=5, lead_frames=1, step_minutes=1}",
            "split.guard_minutes=20",
            "network={name='cnn_lstm', head='classes', settings={filters=[2], units=8}}",
            "training={loss='cross_entropy', epochs=4, batch_size=16, learning_rate=0.03}",
            "verification={baselines=['persistence'], thresholds=[]}",
            "promotion.score=rmse",
        ]
    )
    predictor = fit(config, prepare(config, lines, work=tmp_path), verbose=0)
    test = lines.isel(time=slice(1750, None))
    bases = test["time"].to_index()[6::10]
    said = predictor.predict(test, base_times=bases)["probability"].values.argmax(axis=1)
    right = labels_of(test.sel(time=bases))
    assert classes_of(lines) == predictor.settings.head.labels
    assert (said == right).mean() > 0.9
