"""Scores of probabilities, of whatever kind a nowcaster gives: of thresholds, and of any value.

The rules: a value at or above a threshold is an event; pixels are pooled over space and cases;
a probability that a nowcaster does not tell is not scored; a score that is not defined (no pixel,
no event where one is needed) is NaN, never 0 or 1. Where probabilities come from, and what is
taken of tails that are not told, stands in `nowcast.verification.distributions`.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from nowcast.verification.batches import OF_VARIABLE, Batch, case_coordinates, defined_by
from nowcast.verification.distributions import Row, distribution_of, rows_of
from nowcast.verification.scores import reaches

# Fine where events are rare: at 40 dBZ most of what a nowcaster says lies below 0.05.
BINS = (
    0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2,
    0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95,
)  # fmt: skip
BRIER = "doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2"
STEPHENSON = "doi:10.1175/2007WAF2006116.1"
WILKS = "doi:10.1016/C2017-0-03921-6"
MASON_GRAHAM = "doi:10.1256/003590002320603584"
GNEITING = "doi:10.1198/016214506000001437"
DEFINITIONS = {
    "brier": ("Brier score, mean squared error of the probability", "1", BRIER),
    "brier_reliability": ("reliability part of the Brier score, by bins", "1", STEPHENSON),
    "brier_resolution": ("resolution part of the Brier score, also in bins", "1", STEPHENSON),
    "brier_uncertainty": ("uncertainty part of the Brier score", "1", STEPHENSON),
    "brier_skill": ("Brier skill score against the base rate of the sample", "1", WILKS),
    "forecast_probability": ("mean forecast probability of a bin", "1", WILKS),
    "observed_frequency": ("observed frequency of the event in a bin", "1", WILKS),
    "probability_count": ("number of pixels in a bin", "1", WILKS),
    "probability_blocks": ("number of blocks of cases with a pixel in a bin", "1", WILKS),
    "roc_hit_rate": ("hit rate of warnings from a bin's edge on", "1", MASON_GRAHAM),
    "roc_false_alarm_rate": (
        "false alarm rate of warnings from a bin's edge on",
        "1",
        MASON_GRAHAM,
    ),
    "roc_area": ("area under the relative operating characteristic", "1", MASON_GRAHAM),
    "crps": ("continuous ranked probability score, fair for ensembles", OF_VARIABLE, GNEITING),
}


@dataclass(frozen=True)
class Exceedance:
    """Scores of the probability of reaching each threshold.

    ``brier`` is of the probabilities as they are. It is exactly ``brier_reliability`` less
    ``brier_resolution`` plus ``brier_uncertainty``: the reliability is that of the bins' mean
    probabilities, and the resolution the generalised one of Stephenson et al. (2008), which holds
    what varies within bins, so that it depends little on them. A forecast that always says the
    sample's base rate has a ``brier_skill`` of 0.

    ``forecast_probability``, ``observed_frequency`` and ``probability_count`` by bin are the
    reliability diagram. ``roc_hit_rate`` and ``roc_false_alarm_rate`` are of the warnings given
    from a bin's lowest probability on, its coordinate; the curve ends in (0, 0), which no bin
    stands for. ``roc_area`` is by trapezoids, so that of a single-valued forecast it is the area
    under the one point.

    A threshold between the levels of a ladder of probabilities is interpolated; one outside them
    is not told, and its scores are NaN.

    Parameters
    ----------
    thresholds
        In the units of the variable.
    bins
        Lowest probability of each bin, rising from 0; the last bin ends with 1. A forecast of
        exactly 0 has no bin of its own: the mean probability of the first bin tells.

    Raises
    ------
    ValueError
        If the bins do not rise from 0 to below 1.

    References
    ----------
    Brier (1950), doi:10.1175/1520-0493(1950)078<0001:VOFEIT>2.0.CO;2;
    Stephenson, Coelho and Jolliffe (2008), doi:10.1175/2007WAF2006116.1;
    Mason and Graham (2002), doi:10.1256/003590002320603584
    """

    thresholds: tuple[float, ...]
    bins: tuple[float, ...] = BINS
    name = "exceedance"
    gridded = False

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in zip(self.bins, self.bins[1:], strict=False))
        if not self.bins or self.bins[0] != 0.0 or self.bins[-1] >= 1.0 or not rising:
            raise ValueError(
                f"the bins of probabilities must rise from 0 to below 1; received {self.bins}; "
                "give the lowest probability of each bin, such as (0.0, 0.1, 0.5)"
            )

    def sums(self, batch: Batch) -> xr.Dataset:
        """Give what adds up by ``(base_time, threshold, lead_time, probability_bin)``.

        Returns
        -------
        Dataset
            ``probability_count``, ``probability_events``, ``probability_sum`` of the pixels in a
            bin, and ``probability_squared_error`` without ``probability_bin``.
        """
        rows = rows_of(batch)
        shape = (len(rows), len(self.thresholds), batch.observed.sizes["lead_time"])
        count = np.zeros((*shape, len(self.bins)), np.int64)
        events, said = np.zeros_like(count), np.zeros(count.shape)
        squared = np.zeros(shape)
        for case, row in enumerate(rows):
            distribution = distribution_of(batch, case, row)
            for place, threshold in enumerate(self.thresholds):
                probability = distribution.reaching(threshold)
                if probability is None:
                    continue
                at, event = (case, place), reaches(row.observed, threshold)
                count[at], events[at], said[at] = self._binned(row, probability, event)
                squared[at] = row.added((probability - event.astype(np.float64)) ** 2)
        dims = ("base_time", "threshold", "lead_time")
        return xr.Dataset(
            {
                "probability_count": ((*dims, "probability_bin"), count),
                "probability_events": ((*dims, "probability_bin"), events),
                "probability_sum": ((*dims, "probability_bin"), said),
                "probability_squared_error": (dims, squared),
            },
            coords={
                **case_coordinates(batch),
                "threshold": ("threshold", np.array(self.thresholds, np.float64)),
                "probability_bin": ("probability_bin", np.array(self.bins, np.float64)),
            },
        )

    def _binned(
        self, row: Row, probability: np.ndarray, event: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give pixels, events and added probabilities of one case, each (lead_time, bin)."""
        place = np.zeros(len(probability), np.uint16)
        for edge in self.bins[1:]:
            place += reaches(probability, edge)
        at = row.lead * len(self.bins) + place
        shape = (row.leads, len(self.bins))
        count, events, said = (
            np.bincount(places, weights=weights, minlength=row.leads * len(self.bins))
            for places, weights in ((at, None), (at[event], None), (at, probability))
        )
        return count.reshape(shape), events.reshape(shape), said.reshape(shape)

    def scores(self, total: xr.Dataset) -> xr.Dataset:
        """Give the scores of added sums, by ``threshold``, some by ``probability_bin`` too.

        Examples
        --------
        Of 10 pixels that said 0.2 and 10 that said 0.8, the event came in 1 and in 9.

        >>> said = ("probability_bin", [0.0, 0.5])
        >>> sums = {"probability_count": [10, 10], "probability_events": [1, 9]}
        >>> sums = {**sums, "probability_sum": [2.0, 8.0]}
        >>> total = xr.Dataset({name: ("probability_bin", part) for name, part in sums.items()})
        >>> total["probability_squared_error"] = 9 * 0.2**2 + 0.8**2 + 0.8**2 + 9 * 0.2**2
        >>> scores = Exceedance((1.0,), bins=(0.0, 0.5)).scores(total)
        >>> {name: round(scores[f"brier_{name}"].item(), 3) for name in ("reliability", "skill")}
        {'reliability': 0.01, 'skill': 0.6}
        """
        count = total["probability_count"].astype(np.float64)
        in_bin = count.where(count > 0)
        events, said = total["probability_events"], total["probability_sum"]
        number = count.sum("probability_bin")
        number = number.where(number > 0)
        base_rate = events.sum("probability_bin") / number
        brier = total["probability_squared_error"] / number
        reliability = ((said - events) ** 2 / in_bin).sum("probability_bin") / number
        uncertainty = base_rate * (1.0 - base_rate)
        scores = xr.Dataset(
            {
                "brier": brier,
                "brier_reliability": reliability,
                "brier_resolution": reliability + uncertainty - brier,
                "brier_uncertainty": uncertainty,
                "brier_skill": 1.0 - brier / uncertainty.where(uncertainty > 0),
                "forecast_probability": said / in_bin,
                "observed_frequency": events / in_bin,
                "probability_count": total["probability_count"],
                **_operating_characteristic(events, total["probability_count"] - events),
            }
        )
        return defined_by(DEFINITIONS, scores)


def blocks_in_bins(by_block: xr.Dataset) -> xr.Dataset:
    """Give ``probability_blocks``: of how many blocks of cases the pixels of a bin are.

    Parameters
    ----------
    by_block
        Sums of `Exceedance` by ``block`` and whatever else.
    """
    blocks = (by_block["probability_count"] > 0).sum("block")
    return defined_by(DEFINITIONS, xr.Dataset({"probability_blocks": blocks}))


def _operating_characteristic(
    events: xr.DataArray, others: xr.DataArray
) -> dict[str, xr.DataArray]:
    """Give the hit rate and false alarm rate from each bin on, and the area under the curve."""

    def rate(part: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray]:
        every = part.sum("probability_bin").astype(np.float64)
        part = part / every.where(every > 0)
        backwards = part.isel(probability_bin=slice(None, None, -1)).cumsum("probability_bin")
        forwards = backwards.isel(probability_bin=slice(None, None, -1))
        return part, forwards.assign_coords(part.coords).where(every > 0)

    hits, hit_rate = rate(events)
    false_alarms, false_alarm_rate = rate(others)
    area = (false_alarms * (hit_rate - hits / 2.0)).sum("probability_bin", skipna=False)
    return {
        "roc_hit_rate": hit_rate,
        "roc_false_alarm_rate": false_alarm_rate,
        "roc_area": area,
    }


@dataclass(frozen=True)
class CRPS:
    """The continuous ranked probability score, ``crps``, in the units of the variable.

    Of members the fair one, of a single field the absolute error; of probabilities of exceedance
    and of quantiles the integral over the distribution that they stand for, see `Ladder` and
    `Quantiles` in `nowcast.verification.distributions`. Lower is better, 0 is perfect; a fair one
    may be below 0 at single pixels.

    References
    ----------
    Gneiting and Raftery (2007), doi:10.1198/016214506000001437;
    Ferro (2014), doi:10.1002/qj.2270
    """

    name = "crps"
    gridded = False

    def sums(self, batch: Batch) -> xr.Dataset:
        """Give ``crps``, added over pixels, and ``crps_number`` by ``(base_time, lead_time)``."""
        rows = rows_of(batch)
        shape = (len(rows), batch.observed.sizes["lead_time"])
        added, number = np.zeros(shape), np.zeros(shape, np.int64)
        for case, row in enumerate(rows):
            added[case] = row.added(distribution_of(batch, case, row).crps(row.observed))
            number[case] = np.bincount(row.lead, minlength=row.leads)
        dims = ("base_time", "lead_time")
        return xr.Dataset(
            {"crps": (dims, added), "crps_number": (dims, number)}, coords=case_coordinates(batch)
        )

    def scores(self, total: xr.Dataset) -> xr.Dataset:
        """Give ``crps``, the mean over pixels.

        Examples
        --------
        >>> CRPS().scores(xr.Dataset({"crps": 3.0, "crps_number": 6}))["crps"].item()
        0.5
        """
        crps = total["crps"] / total["crps_number"].where(total["crps_number"] > 0)
        return defined_by(DEFINITIONS, xr.Dataset({"crps": crps}))
