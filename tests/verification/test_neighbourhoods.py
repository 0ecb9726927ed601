import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nowcast.verification.batches import FIELD_DIMS, Batch
from nowcast.verification.neighbourhoods import IntensityScale, Neighbourhoods, scales_of

CASES, LEADS = 3, 2
MEASURES = (
    Neighbourhoods(thresholds=(0.7, 3.0), scales_km=(2.0, 6.0, 18.0), spacing_km=2.0),
    IntensityScale(thresholds=(0.7, 3.0), spacing_km=2.0),
)


def _batch(forecast, observed):
    times = {
        "base_time": pd.date_range("2024-06-01", periods=len(observed), freq="1h"),
        "lead_time": pd.to_timedelta(10 * np.arange(1, 1 + observed.shape[1]), unit="min"),
    }
    forecast, observed = (xr.DataArray(one, times, FIELD_DIMS) for one in (forecast, observed))
    return Batch(forecast, observed, xr.Dataset())


def _frame(values):
    return np.array(values, np.float32)[None, None]


def _rain(y, x, seed=0):
    """Patches of rain: of the pixels a third above 0.7, and one in forty above 3."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((CASES, LEADS, y + 4, x + 4))
    windows = np.lib.stride_tricks.sliding_window_view(noise, (5, 5), axis=(2, 3))
    return np.maximum(0.0, 8 * windows.mean((4, 5))).astype(np.float32)


def _with_gaps(forecast, observed):
    """With missing pixels, one field that is dry in both, one with nothing, one forecast dry."""
    forecast, observed = forecast.copy(), observed.copy()
    missing = np.random.default_rng(9).random(observed.shape) < 0.1
    missing[..., :3, :5] = True
    missing[0, 1] = True
    forecast[1, 0] = observed[1, 0] = 0.0
    forecast[2, 1] = 0.0
    forecast[missing] = observed[missing] = np.nan
    return forecast, observed


def _pooled(measure, forecast, observed):
    return measure.scores(measure.sums(_batch(forecast, observed)).sum("base_time"))


def test_the_fractions_skill_score_by_hand():
    observed = _frame([[0, 0, 0], [0, 2, 0], [0, 0, 0]])
    forecast = _frame([[0, 0, 0], [2, 0, 0], [0, 0, 0]])
    measure = Neighbourhoods(thresholds=(1.0,), scales_km=(1.0, 3.0), spacing_km=1.0)
    sums = measure.sums(_batch(forecast, observed))
    np.testing.assert_allclose(sums["squared_forecast"].values.ravel(), [1.0, 6 / 81])
    scores = measure.scores(sums.sum("base_time"))
    # All 9 windows see the observed pixel, 6 the forecast one, and 6 both: 1 - 3 / (9 + 6).
    np.testing.assert_allclose(scores["fss"].values.ravel(), [0.0, 1 - 3 / 15], rtol=1e-12)
    assert scores["fss_useful"].item() == pytest.approx(0.5 + 1 / 9 / 2)
    # From 0 at 1 km to 0.8 at 3 km, 0.5 + 1/18 lies on the way.
    assert scores["useful_scale"].item() == pytest.approx(1 + 2 * (0.5 + 1 / 18) / 0.8)


@pytest.mark.parametrize(
    ("sign", "thresholds"),
    [(1, (0.7, 3.0)), (-1, (-3.0, -0.7))],
    ids=["few events", "windows full of events"],
)
def test_the_fractions_skill_score_is_that_of_pysteps_where_nothing_is_missing(sign, thresholds):
    from pysteps.verification.spatialscores import fss_accum, fss_compute, fss_init

    forecast, observed = sign * _rain(64, 50), sign * _rain(64, 50, seed=1)
    measure = Neighbourhoods(thresholds, scales_of(1.0, (64, 50)), 1.0)
    fss = _pooled(measure, forecast, observed)["fss"]
    assert measure.widths == (1, 3, 5, 9, 17)
    for lead in range(LEADS):
        for at, threshold in enumerate(thresholds):
            for scale, width in enumerate(measure.widths):
                theirs = fss_init(threshold, width)
                for case in range(CASES):
                    fss_accum(theirs, forecast[case, lead], observed[case, lead])
                assert fss[lead, at, scale].item() == pytest.approx(fss_compute(theirs), abs=1e-6)


def test_the_fractions_skill_score_is_that_of_scores_with_a_dry_row_and_column_more():
    from scores.spatial import fss_2d

    forecast, observed = _rain(20, 17), _rain(20, 17, seed=1)
    wider = ((0, 0), (0, 0), (0, 1), (0, 1))
    measure = Neighbourhoods((0.7,), (1.0, 3.0, 7.0), 1.0)
    mine = _pooled(measure, np.pad(forecast, wider), np.pad(observed, wider))["fss"]
    for scale, width in enumerate(measure.widths):
        theirs = fss_2d(
            xr.DataArray(forecast.astype(float), dims=FIELD_DIMS),
            xr.DataArray(observed.astype(float), dims=FIELD_DIMS),
            event_threshold=float(np.float32(0.7)),
            threshold_operator=np.greater_equal,
            window_size=(width, width),
            spatial_dims=("y", "x"),
            zero_padding=True,
            preserve_dims="lead_time",
        )
        np.testing.assert_allclose(mine[:, 0, scale], theirs, atol=1e-6)


def _fss_pixel_by_pixel(forecast, observed, threshold, width):
    difference = most = 0.0
    for mine, its in zip(forecast, observed, strict=True):
        for y, x in np.argwhere(np.isfinite(its)):
            fractions = []
            for field in (mine, its):
                around = [
                    field[row, column]
                    for row in range(y - width // 2, y + width // 2 + 1)
                    for column in range(x - width // 2, x + width // 2 + 1)
                    if 0 <= row < field.shape[0] and 0 <= column < field.shape[1]
                ]
                fractions.append(sum(value >= threshold for value in around) / width**2)
            difference += (fractions[0] - fractions[1]) ** 2
            most += fractions[0] ** 2 + fractions[1] ** 2
    return 1 - difference / most


def test_missing_pixels_are_no_events_and_no_centres_of_windows():
    forecast, observed = _with_gaps(_rain(11, 14), _rain(11, 14, seed=1))
    measure = Neighbourhoods((0.7, 3.0), (1.0, 3.0, 9.0), 1.0)
    scores = _pooled(measure, forecast, observed)
    for lead in range(LEADS):
        counted = np.isfinite(observed[:, lead])
        for at, threshold in enumerate(np.float32(measure.thresholds)):
            rate = (observed[:, lead] >= threshold).sum() / counted.sum()
            assert scores["fss_useful"][lead, at].item() == pytest.approx(0.5 + rate / 2)
            for scale, width in enumerate(measure.widths):
                brute = _fss_pixel_by_pixel(forecast[:, lead], observed[:, lead], threshold, width)
                assert scores["fss"][lead, at, scale].item() == pytest.approx(brute, abs=1e-6)


def test_the_fractions_skill_score_grows_with_the_window_of_a_displaced_cell():
    observed, forecast = np.zeros((2, 1, 1, 32, 32), np.float32)
    observed[..., 14:18, 10:14] = 2.0
    forecast[..., 14:18, 14:18] = 2.0
    measure = Neighbourhoods((1.0,), scales_of(1.0, (32, 32)), 1.0)
    fss = _pooled(measure, forecast, observed)["fss"].values.ravel()
    assert fss[0] == 0.0
    assert (np.diff(fss) > 0).all()


@pytest.mark.parametrize(
    ("fss", "expected"),
    [
        ([0.2, 0.5, 0.9], 3.5),  # 0.6 is a quarter of the way from 0.5 to 0.9
        ([0.7, 0.5, 0.9], 1.0),
        ([0.2, 0.7, 0.5], 2.6),
        ([0.2, 0.5, 0.6], 5.0),
        ([0.1, 0.2, 0.3], np.nan),
    ],
)
def test_the_useful_scale_is_where_the_score_first_reaches_what_is_useful(fss, expected):
    total = xr.Dataset(
        {
            "squared_difference": ("scale", 1 - np.array(fss)),
            "squared_forecast": ("scale", [0.5] * 3),
            "squared_observed": ("scale", [0.5] * 3),
            "observed_events": ((), 20),
            "number": ((), 100),
        },
        {"scale": [1.0, 3.0, 5.0]},
    )
    scores = MEASURES[0].scores(total)
    assert scores["fss_useful"].item() == pytest.approx(0.6)
    np.testing.assert_allclose(scores["useful_scale"].item(), expected, rtol=1e-12)


def test_a_perfect_forecast_has_all_skill_at_once():
    observed = _rain(32, 32)
    scores = _pooled(MEASURES[0], observed, observed)
    assert (scores["fss"] == 1.0).all()
    assert (scores["useful_scale"] == 2.0).all()
    assert (_pooled(MEASURES[1], observed, observed)["intensity_scale_skill"] == 1.0).all()


def test_scores_of_no_event_at_all_are_nan():
    dry = np.zeros((1, 2, 8, 8), np.float32)
    dry[:, 1] = np.nan
    for measure in MEASURES:
        scores = _pooled(measure, dry, dry)
        undefined = scores.drop_vars("fss_useful", errors="ignore")
        assert all(np.isnan(one).all() for one in undefined.data_vars.values())
    useful = _pooled(MEASURES[0], dry, dry)["fss_useful"]
    assert useful.values[0].tolist() == [0.5, 0.5]  # no base rate is 0, where pixels count
    assert np.isnan(useful.values[1]).all()


def test_events_forecast_where_none_is_observed_have_no_skill():
    dry = np.zeros((CASES, LEADS, 16, 16), np.float32)
    for forecast, observed in ((_rain(16, 16), dry), (dry, _rain(16, 16))):
        assert (_pooled(MEASURES[0], forecast, observed)["fss"] == 0.0).all()
        skill = _pooled(MEASURES[1], forecast, observed)["intensity_scale_skill"]
        np.testing.assert_allclose(skill.mean("component_scale"), 0.0, atol=1e-12)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_sums_are_the_same_to_the_bit_whatever_is_computed_together(measure, monkeypatch):
    forecast, observed = _with_gaps(_rain(19, 33), _rain(19, 33, seed=1))
    together = measure.sums(_batch(forecast, observed))
    assert not any(one.isnull().any() for one in together.data_vars.values())
    monkeypatch.setattr("nowcast.verification.neighbourhoods.PIXELS_AT_ONCE", 1)
    for case in range(CASES):
        part = slice(case, case + 1)
        alone = measure.sums(_batch(forecast[part], observed[part])).drop_vars("base_time")
        xr.testing.assert_identical(alone, together.isel(base_time=part).drop_vars("base_time"))


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_scores_follow_from_sums_of_groups_and_of_all_lead_times(measure):
    forecast, observed = _with_gaps(_rain(12, 16), _rain(12, 16, seed=1))
    sums = measure.sums(_batch(forecast, observed))
    by_case = measure.scores(sums)
    for case in range(CASES):
        one = measure.scores(sums.isel(base_time=case))
        xr.testing.assert_equal(one, by_case.isel(base_time=case))
    pooled = measure.scores(sums.sum(("base_time", "lead_time")))
    shape = (1, CASES * LEADS, 12, 16)
    as_cases = _pooled(measure, forecast.reshape(shape), observed.reshape(shape))
    folded = measure.sums(_batch(forecast.reshape(shape), observed.reshape(shape)))
    xr.testing.assert_allclose(pooled, measure.scores(folded.sum(("base_time", "lead_time"))))
    assert "lead_time" in as_cases.dims
    assert "lead_time" not in pooled.dims


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_a_value_at_the_threshold_is_an_event(measure):
    observed = np.full((1, 1, 4, 4), 0.7, np.float32)
    sums = measure.sums(_batch(np.zeros_like(observed), observed))
    assert sums["observed_events"].values.ravel().tolist() == [16, 0]
    assert sums["number"].item() == 16


@pytest.mark.parametrize("kind", [Neighbourhoods, IntensityScale])
def test_without_thresholds_nothing_is_scored(kind):
    scales = {"scales_km": (1.0, 3.0)} if kind is Neighbourhoods else {}
    measure = kind(thresholds=(), spacing_km=1.0, **scales)
    scores = _pooled(measure, _rain(8, 8), _rain(8, 8, seed=1))
    assert all(one.size == 0 for one in scores.data_vars.values())


def test_windows_are_odd_numbers_of_pixels_nearest_to_the_scale():
    measure = Neighbourhoods((1.0,), (0.1, 2.9, 4.0, 7.1, 11.0), 1.0)
    assert measure.widths == (1, 3, 5, 7, 11)
    assert Neighbourhoods((1.0,), (0.5, 1.5), 0.5).widths == (1, 3)
    sums = Neighbourhoods((1.0,), (4.0, 8.0), 2.0).sums(_batch(_rain(8, 8), _rain(8, 8)))
    assert sums["scale"].values.tolist() == [6.0, 10.0]
    assert sums["scale"].attrs["units"] == "km"


@pytest.mark.parametrize("scales", [(), (1.0, 1.2), (5.0, 3.0)])
def test_scales_that_have_no_windows_of_their_own_are_refused(scales):
    with pytest.raises(ValueError, match="one width or more, rising"):
        Neighbourhoods((1.0,), scales, 1.0)


def test_scales_worth_a_look_reach_half_of_the_smaller_side():
    assert scales_of(1.0, (480, 600)) == (1, 3, 5, 9, 17, 33, 65, 129)
    assert scales_of(0.5, (8, 8)) == (0.5, 1.5, 2.5)
    assert scales_of(1.0, (1, 9)) == (1.0,)


def test_the_intensity_scale_skill_by_hand():
    observed = _frame([[2, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    forecast = _frame([[0, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    skill = _pooled(IntensityScale((1.0,), 2.0), forecast, observed)["intensity_scale_skill"]
    assert skill["component_scale"].values.tolist() == [2.0, 4.0, 8.0]
    # Errors of -1 and 1 in two quarters, of which the means are -1/4 and 1/4; the mean of all is 0.
    # Squares of the means over 4 pixels: 2 * 4 / 16; what is left for single pixels: 2 - 1/2.
    random = 2 * (1 / 16) * (15 / 16)
    expected = 1 - 3 * np.array([1.5, 0.5, 0.0]) / 16 / random
    np.testing.assert_allclose(skill.values.ravel(), expected, rtol=1e-12)


def _skill_by_wavelets(forecast, observed, threshold, size):
    """From the coefficients of Haar wavelets: of 2 x 2 means, their mean and three differences."""
    line = np.array([[1, 1], [1, -1]]) / np.sqrt(2)
    number = np.isfinite(observed).sum()
    said, happened = forecast >= threshold, observed >= threshold
    components = {}
    for error in said.astype(float) - happened:
        means = np.zeros((size, size))
        means[: error.shape[0], : error.shape[1]] = error
        scale = 1
        while scale < size:
            n = len(means) // 2
            pairs = means.reshape(n, 2, n, 2)
            wavelets = np.einsum("iajb,pa,qb->pqij", pairs, line, line)
            details = (wavelets**2).sum((2, 3))
            components.setdefault(scale, []).append(details.sum() - details[0, 0])
            means, scale = wavelets[0, 0], 2 * scale
        components.setdefault(size, []).append((means**2).sum())
    f, o = said.sum() / number, happened.sum() / number
    random = f * (1 - o) + o * (1 - f)
    return [1 - len(components) * sum(parts) / number / random for parts in components.values()]


def test_the_intensity_scale_skill_is_that_of_wavelets_with_missing_pixels_and_dry_fields():
    forecast, observed = _with_gaps(_rain(11, 14), _rain(11, 14, seed=1))
    skill = _pooled(IntensityScale((0.7, 3.0), 1.0), forecast, observed)["intensity_scale_skill"]
    assert skill["component_scale"].values.tolist() == [1, 2, 4, 8, 16]
    for lead in range(LEADS):
        for at, threshold in enumerate(np.float32([0.7, 3.0])):
            brute = _skill_by_wavelets(forecast[:, lead], observed[:, lead], threshold, 16)
            np.testing.assert_allclose(skill[lead, at], brute, rtol=1e-10)


def test_the_mean_intensity_scale_skill_is_the_heidke_skill_of_scores():
    from scores.categorical import ThresholdEventOperator

    forecast, observed = _with_gaps(_rain(11, 14), _rain(11, 14, seed=1))
    skill = _pooled(IntensityScale((0.7, 3.0), 1.0), forecast, observed)["intensity_scale_skill"]
    fields = [xr.DataArray(one, dims=FIELD_DIMS) for one in (forecast, observed)]
    for at, threshold in enumerate((0.7, 3.0)):
        table = ThresholdEventOperator(default_event_threshold=threshold)
        heidke = (
            table.make_contingency_manager(*fields)
            .transform(preserve_dims="lead_time")
            .heidke_skill_score()
        )
        mine = skill.isel(threshold=at).mean("component_scale")
        np.testing.assert_allclose(mine, heidke, atol=1e-6)


def test_the_intensity_scale_skill_is_that_of_pysteps_where_nothing_is_missing_nor_biased():
    pytest.importorskip("pywt", reason="pysteps needs PyWavelets for this score")
    from pysteps.verification.spatialscores import (
        intensity_scale_accum,
        intensity_scale_compute,
        intensity_scale_init,
    )

    observed = _rain(32, 32)
    forecast = np.roll(observed, 5, axis=3)
    skill = _pooled(IntensityScale((0.7, 3.0), 1.0), forecast, observed)["intensity_scale_skill"]
    for lead in range(LEADS):
        theirs = intensity_scale_init("BMSE", [0.7, 3.0], wavelet="haar")
        for case in range(CASES):
            intensity_scale_accum(theirs, forecast[case, lead], observed[case, lead])
        expected = intensity_scale_compute(theirs)[::-1].T  # theirs begin with the coarsest
        np.testing.assert_allclose(skill[lead], expected, atol=1e-6)


def test_a_displaced_block_costs_skill_at_its_scale_and_at_no_smaller_one():
    observed, forecast = np.zeros((2, 1, 1, 32, 32), np.float32)
    observed[..., 8:16, 0:8] = 2.0
    forecast[..., 8:16, 8:16] = 2.0
    skill = _pooled(IntensityScale((1.0,), 1.0), forecast, observed)["intensity_scale_skill"]
    by_scale = dict(zip(skill["component_scale"].values, skill.values.ravel(), strict=True))
    assert [by_scale[scale] for scale in (1, 2, 4, 16, 32)] == [1.0] * 5
    assert by_scale[8] < 0
