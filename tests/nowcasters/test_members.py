from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.special import ndtri

from nowcast.conventions import (
    EXCEEDANCE,
    RAIN_RATE,
    build_nowcast,
    check_nowcast,
    with_exceedance,
)
from nowcast.data.synthetic import synthesise
from nowcast.nowcasters.extrapolation import Extrapolation
from nowcast.nowcasters.members import Draw, WithMembers, _Ladder, members_of
from nowcast.nowcasters.smoothed import smooth
from nowcast.rainrate import Transform
from nowcast.spectral import radial_power
from nowcast.testing import check_nowcaster
from nowcast.verification.batches import Batch
from nowcast.verification.distributions import Ladder, Members
from nowcast.verification.ensembles import Ranks

STEP = pd.Timedelta("10min")
LEADS = pd.to_timedelta(10 * np.arange(1, 7), unit="min")
LEVELS = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
TOP = 100.0  # mm/h, of the ladder that shows the noise


@dataclass(frozen=True)
class Neighbours:
    """The part of an area around each pixel, larger with lead time, that extrapolation wets."""

    input_frames: int = 3
    step: pd.Timedelta | None = None

    def nowcast(self, observed, *, base_times, lead_times):
        nowcast = Extrapolation().nowcast(observed, base_times=base_times, lead_times=lead_times)
        moved = nowcast["rain_rate"].values[:, None]
        levels = np.array(LEVELS)[:, None, None, None]
        reached = np.where(np.isfinite(moved), moved >= levels, np.nan)
        for lead in range(len(lead_times)):
            reached[:, :, lead] = smooth(reached[:, :, lead], 1.0 + lead)
        chances = np.minimum.accumulate(np.clip(reached, 0, 1), axis=1)
        return with_exceedance(nowcast, chances, thresholds=LEVELS)


@pytest.fixture(scope="module")
def observed():
    """Rain on two fifths of a grid of 64 pixels of 2 km."""
    rain = synthesise(hours=2, size=64, seed=7).load()
    heavy = rain["rain_rate"] > rain["rain_rate"].quantile(0.6)
    return rain.assign(rain_rate=rain["rain_rate"].where(heavy, 0.0))


@pytest.fixture(scope="module")
def ensemble(observed):
    return _nowcast(WithMembers(Neighbours(), Draw(members=6)), observed)


def _nowcast(nowcaster, observed, *, at=slice(5, 6), lead_times=LEADS):
    times = observed["time"].to_index()[at]
    return nowcaster.nowcast(observed, base_times=times, lead_times=lead_times)


def _told(observed, chances, levels, *, at=slice(5, 6)):
    """A nowcast of chances (level, lead, y, x), the same at each base time."""
    times = observed["time"].to_index()[at]
    fields = np.where(np.isnan(chances[0]), np.nan, 0.0)
    nowcast = build_nowcast(
        np.stack([fields] * len(times)),
        observed=observed,
        variable=RAIN_RATE,
        base_times=times,
        lead_times=LEADS[: chances.shape[1]],
    )
    return with_exceedance(nowcast, np.stack([chances] * len(times)), thresholds=levels)


def _drawn(observed, chances, levels, *, frames=1, at=slice(5, 6), **draw):
    told = _told(observed, np.asarray(chances, np.float32), levels, at=at)
    members = members_of(told, observed, input_frames=frames, step=STEP, draw=Draw(**draw))
    return members["rain_rate"].values


def _noise(observed, *, leads=6, frames=1, **draw):
    """Noise as it shows where every value is equally probable: (member, lead, y, x)."""
    levels = np.linspace(0, TOP, 11)
    grid = (leads, observed.sizes["y"], observed.sizes["x"])
    even = np.broadcast_to((1 - levels / TOP)[:, None, None, None], (11, *grid))
    return ndtri(_drawn(observed, even, tuple(levels), frames=frames, **draw)[0] / TOP)


def _corner(observed, size):
    return observed.isel(y=slice(20, 20 + size), x=slice(20, 20 + size))


def _chances(shape, seed=0):
    """Random probabilities that fall along the first axis, some of them 0 and 1."""
    random = np.random.default_rng(seed).uniform(-0.1, 1.1, shape)
    return -np.sort(-np.clip(random, 0, 1), axis=0)


def _correlation(one, other):
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])


def test_keeps_the_contract_of_nowcasters(observed):
    check_nowcaster(WithMembers(Neighbours(), Draw(members=2)), observed)


def test_what_is_said_of_the_field_is_not_said_of_members(observed):
    class Deciding(Neighbours):
        def nowcast(self, observed, **when):
            made = super().nowcast(observed, **when)
            return made.assign_attrs(field_rule="decides", calibration_sha256="ab")

    drawn = _nowcast(WithMembers(Deciding(), Draw(members=1, seed=4)), observed)
    assert drawn.attrs == {
        "calibration_sha256": "ab",
        "member_rule": "drawn from probability_of_exceedance with noise that moves along, seed 4",
    }


def test_probabilities_stay_and_members_take_the_place_of_the_field(observed, ensemble):
    plain = _nowcast(Neighbours(), observed)
    assert ensemble["rain_rate"].dims == ("base_time", "member", "lead_time", "y", "x")
    xr.testing.assert_identical(ensemble[EXCEEDANCE], plain[EXCEEDANCE])
    np.testing.assert_array_equal(
        ensemble["rain_rate"].isnull().all("member"), plain["rain_rate"].isnull()
    )
    np.testing.assert_array_equal(
        ensemble["rain_rate"].isnull().any("member"), plain["rain_rate"].isnull()
    )


def test_the_share_of_members_tends_to_each_probability_at_each_pixel(observed):
    corner, levels, number = _corner(observed, 12), (1.0, 2.0, 6.0), 1500
    chances = _chances((3, 2, 12, 12))
    values = _drawn(corner, chances, levels, members=number)[0]
    for level, chance in zip(levels, chances, strict=True):
        share = (values >= level).mean(axis=0)
        error = np.sqrt(chance * (1 - chance) / number)
        assert (abs(share - chance) <= 5 * error).all()  # nothing at all of 0 and 1


def test_between_thresholds_the_chance_falls_linearly_on_the_scale_asked_for(observed):
    corner = _corner(observed, 12)
    chances = np.stack([np.full((1, 12, 12), chance) for chance in (1.0, 0.0)])
    logarithm = Transform("log", reference=0.01, top=10.0)
    for transform, middle in ((Draw().transform, 5.05), (logarithm, 1.0)):
        values = _drawn(corner, chances, (0.1, 10.0), members=600, transform=transform)[0]
        assert values.min() > 0.1
        assert values.max() < 10
        assert (values < middle).mean() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("chance", [0.01, 0.3])
def test_below_the_first_threshold_it_is_dry_and_nothing_exceeds_the_last(observed, chance):
    corner = _corner(observed, 12)
    values = _drawn(corner, np.full((2, 1, 12, 12), chance), (0.7, 5.0), members=500)
    assert set(np.unique(values)) == {0.0, 5.0}
    assert (values == 5.0).mean() == pytest.approx(chance, rel=0.2)


def test_noise_beyond_all_bounds_changes_nothing_that_is_sure():
    values = np.empty((1, 4), np.float32)
    noise = np.array([[-40, 40, -40, 40]], np.float32)
    sure = np.array([[1, 1, 0, 0]], np.float32)
    _Ladder(np.array([0.7, 5], np.float32), 0.0, Draw().transform).fill(
        values, np.stack([sure, sure]), noise, np.arange(4)
    )
    assert values.tolist() == [[5.0, 5.0, 0.0, 0.0]]


def test_another_quantity_than_rain_is_at_the_first_threshold_below_it(observed):
    corner = _corner(observed, 12)
    warm = _told(corner, np.full((2, 1, 12, 12), 0.5, np.float32), (280.0, 290.0))
    warm, celsius = (each.rename(rain_rate="temperature") for each in (warm, corner))
    drawn = members_of(warm, celsius, input_frames=1, step=STEP, draw=Draw(members=3))
    assert set(np.unique(drawn["temperature"])) == {280.0, 290.0}


def test_without_any_chance_all_members_are_dry_and_with_certainty_none(observed):
    corner = _corner(observed, 12)
    assert not _drawn(corner, np.zeros((2, 3, 12, 12)), (0.1, 1.0)).any()
    sure = _drawn(corner, np.ones((2, 3, 12, 12)), (0.1, 1.0))
    assert (sure == 1.0).all()


def test_missing_is_missing_in_all_members_and_nothing_else_is(observed):
    corner, chances = _corner(observed, 12), _chances((2, 3, 12, 12))
    chances[:, 1:, 3:5] = np.nan
    values = _drawn(corner, chances, (0.1, 1.0), members=4)[0]
    assert (np.isnan(values) == np.isnan(chances[0])).all()


def test_noise_has_variance_one_and_mean_zero_at_each_lead_time(observed):
    noise = _noise(_corner(observed, 12), members=1000, leads=2)
    assert abs(noise.mean(axis=0)).max() < 5 / np.sqrt(1000)
    assert abs(noise.var(axis=0) - 1).max() < 5 * np.sqrt(2 / 1000)
    assert noise.var(axis=0).mean() == pytest.approx(1, abs=0.05)


def test_members_are_as_rough_as_rain_and_not_like_white_noise(observed, ensemble):
    members = ensemble["rain_rate"].values[0, :, -1]
    there = np.isfinite(members[0])
    later = np.where(there, observed["rain_rate"].values[11], np.nan)
    # The same values at each pixel, given to members by lot: the same chances, white.
    lots = np.random.default_rng(0).permuted(members, axis=0)
    fine = [radial_power(fields)[0][..., 12:].mean() for fields in (members, lots, later)]
    assert 0.3 < fine[0] / fine[2] < 2
    assert fine[1] / fine[0] > 4


def test_noise_has_the_scales_of_the_last_frame(observed):
    """Waves of 8 pixels in the last frame, and so in the noise."""
    waves = 2 + np.sin(2 * np.pi * np.arange(64) / 8) * np.ones((64, 1))
    striped = observed.assign(rain_rate=observed["rain_rate"].copy())
    striped["rain_rate"][5] = waves
    noise = _noise(striped, members=8, leads=1)
    power, _ = radial_power(noise)
    assert power.mean(axis=(0, 1)).argmax() == 7
    assert _correlation(noise[..., 4:, :], noise[..., :-4, :]) > 0.8
    assert _correlation(noise[..., 4:], noise[..., :-4]) < -0.8


@pytest.mark.parametrize("rain", [0.0, 3.0], ids=["none", "one pixel"])
def test_without_rain_noise_has_the_power_law(observed, rain):
    dry = observed.assign(rain_rate=xr.zeros_like(observed["rain_rate"]))
    dry["rain_rate"][:, 30, 30] = rain
    power = radial_power(_noise(dry, members=24))[0][:, -1].mean(axis=0)
    slope = np.polyfit(np.log(np.arange(8, 25)), np.log(power[7:24]), 1)[0]
    assert slope == pytest.approx(-2.6, abs=0.4)


def test_opposite_edges_of_the_grid_have_nothing_to_do_with_each_other(observed):
    noise = _noise(observed, members=48, leads=1)
    assert abs(_correlation(noise[..., 0], noise[..., -1])) < 0.3
    assert abs(_correlation(noise[..., 0, :], noise[..., -1, :])) < 0.3
    assert _correlation(noise[..., 0], noise[..., 1]) > 0.8


def test_a_wave_lasts_as_long_as_the_draw_says(observed):
    """Of waves of 8 pixels, or 16 km, from 50 to 60 min."""
    for minutes_per_km in (0.5, 1.0):
        noise = _noise(observed, members=24, minutes_per_km=minutes_per_km)[:, 4:]
        window = np.hanning(64)[:, None] * np.hanning(64)
        before, after = np.moveaxis(np.fft.fft2(window * noise), 1, 0)
        waves = 64 * np.hypot(np.fft.fftfreq(64)[:, None], np.fft.fftfreq(64))
        chosen = abs(waves - 8) < 0.5
        before, after = before[:, chosen], after[:, chosen]
        product = (before * after.conj()).real.mean()
        found = product / np.sqrt((abs(before) ** 2).mean() * (abs(after) ** 2).mean())
        assert found == pytest.approx(np.exp(-10 / (16 * minutes_per_km)), abs=0.05)


def test_large_waves_come_later_and_last_longer(observed):
    noise = _noise(observed, members=12)
    power, _ = radial_power(noise)
    small = (power[..., 3:].sum(-1) / power.sum(-1)).mean(axis=0)
    assert small[-1] < 0.8 * small[0]
    assert _correlation(noise[:, 4], noise[:, 5]) > _correlation(noise[:, 0], noise[:, 1]) > 0.2
    assert _correlation(noise[:, 2], noise[:, 5]) < _correlation(noise[:, 4], noise[:, 5])


def test_noise_moves_with_the_rain(observed):
    """Four pixels per step towards higher x, and not along y."""
    moving = observed.copy(deep=True)
    for time in range(12):
        moving["rain_rate"][time] = np.roll(observed["rain_rate"].values[0], 4 * time, axis=1)
    noise = _noise(moving, frames=3, members=8)[:, 4:]
    before, after = noise[:, 0], noise[:, 1]
    shifts = {shift: _correlation(before[..., 8:40], after[..., 8 + shift : 40 + shift])
              for shift in (-4, 0, 2, 4, 6, 8)}  # fmt: skip
    assert max(shifts, key=shifts.get) == 4
    assert _correlation(before[..., 8:40], after[..., 8:40]) < shifts[4] - 0.1


def test_amounts_are_spread_wider_than_by_members_drawn_anew_each_time(ensemble):
    rain = np.nan_to_num(ensemble["rain_rate"].values[0])
    random = np.random.default_rng(0)
    anew = np.stack([random.permutation(rain[:, lead]) for lead in range(6)], axis=1)
    spread, less = (np.sqrt(each.sum(axis=1).var(axis=0).mean()) for each in (rain, anew))
    assert spread > 1.2 * less


def test_ranks_are_even_where_what_happens_has_the_probabilities_told(observed):
    """What happens is drawn apart, at each pixel by itself, from the ladder."""
    corner, levels, cases = _corner(observed, 10), (0.5, 2.0, 6.0), slice(3, 11)
    chances = np.minimum(
        _chances((3, 6, 10, 10), seed=5), np.array([1, 0.9, 0])[:, None, None, None]
    )
    told = _told(corner, np.asarray(chances, np.float32), levels, at=cases)
    drawn = members_of(told, corner, input_frames=1, step=STEP, draw=Draw(members=9))
    more = np.random.default_rng(1).uniform(size=(8, 6, 10, 10))
    happened = np.zeros(more.shape)
    for place in np.ndindex(more.shape):
        ladder = chances[(slice(None), *place[1:])]
        if more[place] < ladder[0]:
            happened[place] = np.interp(-more[place], -ladder, levels)
    truth = drawn["rain_rate"].isel(member=0, drop=True).copy(data=happened)
    measure = Ranks(9)
    batch = Batch(drawn["rain_rate"].mean("member"), truth, drawn)
    ranks = measure.scores(measure.sums(batch).sum(("base_time", "lead_time")))
    even = ranks["rank_count"] / (8 * 6 * 100 / 10)
    assert abs(even - 1).max() < 0.15
    assert ranks["spread_skill"] == pytest.approx(1, abs=0.05)


def test_members_have_the_crps_of_the_probabilities_they_are_drawn_from(observed):
    """The fair CRPS of members is that of infinitely many."""
    corner, levels = _corner(observed, 12), (0.5, 2.0, 6.0)
    chances = np.asarray(_chances((3, 6, 12, 12), seed=5), np.float32)
    members = Members(_drawn(corner, chances, levels, members=200)[0].reshape(200, -1))
    ladder = Ladder(np.array(levels), chances.reshape(3, -1), lowest=0.0)
    happened = np.random.default_rng(1).choice([0.0, 1.0, 3.0, 9.0], chances[0].size)
    one, other = members.crps(happened), ladder.crps(happened)
    assert abs(one - other).max() < 0.6
    assert one.mean() == pytest.approx(other.mean(), rel=0.02)


def test_number_and_batch_change_no_bit_of_a_member(observed, ensemble):
    alone = ensemble["rain_rate"].values[0]
    state = np.random.get_state()[1].copy()
    fewer = _nowcast(
        WithMembers(Neighbours(), Draw(members=2)), observed, at=[3, 5], lead_times=LEADS
    )
    np.testing.assert_array_equal(fewer["rain_rate"].values[1], alone[:2])
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def test_a_lead_time_alone_has_the_values_that_it_has_among_others(observed):
    told = _told(observed, np.asarray(_chances((2, 6, 64, 64)), np.float32), (1.0, 5.0))
    given = {"input_frames": 3, "step": STEP, "draw": Draw(members=2)}
    every = members_of(told, observed, **given)["rain_rate"]
    some = members_of(told.isel(lead_time=[2, 5]), observed, **given)["rain_rate"]
    np.testing.assert_array_equal(some, every.isel(lead_time=[2, 5]))


def test_nothing_after_the_base_time_changes_a_bit(observed, ensemble):
    blinded = observed.copy(deep=True)
    blinded["rain_rate"][6:] = 77.0
    again = _nowcast(WithMembers(Neighbours(), Draw(members=6)), blinded)
    xr.testing.assert_identical(again, ensemble)


def test_members_seeds_and_base_times_have_their_own_noise(observed):
    corner = _corner(observed, 12)
    noise = _noise(corner, members=3, leads=1)
    assert len({member.tobytes() for member in noise}) == 3
    assert not np.array_equal(_noise(corner, members=1, leads=1, seed=1)[0], noise[0])
    later = corner.assign_coords(time=corner["time"] + np.timedelta64(1, "D"))
    assert not np.array_equal(_noise(later, members=1, leads=1)[0], noise[0])


def test_a_nowcaster_without_probabilities_or_with_members_is_refused_by_name(observed):
    with pytest.raises(ValueError, match="Extrapolation gives"):
        _nowcast(WithMembers(Extrapolation()), observed)
    with pytest.raises(ValueError, match="WithMembers gives"):
        _nowcast(WithMembers(WithMembers(Neighbours(), Draw(members=1))), observed)


def test_lead_times_between_steps_are_refused(observed):
    with pytest.raises(ValueError, match="whole steps of 0 days 00:10:00"):
        _nowcast(WithMembers(Neighbours()), observed, lead_times=LEADS[:1] * 1.5)


@pytest.mark.parametrize(
    "wrong", [{"members": 0}, {"seed": -1}, {"minutes_per_km": 0.0}, {"minutes_per_km": np.inf}]
)
def test_a_draw_without_members_noise_or_seed_is_refused(wrong):
    with pytest.raises(ValueError, match="there must be 1 member"):
        Draw(**wrong)


def test_a_sector_that_was_never_observed_takes_no_part_in_the_noise(observed):
    blind = observed.copy(deep=True)
    blind["rain_rate"][:, :, :20] = np.nan
    drawn = _nowcast(WithMembers(Neighbours(), Draw(members=4)), blind)
    check_nowcast(drawn)
    assert np.isnan(drawn["rain_rate"][0, :, 0, :, :15]).all()
    seen = _noise(blind, members=12)
    assert seen.var() == pytest.approx(1, abs=0.15)
