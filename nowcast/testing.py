"""Proofs of the contract, for anyone who adds a nowcaster."""

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import check_nowcast, known_variable
from nowcast.frames import step_of
from nowcast.nowcasters import Nowcaster


def check_nowcaster(nowcaster: Nowcaster, observed: xr.Dataset, *, lead_frames: int = 2) -> None:
    """Prove that a nowcaster keeps the contract; raise an AssertionError that says what it broke.

    Dims, units, coordinates and valid range; several base times at once give what each gives
    alone; no look-ahead; the same answer twice; a pixel missing in all input frames is missing in
    the nowcast; a base time not in the data and one after a gap are refused.

    Parameters
    ----------
    nowcaster
        Any.
    observed
        At least ``input_frames + 4`` frames without a gap, on a grid that the nowcaster takes.
    lead_frames
        Lead times, in steps of the observations, asked for.

    Examples
    --------
    >>> from nowcast.data.synthetic import synthesise
    >>> from nowcast.nowcasters import open_nowcaster
    >>> check_nowcaster(open_nowcaster("persistence"), synthesise(hours=2, size=16))
    """
    observed = observed.load()
    step = nowcaster.step or step_of(observed)
    lead_times = pd.TimedeltaIndex([step * lead for lead in range(1, lead_frames + 1)])
    first = nowcaster.input_frames + 1
    times = observed["time"].to_index()[[first, first + 1]]
    name = known_variable(observed).name

    def nowcast(data: xr.Dataset, bases: pd.DatetimeIndex) -> np.ndarray:
        values: np.ndarray = nowcaster.nowcast(data, base_times=bases, lead_times=lead_times)[
            name
        ].values
        return values

    dataset = nowcaster.nowcast(observed, base_times=times, lead_times=lead_times)
    check_nowcast(dataset)
    both = dataset[name].values
    _require(
        dict(dataset.sizes)
        == {
            "base_time": 2,
            "lead_time": lead_frames,
            "y": observed.sizes["y"],
            "x": observed.sizes["x"],
        },
        f"the nowcast has the sizes {dict(dataset.sizes)}",
    )
    _require(np.array_equal(nowcast(observed, times), both, equal_nan=True), "twice, two answers")
    alone = nowcast(observed, times[:1])
    _require(_same(alone[0], both[0]), "a base time alone gives another nowcast")
    blinded = observed.copy(deep=True)
    blinded[name] = observed[name].where(observed["time"] <= times[0])
    _require(_same(nowcast(blinded, times[:1]), alone), "it looks ahead")
    hidden = observed.copy(deep=True)
    middle = {"y": observed.sizes["y"] // 2, "x": observed.sizes["x"] // 2}
    hidden[name][middle] = np.nan
    at_base = nowcast(hidden, times[:1])[0]
    _require(np.isnan(at_base).any(), "a pixel that was never observed is forecast as if it was")
    _require(_refuses(nowcast, observed, times[:1] + step / 2), "it takes an unknown base time")
    if nowcaster.input_frames > 1:
        gap = observed.drop_sel(time=[times[0] - step])
        _require(_refuses(nowcast, gap, times[:1]), "it bridges a gap in its input frames")


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return bool(np.allclose(one, other, rtol=1e-4, atol=1e-4, equal_nan=True))


def _refuses(nowcast: object, observed: xr.Dataset, times: pd.DatetimeIndex) -> bool:
    try:
        nowcast(observed, times)  # type: ignore[operator]
    except ValueError:
        return True
    return False


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise AssertionError(message)
