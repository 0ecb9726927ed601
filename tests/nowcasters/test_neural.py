import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from nowcast.conventions import RAIN_RATE, REFLECTIVITY, check_nowcast
from nowcast.data.synthetic import synthesise
from nowcast.networks.heads import Head
from nowcast.nowcasters import neural, open_nowcaster
from nowcast.nowcasters.neural import (
    NeuralNowcaster,
    calibrate,
    median_of_exceedance,
    median_of_quantiles,
)
from nowcast.rainrate import Transform
from nowcast.testing import check_nowcaster
from nowcast.training import fit, prepare
from nowcast.turns import turns
from nowcast.verification import verify

# One that takes any grid and one that does not: all others are alike to what is tested here.
SETTINGS = {"convlstm": "{filters=[8]}", "cnn_lstm": "{filters=[4,8], units=16}"}
LEVELS = {"exceedance": (0.1, 0.5, 2.0), "quantiles": (0.1, 0.5, 0.9)}


@pytest.fixture(scope="module", params=sorted(SETTINGS))
def nowcaster(request, small_config, small_observed, tmp_path_factory):
    name = request.param
    config = small_config.replace(
        [f"network.name={name}", f"network.settings={SETTINGS[name]}", "training.steps_per_epoch=2"]
    )
    prepared = prepare(config, small_observed, work=tmp_path_factory.mktemp("work"))
    return fit(config, prepared, verbose=0)


def _nowcast(nowcaster, observed):
    return nowcaster.nowcast(
        observed,
        base_times=observed["time"].to_index()[4:6],
        lead_times=pd.to_timedelta([10, 20], unit="min"),
    )["rain_rate"].values


def test_every_network_keeps_the_contract(nowcaster, small_observed):
    check_nowcaster(nowcaster, small_observed)


def test_a_saved_nowcaster_gives_the_same_nowcast(nowcaster, small_observed, tmp_path):
    folder = nowcaster.save(tmp_path / "saved")
    loaded = open_nowcaster(folder)
    np.testing.assert_array_equal(
        _nowcast(loaded, small_observed), _nowcast(nowcaster, small_observed)
    )
    assert loaded.settings == nowcaster.settings
    assert loaded.sha256 == nowcaster.sha256
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json",
        "network.weights.h5",
        "settings.json",
    ]


@pytest.mark.parametrize("file", ["settings.json", "network.weights.h5"])
def test_one_changed_byte_is_refused(nowcaster, tmp_path, file):
    folder = nowcaster.save(tmp_path / "saved")
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(bytes(content))
    with pytest.raises(ValueError, match="not what was saved"):
        NeuralNowcaster.load(folder)


def test_an_unknown_setting_is_refused(nowcaster, tmp_path):
    folder = nowcaster.save(tmp_path / "saved")
    settings = json.loads((folder / "settings.json").read_text())
    with pytest.raises(ValueError, match="do not fit"):
        type(nowcaster.settings).from_dict({**settings, "loader_module": "os"})


def test_weights_of_another_version_of_the_network_are_refused(nowcaster, tmp_path):
    older = dataclasses.replace(nowcaster.settings, network_version=0)
    folder = NeuralNowcaster(older, nowcaster.weights).save(tmp_path / "saved")
    with pytest.raises(ValueError, match="trained with version 0 of network"):
        NeuralNowcaster.load(folder)


def test_a_network_that_gives_nan_is_refused_rather_than_taken_for_missing(
    nowcaster, small_observed
):
    broken = NeuralNowcaster(nowcaster.settings, [np.nan * one for one in nowcaster.weights])
    with pytest.raises(ValueError, match="gave NaN"):
        _nowcast(broken, small_observed)


def test_a_folder_that_holds_no_nowcaster_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no saved nowcaster"):
        open_nowcaster(tmp_path)


def test_by_all_views_turned_frames_give_the_turned_nowcast(nowcaster, monkeypatch):
    """By its own, a network that was shown no turns does not."""
    random = np.random.default_rng(0)
    frames = random.gamma(0.3, 4.0, (2, 3, 16, 16)).astype(np.float32)
    frames[:, :, 3:5, 9] = np.nan
    asked = NeuralNowcaster(dataclasses.replace(nowcaster.settings, views=8), nowcaster.weights)
    upright = asked.forecast(frames)
    for turn in turns(8):
        seen = turn.fields(frames)
        np.testing.assert_allclose(
            asked.forecast(seen), turn.fields(upright), rtol=1e-3, atol=1e-3, err_msg=str(turn)
        )
    monkeypatch.setattr(neural, "AT_ONCE", 0)  # as on a large grid: one view at a time
    np.testing.assert_allclose(asked.forecast(frames), upright, rtol=1e-5, atol=1e-5)
    flip = turns(8)[1]
    off = nowcaster.forecast(flip.fields(frames)) - flip.fields(nowcaster.forecast(frames))
    assert np.nanmax(np.abs(off)) > 0.01


def test_views_that_a_network_cannot_take_are_refused(nowcaster):
    with pytest.raises(ValueError, match="views are 1, 4 or 8; received 2"):
        dataclasses.replace(nowcaster.settings, views=2)
    wide = {"grid": (16, 24), "views": 8}
    if nowcaster.settings.takes_any_grid:
        assert dataclasses.replace(nowcaster.settings, **wide).views == 8
    else:
        with pytest.raises(ValueError, match=r"grids of \(16, 24\) alone; use views=4"):
            dataclasses.replace(nowcaster.settings, **wide)


def test_missing_input_stays_missing_and_does_not_spread(nowcaster, small_observed):
    holed = small_observed.copy(deep=True)
    holed["rain_rate"][3, 2:5, 7] = np.nan
    values = _nowcast(nowcaster, holed)
    assert np.isnan(values[:, :, 2:5, 7]).all()
    assert np.isnan(values).sum() == 2 * 2 * 3


def test_another_pixel_size_is_refused(nowcaster):
    finer = synthesise(hours=2, size=16, grid_spacing_m=1000.0)
    with pytest.raises(ValueError, match="trained on pixels of 2000 m"):
        _nowcast(nowcaster, finer)


def test_a_lead_time_it_does_not_give_is_refused(nowcaster, small_observed):
    with pytest.raises(ValueError, match="gives lead times from"):
        nowcaster.nowcast(
            small_observed,
            base_times=small_observed["time"].to_index()[4:5],
            lead_times=pd.to_timedelta([25], unit="min"),
        )


def test_a_larger_grid_is_taken_whole_or_in_tiles(nowcaster):
    larger = synthesise(hours=2, size=22).load()
    values = _nowcast(nowcaster, larger)
    assert values.shape == (2, 2, 22, 22)
    assert np.isfinite(values).all()
    if not nowcaster.settings.takes_any_grid:
        # The next tile begins at pixel 22 - 16; before, there is what the network makes of one.
        corner = larger.isel(y=slice(16), x=slice(16))
        np.testing.assert_allclose(
            values[..., :6, :6], _nowcast(nowcaster, corner)[..., :6, :6], rtol=1e-4, atol=1e-5
        )


def test_a_smaller_grid_is_taken_or_refused(nowcaster):
    smaller = synthesise(hours=2, size=12).load()
    if nowcaster.settings.takes_any_grid:
        assert np.isfinite(_nowcast(nowcaster, smaller)).all()
    else:
        with pytest.raises(ValueError, match=r"takes grids of \(16, 16\), .* or larger"):
            _nowcast(nowcaster, smaller)


def test_tiles_of_a_local_function_equal_the_whole_away_from_seams(nowcaster, monkeypatch):
    """The mean of the pixels around each, as of a network that sees two pixels far."""
    from scipy.ndimage import uniform_filter

    def local(_, frames, __=None):
        means = uniform_filter(frames[:, -1:], size=(1, 1, 5, 5), mode="constant")
        return np.stack([means[:, 0, ..., None]] * 2)  # of two lead frames

    monkeypatch.setattr(NeuralNowcaster, "_forecast", local)
    frames = np.random.default_rng(0).uniform(0, 9, (2, 3, 50, 70)).astype(np.float32)
    whole = local(None, frames)[..., 0].swapaxes(0, 1)
    monkeypatch.setattr(neural, "LARGEST_GRID", 100)
    monkeypatch.setattr(neural, "TILE", 32)
    tiled = nowcaster.forecast(frames)
    size = nowcaster.settings.grid if not nowcaster.settings.takes_any_grid else (32, 32)
    seam = np.zeros((50, 70), bool)
    for (rows, columns), _ in nowcaster._tiles((50, 70), np.zeros((2, 0, 50, 70))):
        assert (rows.stop - rows.start, columns.stop - columns.start) == size
        for edge in {rows.start, rows.stop} - {0, 50}:
            seam[max(edge - 2, 0) : edge + 2, columns] = True
        for edge in {columns.start, columns.stop} - {0, 70}:
            seam[rows, max(edge - 2, 0) : edge + 2] = True
    assert 0.1 < seam.mean() < 0.9
    np.testing.assert_allclose(tiled[..., ~seam], whole[..., ~seam], rtol=1e-5)
    assert np.abs(tiled - whole)[..., seam].max() > 0.01


@pytest.fixture(scope="module", params=sorted(LEVELS))
def probable(request, small_config, small_observed, tmp_path_factory):
    """A nowcaster of probabilities, or of quantiles, whose training lowered its loss."""
    head = request.param
    config = small_config.replace(
        [
            f"network.head={head}",
            f"network.levels={list(LEVELS[head])}",
            "network.settings={filters=[8]}",
            "training.loss=crps",
            "training.epochs=3",
        ]
    )
    losses = []
    fitted = fit(
        config,
        prepare(config, small_observed, work=tmp_path_factory.mktemp("work")),
        on_epoch=lambda _, figures: losses.append(figures["loss"]),
        verbose=0,
    )
    assert losses[-1] < losses[0]
    return fitted


def _whole(nowcaster, observed):
    return nowcaster.nowcast(
        observed,
        base_times=observed["time"].to_index()[4:6],
        lead_times=pd.to_timedelta([20], unit="min"),
    )


def test_a_nowcast_holds_what_the_head_gives(probable, small_observed):
    nowcast = _whole(probable, small_observed)
    head = probable.settings.head
    name, axis = {
        "exceedance": ("probability_of_exceedance", "threshold"),
        "quantiles": ("value_at_quantile", "quantile"),
    }[head.kind]
    assert set(nowcast) == {"rain_rate", name}
    assert nowcast[name].dims == ("base_time", axis, "lead_time", "y", "x")
    assert nowcast[axis].values.tolist() == list(head.levels)
    frames = small_observed["rain_rate"].values[None, 2:5]
    second_lead = probable.forecasts(frames)[name][:, :, 1]
    np.testing.assert_allclose(nowcast[name].values[0, :, 0], second_lead[0], rtol=1e-4, atol=1e-5)


def test_the_field_is_the_median_of_what_it_comes_with(probable, small_observed):
    nowcast = _whole(probable, small_observed)
    if probable.settings.head.kind == "quantiles":
        median = nowcast["value_at_quantile"].sel(quantile=0.5)
        np.testing.assert_array_equal(nowcast["rain_rate"], median)
        return
    likely = nowcast["probability_of_exceedance"] >= 0.5
    reached = nowcast["rain_rate"] >= nowcast["threshold"]
    assert likely.any()
    assert (likely == reached.transpose(*likely.dims)).all()


def test_missing_input_is_missing_in_every_level(probable, small_observed):
    holed = small_observed.copy(deep=True)
    holed["rain_rate"][3, 2:5, 7] = np.nan
    for array in _whole(probable, holed).values():
        hidden = array.isnull().all([dim for dim in array.dims if dim not in ("y", "x")])
        assert hidden.values[2:5, 7].all()
        assert int(array.isnull().sum()) == 3 * array.size // (16 * 16)


def test_tiles_blend_probabilities_and_quantiles(probable, monkeypatch):
    larger = synthesise(hours=2, size=24).load()
    whole = _whole(probable, larger)
    monkeypatch.setattr(neural, "LARGEST_GRID", 100)
    monkeypatch.setattr(neural, "TILE", 16)
    assert len(probable._tiles((24, 24), np.zeros((2, 0, 24, 24)))) == 4
    tiled = check_nowcast(_whole(probable, larger))
    for name in whole:
        assert tiled[name].notnull().all()
        corner = {"y": slice(4), "x": slice(4)}  # of one tile alone, far from its other sides
        np.testing.assert_allclose(
            tiled[name].isel(corner), whole[name].isel(corner), rtol=1e-3, atol=1e-4
        )


def test_the_field_is_what_is_scored_beside_baselines(probable, small_observed):
    base_times = small_observed["time"].to_index()[4:6]
    lead_times = pd.to_timedelta([10], unit="min")
    nowcasters = {"network": probable, "persistence": open_nowcaster("persistence")}
    scores = verify(
        nowcasters,
        small_observed,
        base_times=base_times,
        lead_times=lead_times,
        thresholds=(0.5,),
        baselines=("persistence",),
    )
    field = probable.nowcast(small_observed, base_times=base_times, lead_times=lead_times)
    later = small_observed["rain_rate"].sel(time=base_times + lead_times[0]).values
    expected = np.abs(field["rain_rate"].values[:, 0] - later).mean()
    assert float(scores["mae"].sel(nowcaster="network")[0]) == pytest.approx(expected, rel=1e-4)


def test_a_saved_head_is_loaded_with_its_levels(probable, small_observed, tmp_path):
    loaded = NeuralNowcaster.load(probable.save(tmp_path / "saved"))
    assert loaded.settings.head == probable.settings.head
    expected = _whole(probable, small_observed)
    assert _whole(loaded, small_observed).identical(expected)


of_probabilities = pytest.mark.parametrize("probable", ["exceedance"], indirect=True)


def _cases(observed):
    """Give the base times of the first event that have three frames before and two after them."""
    return observed["time"].to_index()[2:16]


@pytest.fixture(scope="module")
def calibrated(probable, small_observed):
    return calibrate(probable, small_observed, base_times=_cases(small_observed), batch_cases=5)


@of_probabilities
def test_a_calibrated_nowcaster_keeps_the_contract(calibrated, small_observed):
    check_nowcaster(calibrated, small_observed)


@of_probabilities
def test_a_field_is_what_the_decision_levels_decide(probable, calibrated, small_observed):
    nowcast = _whole(calibrated, small_observed)
    levels = np.array(calibrated.postprocessing.levels.levels)[:, 1]  # of 20 minutes
    assert (levels != 0.5).any()
    probability = nowcast["probability_of_exceedance"].values
    assert (probability != _whole(probable, small_observed)["probability_of_exceedance"]).any()
    decided = probability >= levels.astype(np.float32)[:, None, None, None]
    for at, threshold in enumerate(LEVELS["exceedance"]):
        reached = nowcast["rain_rate"].values >= np.float32(threshold)
        np.testing.assert_array_equal(reached, decided[:, at:].any(axis=1))
    assert decided.any()
    assert not decided.all()


@of_probabilities
def test_calibration_makes_the_brier_score_of_its_cases_better(
    probable, calibrated, small_observed
):
    cases, leads = _cases(small_observed), pd.to_timedelta([10, 20], unit="min")
    later = np.stack([small_observed["rain_rate"].sel(time=cases + lead) for lead in leads], axis=1)
    brier = {}
    for name, one in (("before", probable), ("after", calibrated)):
        nowcast = one.nowcast(small_observed, base_times=cases, lead_times=leads)
        said = nowcast["probability_of_exceedance"].transpose("threshold", ...).values
        event = later[None] >= np.reshape(LEVELS["exceedance"], (-1, 1, 1, 1, 1))
        brier[name] = ((said - event) ** 2).mean(axis=(1, 3, 4))
    assert (brier["after"] < brier["before"]).all()


@of_probabilities
def test_cases_count_the_same_however_many_are_in_memory(probable, calibrated, small_observed):
    cases = _cases(small_observed)
    again = calibrate(probable, small_observed, base_times=cases, batch_cases=14).postprocessing
    assert again.levels == calibrated.postprocessing.levels
    assert again.provenance == calibrated.postprocessing.provenance
    assert again.provenance["cases"] == "14"
    said = np.random.default_rng(0).uniform(size=(3, 2, 9, 9)).astype(np.float32)
    np.testing.assert_allclose(
        again.calibration.calibrated(said),
        calibrated.postprocessing.calibration.calibrated(said),
        atol=1e-6,
    )


@of_probabilities
def test_the_command_calibrates_a_saved_nowcaster(
    probable, small_config, small_observed, tmp_path, capsys
):
    from nowcast.cli import main

    probable.save(tmp_path / "raw")
    small_observed.to_netcdf(tmp_path / "rain.nc")
    settings = [
        f"--set=window.{name}={value}" for name, value in small_config.window.model_dump().items()
    ]
    common = ["--observations", str(tmp_path / "rain.nc"), *settings]
    with pytest.raises(SystemExit) as end:
        main(["calibrate", "--nowcaster", str(tmp_path / "raw"), "--out",
              str(tmp_path / "fitted"), *common, "--json"])  # fmt: skip
    assert end.value.code == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out) == {"folder": str(tmp_path / "fitted")}
    assert NeuralNowcaster.load(tmp_path / "fitted").postprocessing is not None
    with pytest.raises(SystemExit) as end:
        main(["calibrate", "--nowcaster", "persistence", "--out", str(tmp_path / "x"), *common])
    assert end.value.code == 2
    assert "'persistence' gives no probabilities of thresholds" in capsys.readouterr().err


@of_probabilities
def test_calibrating_again_begins_with_what_the_network_says(calibrated, small_observed):
    again = calibrate(calibrated, small_observed, base_times=_cases(small_observed), batch_cases=5)
    assert again.postprocessing == calibrated.postprocessing


@of_probabilities
def test_what_was_not_observed_afterwards_counts_for_nothing(probable, small_observed):
    """The last base time of an event has no frame after it: it adds a case, and no count."""
    first = small_observed.isel(time=slice(18))
    times = first["time"].to_index()
    known, more = (calibrate(probable, first, base_times=times[2:end]) for end in (16, 18))
    counted = [one.postprocessing.provenance["cases"] for one in (known, more)]
    assert counted == ["14", "16"]
    last_known = calibrate(probable, first, base_times=times[2:17]).postprocessing
    assert more.postprocessing.calibration.curves == last_known.calibration.curves
    assert more.postprocessing.levels == last_known.levels


@of_probabilities
def test_a_calibration_is_saved_and_loaded_with_its_nowcaster(calibrated, small_observed, tmp_path):
    folder = calibrated.save(tmp_path / "saved")
    loaded = open_nowcaster(folder)
    assert loaded.postprocessing == calibrated.postprocessing
    expected = _whole(calibrated, small_observed)
    assert _whole(loaded, small_observed).identical(expected)
    hashes = json.loads((folder / "manifest.json").read_text())
    assert sorted(hashes) == ["calibration.json", "network.weights.h5", "settings.json"]
    assert hashes["calibration.json"] == expected.attrs["calibration_sha256"]
    assert "decision level" in expected.attrs["field_rule"]


@of_probabilities
def test_a_nowcaster_without_a_calibration_gives_the_median(probable, calibrated, tmp_path):
    folder = calibrated.save(tmp_path / "saved")
    probable.save(folder)
    assert not (folder / "calibration.json").exists()
    assert NeuralNowcaster.load(folder).postprocessing is None


@of_probabilities
@pytest.mark.parametrize("what", ["changed", "removed", "put there"])
def test_a_calibration_that_was_not_saved_so_is_refused(probable, calibrated, tmp_path, what):
    folder = calibrated.save(tmp_path / "saved")
    file = folder / "calibration.json"
    content = file.read_text()
    if what == "removed":
        file.unlink()
    elif what == "put there":
        probable.save(folder)
        file.write_text(content)
    else:
        file.write_text(content.replace("0.5", "0.6", 1))
        assert file.read_text() != content
    with pytest.raises(ValueError, match=r"calibration\.json is absent or not what was saved"):
        NeuralNowcaster.load(folder)


@of_probabilities
def test_a_calibration_of_another_ladder_is_refused(probable, calibrated):
    wider = dataclasses.replace(probable.settings, head=Head("exceedance", (0.1, 0.5, 3.0)))
    longer = dataclasses.replace(
        probable.settings, window=dataclasses.replace(probable.settings.window, lead_frames=3)
    )
    for settings in (wider, longer):
        with pytest.raises(ValueError, match="does not fit a network of the head 'exceedance'"):
            NeuralNowcaster(settings, probable.weights, postprocessing=calibrated.postprocessing)


@of_probabilities
def test_missing_input_is_missing_when_calibrated(calibrated, small_observed):
    holed = small_observed.copy(deep=True)
    holed["rain_rate"][3, 2:5, 7] = np.nan
    for array in _whole(calibrated, holed).values():
        hidden = array.isnull().all([dim for dim in array.dims if dim not in ("y", "x")])
        assert hidden.values[2:5, 7].all()
        assert int(array.isnull().sum()) == 3 * array.size // (16 * 16)


def test_a_network_of_fields_cannot_be_calibrated(nowcaster, small_observed):
    with pytest.raises(ValueError, match="calibration is of 'probability_of_exceedance'"):
        calibrate(nowcaster, small_observed, base_times=_cases(small_observed))


def test_a_folder_of_an_earlier_format_is_refused_kindly(nowcaster):
    content = {**nowcaster.settings.to_dict(), "format": 1}
    with pytest.raises(ValueError, match=r"of format 2; this one is of 1, .*; train it again"):
        type(nowcaster.settings).from_dict(content)


def _settings(nowcaster, levels, variable=RAIN_RATE):
    return dataclasses.replace(
        nowcaster.settings,
        head=Head("exceedance", levels),
        variable=variable,
        transform=Transform("linear", top=10.0),
    )


def test_the_median_lies_where_the_probability_crosses_one_half(nowcaster):
    probabilities = np.array(
        [
            [0.9, 0.7, 0.3],  # halfway from 2 to 6
            [0.8, 0.4, 0.1],  # three quarters of the way from 1 to 2
            [0.9, 0.5, 0.0],  # at 2
            [0.9, 0.8, 0.6],  # at least 6
            [0.4, 0.1, 0.0],  # dry
            [np.nan, np.nan, np.nan],
        ]
    )
    found = median_of_exceedance(probabilities, _settings(nowcaster, (1.0, 2.0, 6.0)))
    np.testing.assert_allclose(found, [4.0, 1.75, 2.0, 6.0, 0.0, np.nan], rtol=1e-6)


def test_between_thresholds_the_median_is_linear_on_the_scale_of_the_network(nowcaster):
    settings = dataclasses.replace(
        _settings(nowcaster, (1.0, 15.0)), transform=Transform("log", reference=1.0, top=10.0)
    )
    found = median_of_exceedance(np.array([[0.6, 0.4]]), settings)
    np.testing.assert_allclose(found, [np.sqrt(2.0 * 16.0) - 1.0], rtol=1e-6)


def test_the_median_reaches_a_threshold_that_no_32_bit_float_is(nowcaster):
    settings = _settings(nowcaster, (0.3, 0.7, 2.3))
    assert float(np.float32(0.7)) < 0.7
    probabilities = np.array([[0.5, 0.4, 0.3], [0.9, 0.5, 0.3], [0.9, 0.8, 0.5]])
    found = median_of_exceedance(probabilities, settings).astype(np.float32).astype(float)
    assert (found >= [0.3, 0.7, 2.3]).all()
    np.testing.assert_allclose(found, [0.3, 0.7, 2.3], rtol=1e-6)


def test_below_the_lowest_threshold_only_rain_is_dry(nowcaster):
    unlikely = np.array([[0.3, 0.1]])
    temperature = dataclasses.replace(RAIN_RATE, name="t2m", valid_min=150.0, valid_max=350.0)
    for variable, lowest in ((RAIN_RATE, 0.0), (REFLECTIVITY, 0.0), (temperature, 270.0)):
        settings = _settings(nowcaster, (270.0, 280.0), variable)
        assert median_of_exceedance(unlikely, settings).tolist() == [lowest]


@pytest.mark.parametrize(
    ("quantiles", "expected"),
    [
        ((0.1, 0.5, 0.9), 2.0),
        ((0.2, 0.4, 0.8), 3.0),
        ((0.6, 0.8, 0.9), 1.0),
        ((0.1, 0.2, 0.3), 6.0),
    ],
)
def test_the_median_of_quantiles_is_read_or_interpolated(quantiles, expected):
    values = np.array([[1.0, 2.0, 6.0], [np.nan] * 3])
    np.testing.assert_allclose(median_of_quantiles(values, quantiles), [expected, np.nan])
