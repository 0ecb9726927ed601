"""What every measure is given: forecasts of a few cases, and what was observed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import xarray as xr

FIELD_DIMS = ("base_time", "lead_time", "y", "x")
OF_VARIABLE = "{units}"  # in the units of a definition: those of what is scored

Definitions = Mapping[str, tuple[str, str, str]]  # of each score: what it is, units, source


@dataclass(frozen=True)
class Batch:
    """One nowcaster's forecasts of some cases beside what was observed.

    Parameters
    ----------
    forecast, observed : (base_time, lead_time, y, x)
        The single-valued forecast (of an ensemble its mean), in the same units; NaN where a pixel
        does not count, in both alike, and nowhere else.
    nowcast
        All that the nowcaster issued for the cases, as it issued it: members, probabilities,
        quantiles, missing where it left them missing.
    left : (base_time, lead_time, y, x)
        Where a pixel counts and the nowcaster left it missing, which counts as no rain; nowhere by
        default.
    once
        What was computed of the observations alone; the same for all nowcasters of these cases.
    """

    forecast: xr.DataArray
    observed: xr.DataArray
    nowcast: xr.Dataset
    left: xr.DataArray = field(default_factory=xr.DataArray)
    once: dict[str, Any] = field(default_factory=dict)

    def of_observed(self, name: str, compute: Callable[[], Any]) -> Any:
        """Give what a measure needs of the observations alone, computed for the first nowcaster."""
        if name not in self.once:
            self.once[name] = compute()
        return self.once[name]


class Measure(Protocol):
    """A family of scores, from sums that can be added over cases.

    A measure is a frozen dataclass; its fields are part of the protocol.
    """

    @property
    def name(self) -> str:
        """What the protocol calls it."""
        ...

    @property
    def gridded(self) -> bool:
        """Whether it needs neighbouring pixels, so that it has no meaning for a list of places."""
        ...

    def sums(self, batch: Batch) -> xr.Dataset:
        """Give what adds up over cases, by ``base_time`` and whatever else; never NaN."""
        ...

    def scores(self, total: xr.Dataset) -> xr.Dataset:
        """Give the scores that follow from added sums; NaN where one is not defined.

        The total has the dims of the sums without ``base_time``, and may have any others: groups of
        cases, or samples of a bootstrap.
        """
        ...


def defined_by(definitions: Definitions, scores: xr.Dataset) -> xr.Dataset:
    """Say of each score what it is, in which units, and where that is written.

    Units of the variable, `OF_VARIABLE`, are named when it is known.
    """
    for name, (long_name, units, reference) in definitions.items():
        if name in scores:
            scores[name].attrs = {"long_name": long_name, "units": units, "references": reference}
    return scores


def case_coordinates(batch: Batch) -> dict[str, xr.Variable]:
    """Give the base times and lead times of a batch, as coordinates."""
    observed = batch.observed
    names = [name for name in ("base_time", "lead_time") if name in observed.coords]
    return {name: observed[name].variable for name in names}
