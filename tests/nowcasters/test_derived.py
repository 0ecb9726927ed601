import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nowcast.conventions import EXCEEDANCE, with_exceedance
from nowcast.nowcasters import open_nowcaster
from nowcast.nowcasters.derived import WithSummary, summary_of
from nowcast.nowcasters.members import Draw, WithMembers
from nowcast.testing import check_nowcaster

LEADS = pd.to_timedelta([10, 20], unit="min")


@pytest.fixture(scope="module")
def probable(doubtful):
    return open_nowcaster(doubtful)


def _nowcast(nowcaster, observed):
    return nowcaster.nowcast(
        observed, base_times=observed["time"].to_index()[4:7], lead_times=LEADS
    )


@pytest.mark.parametrize("summary", ["mean", "median"])
def test_it_keeps_the_contract(probable, small_observed, summary):
    check_nowcaster(WithSummary(probable, summary), small_observed)


def test_probabilities_stay_and_what_is_missing(probable, small_observed):
    holed = small_observed.copy(deep=True)
    holed["rain_rate"][:, :, :5] = np.nan
    plain = _nowcast(probable, holed)
    for summary in ("mean", "median"):
        found = _nowcast(WithSummary(probable, summary), holed)
        xr.testing.assert_identical(found[EXCEEDANCE], plain[EXCEEDANCE])
        assert found["rain_rate"].dims == plain["rain_rate"].dims
        assert found["rain_rate"].attrs == plain["rain_rate"].attrs
        assert found["rain_rate"].isnull().any()
        np.testing.assert_array_equal(found["rain_rate"].isnull(), plain["rain_rate"].isnull())
        assert found.attrs["field_rule"].startswith(f"{summary} of {EXCEEDANCE}")


def test_the_mean_is_the_integral_of_the_probability(probable, small_observed):
    """Told by a fine sum: certain below the first threshold of what reaches it, linear above."""
    nowcast = _nowcast(probable, small_observed)
    levels = nowcast["threshold"].values
    chances = nowcast[EXCEEDANCE].transpose(..., "threshold").values
    edges = np.linspace(0.0, levels[-1], 20_001)
    middles = (edges[1:] + edges[:-1]) / 2
    seen = nowcast["rain_rate"].notnull().values.ravel()
    some = chances.reshape(-1, len(levels))[seen][::7]
    told = [np.interp(middles, levels, one).sum() * (edges[1] - edges[0]) for one in some]
    found = summary_of(nowcast, "mean")["rain_rate"].values.ravel()[seen][::7]
    assert np.ptp(told) > 0.1
    np.testing.assert_allclose(found, told, rtol=1e-3, atol=1e-6)


def test_mean_and_median_are_those_of_many_members(probable, small_observed):
    drawn = _nowcast(WithMembers(probable, Draw(members=400)), small_observed)["rain_rate"]
    mean, median = (
        _nowcast(WithSummary(probable, summary), small_observed)["rain_rate"]
        for summary in ("mean", "median")
    )
    spread = drawn.std("member")
    error = (spread / np.sqrt(400)).where(spread > 0.05)
    assert int(error.notnull().sum()) > 200
    assert float((abs(drawn.mean("member") - mean) / error).mean()) < 1.0
    assert float((abs(drawn.mean("member") - median) / error).mean()) > 1.5
    share = ((drawn > median).mean("member") <= 0.58) & ((drawn < median).mean("member") <= 0.58)
    assert float(share.mean()) > 0.98


def test_of_another_quantity_than_rain_nothing_lies_below_the_first_threshold(small_observed):
    temperature = small_observed.rename(rain_rate="temperature")
    temperature["temperature"].attrs = {"units": "K", "long_name": "temperature"}
    nowcast = open_nowcaster("persistence").nowcast(
        temperature, base_times=temperature["time"].to_index()[3:4], lead_times=LEADS
    )
    grid = nowcast["temperature"].shape[2:]
    chances = np.broadcast_to(np.array([0.4, 0.0])[None, :, None, None, None], (1, 2, 2, *grid))
    told = with_exceedance(nowcast, chances, thresholds=(280.0, 290.0))
    found = summary_of(told, "mean")["temperature"]
    np.testing.assert_allclose(found, 282.0)


def test_an_unknown_summary_is_refused(probable, small_observed):
    with pytest.raises(ValueError, match="unknown summary 'mode'; known are mean and median"):
        _nowcast(WithSummary(probable, "mode"), small_observed)


def test_what_gives_no_probabilities_is_refused(small_observed):
    with pytest.raises(ValueError, match=r"Persistence gives .*; train a network"):
        _nowcast(WithSummary(open_nowcaster("persistence"), "mean"), small_observed)
