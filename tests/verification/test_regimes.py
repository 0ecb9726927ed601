import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nowcast.conventions import RAIN_RATE, REFLECTIVITY
from nowcast.data.synthetic import synthesise
from nowcast.frames import Window
from nowcast.frames import base_times as base_times_of
from nowcast.rainrate import to_reflectivity
from nowcast.verification.events import blocks_of_cases
from nowcast.verification.regimes import describe, regimes_of, worst_cases

FIRST = pd.Timestamp("2024-06-01T00:00")
STEP = pd.Timedelta("5min")
LEADS = pd.TimedeltaIndex([STEP, 2 * STEP, 3 * STEP, 4 * STEP])


def _observed(frames, name="rain_rate", units="mm h-1", spacing=(2000.0, 1000.0), of_grid="m"):
    """Observations of these frames, five minutes apart; spacing along y and x."""
    frames = np.asarray(frames, np.float32)
    y, x = (np.arange(n) * apart for n, apart in zip(frames.shape[1:], spacing, strict=True))
    return xr.Dataset(
        {name: (("time", "y", "x"), frames, {"units": units})},
        coords={
            "time": pd.date_range(FIRST, periods=len(frames), freq=STEP),
            "y": ("y", y[::-1], {"units": of_grid}),
            "x": ("x", x, {"units": of_grid}),
        },
    )


def _describe(observed, base_time=FIRST, thresholds=(0.5, 2.0), **settings):
    settings = {"lead_times": LEADS, "input_frames": 1, **settings}
    described = describe(observed, pd.DatetimeIndex([base_time]), thresholds=thresholds, **settings)
    return {name: array.item() for name, array in described.items()}


def _uniform(*values, shape=(4, 4)):
    return np.stack([np.full(shape, float(value)) for value in values])


def _moving(pixels_y, pixels_x, frames=7, size=64):
    """Showers that move by so many pixels a frame; where they are is known between pixels too."""
    random = np.random.default_rng(5)
    places = random.uniform(0, size, (12, 2))
    y, x = np.mgrid[:size, :size]
    result = []
    for frame in range(frames):
        shift = frame * np.array([pixels_y, pixels_x])
        distance = [np.hypot(y - one[0], x - one[1]) for one in places + shift]
        result.append(sum(8 * np.exp(-((one / 4) ** 2)) for one in distance))
    rain = np.stack(result)
    return np.where(rain >= 0.1, rain, 0.0)


def test_shares_and_peak_by_hand():
    frames = np.zeros((5, 10, 10))
    frames[0, 0, :4] = [0.5, 0.4, 3.0, np.nan]  # 2 of 99 are wet
    frames[2, :2, :] = 1.0  # 20 of 100
    frames[4, 0, :6] = 12.0  # 6 of 100, intense
    case = _describe(_observed(frames))
    assert case["wet_share"] == pytest.approx(2 / 99)
    assert case["wet_share_later"] == pytest.approx(0.2)
    assert case["intense_share"] == pytest.approx(0.06)
    assert case["peak"] == pytest.approx(12.0)
    assert case["growth"] == pytest.approx(5 * 12 / (2 * 3.9))  # 5 of 6: one was not observed


def test_the_base_time_counts_for_the_peak_and_is_not_later():
    case = _describe(_observed(_uniform(20, 0, 0, 0, 0)))
    assert (case["peak"], case["intense_share"]) == (20.0, 1.0)
    assert (case["wet_share"], case["wet_share_later"], case["growth"]) == (1.0, 0.0, 0.0)


def test_growth_compares_the_later_half_of_the_lead_times():
    assert _describe(_observed(_uniform(2, 9, 9, 3, 5)))["growth"] == pytest.approx(2.0)
    odd = _describe(_observed(_uniform(2, 9, 3, 5)), lead_times=LEADS[:3])
    assert odd["growth"] == pytest.approx(2.0)
    one = _describe(_observed(_uniform(2, 3)), lead_times=LEADS[:1])
    assert one["growth"] == pytest.approx(1.5)


def test_growth_counts_pixels_observed_at_both_times():
    frames = _uniform(2, 3, 3, 3, 3)
    frames[0, 0], frames[3, 1], frames[4, 2] = np.nan, np.nan, np.nan
    frames[1:, 0] = 500.0  # not observed at the base time
    frames[0, 1] = 6.0  # observed then, and in the last frame alone
    # last but one: 2 rows of 3 over 2 of 2; last: 3 over 6 and 3 over 2
    assert _describe(_observed(frames))["growth"] == pytest.approx((6 + 6) / (4 + 8))


def test_growth_of_reflectivity_is_that_of_its_rain_rate():
    rain = _uniform(1, 1, 1, 3, 3)
    dbz = _observed(to_reflectivity(rain), REFLECTIVITY.name, REFLECTIVITY.units)
    assert _describe(dbz, thresholds=(10.0,))["growth"] == pytest.approx(3.0, rel=1e-5)


def test_intense_reflectivity_is_that_of_ten_millimetres_an_hour():
    dbz = _observed(_uniform(39.0, 39.0, 39.1, 0, 0), REFLECTIVITY.name, REFLECTIVITY.units)
    bases = pd.DatetimeIndex([FIRST])
    short = describe(dbz, bases, lead_times=LEADS[:1], thresholds=(10.0,), input_frames=1)
    assert short["intense_share"].item() == 0.0
    assert short["intense_share"].attrs["threshold"] == pytest.approx(39.01, abs=0.01)
    assert _describe(dbz, thresholds=(10.0,))["intense_share"] == 1.0


@pytest.mark.parametrize("name", [RAIN_RATE.name, REFLECTIVITY.name])
def test_speed_is_that_of_the_showers_in_metres_per_second(name):
    rain = _moving(1.0, 1.5)
    known = np.hypot(1.0 * 2000, 1.5 * 1000) / 300
    observed = _observed(rain)
    if name == REFLECTIVITY.name:
        observed = _observed(to_reflectivity(rain), name, REFLECTIVITY.units)
    case = _describe(observed, FIRST + 2 * STEP, (0.5,), input_frames=3)
    assert case["speed"] == pytest.approx(known, rel=0.05)


def test_on_a_grid_in_degrees_speed_is_in_metres_per_second_at_its_latitude():
    rain = _moving(0.0, 1.5)
    observed = _observed(rain, spacing=(0.01, 0.02), of_grid="degrees")
    observed["y"] = observed["y"] + 60.0 - observed["y"].mean()
    observed["y"].attrs["units"] = "degrees"
    case = _describe(observed, FIRST + 2 * STEP, input_frames=3)
    # where a degree of longitude is half as long as one of latitude: 1112 m a pixel
    assert case["speed"] == pytest.approx(1.5 * 1111.95 / 300, rel=0.05)


def test_speed_of_synthetic_rain_is_the_known_one():
    observed = synthesise(events=6, hours=1, size=64, step_minutes=5, seed=4).load()
    bases = base_times_of(observed, Window(3, 4, STEP))[::3]
    speed = describe(observed, bases, lead_times=LEADS, thresholds=(0.1,))["speed"]
    moved = observed.sel(time=bases)
    known = np.hypot(moved["motion_x"], moved["motion_y"]).values
    ratio = speed.values / known
    assert np.isfinite(ratio).all()
    assert len(ratio) == 14
    assert np.median(ratio) == pytest.approx(1.0, abs=0.1)
    assert np.median(abs(ratio - 1.0)) < 0.2


def test_speed_is_unknown_of_few_pixels_an_even_field_one_row_and_an_absent_frame():
    rain = _moving(0.0, 1.5)
    few = np.zeros_like(rain)
    few[:, 30:34, 30:34] = rain.max()  # 16 of 4096
    assert np.isnan(_describe(_observed(few), FIRST + 2 * STEP, input_frames=3)["speed"])
    even = _observed(_uniform(*[2] * 7, shape=(64, 64)))  # rain, but nothing by which to see motion
    assert np.isnan(_describe(even, FIRST + 2 * STEP, input_frames=3)["speed"])
    row = _observed(np.random.default_rng(0).gamma(1, 1, (7, 1, 20)))
    assert np.isnan(_describe(row, FIRST + 2 * STEP, input_frames=3)["speed"])
    gap = _observed(rain).isel(time=[0, 2, 3, 4, 5, 6])
    assert np.isnan(_describe(gap, FIRST + 2 * STEP, input_frames=3)["speed"])
    assert np.isfinite(_describe(gap, FIRST + 3 * STEP, input_frames=3)["speed"])
    blind = _observed(rain)
    blind["rain_rate"][1] = np.nan
    assert np.isnan(_describe(blind, FIRST + 2 * STEP, input_frames=3)["speed"])


def test_rain_after_a_dry_base_time_is_new_from_two_percent_on():
    def initiation(now, later):
        frames = np.zeros((5, 20, 20))  # 4 pixels are one percent
        frames[0].flat[:now], frames[3].flat[:later] = 1.0, 1.0
        return _describe(_observed(frames))["initiation"]

    assert initiation(3, 8) is True
    assert initiation(4, 8) is False
    assert initiation(3, 7) is False


def test_what_was_not_observed_is_not_dry():
    frames = _uniform(1, 1, 1, 1, 1)
    frames[0] = np.nan
    case = _describe(_observed(frames))
    assert np.isnan(case["wet_share"])
    assert np.isnan(case["growth"])
    assert case["wet_share_later"] == 1.0
    assert case["initiation"] is False
    nothing = _describe(_observed(np.full((5, 4, 4), np.nan)))
    assert nothing.pop("initiation") is False
    assert all(np.isnan(value) for value in nothing.values())


def test_an_absent_frame_is_left_out_and_the_others_count():
    observed = _observed(_uniform(2, 2, 30, 4, 6)).isel(time=[0, 1, 3])
    case = _describe(observed)
    assert case["peak"] == 4.0
    assert case["growth"] == pytest.approx(2.0)


def test_without_thresholds_only_the_peak_of_what_is_not_rain_is_known():
    temperature = _observed(_uniform(280, 281, 282, 283, 284), "t2m", "K")
    case = _describe(temperature, thresholds=())
    assert case.pop("peak") == 284.0
    assert case.pop("initiation") is False
    assert all(np.isnan(value) for value in case.values())
    assert len(case) == 5


def test_of_what_is_not_rain_the_highest_threshold_is_intense_and_growth_is_unknown():
    case = _describe(_observed(_uniform(5, 12, 8, 8, 8), "wind", "m s-1"), thresholds=(4.0, 11.0))
    assert case["wet_share"] == case["intense_share"] == 1.0
    assert np.isnan(case["growth"])


def test_no_case_is_refused():
    with pytest.raises(ValueError, match="no case to describe"):
        describe(
            _observed(_uniform(1, 1)), pd.DatetimeIndex([]), lead_times=LEADS, thresholds=(1.0,)
        )


def test_the_description_is_the_same_whatever_the_batches_and_chunks():
    observed = synthesise(events=2, hours=1, size=32, step_minutes=5, seed=1).load()
    observed["rain_rate"][:, :5, 7:] = np.nan
    observed = observed.isel(time=np.delete(np.arange(26), 9))
    bases = observed.indexes["time"][2:20]
    settings = {"lead_times": LEADS, "thresholds": (0.1, 5.0)}
    whole = describe(observed, bases, batch_cases=99, **settings)
    done = []
    for chunks, cases in (({"time": 1}, 1), ({"time": 7, "x": 5}, 4), ({"y": 3}, 8)):
        lazy = observed.chunk(chunks)
        again = describe(lazy, bases, batch_cases=cases, progress=done.append, **settings)
        xr.testing.assert_identical(whole, again)
        assert lazy["rain_rate"].chunks is not None
    assert done[-3:] == [8, 16, 18]
    assert np.isfinite(whole["speed"]).sum() > 8
    assert np.isfinite(whole["growth"]).sum() > 8


def test_each_regime_by_its_bounds():
    nan = np.nan
    described = xr.Dataset(
        {
            "wet_share": ("base_time", [0.01, 0.5, 0.5, 0.0, 0.0, nan]),
            "wet_share_later": ("base_time", [0.0, 0.5, 0.5, 0.03, 0.0, nan]),
            "peak": ("base_time", [1.0] * 6, {"units": "mm h-1"}),
            "intense_share": ("base_time", [0.0, 0.0009, 0.001, 0.01, 0, nan], {"threshold": 10.0}),
            "growth": ("base_time", [0.8, 1.0, 1.25, nan, 9.0, nan]),
            "speed": ("base_time", [4.9, 5.0, 10.0, nan, nan, nan]),
            "initiation": ("base_time", [False, False, False, True, False, False]),
        },
        coords={"base_time": pd.date_range(FIRST, periods=6, freq="h")},
    )
    regimes = regimes_of(described)
    found = {
        str(name): np.flatnonzero(regimes["in_regime"].sel(regime=name)).tolist()
        for name in regimes["regime"].values
    }
    assert found == {
        "advection: slow": [0],
        "advection: middling": [1],
        "advection: fast": [2],
        "evolution: decaying": [0],
        "evolution: steady": [1],
        "evolution: growing": [2],
        "intensity: light": [0, 1],
        "intensity: heavy": [2, 3],
        "initiation: new rain": [3],
        "initiation: existing rain": [0, 1, 2],
    }
    heavy = regimes["definition"].sel(regime="intensity: heavy").item()
    assert (
        heavy == "wet, and 0.1% or more of the observed pixels at or above 10 mm h-1, now or later"
    )


def _scored(csi, events, minutes):
    times = FIRST + pd.to_timedelta(minutes, unit="min")
    return xr.Dataset(
        {
            "case_csi": (("nowcaster", "base_time"), [np.ones(len(csi)), csi]),
            "case_events": ("base_time", events),
        },
        coords={"nowcaster": ["best", "unet"], "base_time": times},
    )


def test_the_worst_cases_are_the_lowest_scored_ones_an_hour_apart():
    scores = _scored(
        [0.5, 0.1, 0.05, 0.3, 0.2, np.nan], [10] * 6, minutes=[0, 30, 60, 119, 120, 500]
    )
    worst = worst_cases(scores, "unet", number=3)
    assert ((worst - FIRST) / pd.Timedelta("1min")).tolist() == [60, 120, 0]
    assert len(worst_cases(scores, "unet", number=1)) == 1


def test_cases_with_few_or_no_events_are_not_the_worst():
    scores = _scored([0.0, 0.0, 0.4, 0.3, 0.2], [0, 5, 40, 60, 60], minutes=60 * np.arange(5))
    assert worst_cases(scores, "unet").hour.tolist() == [4, 3]
    none = _scored([np.nan] * 2, [0, 0], minutes=[0, 60])
    assert len(worst_cases(none, "unet")) == 0


def test_real_summer_rain_has_every_regime_and_many_events(shared_data):
    from nowcast import open_observations

    observed = open_observations(shared_data / "taasrad19" / "validation.nc")
    leads = pd.timedelta_range("5min", periods=12, freq="5min")
    bases = base_times_of(observed, Window(6, 12, STEP))[::36]
    described = describe(observed, bases, lead_times=leads, thresholds=(10.0, 40.0))
    assert described["speed"].max() < 40.0  # m/s; of clutter and noise it is up to 250 m/s
    assert 2.0 < described["speed"].median() < 15.0
    assert described["growth"].median() == pytest.approx(1.0, abs=0.1)
    counts = regimes_of(described)["in_regime"].sum("base_time")
    assert (counts > 0).all(), counts.to_series()
    assert blocks_of_cases(described).unit == "event"
