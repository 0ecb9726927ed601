import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nowcast.conventions import (
    RAIN_RATE,
    REFLECTIVITY,
    build_nowcast,
    check_nowcast,
    check_observations,
    check_values,
    grid_id,
    variable_of,
)
from nowcast.data.synthetic import synthesise


def test_observations_without_units_are_refused(small_observed):
    broken = small_observed.copy(deep=True)
    del broken["rain_rate"].attrs["units"]
    with pytest.raises(ValueError, match="has no units"):
        check_observations(broken)


def test_rain_in_other_units_is_refused(small_observed):
    broken = small_observed.copy(deep=True)
    broken["rain_rate"].attrs["units"] = "mm"
    with pytest.raises(ValueError, match=r"must be in 'mm h-1'; its units are 'mm'"):
        check_observations(broken)


def test_times_must_increase(small_observed):
    with pytest.raises(ValueError, match="strictly increasing"):
        check_observations(small_observed.isel(time=[0, 2, 1]))
    with pytest.raises(ValueError, match="strictly increasing"):
        check_observations(small_observed.isel(time=[0, 1, 1]))


def test_an_irregular_grid_is_refused(small_observed):
    with pytest.raises(ValueError, match="'x' must be regular"):
        check_observations(small_observed.isel(x=[0, 1, 3]))


def test_a_grid_without_projection_is_refused(small_observed):
    with pytest.raises(ValueError, match="grid mapping"):
        check_observations(small_observed.drop_vars("crs"))


def test_dims_in_another_order_are_refused(small_observed):
    with pytest.raises(ValueError, match="must have the dims"):
        check_observations(small_observed.transpose("y", "x", "time", ...))


def test_checking_does_not_compute(small_observed):
    import dask

    def refuse(*_args, **_kwargs):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        check_observations(small_observed.chunk(time=1))


@pytest.mark.parametrize("wrong", [-0.1, 2000.0, np.inf])
def test_values_out_of_range_are_refused(small_observed, wrong):
    broken = small_observed.copy(deep=True)
    broken["rain_rate"][0, 0, 0] = wrong
    with pytest.raises(ValueError, match="1 values of 'rain_rate' are outside"):
        check_values(broken)


def test_missing_is_a_right_value(small_observed):
    assert check_values(small_observed.where(False)) is not None


def test_two_variables_are_ambiguous(small_observed):
    both = small_observed.assign(reflectivity=small_observed["rain_rate"])
    with pytest.raises(ValueError, match="one variable"):
        variable_of(both)
    assert check_observations(both, RAIN_RATE) is both
    with pytest.raises(ValueError, match="must be in 'dBZ'"):
        check_observations(both, REFLECTIVITY)


def test_another_extent_is_another_grid(small_observed):
    moved = small_observed.assign_coords(x=small_observed["x"] + 2000.0)
    assert grid_id(moved) != grid_id(small_observed)
    assert grid_id(small_observed.isel(time=[0])) == grid_id(small_observed)


def _nowcast(observed):
    base_times = observed["time"].to_index()[3:5]
    lead_times = pd.to_timedelta([10, 20], unit="min")
    values = np.ones((2, 2, observed.sizes["y"], observed.sizes["x"]))
    return build_nowcast(
        values,
        observed=observed,
        variable=RAIN_RATE,
        base_times=base_times,
        lead_times=lead_times,
    )


def test_a_nowcast_knows_its_valid_times(small_observed):
    nowcast = check_nowcast(_nowcast(small_observed))
    expected = nowcast["base_time"].values[1] + np.timedelta64(20, "m")
    assert nowcast["valid_time"].values[1, 1] == expected


def test_a_lead_time_that_is_no_timedelta_is_refused(small_observed):
    nowcast = _nowcast(small_observed)
    with pytest.raises(ValueError, match="lead_time must be a timedelta"):
        check_nowcast(nowcast.assign_coords(lead_time=[600, 1200]))


def test_negative_rain_in_a_nowcast_is_refused(small_observed):
    nowcast = _nowcast(small_observed)
    with pytest.raises(ValueError, match="outside"):
        check_nowcast(
            nowcast.assign(rain_rate=nowcast["rain_rate"].copy(data=-nowcast["rain_rate"]))
        )


def test_a_wrong_valid_time_is_refused(small_observed):
    nowcast = _nowcast(small_observed)
    shifted = nowcast.assign_coords(valid_time=nowcast["valid_time"] + pd.Timedelta("5min"))
    with pytest.raises(ValueError, match="valid_time"):
        check_nowcast(shifted)


def test_numpy_and_dask_have_the_same_grid(small_observed):
    assert grid_id(small_observed.chunk()) == grid_id(small_observed)
    assert isinstance(small_observed, xr.Dataset)


def test_bounds_that_end_before_they_start_are_refused():
    observed = synthesise(hours=1, size=16).isel(time=slice(3))
    ends = observed["time"].values
    bounds = np.stack([ends, ends - np.timedelta64(5, "m")], axis=1)
    observed = observed.assign_coords(time_bnds=(("time", "bnds"), bounds))
    observed["time"].attrs["bounds"] = "time_bnds"
    with pytest.raises(ValueError, match="the start and then the end"):
        check_observations(observed)
