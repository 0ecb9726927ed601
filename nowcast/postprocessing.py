"""When to warn: the field that calibrated probabilities decide, and all that is saved of both.

The probability from which an event is forecast, the `DecisionLevels`, is fitted on the same counts
as the `nowcast.calibration.Calibration`.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import xarray as xr

from nowcast.calibration import (
    BINS,
    FEWEST_EVENTS,
    Calibration,
    Curve,
    check_ladder,
    check_shape,
    pooled,
    totals_of,
)
from nowcast.decisions import Decisions
from nowcast.rainrate import Transform

FORMAT = 1
WITHOUT_COUNTS = 0.5  # decision level where too few events were seen: the median


@dataclass(frozen=True)
class DecisionLevels:
    """Calibrated probabilities from which the event of each threshold is forecast.

    Those with the highest critical success index (CSI) of the counts among those whose frequency
    bias is at most as asked for, of the counts: in other weather it may be higher. The rules:

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
        check_shape(self.levels, self.thresholds, self.lead_minutes)
        if not all(0.0 < level <= 1.0 for levels in self.levels for level in levels):
            raise ValueError(f"decision levels lie above 0, at most at 1; received {self.levels}")

    @classmethod
    def fit(
        cls,
        counts: xr.Dataset,
        calibration: Calibration,
        *,
        most_bias: float = Decisions.most_bias,
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
        totals = totals_of(counts)

        def level(at: int, lead: int, curve: Curve) -> float:
            enough = pooled(totals, at, lead, fewest_events)
            return WITHOUT_COUNTS if enough is None else _level(enough, curve, most_bias)

        levels = tuple(
            tuple(level(at, lead, curve) for lead, curve in enumerate(curves))
            for at, curves in enumerate(calibration.curves)
        )
        return cls(calibration.thresholds, calibration.lead_minutes, levels)

    def field(
        self,
        probabilities: np.ndarray,
        *,
        transform: Transform,
        lowest: float,
        area_of: np.ndarray | None = None,
    ) -> np.ndarray:
        """Give the single-valued field that these decisions make; see `field_of`.

        Parameters
        ----------
        probabilities : (..., threshold, lead_time, y, x)
            Calibrated; NaN where missing.
        transform, lowest
            See `field_of`.
        area_of : (..., lead_time, y, x)
            A field, such as an extrapolation, than which this one reaches no threshold on fewer
            pixels: of each case, levels are as low as that needs; see `levels_keeping`.

        Returns
        -------
        field : (..., lead_time, y, x)
            In physical units, NaN where missing.
        """
        check_ladder(probabilities, self.levels)
        ladder = np.moveaxis(probabilities, -4, 0)
        levels = np.array(self.levels).reshape(*ladder.shape[:1], *[1] * (ladder.ndim - 4), -1)

        def field_at(lead: int) -> np.ndarray:
            chances, decided = ladder[..., lead, :, :], levels[..., lead, None, None]
            if area_of is not None:
                decided = levels_keeping(
                    area_of[..., lead, :, :], chances, decided, thresholds=self.thresholds
                )
            return field_of(
                chances,
                decided,
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


def levels_keeping(
    field: np.ndarray, probabilities: np.ndarray, levels: np.ndarray, *, thresholds: Sequence[float]
) -> np.ndarray:
    """Give levels that are reached on no fewer pixels than a field reaches the thresholds on.

    Where fewer do, the level is the probability of the last of the most probable ones that are
    needed. What is impossible, of a probability of 0, is not decided for.

    Parameters
    ----------
    field : (..., y, x)
        What is NaN there or among the probabilities does not count. It reaches what it does as
        32-bit floats.
    probabilities : (threshold, ..., y, x)
        NaN where missing.
    levels
        Above 0, of a shape that broadcasts to that of the probabilities, one for each case.
    thresholds
        In the units of the field.

    Returns
    -------
    levels : (threshold, ..., 1, 1)
        Those given, or lower.

    References
    ----------
    Ebert (2001) gives a mean the areas of what it is a mean of,
    doi:10.1175/1520-0493(2001)129<2461:AOAPMS>2.0.CO;2

    Examples
    --------
    >>> likely = np.array([[[0.1, 0.6, 0.3, 0.2]]])
    >>> levels_keeping(np.array([[12.0, 3.0, 11.0, 0.0]]), likely, np.array([[[0.5]]]),
    ...                thresholds=(10.0,)).ravel()
    array([0.3])
    """
    shape = (*probabilities.shape[:-2], 1, 1)
    lowered = np.broadcast_to(np.asarray(levels, probabilities.dtype), shape).copy()
    least = np.finfo(probabilities.dtype).tiny
    seen = np.isfinite(field) & np.isfinite(probabilities[0])
    for at, *case in np.ndindex(*probabilities.shape[:-2]):
        known = seen[tuple(case)]
        chances = probabilities[(at, *case)][known]
        needed = np.count_nonzero(_reaches(field[tuple(case)][known], thresholds[at]))
        if np.count_nonzero(chances >= lowered[(at, *case)]) < needed:
            last = len(chances) - needed
            lowered[(at, *case)] = max(np.partition(chances, last)[last], least)
    return lowered


def _reaches(field: np.ndarray, threshold: float) -> np.ndarray:
    """Tell where a field does, as it is issued: as 32-bit floats, of which 0.7 reaches 0.7."""
    reached: np.ndarray = field.astype(np.float32, copy=False) >= np.float32(threshold)
    return reached


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
    keeps_area
        Whether levels are lowered until no threshold is reached on fewer pixels than extrapolation
        reaches it on. Rain of which too little was seen would fade too soon.

    Raises
    ------
    ValueError
        If the two do not fit each other, or the threshold is not one of theirs.
    """

    calibration: Calibration
    levels: DecisionLevels
    provenance: dict[str, str] = field(default_factory=dict)
    extrapolated_from: float | None = None
    keeps_area: bool = False

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

    def field(
        self,
        probabilities: np.ndarray,
        extrapolated: np.ndarray,
        *,
        transform: Transform,
        lowest: float,
    ) -> np.ndarray:
        """Give the field that is decided, (..., lead_time, y, x), NaN where missing.

        Parameters
        ----------
        probabilities : (..., threshold, lead_time, y, x)
            Calibrated; NaN where missing.
        extrapolated : (..., lead_time, y, x)
            The extrapolation, NaN where missing; it reaches what it does as 32-bit floats.
        transform, lowest
            See `field_of`.
        """
        area = extrapolated if self.keeps_area else None
        field = self.levels.field(probabilities, transform=transform, lowest=lowest, area_of=area)
        if self.extrapolated_from is None:
            return field
        place = self.calibration.thresholds.index(self.extrapolated_from)
        lighter = np.minimum(field, _below(self.calibration.thresholds)[place])
        heavy = _reaches(extrapolated, self.extrapolated_from)
        merged: np.ndarray = np.where(heavy, extrapolated, lighter)
        return merged

    @property
    def rule(self) -> str:
        """What the field is, in words."""
        told = "reaches a threshold where its calibrated probability reaches the decision level"
        if self.keeps_area:
            told += ", on no fewer pixels than extrapolation does"
        if self.extrapolated_from is not None:
            told += f"; from {self.extrapolated_from:g} on that of extrapolation"
        return told

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
        if self.keeps_area:
            content["keeps_area"] = True
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
            keeps_area = bool(content.get("keeps_area", False))
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"a saved calibration does not fit: {error!r}") from error
        calibration, decided = Calibration(*ladder, curves), DecisionLevels(*ladder, levels)
        return cls(calibration, decided, provenance, extrapolated_from, keeps_area)

    @property
    def sha256(self) -> str:
        """Hash of the JSON, and so of the file that holds it."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def fit(counts: xr.Dataset, decisions: Decisions = Decisions()) -> Postprocessing:
    """Fit calibration and decision levels to added counts, by the rules of both.

    Parameters
    ----------
    counts
        As `count` gives them, or the sum of those of several blocks of cases; its attributes are
        kept as provenance.
    decisions
        How the field is decided.
    """
    calibration = Calibration.fit(counts)
    levels = DecisionLevels.fit(counts, calibration, most_bias=decisions.most_bias)
    told = {str(name): str(value) for name, value in counts.attrs.items()}
    return Postprocessing(
        calibration, levels, told, decisions.extrapolate_from, decisions.keep_area
    )


def _level(counts: np.ndarray, curve: Curve, most_bias: float) -> float:
    """Give the decision level of ``(pixels, events, added probabilities)`` by bin."""
    warned, hits, _ = counts[:, ::-1].cumsum(axis=-1)[:, ::-1]  # from each bin's edge on
    csi = (hits / (warned + hits[0] - hits))[1:].max()  # the first edge is 0, of all pixels
    keeping = BINS[1:][warned[1:] <= most_bias * hits[0]]
    lowest = curve(keeping[0]) if len(keeping) else 1.0
    return float(np.float32(max(csi / (1.0 + csi), lowest)))
