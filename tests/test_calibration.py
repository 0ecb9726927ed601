import dataclasses
import itertools
import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nowcast import calibration
from nowcast.calibration import (
    BINS,
    Calibration,
    Curve,
    count,
    counts_of,
    totals_of,
)
from nowcast.decisions import Decisions
from nowcast.postprocessing import (
    DecisionLevels,
    Postprocessing,
    field_of,
    fit,
    levels_keeping,
)
from nowcast.rainrate import Transform

LEADS = pd.to_timedelta([5, 10, 15], unit="min")
THRESHOLDS = (10.0, 20.0)
LINEAR = Transform("linear", top=50.0)


def _arrays(said, came, thresholds=THRESHOLDS, leads=LEADS):
    """Give (case, threshold, lead, y, x) and (case, lead, y, x) as the convention has them."""
    coordinates = {"threshold": list(thresholds), "lead_time": leads}
    return (
        xr.DataArray(
            said, dims=("base_time", "threshold", "lead_time", "y", "x"), coords=coordinates
        ),
        xr.DataArray(came, dims=("base_time", "lead_time", "y", "x"), coords={"lead_time": leads}),
    )


def _one(said, came):
    """Give the counts of single pixels of one threshold, 10, and one lead time."""
    shape = (1, 1, 1, 1, len(said))
    probability = np.reshape(np.array(said, np.float32), shape)
    observed = np.reshape(np.array(came, np.float32), (1, 1, 1, len(said)))
    return counts_of(*_arrays(probability, observed, (10.0,), LEADS[:1]))


def _weather(seed, cases=12, size=64, distortion=0.5):
    """Give distorted probabilities, which fall along thresholds, and fields drawn by the true ones.

    The odds of what is said are the true odds to the power of `distortion`, times as much as the
    lead time: neither their spread nor their level is right.
    """
    random = np.random.default_rng(seed)
    odds = random.normal(-2.0, 2.5, (cases, 1, len(LEADS), size, size))
    true = 1.0 / (1.0 + np.exp(-(odds - np.array([0.0, 1.5])[:, None, None, None])))
    drawn = random.uniform(size=(cases, len(LEADS), size, size))
    observed = (10.0 * (drawn[:, None] < true).sum(axis=1)).astype(np.float32)
    told = distortion * np.log(true / (1.0 - true)) + np.array([0.1, 0.4, 0.7])[:, None, None]
    return _arrays((1.0 / (1.0 + np.exp(-told))).astype(np.float32), observed)


@pytest.fixture(scope="module")
def weather():
    return _weather(seed=1)


@pytest.fixture(scope="module")
def counts(weather):
    return counts_of(*weather)


@pytest.fixture(scope="module")
def fitted(counts):
    return fit(counts)


@pytest.fixture
def every_bin(monkeypatch):
    """Bins with a single pixel stand alone, so that hands can count."""
    monkeypatch.setattr(calibration, "FEWEST_PIXELS", 1)


def test_bins_rise_and_their_edges_belong_to_the_bin_above():
    assert (np.diff(BINS) > 0).all()
    assert (BINS[0], BINS[-1]) == (0.0, 1.0)
    assert 0.5 in BINS
    found = _one([BINS[7], np.nextafter(BINS[7], np.float32(0.0)), 0.0, 1.0], [0.0] * 4)
    places = np.flatnonzero(found["probability_count"].values[0, 0])
    assert places.tolist() == [0, 6, 7, len(BINS) - 1]


def test_pixels_events_and_probabilities_are_counted_by_hand():
    found = _one([0.3, 0.3, 0.3, 0.9], [10.0, 9.9, 0.0, 25.0])
    by_bin = found.isel(threshold=0, lead_time=0)
    low, high = np.flatnonzero(by_bin["probability_count"].values)
    assert BINS[low] <= np.float32(0.3) < BINS[low + 1]
    assert by_bin["probability_count"].values[[low, high]].tolist() == [3, 1]
    assert by_bin["probability_events"].values[[low, high]].tolist() == [1, 1]
    np.testing.assert_allclose(by_bin["probability_sum"].values[[low, high]], [0.9, 0.9], rtol=1e-6)


def test_a_threshold_that_no_32_bit_float_is_is_reached_by_the_nearest():
    said, came = _arrays(
        np.full((1, 1, 1, 1, 1), 0.5, np.float32), np.full((1, 1, 1, 1), 0.7, np.float32), (0.7,),
        LEADS[:1],
    )  # fmt: skip
    assert int(counts_of(said, came)["probability_events"].sum()) == 1


def test_counts_of_parts_add_up_to_those_of_the_whole(weather, counts):
    said, came = weather
    parts = [
        counts_of(said.isel(base_time=part), came.isel(base_time=part))
        for part in (slice(5), slice(5, None))
    ]
    xr.testing.assert_allclose(parts[0] + parts[1], counts, rtol=1e-12)
    assert int(counts["probability_count"].sum()) == said.size


def test_a_pixel_that_is_missing_here_or_there_counts_for_nothing(weather):
    said, came = (one.copy(deep=True) for one in weather)
    said[2] = np.nan
    came[3, 1] = np.nan
    others = [case for case in range(12) if case != 2]
    less = counts_of(said.isel(base_time=others), weather[1].isel(base_time=others))
    lost = counts_of(*(one.isel(base_time=[3], lead_time=[1]) for one in weather))
    expected = less - lost.reindex(lead_time=LEADS, fill_value=0)
    xr.testing.assert_allclose(counts_of(said, came), expected, atol=1e-6)


def test_observations_of_other_lead_times_are_refused(weather):
    said, came = weather
    with pytest.raises(ValueError, match="take them at the valid times"):
        counts_of(said, came.isel(lead_time=[0]))


def _brute_force(values, weights):
    """Isotonic regression by its definition: the highest mean to here of the lowest from here."""
    spans = list(itertools.combinations(range(len(values) + 1), 2))
    mean = {(i, j): np.average(values[i:j], weights=weights[i:j]) for i, j in spans}
    return [
        max(min(mean[i, j] for j in range(k + 1, len(values) + 1)) for i in range(k + 1))
        for k in range(len(values))
    ]


@pytest.mark.usefixtures("every_bin")
def test_a_curve_is_the_isotonic_regression_by_its_definition():
    random = np.random.default_rng(3)
    said = np.repeat(random.choice(BINS[200:500], 12, replace=False), random.integers(1, 30, 12))
    came = 10.0 * (random.uniform(size=len(said)) < 0.5)
    curve = Curve.fit(totals_of(_one(said, came))[:, 0, 0])
    levels, place = np.unique(said, return_inverse=True)
    number = np.bincount(place)
    frequency = (np.bincount(place, came > 0) + levels) / (number + 1)  # and a pixel as forecast
    expected = np.array(_brute_force(frequency, number + 1.0))
    assert len(set(expected)) < len(expected)
    tilted = (1 - calibration.TILT) * expected + calibration.TILT * levels
    np.testing.assert_allclose(curve(levels), tilted, rtol=1e-6)


@pytest.mark.usefixtures("every_bin")
def test_a_curve_by_hand():
    """One of 9 said 0.1 and came; 3 of 9 said 0.4; of 9 that said 0.8, only 2: those two pool."""
    said = [0.1] * 9 + [0.4] * 9 + [0.8] * 9
    came = [10.0] + [0.0] * 8 + [10.0] * 3 + [0.0] * 6 + [10.0] * 2 + [0.0] * 7
    curve = Curve.fit(totals_of(_one(said, came))[:, 0, 0])
    pooled = (3.4 + 2.8) / 20
    np.testing.assert_allclose(curve.forecast, [0.0, 0.1, 0.4, 0.8, 1.0], rtol=1e-6)
    np.testing.assert_allclose(curve.calibrated, [0.0, 0.11, pooled, pooled, 1.0], atol=1e-4)
    assert curve.calibrated[3] > curve.calibrated[2]


def test_what_never_came_becomes_small_but_not_zero():
    values = []
    for pixels in (2000, 20000):
        said = np.r_[np.full(pixels, 0.01), np.full(3000, 0.6)]
        came = np.r_[np.zeros(pixels), np.where(np.arange(3000) < 1500, 10.0, 0.0)]
        found = Calibration.fit(_one(said, came)).curves[0][0](np.array([0.0, 0.01, 1.0]))
        assert (found[0], found[2]) == (0.0, 1.0)
        values.append(found[1])
    assert 1e-3 > values[0] > values[1] > 0.0


def test_calibrated_probabilities_are_reliable_on_fresh_data(fitted):
    said, came = _weather(seed=2)
    better = fitted.calibration.calibrated(said.values)
    worst = {}
    for name, probability in (("before", said.values), ("after", better)):
        off = []
        for at, lead in itertools.product(range(2), range(3)):
            flat, event = probability[:, at, lead].ravel(), came.values[:, lead].ravel()
            event = event >= THRESHOLDS[at]
            bins = np.digitize(flat, [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9])
            off += [
                abs(flat[bins == one].mean() - event[bins == one].mean()) for one in np.unique(bins)
            ]
        worst[name] = max(off)
    assert worst["before"] > 0.15
    assert worst["after"] < 0.03


def test_curves_and_ladders_are_monotone(fitted):
    said, _ = _weather(seed=4, cases=2)
    better = fitted.calibration.calibrated(said.values)
    assert (better[:, 0] >= better[:, 1]).all()
    for at, lead in itertools.product(range(2), range(3)):
        curve = fitted.calibration.curves[at][lead]
        assert (np.diff(curve(np.linspace(0.0, 1.0, 2001))) > 0).all()


def test_a_probability_is_lowered_to_that_of_the_lower_threshold():
    low, high = Curve((0.0, 0.5, 1.0), (0.0, 0.1, 1.0)), Curve()
    ladder = Calibration((10.0, 20.0), (5.0,), ((low,), (high,)))
    said = np.array([0.5, 0.4], np.float32).reshape(1, 2, 1, 1, 1)
    np.testing.assert_allclose(ladder.calibrated(said).ravel(), [0.1, 0.1])


def test_missing_stays_missing_and_other_lead_times_are_refused(fitted):
    said = np.full((1, 2, 3, 2, 2), 0.3, np.float32)
    said[..., 0, 1] = np.nan
    found = fitted.calibration.calibrated(said)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(said))
    with pytest.raises(ValueError, match="of 2 thresholds and 3 lead times"):
        fitted.calibration.calibrated(said[:, :, :2])


def _alone(counts, lead, threshold=0):
    return counts.isel(threshold=[threshold], lead_time=[lead])


def _together(counts, thresholds, leads):
    """Fit one curve to the counts of some thresholds and lead times."""
    some = counts.isel(threshold=thresholds, lead_time=leads).sum(("threshold", "lead_time"))
    one = some.expand_dims(threshold=[10.0], lead_time=LEADS[:1])
    return Calibration.fit(one, fewest_events=1).curves[0][0]


def _events(counts, thresholds, leads):
    some = counts["probability_events"].isel(threshold=thresholds, lead_time=leads)
    return int(some.sum())


def test_with_few_events_those_of_the_next_lead_times_are_added(counts):
    few = max(_events(counts, [0], [lead]) for lead in range(3)) + 1
    assert few <= min(_events(counts, [0], [0, 1]), _events(counts, [0], [1, 2]))
    first, second, third = Calibration.fit(counts, fewest_events=few).curves[0]
    assert first == _together(counts, [0], [0, 1])
    assert second == _together(counts, [0], [0, 1, 2])
    assert third == _together(counts, [0], [1, 2])
    assert Calibration.fit(counts).curves[0][1] == Calibration.fit(_alone(counts, 1)).curves[0][0]


def test_then_those_of_lower_thresholds_and_at_last_of_all_lead_times(counts):
    few = _events(counts, [1], [0, 1, 2]) + 1
    assert few <= _events(counts, [0, 1], [0, 1])
    curves = Calibration.fit(counts, fewest_events=few).curves[1]
    assert curves[0] == _together(counts, [0, 1], [0, 1])
    few = _events(counts, [0, 1], [0, 1]) + 1
    curves = Calibration.fit(counts, fewest_events=few).curves[1]
    assert curves[0] == _together(counts, [0, 1], [0, 1, 2])


@pytest.mark.parametrize("came", [0.0, 10.0])
def test_without_events_or_with_nothing_else_probabilities_stay_and_the_field_is_the_median(came):
    found = fit(_one([0.2] * 5000, [came] * 5000))
    assert found.calibration.curves == ((Curve(),),)
    assert found.levels.levels == ((0.5,),)


def _scores(said, event, level):
    warned = said >= level
    hits = (warned & event).sum()
    return hits / (warned | event).sum(), warned.sum() / event.sum()


@pytest.mark.parametrize("most_bias", [0.0, -1.0, np.nan])
def test_a_bias_with_which_nothing_could_be_forecast_is_refused(most_bias):
    with pytest.raises(ValueError, match="most_bias must be above 0; received"):
        Decisions(most_bias)


@pytest.mark.parametrize("most_bias", [0.6, 1.0, 1.5, np.inf])
def test_a_level_is_the_best_of_all_that_keep_the_bias(weather, counts, most_bias):
    """Told by brute force, on the pixels themselves."""
    said, came = (one.values for one in weather)
    ladder = Calibration.fit(counts)
    found = DecisionLevels.fit(counts, ladder, most_bias=most_bias)
    better = ladder.calibrated(said)
    for at, lead in ((0, 0), (1, 0), (1, 2)):
        pixels = said[:, at, lead].ravel()
        event = came[:, lead].ravel() >= THRESHOLDS[at]
        tried = {edge: _scores(pixels, event, edge) for edge in BINS[1::1] if edge <= pixels.max()}
        best = max(csi for csi, bias in tried.values() if bias <= most_bias)
        csi, bias = _scores(better[:, at, lead].ravel(), event, np.float32(found.levels[at][lead]))
        assert csi == pytest.approx(best, rel=1e-3)
        assert bias <= most_bias * 1.001


def test_the_bias_limit_is_what_raises_a_level(counts):
    ladder = Calibration.fit(counts)
    strict = DecisionLevels.fit(counts, ladder, most_bias=0.5).levels
    free = DecisionLevels.fit(counts, ladder, most_bias=np.inf).levels
    assert (np.array(strict) > np.array(free)).all()


def test_a_level_by_hand():
    """Of 4000 that said 0.6, 2400 came; of 6000 that said 0.1, 600.

    From 0.6 on the CSI is 2400 / 4600; from 0.1 on it would be 3000 / 10000.
    """
    said = [0.6] * 4000 + [0.1] * 6000
    came = [10.0] * 2400 + [0.0] * 1600 + [10.0] * 600 + [0.0] * 5400
    level = fit(_one(said, came), Decisions(most_bias=1.5)).levels.levels[0][0]
    assert level == pytest.approx(2400 / 4600 / (1 + 2400 / 4600), rel=1e-6)


def test_a_perfect_network_decides_in_the_middle():
    found = fit(_one([0.9] * 1500 + [0.1] * 5000, [10.0] * 1500 + [0.0] * 5000))
    assert found.levels.levels == ((0.5,),)


def test_where_no_level_keeps_the_bias_only_certainty_is_forecast():
    found = fit(_one([1.0] * 5000, [10.0] * 1200 + [0.0] * 3800))
    assert found.levels.levels == ((1.0,),)


def test_levels_do_not_jump_from_one_lead_time_to_the_next():
    """Of 12 lead times with the same weather, seen little of, levels differ by chance alone."""
    random = np.random.default_rng(0)
    true = 1.0 / (1.0 + np.exp(-random.normal(-2.0, 1.5, (1, 1, 12, 80, 80))))
    came = np.where(random.uniform(size=true[:, 0].shape) < true[:, 0], 10.0, 0.0)
    leads = pd.to_timedelta(5 * np.arange(1, 13), unit="min")
    counts = counts_of(*_arrays(true.astype(np.float32), came, (10.0,), leads))
    found = DecisionLevels.fit(counts, Calibration.fit(counts), most_bias=np.inf).levels[0]
    best = []
    for lead in range(12):
        pixels, event = true[0, 0, lead], came[0, lead] > 0
        best.append(max(BINS[300:500], key=lambda edge: _scores(pixels, event, edge)[0]))
    assert np.ptp(found) < 0.03
    assert np.ptp(best) > 2 * np.ptp(found)


_PROBABILITIES = st.floats(0, 1, width=32) | st.sampled_from([0.125, 0.25, 0.5])  # often equal


@given(
    probabilities=arrays(np.float32, (3, 4), elements=_PROBABILITIES),
    levels=arrays(np.float64, (3, 1), elements=_PROBABILITIES.filter(bool) | st.floats(1e-3, 1)),
    thresholds=st.sampled_from([(0.1, 0.3, 0.7), (10.0, 20.0, 30.0), (270.1, 270.2, 280.0)]),
    name=st.sampled_from(["log", "linear"]),
)
def test_a_field_reaches_a_threshold_exactly_where_it_or_a_higher_one_is_decided(
    probabilities, levels, thresholds, name
):
    probabilities = np.sort(probabilities, axis=0)[::-1]
    field = field_of(
        probabilities, levels, thresholds=thresholds, transform=Transform(name), lowest=0.0
    )
    decided = probabilities >= levels.astype(np.float32)
    expected = np.logical_or.accumulate(decided[::-1], axis=0)[::-1]
    for at, threshold in enumerate(thresholds):
        np.testing.assert_array_equal(field >= threshold, expected[at])
        np.testing.assert_array_equal(
            field.astype(np.float32) >= np.float32(threshold), expected[at]
        )
    assert set(field[~expected[0]]) <= {0.0}


def test_a_field_by_hand():
    """Levels 0.4 and 0.2; 0.6 is 1.5 of its level and 0.1 half: halfway from 10 to 20."""
    said = np.array(
        [[0.6, 0.4, 0.39, 0.3, 0.9, np.nan], [0.1, 0.1, 0.1, 0.25, 0.3, np.nan]], np.float64
    )
    found = field_of(
        said, np.array([[0.4], [0.2]]), thresholds=THRESHOLDS, transform=LINEAR, lowest=0.0
    )
    np.testing.assert_allclose(found, [15.0, 10.0, 0.0, 20.0, 20.0, np.nan])


def test_a_probability_a_hair_below_its_level_does_not_reach_the_threshold_by_rounding():
    said = np.array([[1.0], [np.nextafter(np.float32(0.5), np.float32(0.0))]], np.float32)
    found = field_of(
        said, np.array([[0.5], [0.5]]), thresholds=THRESHOLDS, transform=LINEAR, lowest=0.0
    )
    assert 19.99 < found.astype(np.float32)[0] < 20.0


def test_fields_by_lead_time_take_the_levels_of_theirs(fitted):
    levels = DecisionLevels((10.0, 20.0), (5.0, 10.0), ((0.5, 0.1), (0.4, 0.4)))
    said = np.array([0.3, 0.0], np.float32).reshape(1, 2, 1, 1, 1).repeat(2, axis=2)
    found = levels.field(said, transform=LINEAR, lowest=0.0)
    assert found.shape == (1, 2, 1, 1)
    assert found[0, 0] == 0.0
    assert 10.0 < found[0, 1].item() < 20.0
    with pytest.raises(ValueError, match="of 2 thresholds and 3 lead times"):
        fitted.levels.field(said, transform=LINEAR, lowest=0.0)


def test_fields_of_fresh_weather_keep_score_and_bias(fitted):
    said, came = _weather(seed=7)
    better = fitted.calibration.calibrated(said.values)
    field = fitted.levels.field(better, transform=LINEAR, lowest=0.0).astype(np.float32)
    assert len(np.unique(field)) > 1000  # no staircase
    for at, lead in itertools.product(range(2), range(3)):
        event = came.values[:, lead] >= THRESHOLDS[at]
        csi, bias = _scores(field[:, lead], event, THRESHOLDS[at])
        best = max(_scores(said.values[:, at, lead], event, edge)[0] for edge in BINS[200:500:4])
        assert csi > best - 0.01
        assert bias < 1.23


def test_dry_weather_stays_dry(fitted):
    said = np.full((1, 2, 3, 4, 4), 1e-5, np.float32)
    better = fitted.calibration.calibrated(said)
    assert 0.0 < better.max() < 1e-3
    assert (fitted.levels.field(better, transform=LINEAR, lowest=0.0) == 0.0).all()


def test_what_is_written_is_read_exactly_and_is_small(fitted):
    text = fitted.to_json()
    assert Postprocessing.from_dict(json.loads(text)) == fitted
    assert len(text) < 10_000 * len(THRESHOLDS) * len(LEADS)


def test_the_same_content_has_the_same_hash(fitted, counts):
    assert fit(counts).sha256 == fitted.sha256
    other = dataclasses.replace(fitted, provenance={"cases": "1"})
    assert other.sha256 != fitted.sha256


def _broken(content, name, value):
    return {key: content[key] for key in content if key != name} | (
        {} if value is None else {name: value}
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("format", 7, "must be of format 1; this one is of 7"),
        ("levels", None, "does not fit: KeyError"),
        ("levels", [[0.5, 0.5, float("nan")]] * 2, "decision levels lie above 0"),
        ("levels", [[0.5, 0.5]] * 2, "one for each of one or more"),
        ("curves", [[[[0.0, 1.0], [0.0, 0.5]]] * 3] * 2, "strictly rising from 0 to 1"),
        ("curves", [[[[0.0, 0.6, 0.5, 1.0], [0.0, 0.2, 0.3, 1.0]]] * 3] * 2, "strictly rising"),
        ("curves", 3, "does not fit: TypeError"),
        ("thresholds", [20.0, 10.0], "rising thresholds"),
    ],
)
def test_what_does_not_fit_is_refused(fitted, name, value, message):
    content = _broken(json.loads(fitted.to_json()), name, value)
    with pytest.raises(ValueError, match=message):
        Postprocessing.from_dict(content)


def test_parts_of_different_ladders_are_refused(fitted):
    levels = dataclasses.replace(fitted.levels, thresholds=(10.0, 30.0))
    with pytest.raises(ValueError, match="of the same thresholds"):
        Postprocessing(fitted.calibration, levels)


def test_counts_by_other_bins_are_refused(counts):
    with pytest.raises(ValueError, match="count with counts_of"):
        fit(counts.isel(probability_bin=slice(10)))


def test_no_cases_are_refused():
    with pytest.raises(ValueError, match="received no base time"):
        count(None, xr.Dataset(), base_times=pd.DatetimeIndex([]), lead_times=LEADS)


def test_what_is_left_to_extrapolation_is_saved_and_begins_at_a_threshold(counts):
    plain, left = fit(counts), fit(counts, Decisions(extrapolate_from=20.0))
    assert "extrapolated_from" not in plain.to_json()  # saved as ever
    assert Postprocessing.from_dict(json.loads(left.to_json())) == left
    assert left.sha256 != plain.sha256
    with pytest.raises(ValueError, match=r"thresholds \(10\.0, 20\.0\); received 15"):
        fit(counts, Decisions(extrapolate_from=15.0))


def _likely(*rows):
    """Give probabilities of reaching 10 and 20, the same at each of three lead times."""
    return np.array(rows, np.float32)[:, None, None].repeat(3, axis=1)


def test_heavier_thresholds_are_reached_where_extrapolation_reaches_them(counts):
    said = _likely([0.0, 0.99, 0.99, 0.99, np.nan], [0.0, 0.0, 0.99, 0.99, np.nan])
    moved = np.array([21.0, 5.0, 19.9, 30.0, np.nan]).reshape(1, 1, 5).repeat(3, axis=0)
    plain, left = (
        fit(counts, decisions).field(said, moved, transform=LINEAR, lowest=0.0)[0, 0]
        for decisions in (Decisions(), Decisions(extrapolate_from=20.0))
    )
    assert 10.0 <= plain[1] < 20.0
    np.testing.assert_array_equal(plain >= 20.0, [False, False, True, True, False])
    below = np.nextafter(np.float32(20), 0)
    np.testing.assert_array_equal(left, [21.0, plain[1], below, 30.0, np.nan])


def test_a_field_that_keeps_area_reaches_no_threshold_on_fewer_pixels(counts):
    """The most probable pixels are taken; what is missing does not count."""
    said = _likely([0.3, 0.2, 0.1, 0.9, np.nan, 0.0], [0.1, 0.05, 0.01, 0.0, np.nan, 0.0])
    moved = np.array([0.0, 12.0, 0.0, 25.0, 25.0, 25.0]).reshape(1, 1, 6).repeat(3, axis=0)
    plain, kept = fit(counts), fit(counts, Decisions(keep_area=True))
    before, after = (
        one.field(said, moved, transform=LINEAR, lowest=0.0)[0, 0] for one in (plain, kept)
    )
    np.testing.assert_array_equal(before >= 10.0, [False, False, False, True, False, False])
    # Three of the known pixels have 10 there and two of them 20.
    np.testing.assert_array_equal(after >= 10.0, [True, True, False, True, False, False])
    np.testing.assert_array_equal(after >= 20.0, [True, True, False, False, False, False])
    assert kept.rule.endswith("on no fewer pixels than extrapolation does")
    assert Postprocessing.from_dict(json.loads(kept.to_json())) == kept
    assert kept.for_leads(2).keeps_area


def _rounded(threshold, dtype):
    """Give fields of a threshold as a 32-bit float, which may be less, and of what is below it."""
    at = np.float32(threshold)
    return np.array([[at, np.nextafter(at, np.float32(0))]], dtype)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threshold", [0.7, 0.9, 3.3])
def test_extrapolation_reaches_a_threshold_where_it_does_as_it_is_issued(threshold, dtype):
    moved = _rounded(threshold, dtype)
    assert float(moved[0, 0]) < threshold
    likely = np.array([[[0.1, 0.2]]], np.float32)
    found = levels_keeping(moved, likely, np.array([[[0.5]]]), thresholds=(threshold,))
    assert found.item() == likely.max()  # one pixel reaches it: the more probable one is decided
    left = Postprocessing(
        Calibration((threshold,), (5.0,), ((Curve(),),)),
        DecisionLevels((threshold,), (5.0,), ((0.5,),)),
        extrapolated_from=threshold,
    )
    field = left.field(np.zeros((1, 1, 1, 2)), moved[None], transform=LINEAR, lowest=0.0)
    np.testing.assert_array_equal(field[0, 0].astype(np.float32), [np.float32(threshold), 0.0])


@given(
    arrays(np.float32, (2, 3, 4, 5), elements=st.floats(0, 1, width=32)),
    arrays(np.float32, (3, 4, 5), elements=st.sampled_from([0.0, 12.0, 25.0, np.nan])),
    st.floats(0.01, 1),
)
def test_levels_that_keep_areas_are_no_lower_than_they_need_to_be(said, moved, level):
    levels = np.full((2, 1, 1, 1), level, np.float32)
    found = levels_keeping(moved, said, levels, thresholds=THRESHOLDS)
    assert found.shape == (2, 3, 1, 1)
    known = np.isfinite(moved)
    for at, case in np.ndindex(2, 3):
        chances, level = said[at, case][known[case]], found[at, case].item()
        needed = (moved[case] >= THRESHOLDS[at]).sum()
        assert 0.0 < level <= levels[at].item()
        assert (chances >= level).sum() >= min(needed, (chances > np.finfo(np.float32).tiny).sum())
        if level < levels[at].item():
            assert (chances > level).sum() < needed
