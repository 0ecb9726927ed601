"""What is learnt of a nowcaster's probabilities from cases: how often it rains, when to warn.

Of a ladder of probabilities of reaching thresholds, two things are fitted on counts that add up
over cases: a monotone curve from each probability to the frequency that was observed, the
`Calibration`, and the probability from which an event is forecast, the `DecisionLevels`. Counts
are all they need, so any number of cases is read once, a few at a time.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import EXCEEDANCE, variable_of
from nowcast.rainrate import Transform

FORMAT = 1
# Lowest probability of each bin. Equal steps of the log-odds are fine where events are rare: each
# bin is 5 % of p, or of 1 - p, wide. They lie on 32-bit floats, so that one never straddles two.
_LOG_ODDS = np.arange(-320, 231) / 20.0
BINS = np.concatenate([[0.0], 1.0 / (1.0 + np.exp(-_LOG_ODDS)), [1.0]]).astype(np.float32)
FEWEST_EVENTS = 1000  # pixels with the event, and without it, on which anything is fitted
FEWEST_PIXELS = 500  # of a bin, below which it is taken together with the next
TILT = 1e-4  # part of the network's own slope in a curve, so that it is flat nowhere
MOST_BIAS = 1.5  # frequency bias of the events forecast by decision levels
WITHOUT_COUNTS = 0.5  # decision level where too few events were seen: the median
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
        _check_shape(self.curves, self.thresholds, self.lead_minutes)

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
        totals = _totals(counts)

        def curve(at: int, lead: int) -> Curve:
            pooled = _pooled(totals, at, lead, fewest_events)
            return Curve() if pooled is None else Curve.fit(pooled)

        thresholds, minutes = _ladder_of(counts)
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
        _check_ladder(probabilities, self.curves)
        found = np.empty(probabilities.shape, np.float32) if out is None else out
        for at, curves in enumerate(self.curves):
            for lead, curve in enumerate(curves):
                found[..., at, lead, :, :] = curve(probabilities[..., at, lead, :, :])
        for lower, higher in itertools.pairwise(np.moveaxis(found, -4, 0)):
            np.minimum(lower, higher, out=higher)
        return found


@dataclass(frozen=True)
class DecisionLevels:
    """Calibrated probabilities from which the event of each threshold is forecast.

    Those with the highest critical success index (CSI) of the counts among those whose frequency
    bias is at most `MOST_BIAS`, of the counts: in other weather it may be higher. The rules:

    - One more pixel that is warned of raises a CSI exactly if its probability is above
      CSI / (1 + CSI). So the level is that of the highest CSI that a bin's edge has, which is the
      same as to seek it over all levels; but the highest CSI hardly depends on chance, where it
      is found does much, and so levels do not jump from one lead time to the next.
    - Where that warns too often, the level is the calibrated lowest edge of a bin that keeps the
      bias; if none does it is 1: only what is certain.
    - With few events, counts are added as in `Calibration`; with too few in all the level is 1/2,
      so that the field is the median.

    Parameters
    ----------
    thresholds
        In the units of what is forecast, rising.
    lead_minutes
        Lead times.
    levels : (threshold, lead time)
        Above 0, at most 1.

    Raises
    ------
    ValueError
        If a level is not.

    References
    ----------
    Lipton, Elkan and Naryanaswamy (2014), for the F1 score, which rises with the CSI,
    doi:10.1007/978-3-662-44851-9_15
    """

    thresholds: tuple[float, ...]
    lead_minutes: tuple[float, ...]
    levels: tuple[tuple[float, ...], ...]

    def __post_init__(self) -> None:
        _check_shape(self.levels, self.thresholds, self.lead_minutes)
        if not all(0.0 < level <= 1.0 for levels in self.levels for level in levels):
            raise ValueError(f"decision levels lie above 0, at most at 1; received {self.levels}")

    @classmethod
    def fit(
        cls,
        counts: xr.Dataset,
        calibration: Calibration,
        *,
        most_bias: float = MOST_BIAS,
        fewest_events: int = FEWEST_EVENTS,
    ) -> "DecisionLevels":
        """Fit to added counts; see `counts_of` and the rules above.

        Parameters
        ----------
        counts
            Of all cases, of probabilities before they were calibrated.
        calibration
            Of the same probabilities.
        most_bias
            Events forecast, as a part of those observed, at most.
        fewest_events
            Pixels with and without the event that a level needs.
        """
        totals = _totals(counts)

        def level(at: int, lead: int, curve: Curve) -> float:
            pooled = _pooled(totals, at, lead, fewest_events)
            return WITHOUT_COUNTS if pooled is None else _level(pooled, curve, most_bias)

        levels = tuple(
            tuple(level(at, lead, curve) for lead, curve in enumerate(curves))
            for at, curves in enumerate(calibration.curves)
        )
        return cls(calibration.thresholds, calibration.lead_minutes, levels)

    def field(
        self, probabilities: np.ndarray, *, transform: Transform, lowest: float
    ) -> np.ndarray:
        """Give the single-valued field that these decisions make; see `field_of`.

        Parameters
        ----------
        probabilities : (..., threshold, lead_time, y, x)
            Calibrated; NaN where missing.
        transform, lowest
            See `field_of`.

        Returns
        -------
        field : (..., lead_time, y, x)
            In physical units, NaN where missing.
        """
        _check_ladder(probabilities, self.levels)
        ladder = np.moveaxis(probabilities, -4, 0)
        levels = np.array(self.levels).reshape(*ladder.shape[:1], *[1] * (ladder.ndim - 4), -1)

        def field_at(lead: int) -> np.ndarray:
            return field_of(
                ladder[..., lead, :, :],
                levels[..., lead, None, None],
                thresholds=self.thresholds,
                transform=transform,
                lowest=lowest,
            )

        # One lead time after the other, for the sake of memory.
        return np.stack([field_at(lead) for lead in range(len(self.lead_minutes))], axis=-3)


def field_of(
    probabilities: np.ndarray,
    levels: np.ndarray,
    *,
    thresholds: tuple[float, ...],
    transform: Transform,
    lowest: float,
) -> np.ndarray:
    """Give the field that reaches a threshold exactly where its probability reaches its level.

    Where a higher threshold's does and a lower one's does not, the higher one has it: the field
    reaches both, since the heavier event is the rarer one, of which less can be spared. Between two
    thresholds the field lies where the probability, as a part of its level, crosses 1, linearly on
    the transform's scale; from the highest on it is at that one, and below the lowest at `lowest`.

    Parameters
    ----------
    probabilities : (threshold, ...)
        NaN where missing.
    levels
        Above 0, of a shape that broadcasts to that of the probabilities.
    thresholds
        In physical units, rising.
    transform
        The scale that is linear between two thresholds.
    lowest
        Value of what does not reach the lowest threshold, such as 0 for dry.

    Returns
    -------
    field : (...)
        In physical units, NaN where missing; as 32-bit floats it reaches the same thresholds.

    Examples
    --------
    >>> probabilities = np.array([[0.4, 0.8, 0.2, 0.9], [0.1, 0.2, 0.1, 0.3]])
    >>> field_of(probabilities, np.array([[0.4], [0.2]]), thresholds=(10.0, 20.0),
    ...          transform=Transform("linear"), lowest=0.0).round(2)
    array([10., 20.,  0., 20.])
    """
    levels = np.broadcast_to(np.asarray(levels, probabilities.dtype), probabilities.shape)
    reached = np.zeros(probabilities.shape[1:], np.intp)  # thresholds up to the highest decided
    for place, each in enumerate(probabilities >= levels, start=1):
        reached[each] = place
    below = np.clip(reached - 1, 0, None)
    above = np.clip(reached, None, len(thresholds) - 1)
    at_below, at_above = (
        _at(probabilities, place) / _at(levels, place).astype(np.float64)
        for place in (below, above)
    )
    step = np.where(at_below > at_above, at_below - at_above, 1.0)
    part = np.where(above > below, (at_below - 1.0) / step, 0.0)
    scaled = transform.forward(np.array(thresholds))
    values = transform.inverse(scaled[below] + part * (scaled[above] - scaled[below]))
    # Rounding, here or to 32-bit floats, must carry no value over a threshold.
    least, next_least = (_rounded_up(thresholds)[place] for place in (below, above))
    values = np.where(above > below, np.minimum(values, _below(thresholds)[above]), next_least)
    values = np.where(reached > 0, np.maximum(values, least), lowest)
    return np.where(np.isnan(probabilities[0]), np.nan, values)


def _at(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.take_along_axis(values, place[None], axis=0)[0]
    return found


def _rounded_up(thresholds: tuple[float, ...]) -> np.ndarray:
    """Give the 32-bit floats that reach thresholds, which the nearest may miss by a hair."""
    nearest = np.array(thresholds, np.float32)
    above = np.nextafter(nearest, np.float32(np.inf))
    return np.where(nearest < np.array(thresholds), above, nearest)


def _below(thresholds: tuple[float, ...]) -> np.ndarray:
    """Give the highest 32-bit floats that do not reach thresholds, rounded or not."""
    highest: np.ndarray = np.nextafter(np.array(thresholds, np.float32), np.float32(-np.inf))
    return highest


@dataclass(frozen=True)
class Postprocessing:
    """Calibration and decision levels of one ladder, and the cases that they were fitted on.

    Parameters
    ----------
    calibration, levels
        Of the same thresholds and lead times.
    provenance
        What is known of the cases.
    extrapolated_from
        Threshold from which on the field is that of extrapolation: of heavier events too few were
        seen to correct them. None if decision levels decide all.

    Raises
    ------
    ValueError
        If the two do not fit each other, or the threshold is not one of theirs.
    """

    calibration: Calibration
    levels: DecisionLevels
    provenance: dict[str, str] = field(default_factory=dict)
    extrapolated_from: float | None = None

    def __post_init__(self) -> None:
        ladders = [(part.thresholds, part.lead_minutes) for part in (self.calibration, self.levels)]
        if ladders[0] != ladders[1]:
            raise ValueError(
                "calibration and decision levels must be of the same thresholds and lead times; "
                f"received {ladders[0]} and {ladders[1]}"
            )
        if self.extrapolated_from not in (None, *self.calibration.thresholds):
            raise ValueError(
                "what is left to extrapolation begins at one of the thresholds "
                f"{self.calibration.thresholds}; received {self.extrapolated_from}"
            )

    def with_extrapolated(self, field: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Give a field that reaches the thresholds from `extrapolated_from` on as another does.

        Parameters
        ----------
        field, moved : (..., y, x)
            What decision levels decide, and the extrapolation; NaN where missing.
        """
        if self.extrapolated_from is None:
            return field
        place = self.calibration.thresholds.index(self.extrapolated_from)
        lighter = np.minimum(field, _below(self.calibration.thresholds)[place])
        merged: np.ndarray = np.where(moved >= self.extrapolated_from, moved, lighter)
        return merged

    def for_leads(self, leads: int) -> "Postprocessing":
        """Give that of the first so many lead times."""
        calibration, levels = self.calibration, self.levels
        thresholds, minutes = calibration.thresholds, calibration.lead_minutes[:leads]
        curves = tuple(row[:leads] for row in calibration.curves)
        decided = tuple(row[:leads] for row in levels.levels)
        return replace(
            self,
            calibration=Calibration(thresholds, minutes, curves),
            levels=DecisionLevels(thresholds, minutes, decided),
        )

    def to_json(self) -> str:
        """Give everything as JSON, the same text for the same content."""
        content = {
            "format": FORMAT,
            "thresholds": self.calibration.thresholds,
            "lead_minutes": self.calibration.lead_minutes,
            "curves": [
                [[curve.forecast, curve.calibrated] for curve in curves]
                for curves in self.calibration.curves
            ],
            "levels": self.levels.levels,
            "provenance": self.provenance,
        }
        if self.extrapolated_from is not None:
            content["extrapolated_from"] = self.extrapolated_from
        return json.dumps(content, sort_keys=True, allow_nan=False)

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Postprocessing":
        """Read what `to_json` gave, once it is parsed.

        Raises
        ------
        ValueError
            If something is absent, unfit or of another format.
        """
        if content.get("format") != FORMAT:
            raise ValueError(
                f"a saved calibration must be of format {FORMAT}; this one is of "
                f"{content.get('format')!r}, of another nowcast; calibrate again"
            )
        try:
            ladder = (
                tuple(map(float, content["thresholds"])),
                tuple(map(float, content["lead_minutes"])),
            )
            curves = tuple(
                tuple(Curve(tuple(forecast), tuple(calibrated)) for forecast, calibrated in row)
                for row in content["curves"]
            )
            levels = tuple(tuple(map(float, row)) for row in content["levels"])
            provenance = dict(content["provenance"])
            extrapolated_from = content.get("extrapolated_from")
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a saved calibration does not fit: {error!r}") from error
        calibration, decided = Calibration(*ladder, curves), DecisionLevels(*ladder, levels)
        return cls(calibration, decided, provenance, extrapolated_from)

    @property
    def sha256(self) -> str:
        """Hash of the JSON, and so of the file that holds it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def fit(
    counts: xr.Dataset, *, most_bias: float = MOST_BIAS, extrapolated_from: float | None = None
) -> Postprocessing:
    """Fit calibration and decision levels to added counts, by the rules of both.

    Parameters
    ----------
    counts
        As `count` gives them, or the sum of those of several blocks of cases; its attributes are
        kept as provenance.
    most_bias
        Highest frequency bias of the events forecast by decision levels.
    extrapolated_from
        See `Postprocessing`.
    """
    calibration = Calibration.fit(counts)
    levels = DecisionLevels.fit(counts, calibration, most_bias=most_bias)
    told = {str(name): str(value) for name, value in counts.attrs.items()}
    return Postprocessing(calibration, levels, told, extrapolated_from)


def _ladder_of(counts: xr.Dataset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    minutes = counts["lead_time"].values / np.timedelta64(1, "m")
    return tuple(counts["threshold"].values.tolist()), tuple(minutes.tolist())


def _totals(counts: xr.Dataset) -> np.ndarray:
    """Give counts as (what, threshold, lead_time, bin)."""
    found = counts["probability_bin"].values
    if not np.array_equal(found, BINS.astype(np.float64)):
        raise ValueError(
            f"counts must be by the {len(BINS)} bins of nowcast.calibration.BINS; received "
            f"{len(found)}; count with counts_of"
        )
    dims = ("threshold", "lead_time", "probability_bin")
    return np.stack([counts[name].transpose(*dims).values.astype(np.float64) for name in COUNTS])


def _pooled(totals: np.ndarray, at: int, lead: int, fewest_events: int) -> np.ndarray | None:
    """Give the counts of a threshold and lead time, with as many others as they need."""
    for lower, reach in _widening(at, totals.shape[2]):
        span = slice(max(lead - reach, 0), lead + reach + 1)
        pooled: np.ndarray = totals[:, lower : at + 1, span].sum(axis=(1, 2))
        if _enough(pooled, fewest_events):
            return pooled
    return None


def _widening(at: int, leads: int) -> Iterator[tuple[int, int]]:
    """Give the lowest threshold, and the lead times on either side, that are taken together."""
    yield at, 0
    yield from ((lower, 1) for lower in range(at, -1, -1))
    yield from ((0, reach) for reach in range(2, leads))


def _enough(pooled: np.ndarray, fewest_events: int) -> bool:
    number, events, _ = pooled.sum(axis=-1)
    return bool(min(events, number - events) >= fewest_events)


def _level(counts: np.ndarray, curve: Curve, most_bias: float) -> float:
    """Give the decision level of ``(pixels, events, added probabilities)`` by bin."""
    warned, hits, _ = counts[:, ::-1].cumsum(axis=-1)[:, ::-1]  # from each bin's edge on
    csi = (hits / (warned + hits[0] - hits))[1:].max()  # the first edge is 0, of all pixels
    keeping = BINS[1:][warned[1:] <= most_bias * hits[0]]
    lowest = curve(keeping[0]) if len(keeping) else 1.0
    return float(np.float32(max(csi / (1.0 + csi), lowest)))


def _check_shape(
    rows: tuple[tuple[Any, ...], ...], thresholds: tuple[float, ...], minutes: tuple[float, ...]
) -> None:
    shape = [len(row) for row in rows]
    ladders = (thresholds, minutes)
    rising = all(low < high for ladder in ladders for low, high in itertools.pairwise(ladder))
    if not shape or not minutes or not rising or shape != [len(minutes)] * len(thresholds):
        raise ValueError(
            "one for each of one or more rising thresholds and lead times is needed; received "
            f"{shape} for the thresholds {thresholds} and the lead times {minutes}"
        )


def _check_ladder(probabilities: np.ndarray, rows: tuple[tuple[Any, ...], ...]) -> None:
    if probabilities.ndim < 4 or probabilities.shape[-4:-2] != (len(rows), len(rows[0])):
        raise ValueError(
            f"this is of {len(rows)} thresholds and {len(rows[0])} lead times; received "
            f"probabilities (..., threshold, lead_time, y, x) of the shape {probabilities.shape}"
        )
