"""Events and errors: contingency tables by threshold, and what follows from differences.

The rules: a value at or above a threshold is an event; pixels are pooled over space and cases, as
counts and sums that are added before a score is formed; a score that is not defined (no event
forecast, none observed, no pixel) is NaN, never 0 or 1.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from nowcast.conventions import RAIN_RATE, REFLECTIVITY, check_thresholds
from nowcast.networks.losses import HKO_7
from nowcast.rainrate import to_rain_rate
from nowcast.verification.batches import OF_VARIABLE, Batch, case_coordinates, defined_by

EVENT_COUNTS = ("tp_count", "fp_count", "fn_count", "tn_count")
WILKS = "doi:10.1016/C2017-0-03921-6"
HKO = "arXiv:1706.03458"
DEFINITIONS = {
    "csi": ("critical success index", "1", "doi:10.1175/1520-0434(1990)005<0570:TCSIAA>2.0.CO;2"),
    "pod": ("probability of detection", "1", WILKS),
    "far": ("false alarm ratio", "1", WILKS),
    "frequency_bias": ("frequency bias", "1", WILKS),
    "hss": ("Heidke skill score", "1", WILKS),
    "ets": ("equitable threat score", "1", WILKS),
    "sedi": ("symmetric extremal dependence index", "1", "doi:10.1175/WAF-D-10-05030.1"),
    "base_rate": ("base rate, the part of the pixels with an observed event", "1", WILKS),
    "correlation": ("correlation of forecast and observed over pixels", "1", WILKS),
    "mae": ("mean absolute error", OF_VARIABLE, WILKS),
    "rmse": ("root mean square error", OF_VARIABLE, WILKS),
    "me": ("mean error, forecast minus observed", OF_VARIABLE, WILKS),
    "balanced_mae": ("absolute error, heavier rain weighted more", OF_VARIABLE, HKO),
    "balanced_mse": ("squared error, heavier rain weighted more", f"({OF_VARIABLE})2", HKO),
}
FLAT = 1e-12  # variance over mean square below which a field is constant but for rounding


@dataclass(frozen=True)
class Events:
    """Scores of contingency tables, by `scores`.

    ``csi``, ``pod``, ``far``, ``frequency_bias``, ``hss``, ``ets``, ``sedi`` and ``base_rate`` by
    ``(threshold, lead_time)``, with the hits, false alarms, misses and correct negatives they came
    from: ``tp_count``, ``fp_count``, ``fn_count``, ``tn_count``.

    Parameters
    ----------
    thresholds
        In the units of the variable; each once.
    """

    thresholds: tuple[float, ...]
    name = "events"
    gridded = False

    def __post_init__(self) -> None:
        check_thresholds(self.thresholds)

    def sums(self, batch: Batch) -> xr.Dataset:
        """Give the four counts by ``(base_time, threshold, lead_time)``."""
        parts = [
            _counts(forecast, observed, self.thresholds)
            for forecast, observed in zip(batch.forecast.values, batch.observed.values, strict=True)
        ]
        dims = ("base_time", "threshold", "lead_time")
        tables = np.stack(parts)
        return xr.Dataset(
            {name: (dims, tables[..., place]) for place, name in enumerate(EVENT_COUNTS)},
            coords={
                **case_coordinates(batch),
                "threshold": ("threshold", np.array(self.thresholds, np.float64)),
            },
        )

    def scores(self, total: xr.Dataset, names: Collection[str] = ()) -> xr.Dataset:
        """Give the scores of added counts, those of some names or all, and the counts.

        Examples
        --------
        >>> counts = {"tp_count": 2, "fp_count": 1, "fn_count": 1, "tn_count": 6}
        >>> scores = Events(thresholds=(1.0,)).scores(xr.Dataset(counts))
        >>> scores["csi"].item(), round(scores["hss"].item(), 3)
        (0.5, 0.524)
        """
        from scores.categorical import BasicContingencyManager

        bare = total.drop_vars(list(total.coords))  # aligning them takes most of the time
        counts = {name: bare[name].astype(np.float64) for name in EVENT_COUNTS}
        # scores reads the total of a table from its counts, as it would from fields.
        table = BasicContingencyManager({**counts, "total_count": sum(counts.values())})
        with np.errstate(divide="ignore", invalid="ignore"):
            made = {
                "csi": table.critical_success_index,
                "pod": table.probability_of_detection,
                "far": table.false_alarm_ratio,
                "frequency_bias": table.frequency_bias,
                "hss": table.heidke_skill_score,
                "ets": table.equitable_threat_score,
                "sedi": table.symmetric_extremal_dependence_index,
                "base_rate": table.base_rate,
            }
            scores = {name: make() for name, make in made.items() if name in names or not names}
        # Where all is one and the same, rounding turns 0 / 0 of these into any number.
        wrong = counts["fp_count"] + counts["fn_count"]
        varied = (counts["tp_count"] + wrong > 0) & (counts["tn_count"] + wrong > 0)
        scores |= {name: scores[name].where(varied) for name in ("hss", "ets") if name in scores}
        defined = {name: score.where(np.isfinite(score)) for name, score in scores.items()}
        whole = bare[list(EVENT_COUNTS)].assign(defined).assign_coords(total.coords)
        return defined_by(DEFINITIONS, whole)


@dataclass(frozen=True)
class Errors:
    """Scores of differences, over all counted pixels, by ``lead_time``.

    ``mae``, ``rmse``, ``me``, ``correlation`` and the ``number`` of pixels; of rain also
    ``balanced_mae`` and ``balanced_mse``: errors in the units of the variable, weighted by the
    rain that was observed as the benchmark HKO-7 weights it.

    Parameters
    ----------
    variable
        Name of what is scored; the balanced errors are defined for rain alone.
    """

    variable: str
    name = "errors"
    gridded = False

    def sums(self, batch: Batch) -> xr.Dataset:
        """Give the sums by ``(base_time, lead_time)`` from which the errors follow."""
        parts = [
            self._of_case(forecast, observed)
            for forecast, observed in zip(batch.forecast.values, batch.observed.values, strict=True)
        ]
        return xr.Dataset(
            {
                name: (("base_time", "lead_time"), np.stack([part[name] for part in parts]))
                for name in parts[0]
            },
            coords=case_coordinates(batch),
        )

    def scores(self, total: xr.Dataset) -> xr.Dataset:
        """Give the errors that follow from added sums; a constant field has no correlation.

        Examples
        --------
        >>> dims = ("base_time", "lead_time", "y", "x")
        >>> observed = xr.DataArray([[[[0.0, 2.0, 3.0, 0.0]]]], dims=dims)
        >>> forecast = xr.DataArray([[[[0.0, 2.0, 0.0, 5.0]]]], dims=dims)
        >>> batch, measure = Batch(forecast, observed, xr.Dataset()), Errors("rain_rate")
        >>> scores = measure.scores(measure.sums(batch).isel(base_time=0))
        >>> scores["me"].item(), scores["rmse"].item() ** 2
        (0.5, 8.5)
        """
        bare = total.drop_vars(list(total.coords))  # aligning them takes most of the time
        number = bare["number"].where(bare["number"] > 0).astype(np.float64)
        mean = {str(name): part / number for name, part in bare.items() if name != "number"}
        said, happened = (
            (mean[f"{name}_squared"] - mean[name] ** 2).where(
                mean[f"{name}_squared"] * FLAT < mean[f"{name}_squared"] - mean[name] ** 2
            )
            for name in ("forecast", "observed")
        )
        both = mean["product"] - mean["forecast"] * mean["observed"]
        scores = {
            "mae": mean["absolute_error"],
            "rmse": np.sqrt(mean["squared_error"]),
            "me": mean["error"],
            "correlation": both / np.sqrt(said * happened),
        }
        scores |= {name: mean[name] for name in ("balanced_mae", "balanced_mse") if name in mean}
        whole = bare[["number"]].assign(scores).assign_coords(total.coords)
        return defined_by(DEFINITIONS, whole)

    def _of_case(self, forecast: np.ndarray, observed: np.ndarray) -> dict[str, Any]:
        def added(values: np.ndarray) -> Any:
            return np.where(counted, values, 0.0).sum(axis=(-2, -1))

        counted = np.isfinite(observed)
        forecast, observed = forecast.astype(np.float64), observed.astype(np.float64)
        error = forecast - observed
        sums: dict[str, Any] = {
            "number": counted.sum(axis=(-2, -1)),
            "error": added(error),
            "absolute_error": added(abs(error)),
            "squared_error": added(error**2),
            "forecast": added(forecast),
            "observed": added(observed),
            "forecast_squared": added(forecast**2),
            "observed_squared": added(observed**2),
            "product": added(forecast * observed),
        }
        if self.variable not in (RAIN_RATE.name, REFLECTIVITY.name):
            return sums
        weight = self._weight(observed)
        return {
            **sums,
            "balanced_mae": added(weight * abs(error)),
            "balanced_mse": added(weight * error**2),
        }

    def _weight(self, observed: np.ndarray) -> Any:
        rain = to_rain_rate(observed) if self.variable == REFLECTIVITY.name else observed
        bounds, weights = zip(*HKO_7, strict=True)
        return np.array([1.0, *weights])[np.digitize(np.nan_to_num(rain), bounds)]


def _counts(
    forecast: np.ndarray, observed: np.ndarray, thresholds: tuple[float, ...]
) -> np.ndarray:
    """Give hits, false alarms, misses, correct negatives of one case: (threshold, lead, count)."""
    number = np.isfinite(observed).sum(axis=(-2, -1))
    tables = np.zeros((len(thresholds), len(number), 4), np.int64)
    for place, threshold in enumerate(thresholds):
        said, happened = (reaches(field, threshold) for field in (forecast, observed))
        hits = (said & happened).sum(axis=(-2, -1))
        false_alarms, misses = (field.sum(axis=(-2, -1)) - hits for field in (said, happened))
        negatives = number - hits - false_alarms - misses
        tables[place] = np.stack([hits, false_alarms, misses, negatives], axis=-1)
    return tables


def reaches(field: np.ndarray, threshold: float) -> np.ndarray:
    """Tell where values are at or above a threshold; NaN is not.

    Both are compared with the field's precision: 0.7 as a 32-bit float reaches 0.7.

    Examples
    --------
    >>> reaches(np.array([0.7, 0.5, np.nan], np.float32), 0.7)
    array([ True, False, False])
    """
    reached: np.ndarray = field >= np.asarray(threshold, dtype=field.dtype)
    return reached
