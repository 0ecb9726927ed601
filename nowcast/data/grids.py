"""Other grids: coarser ones, and one canvas for several. Missing stays missing, dry stays dry."""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import GRID_MAPPING, METRES, check_observations, select, variable_of
from nowcast.data.labels import LABEL

LEAST_OBSERVED = 0.5  # part of a coarse pixel that must be observed, else it is missing
# Part by which grid spacings may differ on one canvas: as much as a trained network accepts, see
# nowcast.nowcasters.neural.
SPACING_TOLERANCE = 0.01
NO_TIME = pd.Timedelta(0)
CANVAS = "canvas"  # name of the grid mapping; CF has none for what has no place on earth

_TOLD = ("institution", "source", "product", "references")  # of every part, in the attributes
_OF_FRAMES = ("time_bnds", "quality_flag", LABEL)  # kept where all parts have it alike


def coarsen(observed: xr.Dataset, factor: int) -> xr.Dataset:
    """Give the fields on a grid of pixels `factor` times as long, lazily.

    A coarse pixel is the mean of its observed pixels, or missing if less than half of them
    (`LEAST_OBSERVED`) are observed, so that nothing missing becomes dry. Rows and columns at the
    end that do not fill a coarse pixel are left out. Reflectivity is averaged in dBZ.

    Parameters
    ----------
    observed
        Any variables with ``y`` and ``x``; others, times, bounds and grid mapping are kept.
    factor
        Pixels along each side of a coarse pixel; 1 gives the same dataset.

    Raises
    ------
    ValueError
        If the factor is below 1 or exceeds the grid.

    Examples
    --------
    >>> from nowcast.data.synthetic import synthesise
    >>> dict(coarsen(synthesise(hours=1, size=16), 4).sizes)["x"]
    4
    """
    if factor == 1:
        return observed
    smallest = min(observed.sizes["y"], observed.sizes["x"])
    if not 1 <= factor <= smallest:
        raise ValueError(f"a grid cannot be coarsened by {factor}; give 1 to {smallest} pixels")
    gridded = [name for name, array in observed.items() if {"y", "x"} <= set(array.dims)]
    axes = {
        axis: observed[axis].coarsen({axis: factor}, boundary="trim").mean().variable
        for axis in ("y", "x")
    }
    for axis, coordinate in axes.items():
        coordinate.attrs = dict(observed[axis].attrs)
    coarse = observed.drop_vars(["y", "x", *gridded]).assign_coords(axes)
    return coarse.assign({name: _coarsened(observed[name], factor) for name in gridded})


def on_one_canvas(parts: Sequence[xr.Dataset], *, apart: pd.Timedelta = NO_TIME) -> xr.Dataset:
    """Give observations on different grids as one dataset, lazily, to train on all of them.

    The canvas is large enough for each grid. Every frame lies in its middle, north up and east to
    the right, pixel for pixel; beyond its grid it is missing, never dry. The coordinates are metres
    on the canvas and of no place on earth, which the attributes say.

    Parameters
    ----------
    parts
        Of the same quantity, with pixels equally large to a hundredth (`SPACING_TOLERANCE`; the
        canvas has those of the first) and the same time between frames.
    apart
        Step of the windows that will be taken. Frames of different parts lie further apart than
        this, and than the time between frames, so that no window holds frames of two grids.

    Returns
    -------
    xr.Dataset
        One variable with dims ``(time, y, x)``, in Dask chunks of whole frames.

    Raises
    ------
    ValueError
        Naming the parts that do not fit together, and why.

    Examples
    --------
    >>> from nowcast.data.synthetic import synthesise
    >>> small, large = synthesise(hours=1, size=16), synthesise(hours=1, size=24)
    >>> later = large.assign_coords(time=large["time"] + np.timedelta64(1, "D"))
    >>> canvas = on_one_canvas([small, later])
    >>> dict(canvas.sizes)["y"], int(canvas["rain_rate"][0].isnull().sum()) == 24**2 - 16**2
    (24, True)
    """
    if not parts:
        raise ValueError("a canvas needs one or more parts; received none")
    told = [_told(number, part) for number, part in enumerate(parts, start=1)]
    _check_alike(parts, told)
    _check_apart(parts, told, apart)
    name = variable_of(parts[0])
    upright = [_upright(select(part, name)) for part in parts]
    shape = {axis: max(part.sizes[axis] for part in upright) for axis in ("y", "x")}
    kept = [each for each in _OF_FRAMES if _alike([part.coords.get(each) for part in parts])]
    joined = xr.concat(
        [_placed(part, name, shape, kept) for part in upright],
        dim="time",
        data_vars=[name],
        coords=kept,
        compat="override",
        join="override",
        combine_attrs="override",
    )
    order = np.argsort(joined["time"].values, kind="stable")
    if (np.diff(order) != 1).any():
        joined = joined.isel(time=order)
    joined = joined.assign_coords(_axes(upright[0], shape))
    joined["time"].attrs = {"standard_name": "time"}
    if "time_bnds" in kept:
        joined["time"].attrs["bounds"] = "time_bnds"
    joined["time"].encoding = {"units": "seconds since 1970-01-01", "dtype": "int64"}
    joined[name].attrs = _shared([part[name].attrs for part in parts])
    joined[name].attrs["grid_mapping"] = GRID_MAPPING
    joined.attrs = _attributes(parts, told, shape)
    return check_observations(joined)


def _coarsened(array: xr.DataArray, factor: int) -> xr.DataArray:
    blocks = {"y": factor, "x": factor}
    plain = array.drop_vars(list(array.coords))
    count = plain.notnull().coarsen(blocks, boundary="trim").sum()
    total = plain.fillna(0).coarsen(blocks, boundary="trim").sum()
    enough = count >= math.ceil(LEAST_OBSERVED * factor**2)
    mean: xr.DataArray = (total / count.where(enough)).astype(array.dtype)
    return mean.assign_attrs(array.attrs)


def _told(number: int, part: xr.Dataset) -> str:
    """Name a part of a canvas in a message."""
    by = part.attrs.get("source") or part.attrs.get("title")
    return f"part {number} ({by})" if by else f"part {number}"


def _check_alike(parts: Sequence[xr.Dataset], told: list[str]) -> None:
    """Refuse parts that differ in what every frame of a canvas has in common."""
    first, step = parts[0], _step(parts[0])
    name = variable_of(first)
    for this, part in zip(told, parts, strict=True):
        other = variable_of(part)
        quantities = [(name, first[name].attrs.get("units")), (other, part[other].attrs["units"])]
        if quantities[0] != quantities[1]:
            held = [f"{quantity} in {units}" for quantity, units in quantities]
            raise ValueError(
                f"{told[0]} holds {held[0]}, {this} {held[1]}; open both as one variable"
            )
        for axis in ("y", "x"):
            _check_spacing(first[axis], part[axis], told[0], this)
        if NO_TIME < _step(part) != step > NO_TIME:
            raise ValueError(
                f"{told[0]} has a frame every {_minutes(step)}, {this} every "
                f"{_minutes(_step(part))}; train on them apart"
            )


def _check_spacing(first: xr.DataArray, other: xr.DataArray, told: str, this: str) -> None:
    for axis, whose in ((first, told), (other, this)):
        if axis.attrs["units"] not in METRES:
            raise ValueError(
                f"the grid of {whose} is in {axis.attrs['units']}; a canvas needs metres"
            )
    spacing, received = _spacing(first), _spacing(other)
    if not abs(received / spacing - 1) <= SPACING_TOLERANCE:  # NaN of a single row is refused too
        raise ValueError(
            f"{told} has pixels of {spacing:g} m along {first.name}, {this} of {received:g} m; "
            f"on one canvas they differ by {SPACING_TOLERANCE:.0%} at most; average the finer ones "
            "before (nowcast.data.grids.coarsen)"
        )


def _check_apart(parts: Sequence[xr.Dataset], told: list[str], apart: pd.Timedelta) -> None:
    """Refuse frames of two parts so close that a window could hold both."""
    closest = max(apart, *map(_step, parts))
    frames = sorted(
        (time, number) for number, part in enumerate(parts) for time in part["time"].to_index()
    )
    for (time, number), (later, other) in itertools.pairwise(frames):
        if number != other and later - time <= closest:
            raise ValueError(
                f"{told[number]} has a frame at {time.isoformat()} and {told[other]} one at "
                f"{later.isoformat()}; frames of different grids must lie more than "
                f"{_minutes(closest)} apart, so that no window holds both; leave one out"
            )


def _step(part: xr.Dataset) -> pd.Timedelta:
    """Give the most frequent time between two frames; zero of a single one."""
    times = part["time"].to_index()
    steps = pd.Series(times[1:] - times[:-1])
    return pd.Timedelta(steps.mode().iloc[0]) if len(steps) else NO_TIME


def _minutes(duration: pd.Timedelta) -> str:
    return f"{duration.total_seconds() / 60:g} min"


def _spacing(axis: xr.DataArray) -> float:
    ends = axis.values[[0, -1]].astype(float)
    return float(abs(ends[1] - ends[0]) / (len(axis) - 1)) if len(axis) > 1 else math.nan


def _upright(part: xr.Dataset) -> xr.Dataset:
    """Give the dataset with y falling and x rising, as most radar products have them."""
    backwards = slice(None, None, -1)
    if part["y"][0] < part["y"][-1]:
        part = part.isel(y=backwards)
    return part.isel(x=backwards) if part["x"][0] > part["x"][-1] else part


def _margin(size: int, whole: int) -> tuple[int, int]:
    """Give the pixels before and after a grid in the middle of a canvas, the odd one after."""
    before = (whole - size) // 2
    return before, whole - size - before


def _placed(part: xr.Dataset, name: str, shape: dict[str, int], kept: list[str]) -> xr.Dataset:
    """Give the frames in the middle of the canvas, in chunks of whole frames, and what is kept."""
    field = part[name].drop_vars(list(part[name].coords))
    field = field.astype(np.result_type(field.dtype, np.float32), copy=False)
    if field.chunks is None:
        field = field.chunk({"time": "auto"})
    margins = {axis: _margin(field.sizes[axis], whole) for axis, whole in shape.items()}
    field = field.pad(margins, constant_values=np.nan).chunk(y=-1, x=-1)
    coordinates = {each: part[each].variable for each in ("time", *kept)}
    return xr.Dataset({name: field}, coordinates)


def _axes(first: xr.Dataset, shape: dict[str, int]) -> dict[str, Any]:
    """Give the coordinates of the canvas: metres from the middle of its lower left pixel."""
    axes: dict[str, Any] = {}
    for axis, whole in shape.items():
        metres = _spacing(first[axis]) * np.arange(whole)
        about = {"long_name": f"{axis} on the canvas", "units": "m", "axis": axis.upper()}
        axes[axis] = (axis, metres[::-1].copy() if axis == "y" else metres, about)
    mapping = {"grid_mapping_name": CANVAS, "long_name": "plain canvas, of no place on earth"}
    return {**axes, GRID_MAPPING: ((), np.int32(0), mapping)}


def _attributes(
    parts: Sequence[xr.Dataset], told: list[str], shape: dict[str, int]
) -> dict[str, Any]:
    """Say that the canvas has no place on earth, and what lies on it."""
    held = {key: [str(part.attrs.get(key, "")) for part in parts] for key in _TOLD}
    lines = []
    for this, part in zip(told, parts, strict=True):
        sizes = [part.sizes[axis] for axis in ("y", "x")]
        place = [_margin(part.sizes[axis], whole)[0] for axis, whole in shape.items()]
        how = part[variable_of(part)].attrs.get("comment", "")
        lines.append(
            f"{this}: {part.sizes['time']} frames of {sizes[0]} x {sizes[1]} pixels, from row "
            f"{place[0]} and column {place[1]} on" + (f"; {how}" if how else "")
        )
    return {
        **_shared([part.attrs for part in parts]),
        "title": "Frames of several grids on one canvas",
        **{key: "; ".join(dict.fromkeys(filter(None, ones))) for key, ones in held.items()},
        "comment": "y and x are metres on a plain canvas and of no place on earth; each frame "
        "lies in its middle, and is missing beyond its own grid",
        "parts": "\n".join(lines),
    }


def _shared(attributes: Sequence[dict[Any, Any]]) -> dict[Any, Any]:
    """Give the attributes that all have, with equal values."""
    first, *others = attributes
    return {
        key: value
        for key, value in first.items()
        if all(key in other and np.array_equal(value, other[key]) for other in others)
    }


def _alike(arrays: Sequence[xr.DataArray | None]) -> bool:
    """Tell whether all parts have a coordinate, with the same dims and meaning."""
    there = [array for array in arrays if array is not None]
    if len(there) < len(arrays):
        return False
    shared = _shared([array.attrs for array in there])
    return all(one.dims == there[0].dims and one.attrs.keys() == shared.keys() for one in there)
