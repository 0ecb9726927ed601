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
    gridded,
    variable_of,
    with_exceedance,
    with_quantiles,
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


def test_a_nowcast_is_of_later_times(small_observed):
    made = {
        "values": small_observed["rain_rate"].values[None, 2:4],
        "observed": small_observed,
        "variable": RAIN_RATE,
        "base_times": small_observed["time"].to_index()[2:3],
    }
    check_nowcast(build_nowcast(lead_times=pd.to_timedelta([1, 2], unit="min"), **made))
    for minutes in ([0, 10], [-10, 10]):
        leads = pd.to_timedelta(minutes, unit="min")
        with pytest.raises(ValueError, match="after its base time; received a lead time of"):
            check_nowcast(build_nowcast(lead_times=leads, **made))


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


def _falling(nowcast):
    """A nowcast with the probabilities 0.8, 0.5 and 0.1 of reaching 0.5, 1 and 5 mm/h."""
    levels = np.array([0.8, 0.5, 0.1])[None, :, None, None, None]
    values = np.broadcast_to(levels, (2, 3, 2, 16, 16))
    return with_exceedance(nowcast, values, thresholds=(0.5, 1.0, 5.0))


def _rising(nowcast):
    levels = np.array([0.2, 1.0])[None, :, None, None, None]
    return with_quantiles(nowcast, np.broadcast_to(levels, (2, 2, 2, 16, 16)), quantiles=(0.1, 0.5))


def test_a_nowcast_may_hold_probabilities_and_quantiles(small_observed):
    nowcast = check_nowcast(_rising(_falling(_nowcast(small_observed))))
    assert variable_of(nowcast) == "rain_rate"
    assert gridded(nowcast) == ["rain_rate"]
    assert nowcast["probability_of_exceedance"].attrs["units"] == "1"
    assert nowcast["threshold"].attrs == {
        "standard_name": "rainfall_rate",
        "long_name": "threshold of rain rate",
        "units": "mm h-1",
    }
    assert nowcast["quantile"].attrs["units"] == "1"
    assert nowcast["value_at_quantile"].attrs["units"] == "mm h-1"
    assert nowcast["probability_of_exceedance"].sel(threshold=1.0).mean() == 0.5


def _changed(nowcast, name, values):
    return nowcast.assign({name: nowcast[name].copy(data=values.astype(np.float32))})


def test_what_is_no_distribution_is_refused(small_observed):
    nowcast = _rising(_falling(_nowcast(small_observed)))
    chances = nowcast["probability_of_exceedance"].values
    amounts = nowcast["value_at_quantile"].values
    wrong = {
        r"must lie in \[0.0, 1.0\]; it reaches from": ("probability_of_exceedance", chances + 0.5),
        "must fall along 'threshold'": ("probability_of_exceedance", chances[:, ::-1]),
        r"must lie in \[0.0, 1000.0\]": ("value_at_quantile", amounts - 0.5),
        "must rise along 'quantile'": ("value_at_quantile", amounts[:, ::-1]),
        "must be missing where 'rain_rate' is": ("value_at_quantile", amounts * np.nan),
    }
    for message, (name, values) in wrong.items():
        with pytest.raises(ValueError, match=message):
            check_nowcast(_changed(nowcast, name, values))
    holed = nowcast["rain_rate"].where(nowcast["x"] > nowcast["x"][3])
    with pytest.raises(ValueError, match="'probability_of_exceedance' must be missing where"):
        check_nowcast(nowcast.assign(rain_rate=holed.assign_attrs(nowcast["rain_rate"].attrs)))


def test_levels_that_are_none_are_refused(small_observed):
    nowcast = _rising(_falling(_nowcast(small_observed)))
    with pytest.raises(ValueError, match="must be a coordinate in 'mm h-1'"):
        check_nowcast(nowcast.drop_vars("threshold"))
    with pytest.raises(ValueError, match="'quantile' must be strictly increasing between 0 and 1"):
        check_nowcast(
            nowcast.assign_coords(quantile=nowcast["quantile"].copy(data=np.array([0.0, 0.5])))
        )
    with pytest.raises(ValueError, match="must have the dims"):
        check_nowcast(nowcast.transpose("threshold", ...))


def test_checking_a_lazy_nowcast_computes_no_probability(small_observed):
    import dask

    def refuse(*_args, **_kwargs):
        raise AssertionError("computed")

    lazy = _falling(_nowcast(small_observed)).chunk(lead_time=1).assign_coords(
        valid_time=_nowcast(small_observed)["valid_time"]
    )  # fmt: skip
    with dask.config.set(scheduler=refuse):
        check_nowcast(lazy)
