"""Scores from sums that can be added over cases, so that no more than a batch is in memory.

The rules: a pixel counts where the evaluation mask says so; a score that is not defined (no event
forecast, none observed, no pixel) is NaN, never 0 or 1.
"""

import numpy as np
import xarray as xr

EVENT_COUNTS = ("tp_count", "fp_count", "fn_count", "tn_count")
DEFINITIONS = {
    "csi": ("critical success index", "doi:10.1175/1520-0434(1990)005<0570:TCSIAA>2.0.CO;2"),
    "pod": ("probability of detection", "doi:10.1002/9781119960003"),
    "far": ("false alarm ratio", "doi:10.1002/9781119960003"),
    "frequency_bias": ("frequency bias", "doi:10.1002/9781119960003"),
    "mae": ("mean absolute error", "doi:10.1002/9781119960003"),
    "rmse": ("root mean square error", "doi:10.1002/9781119960003"),
    "me": ("mean error, forecast minus observed", "doi:10.1002/9781119960003"),
}


def sums(forecast: xr.DataArray, observed: xr.DataArray, thresholds: list[float]) -> xr.Dataset:
    """Give the sums per lead time from which all scores follow.

    Parameters
    ----------
    forecast, observed : (base_time, lead_time, y, x)
        In the same units; NaN where the pixel must not count, in both alike.
    thresholds
        An event is a value at or above one; without any, nothing is counted by threshold.

    Returns
    -------
    Dataset
        Hits, false alarms, misses and correct negatives by ``(threshold, lead_time)``; number,
        error, absolute and squared error by ``(lead_time)``.
    """
    pooled = ("base_time", "y", "x")
    counted = observed.notnull()
    error = (forecast - observed).astype(np.float64)
    said, happened = (_events(field, thresholds) & counted for field in (forecast, observed))
    hits = (said & happened).sum(pooled)
    number = counted.sum(pooled)
    false_alarms, misses = said.sum(pooled) - hits, happened.sum(pooled) - hits
    return xr.Dataset(
        {
            "tp_count": hits,
            "fp_count": false_alarms,
            "fn_count": misses,
            "tn_count": number - hits - false_alarms - misses,
            "number": number,
            "error": error.sum(pooled),
            "absolute_error": abs(error).sum(pooled),
            "squared_error": (error**2).sum(pooled),
        }
    )


def _events(field: xr.DataArray, thresholds: list[float]) -> xr.DataArray:
    """Give whether each value is at or above each threshold, ``threshold`` first."""
    at = xr.DataArray(
        np.asarray(thresholds, field.dtype),  # else 0.7 as float32 would be below 0.7
        dims="threshold",
        coords={"threshold": np.asarray(thresholds, np.float64)},
    )
    return at <= field


def from_sums(total: xr.Dataset) -> xr.Dataset:
    """Give the scores of added sums.

    Parameters
    ----------
    total
        As `sums` gives them, added over all cases.

    Returns
    -------
    Dataset
        ``csi``, ``pod``, ``far``, ``frequency_bias`` by ``(threshold, lead_time)`` and ``mae``,
        ``rmse``, ``me`` by ``(lead_time)``, with the hits, misses and so on they came from.

    Examples
    --------
    >>> dims = ("base_time", "lead_time", "y", "x")
    >>> observed = xr.DataArray([[[[0.0, 2.0, 3.0, 0.0]]]], dims=dims)
    >>> forecast = xr.DataArray([[[[0.0, 2.0, 0.0, 5.0]]]], dims=dims)
    >>> scores = from_sums(sums(forecast, observed, [1.0]))
    >>> round(scores["csi"].item(), 3), scores["rmse"].item() ** 2
    (0.333, 8.5)
    """
    from scores.categorical import BasicContingencyManager

    counts = {name: total[name].astype(np.float64) for name in EVENT_COUNTS}
    # scores reads the total of a table from its counts, as it would from fields.
    table = BasicContingencyManager({**counts, "total_count": sum(counts.values())})
    number = total["number"].where(total["number"] > 0).astype(np.float64)
    scores = {
        "csi": table.critical_success_index(),
        "pod": table.probability_of_detection(),
        "far": table.false_alarm_ratio(),
        "frequency_bias": table.frequency_bias(),
        "mae": total["absolute_error"] / number,
        "rmse": np.sqrt(total["squared_error"] / number),
        "me": total["error"] / number,
    }
    scores = {name: score.where(np.isfinite(score)) for name, score in scores.items()}
    return xr.Dataset({**scores, **{name: total[name] for name in (*EVENT_COUNTS, "number")}})
