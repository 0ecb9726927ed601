"""Nowcasters whose field is made of another's probabilities: their mean, or their median.

The field that decision levels make is for warnings: it has the best CSI. For amounts the mean is
better, which adds up over time and areas and has the smallest squared error, and the median has
the smallest absolute error.
"""

from dataclasses import dataclass
from typing import get_args

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import EXCEEDANCE, VARIABLES, check_nowcast, known_variable
from nowcast.decisions import Summary
from nowcast.nowcasters import Nowcaster
from nowcast.postprocessing import field_of
from nowcast.rainrate import Transform

MEDIAN = 0.5
AS_IS = Transform("linear", offset=0.0, top=1.0)


@dataclass(frozen=True)
class Derived:
    """A nowcaster that gives something else in place of another's field.

    Parameters
    ----------
    nowcaster
        Whose nowcasts have ``probability_of_exceedance``, and no members.
    """

    nowcaster: Nowcaster

    @property
    def input_frames(self) -> int:
        """Number of frames used, up to and with the base time."""
        return self.nowcaster.input_frames

    @property
    def step(self) -> pd.Timedelta | None:
        """Time between the frames used; None is the step of the observations."""
        return self.nowcaster.step

    def probable(
        self, observed: xr.Dataset, *, base_times: pd.DatetimeIndex, lead_times: pd.TimedeltaIndex
    ) -> xr.Dataset:
        """Give the other's nowcast.

        Raises
        ------
        ValueError
            If it has no probabilities, or members of its own, or the nowcaster refuses.
        """
        nowcast = self.nowcaster.nowcast(observed, base_times=base_times, lead_times=lead_times)
        if EXCEEDANCE not in nowcast or "member" in nowcast.dims:
            raise ValueError(
                f"members, mean and median are of {EXCEEDANCE!r}; {type(self.nowcaster).__name__} "
                f"gives {sorted(map(str, nowcast))} by {tuple(nowcast.dims)}; "
                "train a network with network.head='exceedance', or take steps for an ensemble"
            )
        return nowcast


@dataclass(frozen=True)
class WithSummary(Derived):
    """A nowcaster that gives probabilities of exceedance, with a summary of them as its field.

    Its probabilities stay; see `summary_of`.

    Parameters
    ----------
    nowcaster
        Whose nowcasts have ``probability_of_exceedance``, and no members.
    summary
        What its field is.
    """

    summary: Summary

    def nowcast(
        self, observed: xr.Dataset, *, base_times: pd.DatetimeIndex, lead_times: pd.TimedeltaIndex
    ) -> xr.Dataset:
        """Give the nowcast with the summary at each lead time; see `Nowcaster`.

        Raises
        ------
        ValueError
            If the nowcaster gives no probabilities or has members of its own, or refuses.
        """
        nowcast = self.probable(observed, base_times=base_times, lead_times=lead_times)
        return summary_of(nowcast, self.summary)


def summary_of(nowcast: xr.Dataset, summary: Summary) -> xr.Dataset:
    """Give a nowcast with the mean or the median of its probabilities as its field.

    What lies between thresholds and beyond is as for the CRPS, see
    `nowcast.verification.distributions.Ladder`: linear between two thresholds; below the first one
    dry, the lowest valid value, or the first threshold of another quantity than rain; and never
    above the last one. So a mean is cut off there: a ladder shall reach as high as matters.

    Parameters
    ----------
    nowcast
        With ``probability_of_exceedance``, and no members.
    summary
        Which.

    Returns
    -------
    Dataset
        Its probabilities are the same, and it is missing where the field was. The attribute
        ``field_rule`` says what the field is.

    Raises
    ------
    ValueError
        If there is no such summary.

    Examples
    --------
    A chance of one half for 1 mm/h and of none for 3: the mean of 0, half of the time, and of what
    is spread from 1 to 3.

    >>> from nowcast.conventions import with_exceedance
    >>> from nowcast.data.synthetic import synthesise
    >>> from nowcast.nowcasters.persistence import Persistence
    >>> observed = synthesise(hours=1, size=8).load()
    >>> nowcast = Persistence().nowcast(
    ...     observed,
    ...     base_times=observed["time"].to_index()[3:4],
    ...     lead_times=pd.to_timedelta([10], unit="min"),
    ... )
    >>> chances = np.full((1, 2, 1, 8, 8), 0.5) * np.array([1, 0]).reshape(1, 2, 1, 1, 1)
    >>> nowcast = with_exceedance(nowcast, chances, thresholds=(1.0, 3.0))
    >>> {of: float(summary_of(nowcast, of)["rain_rate"].max()) for of in ("mean", "median")}
    {'mean': 1.0, 'median': 1.0}
    """
    if summary not in get_args(Summary):
        raise ValueError(
            f"unknown summary {summary!r}; known are {' and '.join(get_args(Summary))}"
        )
    quantity = known_variable(nowcast)
    chances = nowcast[EXCEEDANCE].transpose("threshold", ...)
    thresholds = nowcast["threshold"].values.astype(np.float64)
    lowest = quantity.valid_min if quantity.name in VARIABLES else float(thresholds[0])
    if summary == "mean":
        edges = np.diff([lowest, *thresholds])  # the chance of the first is that of all below it
        weights = edges + np.concatenate([np.diff(thresholds), [0.0]]) / 2
        weights[1:] -= edges[1:] / 2
        values = lowest + np.tensordot(weights, chances.values.astype(np.float64), axes=1)
    else:
        values = field_of(
            chances.values,
            np.array(MEDIAN),
            thresholds=tuple(thresholds.tolist()),
            transform=AS_IS,
            lowest=lowest,
        )
    field = nowcast[quantity.name]
    made = xr.DataArray(values.astype(np.float32), dims=chances.dims[1:]).transpose(*field.dims)
    rule = f"{summary} of {EXCEEDANCE}, linear between thresholds"
    return check_nowcast(
        nowcast.assign({quantity.name: field.copy(data=made.values)}).assign_attrs(field_rule=rule)
    )
