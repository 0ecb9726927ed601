import impostors
import numpy as np
import pandas as pd
import pytest

from nowcast.data.synthetic import synthesise
from nowcast.nowcasters import open_nowcaster
from nowcast.report.checks import flagged
from nowcast.testing import check_nowcaster
from nowcast.verification import case_times, verify

LEADS = pd.to_timedelta([10, 20, 30, 40], unit="min")
LIGHT, HEAVY = 0.5, 2.0  # mm/h


@pytest.fixture(scope="module")
def observed():
    return synthesise(events=5, hours=1.5, size=48, seed=8).load()


@pytest.fixture(scope="module")
def nowcasters():
    return {
        "persistence": open_nowcaster("persistence"),
        "extrapolation": open_nowcaster("extrapolation"),
        "peeking": impostors.Peeking(),
        "blurred": impostors.Blurred(),
        "overforecasting": impostors.Overforecasting(),
    }


@pytest.fixture(scope="module")
def scores(observed, nowcasters):
    cases = case_times(
        observed, nowcasters=nowcasters, lead_times=LEADS, every=pd.Timedelta("30min")
    )
    return verify(
        nowcasters, observed, base_times=cases, lead_times=LEADS, thresholds=(LIGHT, HEAVY)
    )


def test_a_peeking_nowcaster_breaks_the_contract_and_the_others_keep_it(observed, nowcasters):
    first = observed.isel(time=slice(0, 10))
    with pytest.raises(ValueError, match="no pixel was observed"):  # where it must not look
        check_nowcaster(nowcasters["peeking"], first)
    check_nowcaster(nowcasters["blurred"], first)
    check_nowcaster(nowcasters["overforecasting"], first)


def test_peeking_is_told_and_nobody_else_is_accused(scores):
    accused = scores["nowcaster"].values[scores["sees_future"].values]
    assert list(accused) == ["peeking"]


def test_peeking_looks_like_one_step_gained(scores):
    gained = scores["minutes_gained"].sel(nowcaster="peeking", threshold=LIGHT)
    # What it shows first has been observed: as good as extrapolation at lead time 0.
    assert gained.values[0] == pytest.approx(10.0)
    # From then on it is what extrapolation says from other base times, a step later.
    assert gained.values[1:] == pytest.approx(10.0, abs=5.0)
    assert (scores["csi"].sel(nowcaster="peeking").isel(lead_time=0) == 1.0).all()


def test_blur_wins_by_rmse_and_is_told_by_its_effective_resolution(scores):
    honest, blurred = (scores.sel(nowcaster=name) for name in ("extrapolation", "blurred"))
    later = {"lead_time": slice(1, None)}  # at first, what is sharp is still in the right place
    assert (blurred["rmse"] < honest["rmse"]).isel(later).all()
    assert (blurred["effective_resolution"] > 2 * honest["effective_resolution"]).all()
    bias = (blurred["frequency_bias"] / honest["frequency_bias"]).sel(threshold=HEAVY)
    assert (bias < 0.9).all()


def test_the_power_of_a_blurred_nowcaster_is_what_the_gaussian_leaves(scores):
    honest, blurred = (scores["power"].sel(nowcaster=name) for name in ("extrapolation", "blurred"))
    short = scores["wavelength"] < 15.0
    long = scores["wavelength"] > 80.0
    left = blurred / honest
    assert (left.sel(wavelength=short) < 0.1).all()
    assert (left.sel(wavelength=long) > 0.5).all()


def test_overforecasting_wins_by_pod_and_is_told_by_its_frequency_bias(scores):
    honest, heavy = (scores.sel(nowcaster=name) for name in ("extrapolation", "overforecasting"))
    assert (heavy["pod"].sel(threshold=HEAVY) > honest["pod"].sel(threshold=HEAVY)).all()
    assert (heavy["frequency_bias"].sel(threshold=HEAVY) > 1.5).all()
    assert (heavy["far"].sel(threshold=HEAVY) > honest["far"].sel(threshold=HEAVY)).all()
    assert (heavy["me"] > np.abs(honest["me"])).all()


def test_the_report_flags_each_for_what_it_does_and_the_baselines_for_nothing(scores):
    found = flagged(scores)
    assert set(found) == {"peeking", "blurred", "overforecasting"}
    assert found["peeking"] == ["saw the future"]
    assert any("blurred" in one for one in found["blurred"])
    assert any("frequency bias" in one for one in found["overforecasting"])
    assert "saw the future" not in found["blurred"] + found["overforecasting"]
