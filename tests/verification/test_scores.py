"""Events and errors: by hand, beside other libraries, and beside loops over pixels."""

import numpy as np
import pytest
import xarray as xr

from nowcast.rainrate import to_rain_rate
from nowcast.verification.batches import Batch
from nowcast.verification.scores import Errors, Events

DIMS = ("base_time", "lead_time", "y", "x")
EVENT_SCORES = ("csi", "pod", "far", "frequency_bias", "hss", "ets", "sedi", "base_rate")


def batch_of(forecast, observed):
    """Give a batch of values, of which those that are NaN in one do not count."""
    forecast, observed = (np.array(one, float) for one in (forecast, observed))
    counted = np.isfinite(forecast) & np.isfinite(observed)
    shape = (1,) * (4 - forecast.ndim) + forecast.shape
    fields = [
        xr.DataArray(np.where(counted, one, np.nan).reshape(shape), dims=DIMS)
        for one in (forecast, observed)
    ]
    return Batch(*fields, xr.Dataset())


def scores_of(measure, forecast, observed):
    total = measure.sums(batch_of(forecast, observed)).sum("base_time")
    return measure.scores(total)


def rain(seed, *, missing=0.0, dry=False):
    random = np.random.default_rng(seed)
    field = np.where(random.random((3, 2, 9, 7)) < 0.5, 0.0, random.gamma(0.7, 6.0, (3, 2, 9, 7)))
    field = field * (not dry)
    return np.where(random.random(field.shape) < missing, np.nan, field)


def test_event_scores_by_hand():
    observed = [0, 0, 2, 3, 0, 5, np.nan]
    forecast = [0, 4, 1, 0, 0, 6, np.nan]
    scores = scores_of(Events((1.0,)), forecast, observed)
    # hits 2 (2→1, 5→6), misses 1 (3→0), false alarms 1 (0→4), correct negatives 2
    by_hand = {
        "tp_count": 2, "fn_count": 1, "fp_count": 1, "tn_count": 2,
        "csi": 2 / 4, "pod": 2 / 3, "far": 1 / 3, "frequency_bias": 1.0, "base_rate": 3 / 6,
        # by chance 3 * 3 / 6 = 1.5 hits and as many negatives
        "hss": (4 - 3) / (6 - 3), "ets": (2 - 1.5) / (4 - 1.5),
    }  # fmt: skip
    for name, value in by_hand.items():
        assert scores[name].item() == pytest.approx(value), name
    hit, alarm = 2 / 3, 1 / 3
    parts = [np.log(alarm), np.log(hit), np.log(1 - hit), np.log(1 - alarm)]
    sedi = (parts[0] - parts[1] + parts[2] - parts[3]) / sum(parts)
    assert scores["sedi"].item() == pytest.approx(sedi)


def test_errors_by_hand():
    observed = [0, 0, 2, 3, 0, 12, np.nan]
    forecast = [0, 4, 1, 0, 0, 13, np.nan]
    scores = scores_of(Errors("rain_rate"), forecast, observed)
    # errors 0, 4, -1, -3, 0, 1; weights of HKO-7 1, 1, 2, 2, 1, 10
    by_hand = {
        "number": 6, "mae": 9 / 6, "rmse": np.sqrt(27 / 6), "me": 1 / 6,
        "balanced_mae": (4 + 2 + 6 + 10) / 6, "balanced_mse": (16 + 2 + 18 + 10) / 6,
        "correlation": np.corrcoef(forecast[:6], observed[:6])[0, 1],
    }  # fmt: skip
    for name, value in by_hand.items():
        assert scores[name].item() == pytest.approx(value), name


def test_event_scores_agree_with_pysteps_where_nothing_is_missing():
    from pysteps.verification.detcatscores import det_cat_fct

    forecast, observed = rain(1), rain(2)
    scores = scores_of(Events((1.0, 5.0)), forecast, observed)
    names = {"csi": "CSI", "pod": "POD", "far": "FAR", "frequency_bias": "BIAS", "hss": "HSS",
             "ets": "ETS", "sedi": "SEDI"}  # fmt: skip
    for threshold in (1.0, 5.0):
        for lead in range(2):
            # pysteps counts what is above a threshold, not at it.
            pair = forecast[:, lead].ravel(), observed[:, lead].ravel()
            other = det_cat_fct(*pair, threshold - 1e-9, scores=[*names.values()])
            for name, theirs in names.items():
                ours = scores[name].sel(threshold=threshold).isel(lead_time=lead).item()
                assert ours == pytest.approx(other[theirs], abs=1e-6), name


def test_errors_agree_with_pysteps_and_scores_where_nothing_is_missing():
    import scores as library
    from pysteps.verification.detcontscores import det_cont_fct

    forecast, observed = rain(3), rain(4)
    ours = scores_of(Errors("rain_rate"), forecast, observed)
    for lead in range(2):
        one, other = (xr.DataArray(field[:, lead].ravel()) for field in (forecast, observed))
        for name, theirs in {
            "mae": library.continuous.mae(one, other),
            "rmse": library.continuous.rmse(one, other),
            "me": library.continuous.mean_error(one, other),
            "correlation": library.continuous.correlation.pearsonr(one, other),
        }.items():
            value = ours[name].isel(lead_time=lead).item()
            assert value == pytest.approx(float(theirs), abs=1e-6), name
        steps = det_cont_fct(one.values, other.values, scores=["MAE", "RMSE", "ME", "corr_p"])
        for name, theirs in {"mae": "MAE", "rmse": "RMSE", "me": "ME",
                             "correlation": "corr_p"}.items():  # fmt: skip
            value = ours[name].isel(lead_time=lead).item()
            assert value == pytest.approx(float(np.squeeze(steps[theirs])), abs=1e-6), name


@pytest.mark.parametrize("dry", ["neither", "forecast", "observed", "both"])
def test_scores_agree_with_loops_over_pixels_where_some_are_missing(dry):
    forecast = rain(5, missing=0.2, dry=dry in ("forecast", "both"))
    observed = rain(6, missing=0.3, dry=dry in ("observed", "both"))
    events = scores_of(Events((0.5, 4.0)), forecast, observed)
    errors = scores_of(Errors("rain_rate"), forecast, observed)
    for lead in range(2):
        pairs = [
            (said, happened)
            for said, happened in zip(forecast[:, lead].flat, observed[:, lead].flat, strict=True)
            if said == said and happened == happened
        ]
        for name, value in _errors_in_loops(pairs).items():
            ours = errors[name].isel(lead_time=lead).item()
            assert ours == pytest.approx(value, abs=1e-9, nan_ok=True), name
        for threshold in (0.5, 4.0):
            for name, value in _events_in_loops(pairs, threshold).items():
                ours = events[name].sel(threshold=threshold).isel(lead_time=lead).item()
                assert ours == pytest.approx(value, abs=1e-9, nan_ok=True), (name, dry)


def _events_in_loops(pairs, threshold):
    hits = misses = alarms = negatives = 0
    for said, happened in pairs:
        hits += said >= threshold and happened >= threshold
        misses += said < threshold and happened >= threshold
        alarms += said >= threshold and happened < threshold
        negatives += said < threshold and happened < threshold
    number, said, happened = len(pairs), hits + alarms, hits + misses
    chance = said * happened / number
    right = chance + (number - said) * (number - happened) / number

    def part(above, below):
        return above / below if below else np.nan

    pod, pofd = part(hits, happened), part(alarms, number - happened)
    inside = 0 < pod < 1 and 0 < pofd < 1
    logs = [np.log(one) for one in (pofd, pod, 1 - pod, 1 - pofd)] if inside else [np.nan] * 4
    return {
        "csi": part(hits, hits + misses + alarms),
        "pod": pod,
        "far": part(alarms, said),
        "frequency_bias": part(said, happened),
        "hss": part(hits + negatives - right, number - right),
        "ets": part(hits - chance, hits + misses + alarms - chance),
        "sedi": (logs[0] - logs[1] + logs[2] - logs[3]) / sum(logs),
        "base_rate": happened / number,
    }


def _errors_in_loops(pairs):
    number = len(pairs)
    weights = [
        30 if happened >= 30 else 10 if happened >= 10 else 5 if happened >= 5
        else 2 if happened >= 2 else 1
        for _, happened in pairs
    ]  # fmt: skip
    said, happened = (sum(column) / number for column in zip(*pairs, strict=True))
    variances = [sum((pair[i] - m) ** 2 for pair in pairs) for i, m in enumerate((said, happened))]
    weighted = list(zip(weights, (one - other for one, other in pairs), strict=True))
    both = sum((one - said) * (other - happened) for one, other in pairs)
    constant = min(variances) == 0
    return {
        "number": number,
        "mae": sum(abs(one - other) for one, other in pairs) / number,
        "rmse": (sum((one - other) ** 2 for one, other in pairs) / number) ** 0.5,
        "me": said - happened,
        "balanced_mae": sum(weight * abs(error) for weight, error in weighted) / number,
        "balanced_mse": sum(weight * error**2 for weight, error in weighted) / number,
        "correlation": np.nan if constant else both / np.sqrt(variances[0] * variances[1]),
    }  # fmt: skip


def test_what_is_not_defined_is_nan():
    dry = scores_of(Events((1.0,)), [0, 0, 0], [0, 0, 0])
    assert all(np.isnan(dry[name].item()) for name in EVENT_SCORES if name != "base_rate")
    assert dry["base_rate"].item() == 0.0
    errors = scores_of(Errors("rain_rate"), [0, 0, 0], [0, 0, 0])
    assert errors["rmse"].item() == 0.0
    assert np.isnan(errors["correlation"].item())
    nothing = scores_of(Errors("rain_rate"), [np.nan], [np.nan])
    assert all(np.isnan(one.item()) for name, one in nothing.items() if name != "number")
    assert np.isnan(scores_of(Events((1.0,)), [np.nan], [np.nan])["base_rate"].item())
    assert np.isnan(scores_of(Events((1.0,)), [2.0], [0.0])["frequency_bias"].item())


def test_a_field_that_is_constant_but_for_rounding_has_no_correlation():
    kelvin = np.full(1000, 280.1)
    scores = scores_of(Errors("t2m"), kelvin, kelvin + np.linspace(0, 1, 1000))
    assert np.isnan(scores["correlation"].item())
    assert "balanced_mse" not in scores  # which is of rain


def test_reflectivity_is_weighted_by_the_rain_that_it_stands_for():
    observed = np.array([0.0, 24.0, 30.0, 36.0, 43.0, 50.0])
    assert to_rain_rate(observed).round(1).tolist() == [0.0, 1.2, 2.7, 6.5, 17.8, 48.6]
    scores = scores_of(Errors("reflectivity"), observed + 1.0, observed)
    assert scores["balanced_mae"].item() == pytest.approx((1 + 1 + 2 + 5 + 10 + 30) / 6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_value_at_a_threshold_that_binary_numbers_round_is_an_event(dtype):
    at = xr.DataArray(np.array([0.7, 0.69], dtype).reshape(1, 1, 1, 2), dims=DIMS)
    assert Events((0.7,)).sums(Batch(at, at, xr.Dataset()))["tp_count"].item() == 1
