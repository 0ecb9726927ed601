from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest

from nowcast.conventions import with_exceedance
from nowcast.data.synthetic import synthesise
from nowcast.frames import Window, base_times
from nowcast.nowcasters import Nowcaster, open_nowcaster
from nowcast.nowcasters.extrapolation import Extrapolation
from nowcast.nowcasters.smoothed import SmoothedExtrapolation, UnmatchedError, matched, smooth
from nowcast.testing import check_nowcaster

LEADS = pd.to_timedelta([10, 20, 30], unit="min")
MINUTES = (10.0, 20.0, 30.0)


@pytest.fixture(scope="module")
def observed():
    frames = synthesise(events=2, hours=3, size=48, seed=5).load()
    frames["rain_rate"][:, :6, :10] = np.nan
    return frames


@pytest.fixture(scope="module")
def cases(observed):
    return base_times(observed, Window(3, 0, pd.Timedelta("10min")))[1::4]


@dataclass(frozen=True)
class _Blurred:
    """A nowcaster that is blurred as is known, and knows less than it at one edge."""

    of: Nowcaster
    sigmas: tuple[float, ...]
    factor: float = 1.0
    step: pd.Timedelta | None = None

    @property
    def input_frames(self):
        return self.of.input_frames

    def nowcast(self, observed, *, base_times, lead_times):
        nowcast = self.of.nowcast(observed, base_times=base_times, lead_times=lead_times)
        values = nowcast["rain_rate"].values.copy()
        for lead, sigma in enumerate(self.sigmas):
            values[:, lead] = self.factor * smooth(values[:, lead], sigma)
        values[..., -4:] = np.nan
        return nowcast.assign(rain_rate=nowcast["rain_rate"].copy(data=values))


def _matched(network, observed, cases, **settings):
    return matched(
        network, observed, base_times=cases, lead_times=LEADS, like="network", **settings
    )


def test_it_keeps_the_contract(observed):
    clear = synthesise(hours=3, size=48, seed=5).load()
    for frames in (clear, observed.isel(time=slice(19))):
        check_nowcaster(SmoothedExtrapolation((1.0, 2.0, 3.0), MINUTES), frames)


def test_without_width_it_is_the_extrapolation(observed, cases):
    smoothed = SmoothedExtrapolation((0.0, 0.0, 0.0), MINUTES)
    assert smoothed.input_frames == Extrapolation().input_frames
    np.testing.assert_array_equal(
        smoothed.nowcast(observed, base_times=cases[:2], lead_times=LEADS)["rain_rate"],
        Extrapolation().nowcast(observed, base_times=cases[:2], lead_times=LEADS)["rain_rate"],
    )


def test_it_reaches_as_far_as_the_extrapolation_and_is_blurred_by_its_widths(observed, cases):
    smoothed = SmoothedExtrapolation((0.0, 1.0, 2.0), MINUTES)
    forecast = smoothed.nowcast(observed, base_times=cases[:2], lead_times=LEADS)["rain_rate"]
    moved = Extrapolation().nowcast(observed, base_times=cases[:2], lead_times=LEADS)["rain_rate"]
    assert moved.isnull().any()
    np.testing.assert_array_equal(forecast.isnull(), moved.isnull())
    for lead, sigma in enumerate((0.0, 1.0, 2.0)):
        np.testing.assert_array_equal(forecast[:, lead], smooth(moved[:, lead].values, sigma))


def test_it_uses_the_frames_of_its_extrapolation(observed):
    apart = Extrapolation(input_frames=2, step=pd.Timedelta("20min"))
    smoothed = SmoothedExtrapolation((1.0,), (20.0,), extrapolation=apart)
    assert (smoothed.input_frames, smoothed.step) == (2, pd.Timedelta("20min"))
    check_nowcaster(smoothed, observed.isel(time=slice(0, 19, 2)))


def test_the_mean_is_over_the_pixels_that_are_there():
    field = np.random.default_rng(0).gamma(0.3, 4.0, (17, 15))
    field[3:6, 4:9] = np.nan
    y, x = np.mgrid[:17, :15]
    expected = np.full(field.shape, np.nan)
    there = np.isfinite(field)
    for row, column in np.argwhere(there):
        near = (abs(y - row) <= 6) & (abs(x - column) <= 6) & there  # four standard deviations
        weight = np.exp(-((y - row) ** 2 + (x - column) ** 2) / (2 * 1.5**2))[near]
        expected[row, column] = (weight * field[near]).sum() / weight.sum()
    np.testing.assert_allclose(smooth(field, 1.5), expected, rtol=1e-12)


def test_a_constant_field_stays_so_up_to_what_is_missing():
    field = np.full((2, 20, 20), 3.0, np.float32)
    field[0, :, 7:] = np.nan
    smoothed = smooth(field, 4.0)
    np.testing.assert_array_equal(np.isnan(smoothed), np.isnan(field))
    np.testing.assert_allclose(smoothed[np.isfinite(field)], 3.0, rtol=1e-6)


def test_the_width_grows_from_the_base_time_between_lead_times_and_not_beyond_them():
    smoothed = SmoothedExtrapolation((1.0, 3.0), (10.0, 30.0))
    minutes = pd.to_timedelta([0, 5, 10, 20, 30, 60], unit="min")
    np.testing.assert_allclose(smoothed.sigma(minutes), [0, 0.5, 1, 2, 3, 3])


@pytest.mark.parametrize(
    ("sigmas", "minutes"), [((1.0,), (5.0, 10.0)), ((), ()), ((1.0, 2.0), (10.0, 10.0))]
)
def test_each_lead_time_needs_a_width(sigmas, minutes):
    with pytest.raises(ValueError, match="each lead time needs a width"):
        SmoothedExtrapolation(sigmas, minutes)


@pytest.mark.parametrize("sigma", [-1.0, np.nan])
def test_a_width_that_is_none_is_refused(sigma):
    with pytest.raises(ValueError, match="widths must be 0 or more"):
        SmoothedExtrapolation((sigma,), (10.0,))


def test_the_blur_of_an_extrapolation_is_found_again(observed, cases):
    blurred = _Blurred(Extrapolation(), (1.0, 2.0, 4.0))
    smoothed = _matched(blurred, observed, cases)
    np.testing.assert_allclose(smoothed.sigmas, blurred.sigmas, rtol=0.03)
    assert smoothed.lead_minutes == MINUTES
    assert smoothed.like == "network"


def test_a_network_as_sharp_as_extrapolation_or_sharper_is_not_smoothed_for(observed, cases):
    for network in (Extrapolation(), _Blurred(Extrapolation(), (0.0, 0.0, 0.0), factor=1.5)):
        assert _matched(network, observed, cases).sigmas == (0.0, 0.0, 0.0)


def test_persistence_that_is_blurred_has_the_blur_that_it_was_given(observed, cases):
    """Its fields are not those of the extrapolation, and of some ten cases they differ a bit."""
    smoothed = _matched(_Blurred(open_nowcaster("persistence"), (2.0,) * 3), observed, cases)
    np.testing.assert_allclose(smoothed.sigmas, 2.0, rtol=0.25)


def test_a_network_that_is_always_dry_is_matched_by_the_widest_mean(observed, cases):
    dry = _Blurred(Extrapolation(), (1.0, 1.0, 1.0), factor=0.0)
    assert _matched(dry, observed, cases[:2]).sigmas == (12.0, 12.0, 12.0)


def test_what_came_after_the_base_times_is_not_looked_at(observed, cases):
    network = _Blurred(open_nowcaster("persistence"), (2.0,) * 3)
    blinded = observed.copy(deep=True)
    blinded["rain_rate"] = observed["rain_rate"].where(observed["time"] <= cases[2])
    assert _matched(network, blinded, cases[:3]) == _matched(network, observed, cases[:3])


def test_base_times_without_rain_count_for_nothing(observed, cases):
    partly = observed.copy(deep=True)
    dry = partly["time"] >= cases[3] - pd.Timedelta("30min")
    partly["rain_rate"] = partly["rain_rate"].where(~dry, 0.0 * partly["rain_rate"])
    blurred = _Blurred(Extrapolation(), (1.0, 2.0, 3.0))
    assert _matched(blurred, partly, cases[:5]) == _matched(blurred, partly, cases[:3])
    with pytest.raises(ValueError, match="nothing but dryness from the 2 base times"):
        _matched(blurred, partly, cases[3:5])


def test_rain_where_the_spectrum_has_no_weight_is_told_from_dryness(observed, cases):
    corner = observed.fillna(0.0)
    corner["rain_rate"][:] = 0.0
    corner["rain_rate"][:, :2, :2] = 5.0
    with pytest.raises(UnmatchedError, match="from the 2 base times has no power") as told:
        _matched(Extrapolation(), corner, cases[:2])
    assert "dryness" not in str(told.value)
    assert "'network'" in str(told.value)
    corner["rain_rate"][:, 20:24, 20:24] = 5.0  # as soon as some rain counts
    assert _matched(Extrapolation(), corner, cases[:2]).sigmas == (0.0, 0.0, 0.0)


def test_a_grid_without_small_scales_is_told_from_dryness():
    rain = synthesise(hours=2, size=9, seed=5).load()
    rain["rain_rate"][:, 2:7, 2:7] += 1.0
    times = rain["time"].to_index()[3:4]
    with pytest.raises(UnmatchedError, match=r"8 x 8 pixels has 3 rings.*'network'; a side of 9"):
        _matched(Extrapolation(), rain.isel(y=slice(8), x=slice(8)), times)
    assert _matched(Extrapolation(), rain, times).sigmas[0] == 0.0


def test_of_an_ensemble_the_mean_is_matched(observed, cases):
    class _Ensemble(_Blurred):
        def nowcast(self, observed, *, base_times, lead_times):
            one = super().nowcast(observed, base_times=base_times, lead_times=lead_times)
            both = np.stack([0.5 * one["rain_rate"].values, 1.5 * one["rain_rate"].values], 1)
            dims = ("base_time", "member", "lead_time", "y", "x")
            return one.assign(rain_rate=(dims, both, one["rain_rate"].attrs))

    ensemble = _Ensemble(Extrapolation(), (1.0, 2.0, 3.0))
    alone = _matched(_Blurred(Extrapolation(), (1.0, 2.0, 3.0)), observed, cases[:3])
    np.testing.assert_allclose(_matched(ensemble, observed, cases[:3]).sigmas, alone.sigmas, 1e-3)


def test_of_a_network_with_probabilities_the_field_is_matched(observed, cases):
    class _Likely(_Blurred):
        def nowcast(self, observed, *, base_times, lead_times):
            one = super().nowcast(observed, base_times=base_times, lead_times=lead_times)
            chance = (one["rain_rate"].values >= 1.0).astype(float)[:, None]
            return with_exceedance(one, chance, thresholds=(1.0,))

    likely = _Likely(Extrapolation(), (1.0, 2.0, 3.0))
    alone = _Blurred(Extrapolation(), (1.0, 2.0, 3.0))
    assert _matched(likely, observed, cases[:2]) == _matched(alone, observed, cases[:2])


def test_the_extrapolation_that_is_given_is_the_one_that_is_smoothed(observed, cases):
    two = Extrapolation(input_frames=2)
    smoothed = _matched(_Blurred(two, (1.0, 2.0, 3.0)), observed, cases[:3], extrapolation=two)
    np.testing.assert_allclose(smoothed.sigmas, (1.0, 2.0, 3.0), rtol=0.03)
    assert smoothed.extrapolation == two
    assert smoothed != replace(smoothed, extrapolation=Extrapolation())
