"""What the settings mean in a comparison: cases, references, champions."""

import json
from pathlib import Path

import pandas as pd
import pytest
import xarray as xr

from nowcast import experiments
from nowcast.config import Config, ConfigError
from nowcast.data.synthetic import synthesise
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


def test_points_and_areas_are_not_scored_in_one_table(observed):
    with pytest.raises(ConfigError, match=r"points \(a.csv\) or areas \(b.json\), not both"):
        experiments.view(observed, Path("a.csv"), Path("b.json"), accumulate=False)
    assert experiments.view(observed, None, None, accumulate=False) is None


def test_amounts_are_scored_in_millimetres(observed, tmp_path):
    scores = _compare(
        observed,
        tmp_path,
        "verification.references=[]",
        view=experiments.view(observed, None, None, accumulate=True),
        thresholds=(0.2,),
    )
    assert scores["rmse"].attrs["units"] == "mm"
    assert json.loads(scores.attrs["protocol"])["view"] == "amounts since the base time"
    first = scores["rmse"].sel(lead_time=pd.Timedelta("10min"))
    plain = _compare(observed, tmp_path, thorough=False)["rmse"].isel(lead_time=0)
    assert first.values == pytest.approx(plain.values / 6.0, rel=1e-5)  # of an hour


def test_a_nowcaster_may_be_given_a_name_for_the_tables(tmp_path):
    tracking = Tracking(tmp_path)
    compared = experiments.comparables(Config(), ["still=persistence", "extrapolation"], tracking)
    assert list(compared) == ["persistence", "extrapolation", "still"]
    assert type(compared["still"]) is type(compared["persistence"])
    with pytest.raises(ConfigError, match="two nowcasters are called 'a'"):
        experiments.comparables(Config(), ["a=persistence", "a=extrapolation"], tracking)
    with pytest.raises(ConfigError, match="two nowcasters are called 'persistence'"):
        experiments.comparables(Config(), ["persistence=extrapolation"], tracking)
