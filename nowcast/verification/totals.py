"""Sums of measures, added case by case, and what is told of cases and nowcasters beside them."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.verification.batches import Batch, Measure
from nowcast.verification.events import Blocks
from nowcast.verification.scores import EVENT_COUNTS, Events


class Groups:
    """To which sums a case is added: those of its block, and those of its regimes."""

    def __init__(self, base_times: pd.DatetimeIndex, blocks: Blocks, regimes: xr.Dataset) -> None:
        self.blocks = blocks
        self.member = regimes.sel(base_time=base_times)["in_regime"]
        self.regimes = [str(name) for name in regimes["regime"].values]
        belongs = self.member.transpose("base_time", "regime").values
        self._places = {
            base_time: [int(block), *(len(blocks.labels) + np.flatnonzero(others))]
            for base_time, block, others in zip(base_times, blocks.of_case, belongs, strict=True)
        }

    @property
    def names(self) -> list[str]:
        """Give the names of all groups: blocks, then regimes."""
        return [*self.blocks.labels, *self.regimes]

    def of(self, base_times: pd.DatetimeIndex) -> list[list[int]]:
        """Give the places of the groups to which each case belongs."""
        return [self._places[base_time] for base_time in base_times]

    def with_cases(self, used: pd.DatetimeIndex) -> list[str]:
        """Give the blocks that have a case."""
        places = sorted({self._places[base_time][0] for base_time in used})
        return [self.blocks.labels[place] for place in places]


class Totals:
    """Sums of one measure by group, added case by case: the same numbers whatever the batches."""

    def __init__(self, groups: int) -> None:
        self._groups = groups
        self._totals: dict[str, np.ndarray] = {}
        self._like: xr.Dataset | None = None

    def add(self, sums: xr.Dataset, places: list[list[int]]) -> None:
        """Add the sums of cases, one after the other, to those of their groups."""
        if self._like is None:
            self._like = sums.isel(base_time=0, drop=True)
            for name, one in self._like.items():
                kind = np.result_type(one.dtype, np.int64 if one.dtype.kind in "iub" else float)
                self._totals[str(name)] = np.zeros((self._groups, *one.shape), kind)
        for name, total in self._totals.items():
            values = sums[name].transpose("base_time", ...).values
            for case, groups in zip(values, places, strict=True):
                for group in groups:
                    total[group] += case

    def dataset(self, groups: Groups) -> xr.Dataset:
        """Give the sums by ``group``."""
        like = self._like if self._like is not None else xr.Dataset()
        return xr.Dataset(
            {
                name: (("group", *like[name].dims), total, like[name].attrs)
                for name, total in self._totals.items()
            },
            coords={**like.coords, "group": groups.names},
        )


class Told:
    """What is told of nowcasters and of single cases beside the scores."""

    def __init__(self, names: list[str], threshold: float | None) -> None:
        self.seconds = dict.fromkeys(names, 0.0)
        self._threshold = threshold
        self._left: dict[str, xr.DataArray] = {}
        self._counts: dict[str, list[np.ndarray]] = {name: [] for name in names}
        self._times: dict[str, list[pd.Timestamp]] = {name: [] for name in names}

    @property
    def base_times(self) -> pd.DatetimeIndex:
        """Give the base times of the cases that were scored."""
        return pd.DatetimeIndex(next(iter(self._times.values())))

    def add(self, name: str, batch: Batch, sums: Mapping[Measure, xr.Dataset]) -> None:
        """Note what a nowcaster left missing, and the events of each case."""
        self._times[name] += list(batch.forecast["base_time"].to_index())
        left = batch.left.sum(("base_time", "y", "x"))
        self._left[name] = self._left[name] + left if name in self._left else left
        for measure, made in sums.items():
            if isinstance(measure, Events) and self._threshold is not None:
                counts = made[list(EVENT_COUNTS)].sel(threshold=self._threshold)
                self._counts[name].append(counts.sum("lead_time").to_array().values)

    def dataset(self, described: xr.Dataset) -> xr.Dataset:
        """Give what was noted, beside what the observations say of the cases."""
        names = xr.Variable("nowcaster", list(self.seconds))
        cases = len(self.base_times)
        told = xr.Dataset(
            {
                "left_missing": xr.concat(list(self._left.values()), dim=names),
                "seconds": ("nowcaster", [one / cases for one in self.seconds.values()]),
            }
        )
        about = described.sel(base_time=self.base_times).reset_coords(drop=True)
        told = told.assign({f"case_{name}": one for name, one in about.data_vars.items()})
        if not all(self._counts.values()):
            return told
        tables = [np.concatenate(parts, axis=1) for parts in self._counts.values()]
        dims = ("nowcaster", "base_time")
        counts = xr.Dataset(
            {
                name: (dims, np.stack([table[place] for table in tables]))
                for place, name in enumerate(EVENT_COUNTS)
            },
            coords={"base_time": self.base_times},
        )
        scores = Events((0.0,)).scores(counts)
        happened = counts["tp_count"] + counts["fn_count"]
        return told.assign(
            case_csi=scores["csi"].assign_attrs(threshold=self._threshold),
            case_events=happened.isel(nowcaster=0, drop=True),
        )
