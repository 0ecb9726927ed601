"""The cases on which nowcasters are compared, and the frames around them."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import known_variable
from nowcast.frames import Block, Window, base_times, step_of


class UsesFrames(Protocol):
    """Whatever is compared: the frames that it uses up to a base time decide on the cases."""

    @property
    def input_frames(self) -> int:
        """Number of frames used, up to and with the base time."""
        ...

    @property
    def step(self) -> pd.Timedelta | None:
        """Time between the frames used; None is the step of the observations."""
        ...


def case_times(
    observed: xr.Dataset,
    *,
    nowcasters: Mapping[str, UsesFrames],
    lead_times: pd.TimedeltaIndex,
    every: pd.Timedelta,
    block: Block | None = None,
) -> pd.DatetimeIndex:
    """Give the base times at which every nowcaster has its frames and the future was observed.

    Parameters
    ----------
    observed
        Only its times are read.
    nowcasters
        Those compared.
    lead_times
        Those compared.
    every
        Least time between two cases.
    block
        In which all frames must lie.

    Raises
    ------
    ValueError
        If there is none.
    """
    if lead_times[0] <= pd.Timedelta(0):
        raise ValueError(f"a lead time must be above 0; received {lead_times[0]}")
    common: pd.DatetimeIndex | None = None
    step = lead_times[0] if len(lead_times) == 1 else pd.Timedelta(np.diff(lead_times).min())
    leads = round(lead_times[-1] / step)
    for nowcaster in nowcasters.values():
        inputs = Window(nowcaster.input_frames, 0, nowcaster.step or step_of(observed))
        outputs = Window(1, leads, step)
        whole = base_times(observed, inputs, block).intersection(
            base_times(observed, outputs, block)
        )
        common = whole if common is None else common.intersection(whole)
    if common is None or not len(common):
        where = f" in {block}" if block else ""
        raise ValueError(
            f"no base time{where} has all input frames and a frame at each lead time up to "
            f"{lead_times[-1]}, in steps of {step}; choose a longer period, or lead times that are "
            "shorter or multiples of the step between the frames"
        )
    return spaced(common, every)


def spaced(times: pd.DatetimeIndex, every: pd.Timedelta) -> pd.DatetimeIndex:
    """Give the times that lie at least so far apart, from the first one on."""
    kept: list[Any] = []
    for time in times:
        if not kept or time - kept[-1] >= every:
            kept.append(time)
    return pd.DatetimeIndex(kept)


def batches_of_cases(
    compared: Mapping[str, UsesFrames],
    observed: xr.Dataset,
    *,
    base_times: pd.DatetimeIndex,
    until: pd.Timedelta,
    batch_cases: int,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[xr.Dataset, pd.DatetimeIndex]]:
    """Give batches of cases with the frames around them loaded, and no others.

    A base time of which an input frame has no observed pixel is left out: nothing to start from.

    Parameters
    ----------
    compared
        By name.
    observed, base_times
        See `nowcast.verification.verify`.
    until
        Longest time after a base time of which a frame is needed.
    batch_cases
        Base times in a batch.
    progress
        Called with the number of cases done after each batch.

    Raises
    ------
    ValueError
        If no case is left.
    """
    step = step_of(observed)
    inputs = {(one.input_frames, one.step or step) for one in compared.values()}
    offsets = sorted({-back * step for frames, step in inputs for back in range(frames)})
    any_seen = False
    for first in range(0, len(base_times), batch_cases):
        batch = base_times[first : first + batch_cases]
        loaded = near(observed, batch, offsets[0], until)
        seen = _with_sight(loaded, batch, offsets)
        any_seen = any_seen or len(seen) > 0
        if len(seen):
            yield loaded, seen
        if progress:
            progress(first + len(batch))
    if not any_seen:
        raise ValueError("in every case an input frame has no observed pixel; give other cases")


def near(
    observed: xr.Dataset, batch: pd.DatetimeIndex, first: pd.Timedelta, last: pd.Timedelta
) -> xr.Dataset:
    """Load the frames around the cases of a batch, and none of those between two cases."""
    times = observed["time"].to_index()
    around = [(times >= base_time + first) & (times <= base_time + last) for base_time in batch]
    return observed.isel(time=np.flatnonzero(np.any(around, axis=0))).load()


def _with_sight(
    loaded: xr.Dataset, batch: pd.DatetimeIndex, offsets: list[pd.Timedelta]
) -> pd.DatetimeIndex:
    seen = loaded[known_variable(loaded).name].notnull().any(("y", "x")).to_series()
    kept = [
        base_time
        for base_time in batch
        if seen.reindex([base_time + offset for offset in offsets], fill_value=True).all()
    ]
    return pd.DatetimeIndex(kept)
