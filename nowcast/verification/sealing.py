"""Who sees the future: nowcasts made again without the frames after the base time."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.frames import step_of
from nowcast.verification.cases import UsesFrames, near

SEALED_CASES = 3  # on which a nowcaster is tried without the frames after the base time
SAME = 1e-3  # of the spread of a nowcast: what rounding in batches may change

Issue = Callable[[Any, xr.Dataset, pd.DatetimeIndex], xr.Dataset]


def sees_future(
    issue: Issue,
    one: UsesFrames,
    observed: xr.Dataset,
    base_times: pd.DatetimeIndex,
    until: pd.Timedelta,
) -> bool:
    """Tell whether a nowcast changes, or fails, when the frames after the base time are taken away.

    It is tried on the first, the middle and the last case; numbers that differ by no more than the
    rounding of another batch are the same.
    """
    step = one.step or step_of(observed)
    back = -(max(one.input_frames, 4) - 1) * step
    for place in sorted({0, len(base_times) // 2, len(base_times) - 1})[:SEALED_CASES]:
        alone = base_times[place : place + 1]
        loaded = near(observed, alone, back, until)
        sealed = loaded.sel(time=slice(None, alone[0]))
        if sealed.sizes["time"] < 2:
            continue  # too little for the step of the frames to be known
        whole = issue(one, loaded, alone)
        try:
            again = issue(one, sealed, alone)
        except (LookupError, ValueError):  # as of a frame that is not there; no fault of a server
            return True
        if not all(_alike(whole[name], again[name]) for name in whole.data_vars):
            return True
    return False


def _alike(first: xr.DataArray, second: xr.DataArray) -> bool:
    if first.dtype.kind not in "fiu" or not first.dims:
        return True
    one, other = first.values.astype(float), second.values.astype(float)
    if one.shape != other.shape or (np.isnan(one) != np.isnan(other)).any():
        return False
    spread = float(np.nanmax(one) - np.nanmin(one)) if np.isfinite(one).any() else 0.0
    return bool(np.nanmax(abs(one - other), initial=0.0) <= SAME * spread)
