"""What a nowcaster says of the distribution at each pixel, however it says it.

The first of these that a nowcast holds is taken: probabilities of exceedance, quantiles, members,
the field alone. From each follow the probability of reaching any threshold and the continuous
ranked probability score (CRPS), the integral over all values x of the squared difference between
the forecast probability of reaching x and what happened, 1 up to the observed value and 0 above.
Pixels that count and that a nowcaster left missing say: surely no rain.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from nowcast.conventions import EXCEEDANCE, QUANTILES, VARIABLES, known_variable, variable_of
from nowcast.verification.batches import Batch
from nowcast.verification.scores import reaches


class Distribution(Protocol):
    """What is said of the value at each of a row of pixels."""

    def reaching(self, threshold: float) -> np.ndarray | None:
        """Give the probability of being at or above a threshold; None where that is not told."""
        ...

    def crps(self, observed: np.ndarray) -> np.ndarray:
        """Give the continuous ranked probability score of each pixel, in units of the variable."""
        ...


@dataclass(frozen=True)
class Members:
    """Members that are equally likely; a single field is one member.

    The probability of reaching a threshold is the share of members at or above it. The CRPS is
    the fair one: what members drawn from the same distribution would get if there were infinitely
    many, so that ensembles of any size compare. Of a single member it is the absolute error.

    Parameters
    ----------
    values : (member, pixel)
        Without missing.

    References
    ----------
    Ferro (2014), fair scores, doi:10.1002/qj.2270;
    Hersbach (2000), the CRPS of ordered members,
    doi:10.1175/1520-0434(2000)015<0559:DOTCRP>2.0.CO;2

    Examples
    --------
    >>> members = Members(np.array([[0.0], [2.0], [4.0]]))
    >>> members.reaching(2.0), members.crps(np.array([2.0]))
    (array([0.66666667]), array([0.]))
    """

    values: np.ndarray

    def reaching(self, threshold: float) -> np.ndarray:
        """Give the share of members at or above a threshold."""
        share: np.ndarray = np.count_nonzero(reaches(self.values, threshold), axis=0) / len(
            self.values
        )
        return share

    def crps(self, observed: np.ndarray) -> np.ndarray:
        """Give the fair CRPS of each pixel."""
        number = len(self.values)
        score = np.zeros(len(observed))
        for place, member in enumerate(np.sort(self.values, axis=0).astype(np.float64)):
            score += abs(member - observed) / number
            if number > 1:  # the mean difference of two members, from their order
                score -= (2 * place - number + 1) / (number * (number - 1)) * member
        return score


@dataclass(frozen=True)
class Ladder:
    """Probabilities of reaching each level of a ladder.

    Between two levels the probability falls linearly. Outside them nothing is told of single
    thresholds. For the CRPS, which needs the whole distribution, what does not reach the first
    level is dry, the lowest valid value; of another quantity than rain, it is at the first level;
    and what reaches the last one is at the last one. `median_of_exceedance` holds the same.

    Parameters
    ----------
    levels
        In the units of the variable, rising.
    probabilities : (level, pixel)
        Falling along the levels, without missing.
    lowest
        Value of what does not reach the first level, at most that.

    Examples
    --------
    >>> ladder = Ladder(np.array([1.0, 3.0]), np.array([[0.5], [0.1]]), lowest=0.0)
    >>> ladder.reaching(2.0), ladder.reaching(4.0)
    (array([0.3]), None)

    Nothing was observed: a quarter over the first mm/h, then from 0.25 down to 0.01.

    >>> np.round(ladder.crps(np.array([0.0])), 4)
    array([0.4567])
    """

    levels: np.ndarray
    probabilities: np.ndarray
    lowest: float

    def reaching(self, threshold: float) -> np.ndarray | None:
        """Give the probability between the levels around a threshold; None outside of them."""
        if not self.levels[0] <= threshold <= self.levels[-1]:
            return None
        place = float(np.interp(threshold, self.levels, np.arange(len(self.levels))))
        low, part = int(place), place % 1.0
        probability: np.ndarray = self.probabilities[low]
        if part:
            probability = (1.0 - part) * probability + part * self.probabilities[low + 1]
        return probability

    def crps(self, observed: np.ndarray) -> np.ndarray:
        """Give the CRPS of each pixel."""
        probabilities = self.probabilities.astype(np.float64)
        return _piecewise_crps(
            observed, [self.lowest, *self.levels], [probabilities[0], *probabilities]
        )


@dataclass(frozen=True)
class Quantiles:
    """Values of quantiles.

    Between two of them the distribution is uniform. What is below the first is at the first, and
    what is above the last at the last: nothing says how far it reaches.

    Parameters
    ----------
    quantiles
        Between 0 and 1, rising.
    values : (quantile, pixel)
        Rising along the quantiles, without missing.

    Examples
    --------
    >>> quantiles = Quantiles(np.array([0.2, 0.6]), np.array([[0.0], [4.0]]))
    >>> [float(quantiles.reaching(at)[0].round(6)) for at in (0.0, 1.0, 4.0, 5.0)]
    [1.0, 0.7, 0.4, 0.0]
    """

    quantiles: np.ndarray
    values: np.ndarray

    def reaching(self, threshold: float) -> np.ndarray:
        """Give the part of the distribution at or above a threshold."""
        at = np.asarray(threshold, self.values.dtype)
        reached = self.quantiles[0] * (self.values[0] >= at)
        reached += (1.0 - self.quantiles[-1]) * (self.values[-1] >= at)
        for part, (low, high) in zip(np.diff(self.quantiles), pairwise(self.values), strict=True):
            width = np.where(high > low, high - low, 1.0)
            above = np.clip((high - at) / width, 0.0, 1.0)
            reached += part * np.where(high > low, above, low >= at)
        probability: np.ndarray = np.clip(reached, 0.0, 1.0)  # rounding may leave it
        return probability

    def crps(self, observed: np.ndarray) -> np.ndarray:
        """Give the CRPS of each pixel."""
        return _piecewise_crps(observed, list(self.values.astype(np.float64)), 1.0 - self.quantiles)


def _piecewise_crps(
    observed: np.ndarray,
    nodes: Sequence[float | np.ndarray],
    reaching: Sequence[float | np.ndarray] | np.ndarray,
) -> np.ndarray:
    """Give the CRPS where the probability of reaching x falls linearly from node to node.

    It is 1 below the first node and 0 above the last. Written as the integral of what happened,
    from the first node on, and, between two nodes, of p² - 2 p where x was reached: exact, and
    the same for nodes and probabilities that differ from pixel to pixel or do not.
    """
    observed = observed.astype(np.float64)
    score: np.ndarray = abs(observed - nodes[0])
    for (low, high), (first, last) in zip(pairwise(nodes), pairwise(reaching), strict=True):
        width = np.asarray(high - low)
        reached = np.clip(observed - low, 0.0, width)
        part = reached / np.where(width > 0, width, 1.0)
        score += width * (first**2 + first * last + last**2) / 3.0
        score -= reached * (2.0 * first + (last - first) * part)
    return score


@dataclass(frozen=True)
class Row:
    """The pixels of one case that count, one after the other.

    Parameters
    ----------
    places
        Of the pixels in ``(lead_time, y, x)``, flat.
    lead
        Number of each pixel's lead time.
    leads
        How many lead times there are.
    observed
        At each pixel.
    """

    places: np.ndarray
    lead: np.ndarray
    leads: int
    observed: np.ndarray

    def of(self, fields: np.ndarray) -> np.ndarray:
        """Give (..., lead_time, y, x) as (..., pixel); what is missing there is no rain, 0."""
        flat = fields.reshape(*fields.shape[:-3], -1)
        picked: np.ndarray = np.take(flat, self.places, axis=-1)
        picked[np.isnan(picked)] = 0.0
        return picked

    def added(self, values: np.ndarray) -> np.ndarray:
        """Add up values of the pixels by lead time."""
        total: np.ndarray = np.bincount(self.lead, weights=values, minlength=self.leads)
        return total


def rows_of(batch: Batch) -> list[Row]:
    """Give the counted pixels of each case, found for the first nowcaster of a batch."""

    def compute() -> list[Row]:
        rows = []
        for observed in batch.observed.values:
            places = np.flatnonzero(np.isfinite(observed))
            lead = places // max(observed[0].size, 1)
            rows.append(Row(places, lead, len(observed), observed.reshape(-1)[places]))
        return rows

    rows: list[Row] = batch.of_observed("rows of pixels", compute)
    return rows


def distribution_of(batch: Batch, case: int, row: Row) -> Distribution:
    """Give what a nowcaster says of one case's counted pixels, by the order of this module."""
    nowcast = batch.nowcast
    if EXCEEDANCE in nowcast:
        levels = nowcast["threshold"].values.astype(np.float64)
        quantity = known_variable(nowcast)
        dry = quantity.valid_min if quantity.name in VARIABLES else levels[0]
        probabilities = row.of(nowcast[EXCEEDANCE].values[case])
        return Ladder(levels, probabilities, lowest=min(dry, levels[0]))
    if QUANTILES in nowcast:
        return Quantiles(nowcast["quantile"].values, row.of(nowcast[QUANTILES].values[case]))
    return members_of(batch, case, row) or Members(row.of(batch.forecast.values[case])[None])


def members_of(batch: Batch, case: int, row: Row) -> Members | None:
    """Give the members of one case's counted pixels; None of a nowcaster without any."""
    if "member" not in batch.nowcast.dims:
        return None
    return Members(row.of(batch.nowcast[variable_of(batch.nowcast)].values[case]))
