import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

from nowcast.conventions import RAIN_RATE
from nowcast.data.synthetic import synthesise
from nowcast.nowcasters import BASELINES, NOWCASTERS, open_nowcaster
from nowcast.nowcasters.extrapolation import motion
from nowcast.testing import check_nowcaster

LEADS = pd.to_timedelta([10, 20], unit="min")
OWN = {"periodic": {"period": pd.Timedelta("40min"), "step": pd.Timedelta("10min")}}


@pytest.fixture(scope="module")
def observed():
    return synthesise(hours=3, size=48, seed=5).load()


# What comes trained has a grid, a cadence and a quantity of its own: test_pretrained.
@pytest.mark.parametrize("name", sorted(set(NOWCASTERS) - {"pretrained"}))
def test_every_named_nowcaster_keeps_the_contract(name, observed):
    check_nowcaster(open_nowcaster(name, **OWN.get(name, {})), observed)


def test_the_baselines_are_nowcasters():
    assert set(BASELINES) <= set(NOWCASTERS)


def test_persistence_repeats_the_last_frame(observed):
    times = observed["time"].to_index()[4:6]
    nowcast = open_nowcaster("persistence").nowcast(observed, base_times=times, lead_times=LEADS)
    for lead in (0, 1):
        np.testing.assert_array_equal(
            nowcast["rain_rate"].isel(lead_time=lead), observed["rain_rate"].sel(time=times)
        )


def _moving_cell(observed, pixels_per_step):
    """Rain in one smooth cell that moves the same way in every frame, east and a bit south."""
    y, x = np.mgrid[: observed.sizes["y"], : observed.sizes["x"]]
    frames = [
        20 * np.exp(-((x - 12 - pixels_per_step * k) ** 2 + (y - 20 - k) ** 2) / 40)
        for k in range(observed.sizes["time"])
    ]
    frames = [np.where(frame > 0.1, frame, 0.0) for frame in frames]
    return observed.assign(rain_rate=observed["rain_rate"].copy(data=np.stack(frames)))


def test_extrapolation_moves_a_cell_as_it_has_moved(observed):
    moving = _moving_cell(observed.isel(time=slice(8)), pixels_per_step=2)
    times = moving["time"].to_index()[4:5]
    nowcast = open_nowcaster("extrapolation").nowcast(moving, base_times=times, lead_times=LEADS)
    for lead in (0, 1):
        forecast = nowcast["rain_rate"].values[0, lead]
        expected = moving["rain_rate"].values[5 + lead]
        row, column = np.unravel_index(np.nanargmax(forecast), forecast.shape)
        assert abs(row - (25 + lead)) <= 1
        assert abs(column - (22 + 2 * lead)) <= 1
        still = moving["rain_rate"].values[4]
        error = np.nanmean((forecast - expected) ** 2)
        assert error < 0.3 * np.mean((still - expected) ** 2)


def test_motion_is_in_pixels_per_step_along_x_and_then_along_y(observed):
    moving = _moving_cell(observed.isel(time=slice(8)), pixels_per_step=2)
    seen = motion(moving["rain_rate"].values[2:5], RAIN_RATE)
    assert seen.shape == (2, 48, 48)
    np.testing.assert_allclose(seen[:, 24, 20], [2.0, 1.0], atol=0.15)
    assert not motion(np.zeros((3, 48, 48)), RAIN_RATE).any()


def test_what_flows_in_from_outside_is_missing(observed):
    moving = _moving_cell(observed.isel(time=slice(8)), pixels_per_step=2)
    nowcast = open_nowcaster("extrapolation").nowcast(
        moving, base_times=moving["time"].to_index()[4:5], lead_times=LEADS
    )
    assert np.isnan(nowcast["rain_rate"].values[0, 1, 20:30, 0]).all()


@pytest.mark.parametrize("dry", [[4], [3], [2], [2, 3, 4], [3, 4]])
def test_dry_frames_never_break_extrapolation(observed, dry):
    frames = observed.copy(deep=True)
    frames["rain_rate"][dry] = 0.0
    nowcast = open_nowcaster("extrapolation").nowcast(
        frames, base_times=frames["time"].to_index()[4:5], lead_times=LEADS
    )
    values = nowcast["rain_rate"].values
    assert np.isfinite(values).any()
    if 4 in dry:
        assert np.nanmax(values) == 0


@pytest.mark.parametrize(
    ("name", "missing"),
    [("extrapolation", 2), ("extrapolation", 3), ("extrapolation", 4), ("persistence", 4)],
)
def test_a_frame_in_which_nothing_was_observed_is_refused(observed, name, missing):
    frames = observed.copy(deep=True)
    frames["rain_rate"][missing] = np.nan
    with pytest.raises(ValueError, match="no pixel was observed at"):
        open_nowcaster(name).nowcast(
            frames, base_times=frames["time"].to_index()[4:5], lead_times=LEADS
        )


def test_missing_pixels_move_with_the_rain_and_stay_missing(observed):
    frames = observed.copy(deep=True)
    frames["rain_rate"][:, :10, :] = np.nan
    nowcast = open_nowcaster("extrapolation").nowcast(
        frames, base_times=frames["time"].to_index()[4:5], lead_times=LEADS
    )
    assert np.isnan(nowcast["rain_rate"].values).sum(axis=(2, 3)).min() >= 9 * 48 // 2


def test_an_unknown_nowcaster_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="known are persistence, extrapolation, steps, "):
        open_nowcaster("optical_flow")


def test_extrapolation_is_silent(observed, capfd):
    open_nowcaster("extrapolation").nowcast(
        observed, base_times=observed["time"].to_index()[4:5], lead_times=LEADS
    )
    assert capfd.readouterr() == ("", "")


def test_threads_that_hush_pysteps_leave_nothing_hushed(observed):
    before = sys.stdout
    times = observed["time"].to_index()[3:11]
    extrapolation = open_nowcaster("extrapolation")

    def nowcast(place):
        one = extrapolation.nowcast(observed, base_times=times[place : place + 1], lead_times=LEADS)
        return one["rain_rate"].values[0]

    with ThreadPoolExecutor(4) as threads:
        fields = list(threads.map(nowcast, [*range(len(times))] * 4))
    assert sys.stdout is before
    assert ("ignore", None, Warning, None, 0) not in warnings.filters
    alone = extrapolation.nowcast(observed, base_times=times, lead_times=LEADS)
    np.testing.assert_array_equal(fields, np.concatenate([alone["rain_rate"].values] * 4))
