"""What the settings mean in a comparison: cases, references, champions."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nowcast import experiments
from nowcast.config import Config, ConfigError
from nowcast.data.synthetic import synthesise
from nowcast.experiments import continuing
from nowcast.frames import Block
from nowcast.nowcasters import open_nowcaster
from nowcast.nowcasters.neural import NeuralNowcaster
from nowcast.tracking import Tracking

FEW = ["window.input_frames=3", "window.lead_frames=2", "verification.every_minutes=10"]


@pytest.fixture(scope="module")
def observed():
    return synthesise(events=4, hours=2, size=24, seed=3).load()


def _compare(observed, tmp_path, *settings, **options):
    config = Config().replace([*FEW, *settings])
    compared = experiments.nowcasters(config, [], Tracking(tmp_path))
    return experiments.compare(config, compared, observed, block=None, **options)


def test_the_references_of_the_settings_stand_beside_the_baselines(observed, tmp_path):
    scores = _compare(
        observed, tmp_path, "verification.steps_members=3", "verification.most_cases=4"
    )
    assert scores["nowcaster"].values.tolist() == ["persistence", "extrapolation", "steps"]
    assert scores.attrs["references"].split("\n") == ["persistence", "extrapolation", "steps"]
    assert scores["rank_count"].sizes["rank"] == 4
    # A baseline and no reference: STEPS changes neither the pixels nor the protocol.
    alone = _compare(observed, tmp_path, "verification.references=[]", "verification.most_cases=4")
    assert alone["nowcaster"].values.tolist() == ["persistence", "extrapolation"]
    assert alone.attrs["protocol_sha256"] == scores.attrs["protocol_sha256"]
    xr.testing.assert_equal(alone["csi"], scores["csi"].isel(nowcaster=slice(2)))


def test_a_selection_of_cases_is_part_of_the_protocol(observed, tmp_path):
    partly = observed.copy(deep=True)
    partly["rain_rate"][:13] = 0.0  # the first event
    every = _compare(partly, tmp_path, thorough=False)
    wet = _compare(partly, tmp_path, "verification.selection='wet'", thorough=False)
    few = _compare(partly, tmp_path, "verification.most_cases=3", thorough=False)
    cases = [json.loads(one.attrs["protocol"])["cases"] for one in (every, wet, few)]
    assert cases[0] > cases[1] > cases[2] == 3
    assert (wet["case_wet_share"] + wet["case_wet_share_later"] > 0).all()
    selections = [json.loads(one.attrs["protocol"])["selection"] for one in (every, wet, few)]
    assert selections == [
        "all, 10 min apart or more",
        "wet, 10 min apart or more",
        "all, 3 at most, 10 min apart or more",
    ]


def test_the_champion_is_the_best_that_is_no_reference():
    names = ["persistence", "extrapolation", "poor", "good"]
    scores = xr.Dataset(
        {
            "csi_pooled": (
                ("nowcaster", "threshold"),
                [[0.9, 0.9], [0.8, 0.1], [0.3, 0.9], [0.4, 0]],
            )
        },
        coords={"nowcaster": names, "threshold": [1.0, 5.0]},
        attrs={"references": "persistence\nextrapolation"},
    )
    assert experiments.champion(scores, among=names) == "good"  # by the middle threshold, or below
    assert experiments.champion(scores, among=names[:2]) == "persistence"
    bare = scores.isel(threshold=slice(0)).assign(rmse_pooled=("nowcaster", [3.0, 1.0, 2.0, 2.5]))
    assert experiments.champion(bare, among=names) == "poor"


@pytest.fixture
def two_grids(tmp_path):
    """Files of synthetic rain on grids of 16 and 24 pixels, a week apart."""
    paths = [str(tmp_path / name) for name in ("small.nc", "large.nc")]
    for path, size in zip(paths, (16, 24), strict=True):
        made = synthesise(hours=1, size=size, seed=size)
        _later(made, pd.Timedelta(days=size)).to_netcdf(path)
    return paths


def _later(observed, delay):
    plain = observed.drop_vars("time_bnds", errors="ignore")
    return plain.assign_coords(time=observed["time"] + delay)


def test_sources_on_different_grids_are_coarsened_and_put_on_one_canvas(two_grids):
    small, large = (experiments.observations(Config(), path) for path in two_grids)
    both = experiments.observations(Config(), two_grids)
    values = both["rain_rate"].values
    assert values.shape == (14, 24, 24)
    np.testing.assert_array_equal(values[:7, 4:20, 4:20], small["rain_rate"])
    np.testing.assert_array_equal(values[7:], large["rain_rate"])
    assert int(np.isnan(values).sum()) == 7 * (24**2 - 16**2)
    named = Config().replace([f"data.observations={json.dumps(two_grids)}", "data.coarsen=2"])
    coarse = experiments.observations(named)
    assert coarse["rain_rate"].shape == (14, 12, 12)
    assert int(coarse["rain_rate"].isnull().sum()) == 7 * (12**2 - 8**2)


def test_sources_on_one_grid_stay_where_they_are(two_grids, tmp_path):
    later = _later(xr.open_dataset(two_grids[0]), pd.Timedelta("70min"))
    later.to_netcdf(tmp_path / "later.nc")
    together = experiments.observations(Config(), [two_grids[0], str(tmp_path / "later.nc")])
    alone = experiments.observations(Config(), two_grids[:1])
    assert together.sizes["time"] == 14
    xr.testing.assert_identical(together["x"], alone["x"])
    assert together["crs"].attrs == alone["crs"].attrs


def test_frames_of_two_grids_stay_further_apart_than_a_window_steps(two_grids):
    hour = synthesise(hours=1, size=24)
    _later(hour, pd.Timedelta(days=16, minutes=90)).to_netcdf(two_grids[1])  # after the first hour
    assert experiments.observations(Config(), two_grids).sizes["time"] == 14
    with pytest.raises(ValueError, match="more than 30 min apart"):
        experiments.observations(Config().replace(["window.step_minutes=30"]), two_grids)


def test_one_source_in_a_list_is_one_source():
    small = Config().replace(["synthetic.events=1", "synthetic.hours=1", "synthetic.size=8"])
    one = experiments.observations(small, [experiments.SYNTHETIC])
    assert one.sizes["x"] == 8


def test_points_and_areas_are_not_scored_in_one_table(observed):
    with pytest.raises(ConfigError, match=r"points \(a.csv\) or areas \(b.json\), not both"):
        experiments.view(observed, Path("a.csv"), Path("b.json"), accumulate=False)
    assert experiments.view(observed, None, None, accumulate=False) is None


def test_amounts_are_scored_in_millimetres(observed, tmp_path):
    scores = _compare(
        observed,
        tmp_path,
        thorough=False,
        view=experiments.view(observed, None, None, accumulate=True),
        thresholds=(0.2,),
    )
    assert scores["rmse"].attrs["units"] == "mm"
    assert json.loads(scores.attrs["protocol"])["view"] == "amounts since the base time"
    first = scores["rmse"].sel(lead_time=pd.Timedelta("10min"))
    plain = _compare(observed, tmp_path, thorough=False)["rmse"].isel(lead_time=0)
    assert first.values == pytest.approx(plain.values / 6.0, rel=1e-5)  # of an hour


@pytest.mark.parametrize("name", ["persistence", "extrapolation", "steps", "periodic"])
def test_what_is_issued_sees_frames_in_the_step_of_the_settings_or_of_the_observations(
    observed, tmp_path, name
):
    cycle = ["variable.period_hours=1", "verification.steps_members=3", "window.lead_frames=2"]
    for settings, minutes in (([], [10, 20]), (["window.step_minutes=20"], [20, 40])):
        config = Config().replace([*cycle, *settings])
        nowcaster, _ = experiments.opened(config, name, Tracking(tmp_path))
        leads = experiments.lead_times_of(config, nowcaster, observed)
        assert list(leads) == list(pd.to_timedelta(minutes, unit="min"))
        base_times = observed["time"].to_index()[8:9]
        nowcast = nowcaster.nowcast(observed, base_times=base_times, lead_times=leads)
        assert nowcast.sizes.get("member", 3) == 3
        if name != "periodic":
            assert nowcaster.step == (leads[0] if settings else None)


def test_members_stand_behind_the_network_that_they_are_drawn_from(tmp_path, doubtful):
    tracking, uris = Tracking(tmp_path), [f"net={doubtful}", "steps"]
    compared = experiments.comparables(Config(), uris, tracking, members=7)
    assert list(compared) == ["persistence", "extrapolation", "net", "net, 7 members", "steps"]
    drawn = compared["net, 7 members"]
    assert drawn.nowcaster is compared["net"]
    assert (drawn.members, drawn.input_frames, drawn.step) == (7, 3, pd.Timedelta("10min"))
    assert list(experiments.comparables(Config(), uris, tracking)) == [
        "persistence", "extrapolation", "net", "steps",
    ]  # fmt: skip


def test_calibration_takes_short_windows_if_it_may_and_nothing_from_behind_the_block(
    observed, tmp_path, doubtful
):
    times = observed["time"].to_index()
    block = Block(times[0], times[7])
    config = Config().replace([*FEW, "training.least_lead_frames=1"])
    soaked = observed.copy(deep=True)
    soaked["rain_rate"][8:] = 20.0

    def made(settings, weather):
        return experiments.calibrated(
            settings, str(doubtful), weather, Tracking(tmp_path), block=block
        ).postprocessing

    short, whole = made(config, observed), made(Config().replace(FEW), observed)
    assert (short.provenance["cases"], whole.provenance["cases"]) == ("5", "4")
    assert pd.Timestamp(short.provenance["last_base_time"]) == times[6]
    assert made(config, soaked) == short


def test_training_on_keeps_the_views_unless_the_settings_tell_others_or_turn_nothing(doubtful):
    one = open_nowcaster(doubtful)
    seen = NeuralNowcaster(replace(one.settings, views=8), one.weights)
    turning = Config().replace(["training.augment=true", "training.loss=ordinal"])
    assert continuing(turning, seen).network.views == 8
    assert continuing(turning.replace(["network.views=4"]), seen).network.views == 4
    assert continuing(turning.replace(["network.views=4"]), one).network.views == 4
    assert continuing(turning.replace(["network.views=1"]), seen).network.views == 1
    assert continuing(turning.replace(["training.augment=false"]), seen).network.views == 1


def test_members_are_not_the_champion_of_a_report(observed, tmp_path, doubtful, monkeypatch):
    titles, worst = [], []
    monkeypatch.setattr("nowcast.report.write_report", lambda *_, title, **__: titles.append(title))
    monkeypatch.setattr(experiments, "_worst", lambda _, name, *__: worst.append(name))
    uris = [f"net={doubtful}"]
    compared = experiments.comparables(Config(), uris, Tracking(tmp_path), members=2)
    scores = xr.Dataset(
        {"csi_pooled": (("nowcaster", "threshold"), [[0.9], [0.8], [0.1], [0.7]])},
        coords={"nowcaster": list(compared), "threshold": [1.0]},
        attrs={"references": "persistence\nextrapolation"},
    )
    experiments.report(scores, compared, observed, path=tmp_path / "report.html")
    assert (titles, worst) == (["Verification of net"], ["net"])


@pytest.mark.proof  # three verifications
def test_fewer_cases_are_in_memory_where_ensembles_are_large(observed, tmp_path, monkeypatch):
    def scores(*settings):
        done = []
        made = _compare(
            observed,
            tmp_path,
            "verification.steps_members=3",
            "verification.most_cases=5",
            "verification.batch_cases=4",
            *settings,
            progress=lambda number, _: done.append(number),
        )
        return made.drop_vars("seconds"), done

    whole, together = scores()
    fields = 1 + 1 + 3  # of persistence, extrapolation and the members of STEPS
    monkeypatch.setattr(experiments, "MOST_VALUES", 2 * fields * 2 * 24 * 24)
    pairs, in_pairs = scores()
    assert (together, in_pairs) == ([4, 5], [2, 4, 5])
    xr.testing.assert_identical(pairs, whole)
    monkeypatch.setattr(experiments, "MOST_VALUES", 1)
    assert scores("verification.references=[]")[1] == [1, 2, 3, 4, 5]


def _corner(observed):
    corner = observed.copy(deep=True)
    corner["rain_rate"][:] = 0.0
    corner["rain_rate"][:, :2, :2] = 5.0
    return corner


@pytest.mark.parametrize(
    ("weather", "reason"),
    [
        (_corner, "no power at small scales: its rain lies at the edge"),
        (lambda observed: observed.isel(y=slice(8), x=slice(8)), "8 x 8 pixels has 3 rings"),
        (lambda observed: 0.0 * observed, "at no base time does a pixel reach a threshold"),
    ],
    ids=["corner", "small", "dry"],
)
def test_a_network_whose_blur_cannot_be_matched_is_verified_without_that_reference(
    observed, tmp_path, doubtful, caplog, weather, reason
):
    caplog.set_level("WARNING", logger="nowcast")  # whatever another test asked for
    config = Config().replace(
        [*FEW, "verification.references=['smoothed']", "verification.most_cases=3"]
    )
    compared = experiments.comparables(config, [f"net={doubtful}"], Tracking(tmp_path))
    with xr.set_options(keep_attrs=True):
        seen = weather(observed)
    scores = experiments.compare(config, compared, seen, block=None)
    assert scores["nowcaster"].values.tolist() == ["persistence", "extrapolation", "net"]
    assert "no smoothed extrapolation is compared with net: " in caplog.text
    assert reason in caplog.text
    assert "dryness" not in caplog.text


def test_a_network_whose_blur_is_matched_has_that_reference_and_no_warning(
    observed, tmp_path, doubtful, caplog
):
    caplog.set_level("WARNING", logger="nowcast")
    config = Config().replace(
        [*FEW, "verification.references=['smoothed']", "verification.most_cases=3"]
    )
    compared = experiments.comparables(config, [f"net={doubtful}"], Tracking(tmp_path))
    scores = experiments.compare(config, compared, observed, block=None)
    assert "extrapolation, smooth as net" in scores["nowcaster"].values
    assert "smoothed extrapolation" not in caplog.text


def test_a_nowcaster_may_be_given_a_name_for_the_tables(tmp_path):
    tracking = Tracking(tmp_path)
    compared = experiments.comparables(Config(), ["still=persistence", "extrapolation"], tracking)
    assert list(compared) == ["persistence", "extrapolation", "still"]
    assert type(compared["still"]) is type(compared["persistence"])
    with pytest.raises(ConfigError, match="two nowcasters are called 'a'"):
        experiments.comparables(Config(), ["a=persistence", "a=extrapolation"], tracking)
    with pytest.raises(ConfigError, match="two nowcasters are called 'persistence'"):
        experiments.comparables(Config(), ["persistence=extrapolation"], tracking)
