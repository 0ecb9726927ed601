"""The same hour yesterday, proved on a field whose every value tells the hour it is of."""

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nowcast.nowcasters import open_nowcaster
from nowcast.nowcasters.periodic import Periodic
from nowcast.testing import check_nowcaster

HOUR, DAY = pd.Timedelta("1h"), pd.Timedelta("24h")
GEOGRAPHIC = {"grid_mapping_name": "latitude_longitude"}


@pytest.fixture(scope="module")
def observed():
    """Three days of hourly frames; frame k holds k everywhere, and a pattern along x."""
    hours = np.arange(72.0)[:, None, None]
    return xr.Dataset(
        {"t2m": (("time", "y", "x"), hours + np.zeros((1, 4, 1)) + np.arange(5) / 10)},
        coords={
            "time": pd.date_range("2024-03-01", periods=72, freq="1h"),
            "y": ("y", 50.0 + np.arange(4), {"units": "degrees_north"}),
            "x": ("x", np.arange(5.0), {"units": "degrees_east"}),
            "crs": ((), 0, GEOGRAPHIC),
        },
    ).assign(t2m=lambda data: data["t2m"].assign_attrs(units="K", grid_mapping="crs"))


def _hours(observed, nowcaster, *, base, leads):
    """Give the hours of the frames that a nowcast repeats."""
    nowcast = nowcaster.nowcast(
        observed,
        base_times=observed["time"].to_index()[[base]],
        lead_times=pd.TimedeltaIndex([lead * HOUR for lead in leads]),
    )
    return nowcast["t2m"].isel(base_time=0, y=0, x=0).values.tolist()


def test_periodic_keeps_the_contract(observed):
    check_nowcaster(Periodic(period=DAY, step=HOUR), observed)
    every_other = observed.isel(time=slice(None, None, 2))
    check_nowcaster(Periodic(period=4 * HOUR, step=2 * HOUR), every_other, lead_frames=5)


def test_it_gives_the_same_hour_of_the_day_before(observed):
    daily = open_nowcaster("periodic", period=DAY, step=HOUR)
    assert _hours(observed, daily, base=30, leads=[1, 2, 23, 24]) == [7, 8, 29, 30]


def test_beyond_one_period_it_goes_back_as_many_as_it_needs_and_never_ahead(observed):
    daily = Periodic(period=DAY, step=HOUR)
    assert _hours(observed, daily, base=30, leads=[25, 48, 49, 72]) == [7, 30, 7, 30]


def test_it_needs_the_frames_of_one_period_and_no_more(observed):
    assert Periodic(period=DAY, step=HOUR).input_frames == 24
    assert Periodic(period=DAY, step=pd.Timedelta("10min")).input_frames == 144
    daily = Periodic(period=DAY, step=HOUR)
    assert _hours(observed, daily, base=23, leads=[1]) == [0]
    with pytest.raises(ValueError, match="2024-02-29T23:00:00 is absent"):
        _hours(observed, daily, base=22, leads=[1])


def test_what_was_missing_a_period_before_is_missing(observed):
    holed = observed.copy(deep=True)
    holed["t2m"][7, 0, 0] = np.nan
    values = _hours(holed, Periodic(period=DAY, step=HOUR), base=30, leads=[1, 2])
    np.testing.assert_equal(values, [np.nan, 8])


@pytest.mark.parametrize(("period", "step"), [("24h", "7h"), ("30min", "1h"), ("0h", "1h")])
def test_a_period_that_is_no_multiple_of_the_step_is_refused(period, step):
    with pytest.raises(ValueError, match="a period must be a multiple of the step"):
        Periodic(period=pd.Timedelta(period), step=pd.Timedelta(step))


def test_a_lead_time_between_two_frames_is_refused(observed):
    with pytest.raises(ValueError, match=r"multiples of the step of 0 days 01:00:00; .* 01:30"):
        _hours(observed, Periodic(period=DAY, step=HOUR), base=30, leads=[1, 1.5])
