import netCDF4
import numpy as np
import pandas as pd
import pytest

from nowcast.conventions import RAIN_RATE, REFLECTIVITY
from nowcast.data.synthetic import synthesise
from nowcast.issuing import open_nowcast, write_nowcast
from nowcast.nowcasters import open_nowcaster
from nowcast.nowcasters.extrapolation import as_optical_flow_sees, motion, quiet
from nowcast.nowcasters.steps import SEEN_FROM, Steps
from nowcast.rainrate import to_reflectivity
from nowcast.testing import check_nowcaster

LEADS = pd.to_timedelta([10, 20, 30], unit="min")


@pytest.fixture(scope="module")
def observed():
    """Rain on two fifths of the grid."""
    rain = synthesise(hours=2, size=64, seed=7).load()
    heavy = rain["rain_rate"] > rain["rain_rate"].quantile(0.6)
    return rain.assign(rain_rate=rain["rain_rate"].where(heavy, 0.0))


@pytest.fixture(scope="module")
def nowcast(observed):
    return _nowcast(Steps(members=4), observed)


def _nowcast(nowcaster, observed, *, at=slice(5, 6), lead_times=LEADS):
    times = observed["time"].to_index()[at]
    return nowcaster.nowcast(observed, base_times=times, lead_times=lead_times)


def _values(nowcaster, observed, **given):
    nowcast = _nowcast(nowcaster, observed, **given)
    return nowcast[next(iter(nowcast))].values


def _largest_spread(members):
    """Over members that are missing alike."""
    return float(np.nanmax(members.max(axis=0) - members.min(axis=0)))


def _with_rain(observed, values):
    return observed.assign(rain_rate=observed["rain_rate"].copy(data=values))


def _is_extrapolation(observed):
    members = _values(Steps(members=2), observed)
    moved = _values(open_nowcaster("extrapolation"), observed)
    return np.array_equal(members, np.stack([moved, moved], axis=1), equal_nan=True)


def _fine_power(fields):
    """Mean power of waves of 4 to 16 pixels."""
    power = np.abs(np.fft.rfft2(np.nan_to_num(fields))) ** 2
    waves = np.hypot(np.fft.fftfreq(64)[:, None], np.fft.rfftfreq(64))
    return power[..., (waves > 1 / 16) & (waves < 1 / 4)].mean()


def test_steps_keeps_the_contract_for_rain_rate_and_reflectivity(observed):
    small = observed.isel(y=slice(32), x=slice(40))
    check_nowcaster(Steps(members=3), small)
    dbz = to_reflectivity(small["rain_rate"]).assign_attrs(REFLECTIVITY.attributes)
    check_nowcaster(Steps(members=3), small.drop_vars("rain_rate").assign(reflectivity=dbz))


def test_company_order_and_number_change_no_bit_of_a_member(observed, nowcast):
    alone = nowcast["rain_rate"].values[0]
    state = np.random.get_state()[1].copy()
    several = _values(Steps(members=2), observed, at=[3, 5], lead_times=LEADS[:2])
    np.testing.assert_array_equal(several[1], alone[:2, :2])
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_members_seeds_and_base_times_have_their_own_noise(observed, nowcast):
    values = nowcast["rain_rate"].values[0]
    assert len({member.tobytes() for member in values}) == 4
    assert not np.array_equal(_values(Steps(members=1, seed=1), observed)[0, 0], values[0])
    later = observed.assign_coords(time=observed["time"] + np.timedelta64(1, "D"))
    assert not np.array_equal(_values(Steps(members=1), later)[0, 0], values[0])


def test_nothing_after_the_base_time_changes_a_bit(observed, nowcast):
    blinded = observed.copy(deep=True)
    blinded["rain_rate"][6:] = 77.0
    np.testing.assert_array_equal(_values(Steps(members=4), blinded), nowcast["rain_rate"])


def test_rain_is_what_pysteps_gives_for_the_same_seed(observed):
    from pysteps.nowcasts.steps import forecast

    given = {}

    def listening(*arguments, **settings):
        given.update(settings)
        return forecast(*arguments, **settings)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pysteps.nowcasts.steps.forecast", listening)
        values = _values(Steps(members=2), observed)[0]
    frames = observed["rain_rate"].values[3:6]
    decibels = as_optical_flow_sees(frames, RAIN_RATE)
    with quiet():
        direct = forecast(
            decibels, motion(frames, RAIN_RATE), 3, n_ens_members=2, n_cascade_levels=5,
            precip_thr=-10.0, kmperpixel=2.0, timestep=10.0, seed=given["seed"],
        )  # fmt: skip
    rain = np.where(direct < -10, 0.0, 10 ** (direct / 10))
    both = np.isfinite(values) & np.isfinite(direct)
    assert both.mean() > 0.8
    assert (values >= 0.1)[both].mean() > 0.1
    np.testing.assert_allclose(
        np.where(values >= 0.1, values, 0.0)[both], rain[both], rtol=1e-5, atol=1e-5
    )


def test_members_are_as_sharp_as_what_was_observed_and_their_mean_is_not(observed):
    leads = pd.to_timedelta(np.arange(10, 70, 10), unit="min")
    members = _values(Steps(members=8), observed, lead_times=leads)[0, :, -1]
    there = np.isfinite(members[0])
    later = np.where(there, observed["rain_rate"].values[11], 0.0)
    assert 0.6 < _fine_power(members) / _fine_power(later) < 1.6
    assert _fine_power(members.mean(axis=0)) < 0.4 * _fine_power(later)


def test_spread_grows_with_lead_time(nowcast):
    spread = nowcast["rain_rate"].std("member").mean(("base_time", "y", "x")).values
    assert (np.diff(spread) > 0).all()


@pytest.mark.parametrize("dry", [[5], [4], [3, 4, 5]])
def test_without_rain_to_fit_members_are_the_extrapolation(observed, dry):
    frames = observed.copy(deep=True)
    frames["rain_rate"][dry] = 0.0
    assert _is_extrapolation(frames)


def test_a_shower_that_covers_too_little_is_extrapolated(observed):
    frames = np.zeros_like(observed["rain_rate"])
    for time, frame in enumerate(frames):
        frame[20:25, 10 + time : 16 + time] = 4.0 + np.arange(6)
    assert (frames[5] > 0).mean() < 0.01
    assert _is_extrapolation(_with_rain(observed, frames))


def test_rain_in_a_corner_alone_is_not_turned_into_none(observed):
    frames = observed["rain_rate"].values.copy()
    frames[:, 9:, :] = frames[:, :, 9:] = 0.0
    frames[:, :9, :9] += 1.0
    assert _is_extrapolation(_with_rain(observed, frames))
    assert np.nanmax(_values(Steps(members=1), _with_rain(observed, frames))) >= 1.0


def test_frames_that_stand_still_are_extrapolated(observed):
    still = np.broadcast_to(observed["rain_rate"].values[5], observed["rain_rate"].shape)
    assert _is_extrapolation(_with_rain(observed, still.copy()))


@pytest.mark.parametrize("missing", [3, 5])
def test_a_frame_in_which_nothing_was_observed_is_refused(observed, missing):
    frames = observed.copy(deep=True)
    frames["rain_rate"][missing] = np.nan
    with pytest.raises(ValueError, match="no pixel was observed at"):
        _nowcast(Steps(members=2), frames)


@pytest.mark.parametrize("times", [slice(None), [3], [5]])
def test_members_are_missing_where_the_extrapolation_is_and_nowhere_else(observed, times):
    frames = observed.copy(deep=True)
    frames["rain_rate"][times, :, :24] = np.nan
    members = _values(Steps(members=3), frames)[0]
    moved = _values(open_nowcaster("extrapolation"), frames)[0]
    np.testing.assert_array_equal(np.isnan(members), np.isnan(moved)[np.newaxis].repeat(3, 0))
    assert _largest_spread(members[..., 30:]) > 1.0


def test_rain_too_light_to_be_seen_stays_where_a_member_has_none(observed):
    light = observed["rain_rate"].where(observed["rain_rate"] > 0, 0.05)
    members = _values(Steps(members=3), _with_rain(observed, light.values))
    assert np.nanmin(members) >= 0.0
    assert np.isclose(members, 0.05).mean() > 0.2
    assert (members[np.isfinite(members)] == 0).mean() < 0.2


def test_reflectivity_stays_in_its_range(observed):
    dbz = 3.0 * to_reflectivity(observed["rain_rate"]).clip(0, 31)
    frames = observed.drop_vars("rain_rate").assign(
        reflectivity=dbz.assign_attrs(REFLECTIVITY.attributes)
    )
    nowcast = _nowcast(Steps(members=3), frames)
    values = nowcast["reflectivity"].values
    assert nowcast["reflectivity"].attrs["units"] == "dBZ"
    assert np.nanmin(values) == 0.0
    assert SEEN_FROM["reflectivity"] < np.nanmax(values) <= REFLECTIVITY.valid_max
    assert _largest_spread(values[0]) > 10.0


def test_a_grid_in_degrees_is_measured_at_its_middle_latitude(observed):
    pixels, km = np.arange(64) - 31.5, 2.1
    y, x = -pixels * km / 111.2, pixels * km / 111.2 / np.cos(np.deg2rad(60.0))
    metres, degrees, wider = (
        _values(Steps(members=2), observed.assign_coords(y=("y", y, units), x=("x", x, units)))
        for y, x, units in (
            (-pixels * km * 1000, pixels * km * 1000, {"units": "m"}),
            (60.0 + y, x, {"units": "degrees"}),
            (y, x, {"units": "degrees"}),
        )
    )
    np.testing.assert_allclose(degrees, metres, rtol=1e-4, atol=1e-4)
    assert not np.allclose(wider, metres, rtol=1e-2, atol=1e-2, equal_nan=True)


def test_a_grid_too_small_for_scales_is_extrapolated(observed):
    assert _is_extrapolation(observed.isel(y=slice(30, 37), x=slice(64)))
    assert _is_extrapolation(observed.isel(y=[30], x=[20]))


def test_two_input_frames_suffice(observed):
    values = _values(Steps(members=2, input_frames=2), observed)[0]
    assert _largest_spread(values) > 1.0


def test_what_steps_cannot_forecast_is_refused_with_a_remedy(observed):
    temperature = observed.rename(rain_rate="temperature")
    with pytest.raises(ValueError, match="'temperature'; use persistence"):
        _nowcast(Steps(), temperature)
    with pytest.raises(ValueError, match="ask for multiples of"):
        _nowcast(Steps(), observed, lead_times=pd.to_timedelta([10, 15], unit="min"))
    with pytest.raises(ValueError, match="members=0"):
        Steps(members=0)


def test_steps_is_silent_and_leaves_dask_alone(observed, capfd, recwarn):
    import dask

    def refused(*_, **__):
        raise AssertionError("it computes on the cluster")

    with dask.config.set(scheduler=refused):
        _nowcast(Steps(members=2), observed)
    assert capfd.readouterr() == ("", "")
    assert not list(recwarn)


def test_an_ensemble_is_written_as_a_cf_file_of_realizations(nowcast, tmp_path):
    path = write_nowcast(nowcast, tmp_path / "nowcast.nc")
    assert open_nowcast(path).equals(nowcast)
    with netCDF4.Dataset(path) as file:
        assert file["rain_rate"].dimensions == ("base_time", "member", "lead_time", "y", "x")
        assert file["member"].standard_name == "realization"
