"""What is learnt of a nowcaster's probabilities from cases: how often it rains when they say so.

Of a ladder of probabilities of reaching thresholds, a monotone curve from each to the frequency
that was observed is fitted on counts that add up over cases. Counts are all it needs, so any number
of cases is read once, a few at a time. When to warn is in `nowcast.postprocessing`.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import EXCEEDANCE, variable_of

# Lowest probability of each bin. Equal steps of the log-odds are fine where events are rare: each
# bin is 5 % of p, or of 1 - p, wide. They lie on 32-bit floats, so that one never straddles two.
_LOG_ODDS = np.arange(-320, 231) / 20.0
BINS = np.concatenate([[0.0], 1.0 / (1.0 + np.exp(-_LOG_ODDS)), [1.0]]).astype(np.float32)
FEWEST_EVENTS = 1000  # pixels with the event, and without it, on which anything is fitted
FEWEST_PIXELS = 500  # of a bin, below which it is taken together with the next
TILT = 1e-4  # part of the network's own slope in a curve, so that it is flat nowhere
COUNTS = ("probability_count", "probability_events", "probability_sum")


class Probable(Protocol):
    """A nowcaster whose nowcasts hold probabilities of exceedance."""

    def nowcast(
        self, observed: xr.Dataset, *, base_times: pd.DatetimeIndex, lead_times: pd.TimedeltaIndex
    ) -> xr.Dataset:
        """Give a nowcast; see `nowcast.nowcasters.Nowcaster`."""
        ...


def counts_of(probability: xr.DataArray, observed: xr.DataArray) -> xr.Dataset:
    """Count, for a few cases, what was said and what came; add the counts of more cases with ``+``.

    Parameters
    ----------
    probability : (base_time, threshold, lead_time, y, x)
        Of reaching each threshold, as `nowcast.conventions.with_exceedance` gives it.
    observed : (base_time, lead_time, y, x)
        At the valid times, in the units of the thresholds. A pixel that is NaN here or there
        counts for nothing.

    Returns
    -------
    Dataset
        By ``(threshold, lead_time, probability_bin)``: ``probability_count`` of pixels in a bin,
        the ``probability_events`` among them, and ``probability_sum``, their added probabilities.

    Raises
    ------
    ValueError
        If the two are of other cases, lead times or grids.
    """
    dims = ("threshold", "lead_time", "probability_bin")
    said = probability.transpose("base_time", "threshold", "lead_time", "y", "x").values
    came = observed.transpose("base_time", "lead_time", "y", "x").values
    if said[:, 0].shape != came.shape:
        raise ValueError(
            f"probabilities of the shape {said.shape} need observations of {said[:, 0].shape}, "
            f"(base_time, lead_time, y, x); received {came.shape}; take them at the valid times"
        )
    thresholds = probability["threshold"].values.astype(np.float64)
    totals = np.zeros((len(COUNTS), len(thresholds), came.shape[1], len(BINS)))
    for at, threshold in enumerate(thresholds):
        for lead in range(came.shape[1]):
            totals[:, at, lead] = _binned(said[:, at, lead], came[:, lead], threshold)
    count, events, added = totals
    return xr.Dataset(
        {
            "probability_count": (dims, count.astype(np.int64)),
            "probability_events": (dims, events.astype(np.int64)),
            "probability_sum": (dims, added),
        },
        coords={
            "threshold": ("threshold", thresholds),
            "lead_time": probability["lead_time"].variable,
            "probability_bin": ("probability_bin", BINS.astype(np.float64)),
        },
    )


def _binned(said: np.ndarray, came: np.ndarray, threshold: float) -> np.ndarray:
    """Give pixels, events and added probabilities by bin, of one threshold and lead time."""
    seen = np.isfinite(said) & np.isfinite(came)
    probability = said[seen].astype(np.float32, copy=False)
    event = came[seen] >= np.asarray(threshold, came.dtype)  # 0.7 as a 32-bit float reaches 0.7
    place = np.searchsorted(BINS, probability, side="right") - 1
    parts = ((place, None), (place[event], None), (place, probability))
    return np.stack([np.bincount(one, weights=by, minlength=len(BINS)) for one, by in parts])


def count(
    nowcaster: Probable,
    observed: xr.Dataset,
    *,
    base_times: pd.DatetimeIndex,
    lead_times: pd.TimedeltaIndex,
    batch_cases: int = 8,
) -> xr.Dataset:
    """Give the added counts of a nowcaster's cases, a few in memory at a time; see `counts_of`.

    Parameters
    ----------
    nowcaster
        Whose probabilities are counted, as they are.
    observed
        The frames before and after the base times; one that is absent afterwards is missing.
    base_times
        Of the cases. None may be one that the nowcaster is judged by.
    lead_times
        Of the nowcaster.
    batch_cases
        Cases in memory at a time.

    Returns
    -------
    Dataset
        Its attributes tell the cases.

    Raises
    ------
    ValueError
        If there is no case, or the nowcaster gives no probabilities.
    """
    if not len(base_times):
        raise ValueError("calibration needs cases; received no base time")
    total: xr.Dataset | None = None
    for start in range(0, len(base_times), batch_cases):
        cases = base_times[start : start + batch_cases]
        nowcast = nowcaster.nowcast(observed, base_times=cases, lead_times=lead_times)
        if EXCEEDANCE not in nowcast:
            raise ValueError(
                f"calibration is of {EXCEEDANCE!r}; the nowcast holds {sorted(map(str, nowcast))}; "
                "train with network.head=exceedance"
            )
        valid = nowcast["valid_time"].transpose("base_time", "lead_time").drop_vars("valid_time")
        frames = observed[variable_of(nowcast)].reindex(time=np.unique(valid))
        part = counts_of(nowcast[EXCEEDANCE], frames.sel(time=valid))
        total = part if total is None else total + part
    told = {
        "cases": str(len(base_times)),
        "first_base_time": base_times.min().isoformat(),
        "last_base_time": base_times.max().isoformat(),
    }
    return total.assign_attrs(told) if total is not None else xr.Dataset()


@dataclass(frozen=True)
class Curve:
    """From a forecast probability to the calibrated one, linearly between nodes.

    Parameters
    ----------
    forecast, calibrated
        Nodes, both strictly rising from 0 to 1.

    Raises
    ------
    ValueError
        If they do not.

    Examples
    --------
    >>> Curve((0.0, 0.5, 1.0), (0.0, 0.2, 1.0))(np.array([0.25, 0.75, np.nan]))
    array([0.1, 0.6, nan])
    """

    forecast: tuple[float, ...] = (0.0, 1.0)
    calibrated: tuple[float, ...] = (0.0, 1.0)

    def __post_init__(self) -> None:
        nodes = (self.forecast, self.calibrated)
        rising = all(low < high for side in nodes for low, high in itertools.pairwise(side))
        ends = all((*side[:1], *side[-1:]) == (0.0, 1.0) for side in nodes)
        if not (rising and ends and len(self.forecast) == len(self.calibrated)):
            raise ValueError(
                "a calibration curve needs as many calibrated as forecast probabilities, each "
                f"strictly rising from 0 to 1; received {self.forecast} and {self.calibrated}"
            )

    def __call__(self, probability: np.ndarray) -> np.ndarray:
        """Give the calibrated probability; NaN stays NaN."""
        calibrated: np.ndarray = np.interp(probability, self.forecast, self.calibrated)
        return calibrated

    @classmethod
    def fit(cls, counts: np.ndarray) -> "Curve":
        """Fit a curve to ``(pixels, events, added probabilities)`` by bin; see `Calibration`."""
        from scipy.optimize import isotonic_regression

        number, events, said = np.add.reduceat(counts, _starts(counts[0]), axis=-1)
        forecast = said / number
        frequency = (events + forecast) / (number + 1.0)
        found = isotonic_regression(frequency, weights=number + 1.0)
        ends = itertools.pairwise(found.blocks.tolist())
        nodes = [node for first, end in ends for node in sorted({first, end - 1})]
        nodes = [node for node in nodes if 0.0 < forecast[node] < 1.0]
        tilted = (1.0 - TILT) * found.x + TILT * forecast
        return cls(
            (0.0, *forecast[nodes].tolist(), 1.0),
            (0.0, *tilted[nodes].tolist(), 1.0),
        )


def _starts(number: np.ndarray) -> list[int]:
    """Give where groups of bins start of which each holds enough pixels, the last one too."""
    starts, held = [0], 0
    for place, pixels in enumerate(number.tolist()):
        if held >= FEWEST_PIXELS:
            starts.append(place)
            held = 0
        held += pixels
    return starts[:-1] if held < FEWEST_PIXELS and len(starts) > 1 else starts


@dataclass(frozen=True)
class Calibration:
    """Monotone curves that make the probabilities of a ladder of thresholds reliable.

    A curve is an isotonic regression of the observed frequency on the mean probability of bins
    (`BINS`, of which those with fewer than `FEWEST_PIXELS` pixels are taken together with the
    next), linear in between. These are its rules:

    - Every such bin holds one pixel more, which behaved as was forecast. So a probability of which
      no event came becomes small, never 0, and the smaller the more pixels say so. What is exactly
      0 or 1 stays so, and what lies beyond the bins is drawn to that end in a line.
    - Where the frequency is flat, the curve rises by `TILT` of the probability: what the network
      tells apart stays apart, and the order of pixels, with all scores that follow from it, the
      same.
    - Where a threshold and lead time has fewer than `FEWEST_EVENTS` pixels with the event, or
      without it, those of the lead times next to it are added; then those of the next lower
      thresholds there, one after the other; then those of more lead times, one more on either side,
      until there are enough. (How sure one can be of an event depends on the lead time more than on
      the threshold.) Where all do not suffice the probability stays what it was.
    - Curves are fitted apart, and could cross: a probability is never above that of a lower
      threshold, which it is lowered to.

    Parameters
    ----------
    thresholds
        In the units of what is forecast, rising.
    lead_minutes
        Lead times.
    curves : (threshold, lead time)
        One each.

    References
    ----------
    Zadrozny and Elkan (2002), isotonic calibration, doi:10.1145/775047.775151
    """

    thresholds: tuple[float, ...]
    lead_minutes: tuple[float, ...]
    curves: tuple[tuple[Curve, ...], ...]

    def __post_init__(self) -> None:
        check_shape(self.curves, self.thresholds, self.lead_minutes)

    @classmethod
    def fit(cls, counts: xr.Dataset, *, fewest_events: int = FEWEST_EVENTS) -> "Calibration":
        """Fit to added counts; see `counts_of` and the rules above.

        Parameters
        ----------
        counts
            Of all cases.
        fewest_events
            Pixels with and without the event that a curve needs.
        """
        totals = totals_of(counts)

        def curve(at: int, lead: int) -> Curve:
            enough = pooled(totals, at, lead, fewest_events)
            return Curve() if enough is None else Curve.fit(enough)

        thresholds, minutes = ladder_of(counts)
        curves = tuple(
            tuple(curve(at, lead) for lead in range(len(minutes))) for at in range(len(thresholds))
        )
        return cls(thresholds, minutes, curves)

    def calibrated(self, probabilities: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Give calibrated probabilities, which fall along the thresholds.

        Parameters
        ----------
        probabilities : (..., threshold, lead_time, y, x)
            NaN, missing, stays NaN.
        out
            Where they are written, such as over those given; by default an array of its own.

        Returns
        -------
        calibrated : (..., threshold, lead_time, y, x)
            As 32-bit floats.
        """
        check_ladder(probabilities, self.curves)
        found = np.empty(probabilities.shape, np.float32) if out is None else out
        for at, curves in enumerate(self.curves):
            for lead, curve in enumerate(curves):
                found[..., at, lead, :, :] = curve(probabilities[..., at, lead, :, :])
        for lower, higher in itertools.pairwise(np.moveaxis(found, -4, 0)):
            np.minimum(lower, higher, out=higher)
        return found


def ladder_of(counts: xr.Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Give thresholds, and lead times in minutes."""
    minutes = counts["lead_time"].values / np.timedelta64(1, "m")
    return tuple(counts["threshold"].values.tolist()), tuple(minutes.tolist())


def totals_of(counts: xr.Dataset) -> np.ndarray:
    """Give counts as (what, threshold, lead_time, bin)."""
    found = counts["probability_bin"].values
    if not np.array_equal(found, BINS.astype(np.float64)):
        raise ValueError(
            f"counts must be by the {len(BINS)} bins of nowcast.calibration.BINS; received "
            f"{len(found)}; count with counts_of"
        )
    dims = ("threshold", "lead_time", "probability_bin")
    return np.stack([counts[name].transpose(*dims).values.astype(np.float64) for name in COUNTS])


def pooled(totals: np.ndarray, at: int, lead: int, fewest_events: int) -> np.ndarray | None:
    """Give the counts of a threshold and lead time, with as many others as they need."""
    for lower, reach in _widening(at, totals.shape[2]):
        span = slice(max(lead - reach, 0), lead + reach + 1)
        added: np.ndarray = totals[:, lower : at + 1, span].sum(axis=(1, 2))
        if _enough(added, fewest_events):
            return added
    return None


def _widening(at: int, leads: int) -> Iterator[tuple[int, int]]:
    """Give the lowest threshold, and the lead times on either side, that are taken together."""
    yield at, 0
    yield from ((lower, 1) for lower in range(at, -1, -1))
    yield from ((0, reach) for reach in range(2, leads))


def _enough(added: np.ndarray, fewest_events: int) -> bool:
    number, events, _ = added.sum(axis=-1)
    return bool(min(events, number - events) >= fewest_events)


def check_shape(
    rows: tuple[tuple[Any, ...], ...], thresholds: tuple[float, ...], minutes: tuple[float, ...]
) -> None:
    """Refuse what is not one for each of rising thresholds and lead times."""
    shape = [len(row) for row in rows]
    ladders = (thresholds, minutes)
    rising = all(low < high for ladder in ladders for low, high in itertools.pairwise(ladder))
    if not shape or not minutes or not rising or shape != [len(minutes)] * len(thresholds):
        raise ValueError(
            "one for each of one or more rising thresholds and lead times is needed; received "
            f"{shape} for the thresholds {thresholds} and the lead times {minutes}"
        )


def check_ladder(probabilities: np.ndarray, rows: tuple[tuple[Any, ...], ...]) -> None:
    """Refuse probabilities that are not of as many thresholds and lead times as the rows."""
    if probabilities.ndim < 4 or probabilities.shape[-4:-2] != (len(rows), len(rows[0])):
        raise ValueError(
            f"this is of {len(rows)} thresholds and {len(rows[0])} lead times; received "
            f"probabilities (..., threshold, lead_time, y, x) of the shape {probabilities.shape}"
        )
