"""Proofs of the contracts, for anyone who adds a nowcaster or a predictor."""

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import check_nowcast, known_variable, variable_of
from nowcast.frames import step_of
from nowcast.nowcasters import Nowcaster
from nowcast.predictors import PROBABILITY, SequencePredictor


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
    sizes = {str(dim): size for dim, size in dataset[name].sizes.items() if dim != "member"}
    _require(
        sizes
        == {
            "base_time": 2,
            "lead_time": lead_frames,
            "y": observed.sizes["y"],
            "x": observed.sizes["x"],
        },
        f"the nowcast has the sizes {sizes}",
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


def check_predictor(predictor: SequencePredictor, observed: xr.Dataset) -> None:
    """Prove that a predictor keeps the contract; raise an AssertionError that says what it broke.

    Dims and coordinates; values in the valid range, probabilities that add up to 1; several base
    times at once give what each gives alone; no look-ahead; the same answer twice; missing where
    an input frame shows too little; a base time not in the data, one after a gap, an input frame
    without any observed pixel and another grid are refused.

    Parameters
    ----------
    predictor
        Any.
    observed
        At least ``input_frames + 4`` frames without a gap, on the grid that the predictor takes.
    """
    observed, settings = observed.load(), predictor.settings
    step, first = predictor.step or step_of(observed), predictor.input_frames + 1
    times = observed["time"].to_index()[[first, first + 1]]
    classes = settings.head.kind == "classes"
    name = PROBABILITY if classes else settings.variable.name

    def predict(data: xr.Dataset, bases: pd.DatetimeIndex) -> np.ndarray:
        values: np.ndarray = predictor.predict(data, base_times=bases)[name].values
        return values

    dataset = predictor.predict(observed, base_times=times)
    both = dataset[name].values
    dims = ("base_time", "label") if classes else ("base_time", "lead_time", "point")
    _require(dataset[name].dims == dims, f"what it predicts has the dims {dataset[name].dims}")
    if classes:
        low, high = 0.0, 1.0
        _require(np.allclose(both.sum(axis=1), 1.0, atol=1e-5), "probabilities do not add up to 1")
    else:
        low, high = settings.variable.valid_min, settings.variable.valid_max
        valid = dataset["base_time"] + dataset["lead_time"]
        _require(bool((dataset["valid_time"] == valid).all()), "valid_time is not what it says")
    _require(bool(((both >= low) & (both <= high)).all()), "values lie outside of the valid range")
    _require(np.array_equal(predict(observed, times), both), "twice, two answers")
    alone = predict(observed, times[:1])
    _require(_same(alone[0], both[0]), "a base time alone gives another prediction")
    blinded = observed.copy(deep=True)
    field = variable_of(observed)
    blinded[field] = observed[field].where(observed["time"] <= times[0])
    _require(_same(predict(blinded, times[:1]), alone), "it looks ahead")
    hidden = observed.copy(deep=True)
    hidden[field][{"time": first}] = np.nan
    _require(_refuses(predict, hidden, times[:1]), "it takes a frame in which nothing was observed")
    hidden[field][{"time": first, "y": 0, "x": 0}] = 0.0
    _require(np.isnan(predict(hidden, times[:1])).all(), "it predicts from a frame almost unseen")
    _require(_refuses(predict, observed, times[:1] + step / 2), "it takes an unknown base time")
    _require(_refuses(predict, observed.isel(x=slice(1, None)), times), "it takes another grid")
    if predictor.input_frames > 1:
        gap = observed.drop_sel(time=[times[0] - step])
        _require(_refuses(predict, gap, times[:1]), "it bridges a gap in its input frames")


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
