"""Networks that correct extrapolation, as nowcasters; `test_neural` has what all share."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from nowcast.calibration import Calibration, Curve
from nowcast.conventions import check_nowcast
from nowcast.data.synthetic import synthesise
from nowcast.decisions import Decisions
from nowcast.networks.heads import Head
from nowcast.nowcasters import neural, open_nowcaster
from nowcast.nowcasters.extrapolation import motion
from nowcast.nowcasters.neural import NeuralNowcaster, calibrate
from nowcast.postprocessing import DecisionLevels, Postprocessing
from nowcast.testing import check_nowcaster

LEVELS = (0.2, 1.0, 5.0)
LEADS = pd.to_timedelta([10, 20], unit="min")
PROBABILITY = "probability_of_exceedance"


@pytest.fixture(scope="module")
def untrained(doubtful):
    return open_nowcaster(doubtful)


@pytest.fixture(scope="module")
def corrections(untrained):
    """Give one whose weights are drawn, so that its corrections are anything but nothing."""
    random = np.random.default_rng(0)
    weights = [random.normal(0.0, 0.2, one.shape) for one in untrained.weights]
    return NeuralNowcaster(untrained.settings, weights)


@pytest.fixture(scope="module")
def calibrated(untrained, small_observed):
    """Give one with decision levels, fitted on the first event."""
    times = small_observed["time"].to_index()[2:16]
    return calibrate(untrained, small_observed, base_times=times)


def _nowcast(nowcaster, observed, places=slice(4, 6), leads=LEADS):
    return nowcaster.nowcast(
        observed, base_times=observed["time"].to_index()[places], lead_times=leads
    )


@pytest.mark.parametrize("which", ["corrections", "calibrated"])
def test_it_keeps_the_contract(which, request, small_observed):
    check_nowcaster(request.getfixturevalue(which), small_observed)


def test_uncorrected_it_keeps_the_contract(untrained, small_observed):
    plain = NeuralNowcaster(untrained.settings, untrained.weights, corrected=False)
    check_nowcaster(plain, small_observed)


def _holed(observed):
    """Rain of which a sector was never observed, and a spot in the last frame alone was not."""
    holed = observed.copy(deep=True)
    holed["rain_rate"][:, :, :5] = np.nan
    holed["rain_rate"][5, 9:11, 9:12] = np.nan
    return holed


@pytest.mark.parametrize("holes", [False, True], ids=["whole", "holed"])
def test_uncorrected_it_is_extrapolation_to_the_last_bit(corrections, small_observed, holes):
    plain = NeuralNowcaster(corrections.settings, corrections.weights, corrected=False)
    observed = _holed(small_observed) if holes else small_observed
    ours, theirs = (
        _nowcast(one, observed, slice(3, 9)) for one in (plain, open_nowcaster("extrapolation"))
    )
    assert theirs["rain_rate"].isnull().any()
    np.testing.assert_array_equal(ours["rain_rate"], theirs["rain_rate"])
    certain = ours[PROBABILITY]
    reached = theirs["rain_rate"] >= certain["threshold"]
    expected = reached.where(theirs["rain_rate"].notnull()).transpose(*certain.dims)
    np.testing.assert_array_equal(certain, expected)
    corrected = _nowcast(corrections, observed, slice(3, 9))
    assert float(abs(corrected["rain_rate"] - ours["rain_rate"]).max()) > 0.1


ROUNDED_DOWN = (0.7, 0.9, 3.3)  # thresholds that are less as 32-bit floats


def _with_thresholds(nowcaster, **settings):
    head = Head("exceedance", ROUNDED_DOWN)
    return NeuralNowcaster(
        dataclasses.replace(nowcaster.settings, head=head), nowcaster.weights, **settings
    )


def _still(rain_rate):
    """Rain that stands still, the same everywhere but in a dry half."""
    frames = np.zeros((1, 3, 16, 16), np.float32)
    frames[..., 8:] = rain_rate
    return frames


@pytest.mark.parametrize("place", range(3))
def test_uncorrected_it_is_certain_of_what_its_field_reaches(untrained, place):
    plain = _with_thresholds(untrained, corrected=False)
    made = plain.forecasts(_still(ROUNDED_DOWN[place]))
    field, certain = made["rain_rate"], made[PROBABILITY]
    wet = np.broadcast_to(np.arange(16) >= 8, field.shape)
    np.testing.assert_array_equal(field, np.where(wet, np.float32(ROUNDED_DOWN[place]), 0.0))
    for at, threshold in enumerate(ROUNDED_DOWN):
        np.testing.assert_array_equal(certain[:, at], field >= np.float32(threshold))
        assert certain[:, at].max() == (at <= place)


@pytest.mark.parametrize("place", range(3))
def test_what_is_left_to_extrapolation_is_issued_where_it_reaches_the_threshold(untrained, place):
    minutes, threshold = (10.0, 20.0), ROUNDED_DOWN[place]
    certain_alone = ((1.0, 1.0),) * 3
    left = Postprocessing(
        Calibration(ROUNDED_DOWN, minutes, ((Curve(), Curve()),) * 3),
        DecisionLevels(ROUNDED_DOWN, minutes, certain_alone),
        extrapolated_from=threshold,
    )
    field = _with_thresholds(untrained, postprocessing=left).forecast(_still(threshold))
    np.testing.assert_array_equal(field[..., 8:], np.float32(threshold))
    assert field[..., :8].max() < threshold


def test_untrained_it_is_first_wet_where_extrapolation_is(untrained, small_observed):
    places = slice(2, 18)
    ours = _nowcast(untrained, small_observed, places, LEADS[:1])["rain_rate"].values
    theirs = _nowcast(open_nowcaster("extrapolation"), small_observed, places, LEADS[:1])
    theirs = theirs["rain_rate"].values
    seen = np.isfinite(theirs) & (np.abs(theirs - LEVELS[0]) > 0.02)
    # All but a few: the network finds where pixels came from for a sixteenth of them.
    assert ((ours >= LEVELS[0]) == (theirs >= LEVELS[0]))[seen].mean() > 0.995
    assert 0.02 < (ours >= LEVELS[0]).mean() < 0.98


def test_untrained_its_views_say_the_same_since_their_motion_is_turned_too(
    untrained, small_observed
):
    """With motion that was not turned, most of the rain would lie elsewhere."""
    asked = NeuralNowcaster(dataclasses.replace(untrained.settings, views=8), untrained.weights)
    ours, theirs = (
        _nowcast(one, small_observed, slice(2, 18))[PROBABILITY] for one in (asked, untrained)
    )
    np.testing.assert_array_equal(ours.isnull(), theirs.isnull())
    far = abs(ours - theirs) > 0.02  # the rounding of where pixels came from
    assert float(far.where(theirs > 0.05).mean()) < 0.01
    assert float((theirs > 0.05).mean()) > 0.05


def test_what_is_calibrated_by_views_is_issued_by_them(corrections, small_observed, tmp_path):
    times = small_observed["time"].to_index()[2:16]
    made = calibrate(corrections, small_observed, base_times=times, views=4)
    assert made.settings.views == 4
    again = calibrate(made, small_observed, base_times=times)
    assert again.postprocessing == made.postprocessing
    loaded = open_nowcaster(made.save(tmp_path / "made"))
    assert loaded.settings == made.settings
    plain = calibrate(corrections, small_observed, base_times=times)
    assert plain.postprocessing.sha256 != made.postprocessing.sha256


@pytest.mark.parametrize("which", ["corrections", "calibrated"])
def test_a_missing_sector_throws_the_shadow_that_extrapolation_says(which, request, small_observed):
    nowcaster = request.getfixturevalue(which)
    holed = small_observed.copy(deep=True)
    holed["rain_rate"][:, :, :5] = np.nan
    ours = _nowcast(nowcaster, holed, slice(2, 18))
    theirs = _nowcast(open_nowcaster("extrapolation"), holed, slice(2, 18))
    missing = theirs["rain_rate"].isnull()
    np.testing.assert_array_equal(ours["rain_rate"].isnull(), missing)
    in_levels = ours[PROBABILITY].isnull()
    assert (in_levels == missing).all()
    first, second = (missing.isel(lead_time=lead) for lead in (0, 1))
    assert int(second.sum()) > int(first.sum())  # it grows with the lead time
    moved = missing.any(("lead_time", "y")).sum("x")
    assert int(moved.max()) > 5  # beyond the sector itself


def test_a_hole_in_an_earlier_frame_alone_hides_nothing(corrections, small_observed):
    holed = small_observed.copy(deep=True)
    holed["rain_rate"][4, 2:6, 2:6] = np.nan
    base = slice(5, 6)
    ours = _nowcast(corrections, holed, base)["rain_rate"]
    theirs = _nowcast(open_nowcaster("extrapolation"), holed, base)["rain_rate"]
    np.testing.assert_array_equal(ours.isnull(), theirs.isnull())
    assert bool(ours[:, 0, 2:6, 2:6].notnull().all())


@pytest.mark.parametrize("which", ["untrained", "calibrated"])
def test_where_nothing_rains_it_forecasts_nothing(which, request, small_observed):
    nowcaster = request.getfixturevalue(which)
    dry = small_observed.copy(deep=True)
    dry["rain_rate"][:] = 0.0
    nowcast = check_nowcast(_nowcast(nowcaster, dry, slice(2, 10)))
    assert (nowcast["rain_rate"] == 0.0).all()
    assert float(nowcast[PROBABILITY].max()) < 0.5
    wet = _nowcast(nowcaster, small_observed, slice(2, 10))
    assert float(wet["rain_rate"].max()) > 0.0


def test_a_sequence_whose_last_frame_shows_nothing_hides_itself_alone(corrections):
    """As an endpoint gets it: bare arrays."""
    frames = np.random.default_rng(0).gamma(0.5, 2.0, (2, 3, 16, 16)).astype(np.float32)
    frames[1, -1] = np.nan
    both = corrections.forecast(frames)
    assert np.isnan(both[1]).all()
    np.testing.assert_allclose(both[0], corrections.forecast(frames[:1])[0], rtol=1e-4, atol=1e-5)
    assert np.isfinite(both[0]).any()


def test_motion_is_found_of_as_many_frames_as_it_has_and_three_at_most(untrained, monkeypatch):
    used = []

    def watched(frames, variable):
        used.append(len(frames))
        return motion(frames, variable)

    monkeypatch.setattr(neural, "motion", watched)
    frames = np.random.default_rng(0).gamma(0.5, 2.0, (1, 3, 16, 16)).astype(np.float32)
    untrained.forecast(frames)
    window = dataclasses.replace(untrained.settings.window, input_frames=2)
    assert dataclasses.replace(untrained.settings, window=window).motion_frames == 2
    window = dataclasses.replace(untrained.settings.window, input_frames=6)
    assert dataclasses.replace(untrained.settings, window=window).motion_frames == 3
    assert used == [3]


def _of_pixels(metres):
    return synthesise(hours=2, size=16, grid_spacing_m=metres).load()


def test_observations_that_do_not_fit_are_refused_by_name(untrained, small_observed):
    with pytest.raises(ValueError, match=r"trained on pixels of 2000 m; .* have 1000 m; average"):
        _nowcast(untrained, _of_pixels(1000.0))
    with pytest.raises(ValueError, match=r"on frames every 10 min; .* come every 15 min"):
        _nowcast(untrained, synthesise(hours=3, size=16, step_minutes=15).load())
    other = small_observed.copy()
    other["rain_rate"] = other["rain_rate"].assign_attrs(units="m s-1")
    with pytest.raises(ValueError, match="rain_rate in mm h-1; the observations are in m s-1"):
        _nowcast(untrained, other)
    renamed = small_observed.rename(rain_rate="reflectivity")
    with pytest.raises(ValueError, match=r"forecasts rain_rate \(mm h-1\); .* hold reflectivity"):
        _nowcast(untrained, renamed)
    with pytest.raises(ValueError, match=r"gives lead times from .* received 0 days 00:30:00"):
        _nowcast(untrained, small_observed, leads=pd.to_timedelta([30], unit="min"))


def test_pixels_that_differ_by_less_than_a_hundredth_are_taken(untrained):
    assert np.isfinite(_nowcast(untrained, _of_pixels(2010.0))["rain_rate"]).any()


def test_frames_that_come_more_often_are_taken_at_its_own_step(untrained):
    finer = synthesise(hours=2, size=16, step_minutes=5).load()
    at_ten = finer.isel(time=slice(0, None, 2))
    base = finer["time"].to_index()[12:13]
    ours, theirs = (
        untrained.nowcast(one, base_times=base, lead_times=LEADS)["rain_rate"].values
        for one in (finer, at_ten)
    )
    np.testing.assert_array_equal(ours, theirs)


def test_a_network_without_motion_has_nothing_to_leave_uncorrected(untrained):
    settings = dataclasses.replace(
        untrained.settings, network="convlstm", network_settings={"filters": [8]}, head=Head()
    )
    assert settings.motion_frames == 0
    with pytest.raises(ValueError, match=r"'convlstm' sees no motion.* leave corrected=True"):
        NeuralNowcaster(settings, [], corrected=False)


def test_a_saved_one_gives_the_same_nowcast(corrections, small_observed, tmp_path):
    loaded = open_nowcaster(corrections.save(tmp_path / "saved"))
    assert loaded.settings.to_dict() == corrections.settings.to_dict()
    assert loaded.corrected
    expected = _nowcast(corrections, small_observed)
    assert _nowcast(loaded, small_observed).identical(expected)


def test_a_grid_that_is_no_multiple_is_padded_and_cut_back(corrections):
    odd = synthesise(hours=2, size=19).load()
    nowcast = check_nowcast(_nowcast(corrections, odd))
    theirs = _nowcast(open_nowcaster("extrapolation"), odd)["rain_rate"]
    np.testing.assert_array_equal(nowcast["rain_rate"].isnull(), theirs.isnull())


# Smooth and known: up to 2.4 pixels per step, so that a tile's rim is of 10 and RIM pixels.
def _shearing(frames, _):
    rows, columns = np.mgrid[: frames.shape[1], : frames.shape[2]]
    along_x = 1.6 + 0.8 * np.sin(rows / 25.0)
    along_y = -1.2 + 0.6 * np.cos(columns / 30.0)
    return np.stack([along_x, along_y])


@pytest.fixture
def tiled(corrections, monkeypatch):
    """Give the probabilities of a grid as a whole and in tiles, and the tiles."""
    monkeypatch.setattr(neural, "motion", _shearing)
    rain = synthesise(hours=1, size=96, seed=2)["rain_rate"].values[None, 1:4]

    def both(height, width, *, tile=16, rim):
        frames = rain[..., :height, :width]
        with monkeypatch.context() as patched:
            whole = corrections.forecasts(frames)[PROBABILITY]
            for name, value in {"LARGEST_GRID": 100, "TILE": tile, "RIM": rim}.items():
                patched.setattr(neural, name, value)
            pieces = corrections.forecasts(frames)[PROBABILITY]
            cut = corrections._tiles((height, width), corrections._motion(frames))
        return whole, pieces, [where for where, _ in cut]

    return both


def test_tiles_give_what_the_whole_grid_gives(tiled):
    """Where each begins at a pixel that the scales of the network, and of motion, have in common.

    Of a rim too narrow for what flows in, they do not.
    """
    whole, pieces, cut = tiled(80, 68, rim=10)
    assert sorted({(rows.start, columns.start) for rows, columns in cut}) == [
        (0, 0),
        (0, 12),
        (12, 0),
        (12, 12),
        (24, 0),
        (24, 12),
    ]
    assert {rows.stop - rows.start for rows, _ in cut} == {56}
    seen = np.isfinite(whole)
    np.testing.assert_array_equal(np.isfinite(pieces), seen)
    assert 0.5 < seen.mean() < 1.0
    assert np.nanstd(whole) > 0.1
    np.testing.assert_allclose(pieces[seen], whole[seen], atol=2e-3)
    _, narrow, cut = tiled(80, 68, tile=32, rim=-10)
    assert {rows.stop - rows.start for rows, _ in cut} == {32}
    assert np.nanmax(np.abs(narrow - whole)) > 0.05


def test_tiles_that_begin_anywhere_have_no_seam(tiled):
    """They see their scales from other pixels on, so that they differ a little, and smoothly."""
    whole, pieces, cut = tiled(83, 56, rim=10)
    starts = [rows.start for rows, _ in cut]
    assert starts == [0, 9, 18, 27]
    assert np.nanmean(np.abs(pieces - whole)) < 0.02
    steps = [np.abs(np.diff(one, axis=-2)) for one in (whole, pieces)]
    for start in starts[1:]:
        seam = slice(start + 18, start + 22)  # where a tile begins to count
        assert np.nanmean(steps[1][..., seam, :]) < 1.2 * np.nanmean(steps[0][..., seam, :])


def test_a_low_grid_is_cut_along_its_length_alone(corrections, monkeypatch):
    """Lower than two rims: what is not cut has no rim."""
    monkeypatch.setattr(neural, "LARGEST_GRID", 100)
    monkeypatch.setattr(neural, "TILE", 16)
    monkeypatch.setattr(neural, "RIM", 10)
    cut = corrections._tiles((24, 160), np.full((1, 2, 24, 160), 2.0))
    rim, total = 10 + 2 * (2 + 3 - 1), np.zeros((24, 160))
    assert len(cut) > 2
    for (rows, columns), weights in cut:
        assert rows == slice(0, 24)
        total[rows, columns] += weights
        assert (weights >= 0.0).all()
        if columns.start:
            assert (weights[:, :rim] == 0.0).all()
        assert (weights > 0.0).mean() > 0.2
    np.testing.assert_allclose(total, 1.0)


def test_heavy_rain_that_was_seldom_seen_can_be_left_to_extrapolation(corrections, small_observed):
    times = small_observed["time"].to_index()[2:16]
    left = calibrate(corrections, small_observed, base_times=times, decisions=Decisions(1.2, 1.0))
    plain = NeuralNowcaster(corrections.settings, corrections.weights, corrected=False)
    nowcast = _nowcast(left, small_observed)
    ours, moved = (one["rain_rate"].values for one in (nowcast, _nowcast(plain, small_observed)))
    for level in LEVELS[1:]:
        np.testing.assert_array_equal(ours >= level, moved >= level)
    assert ((ours >= LEVELS[0]) != (moved >= LEVELS[0])).any()
    assert nowcast.attrs["field_rule"].endswith("from 1 on that of extrapolation")
    with pytest.raises(ValueError, match=r"begins at one of the thresholds .* received 3"):
        calibrate(corrections, small_observed, base_times=times, decisions=Decisions(1.2, 3.0))


def test_rain_that_would_fade_can_keep_the_area_of_extrapolation(untrained, small_observed):
    """Its probabilities are made small, so that levels alone would decide for nothing."""
    times = small_observed["time"].to_index()[2:16]
    kept = calibrate(
        untrained, small_observed, base_times=times, decisions=Decisions(keep_area=True)
    ).postprocessing
    certain = dataclasses.replace(
        kept.levels, levels=tuple((1.0,) * len(row) for row in kept.levels.levels)
    )
    strict, lenient = (
        NeuralNowcaster(
            untrained.settings,
            untrained.weights,
            postprocessing=dataclasses.replace(kept, levels=certain, keeps_area=keeps),
        )
        for keeps in (False, True)
    )
    plain = NeuralNowcaster(untrained.settings, untrained.weights, corrected=False)
    nowcasts = [_nowcast(one, small_observed) for one in (plain, strict, lenient)]
    for level in LEVELS:
        moved, fewer, reached = (
            (one["rain_rate"] >= level).sum(("y", "x")).values for one in nowcasts
        )
        assert (fewer < moved)[moved > 0].all()
        assert (reached >= moved).all()
        assert (reached <= 1.1 * moved + 3).all()
    assert "on no fewer pixels" in nowcasts[2].attrs["field_rule"]


def test_lead_times_of_which_nothing_was_observed_are_named(corrections, small_observed, caplog):
    times = small_observed["time"].to_index()
    calibrate(corrections, small_observed, base_times=times[-3:-2])
    assert not caplog.text
    calibrate(corrections, small_observed, base_times=times[-2:-1])
    assert "no frame was observed 20 min after a base time" in caplog.text


def test_what_lies_behind_the_last_lead_time_asked_for_is_not_computed(corrections, small_observed):
    fitted = calibrate(
        corrections, small_observed, base_times=small_observed["time"].to_index()[2:14:3]
    )
    whole = _nowcast(fitted, small_observed)
    first = _nowcast(fitted, small_observed, leads=LEADS[:1])
    assert fitted._shorter(1).settings.window.lead_frames == 1
    assert fitted._shorter(1)._network((16, 16)).output_shape[1] == 1
    assert first.attrs["calibration_sha256"] == whole.attrs["calibration_sha256"]
    for name in ("rain_rate", PROBABILITY):
        expected = whole[name].sel(lead_time=LEADS[:1])
        np.testing.assert_allclose(first[name].values, expected.values, rtol=1e-4, atol=1e-5)
