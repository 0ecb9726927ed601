"""Gridded NetCDF and Zarr that follow the CF conventions: opened lazily, many frames a chunk."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nowcast.conventions import (
    GRID_MAPPING,
    RAIN_RATE,
    REFLECTIVITY,
    Variable,
    check_observations,
)
from nowcast.data.labels import LABEL
from nowcast.data.readers import CLASSIC_NETCDF, is_zarr

FRAMES_PER_CHUNK = 64  # about, and a whole number of the chunks on disk, unless that is more than
LARGEST_CHUNK = 128_000_000  # bytes

# What the file must call a quantity, by standard name or else by its own name.
QUANTITIES = {
    "rainfall_rate": RAIN_RATE,
    "rain_rate": RAIN_RATE,
    "precipitation": RAIN_RATE,
    "lwe_precipitation_rate": RAIN_RATE,
    "rainfall_flux": RAIN_RATE,
    "precipitation_flux": RAIN_RATE,
    "equivalent_reflectivity_factor": REFLECTIVITY,
    "reflectivity": REFLECTIVITY,
}
# Factors to the units of the convention; any other spelling is refused, never guessed.
FACTORS = {
    RAIN_RATE.name: {
        **dict.fromkeys(("mm h-1", "mm/h", "mm hr-1", "mm/hr", "mm h^-1", "kg m-2 h-1"), 1.0),
        **dict.fromkeys(("mm s-1", "mm/s", "kg m-2 s-1", "kg m^-2 s^-1"), 3600.0),
    },
    REFLECTIVITY.name: {"dBZ": 1.0, "dbz": 1.0},
}
_AXES = {
    "y": {"standard_name": ("projection_y_coordinate", "latitude"), "names": ("lat", "latitude")},
    "x": {"standard_name": ("projection_x_coordinate", "longitude"), "names": ("lon", "longitude")},
}
_LENGTHS = {"m": 1.0, "metre": 1.0, "meter": 1.0, "metres": 1.0, "meters": 1.0, "km": 1000.0}
_DEGREES = {"degree_north", "degrees_N", "degreeN", "degree_east", "degrees_E", "degreeE"}


def read_cf(path: Path | str) -> xr.Dataset:
    """Open a NetCDF file or a Zarr store of frames that follows CF, lazily.

    Dimensions are found by standard name, axis or name and become ``time``, ``y`` and ``x``; a
    rain rate becomes ``rain_rate`` in mm h-1 and a reflectivity ``reflectivity`` in dBZ, below
    which 0 dBZ is dry. Any other quantity keeps its name and units.

    Parameters
    ----------
    path
        A NetCDF file or the folder of a Zarr store.

    Returns
    -------
    xr.Dataset
        Every variable with time, y and x, as 32-bit floats in Dask chunks of many frames.

    Raises
    ------
    ValueError
        If there is no such variable, or it does not keep the convention.

    Examples
    --------
    >>> import tempfile
    >>> from nowcast.data.synthetic import synthesise
    >>> path = Path(tempfile.mkdtemp()) / "rain.nc"
    >>> observed = synthesise(hours=1, size=16)
    >>> observed["time"].encoding["units"] = "seconds since 1970-01-01"
    >>> observed.to_netcdf(path)
    >>> read_cf(path)["rain_rate"].dims
    ('time', 'y', 'x')
    """
    stored = _open(Path(path))
    dataset = _rename_axes(stored, Path(path))
    names = [str(name) for name, array in dataset.items() if _is_gridded(array)]
    if not names:
        raise ValueError(
            f"no variable has time, y and x; it holds {_shown(stored)}; coordinates are found by "
            "their standard_name, axis or name (time, y, x, latitude, longitude)"
        )
    parts = [_quantity(dataset, name) for name in names]
    for part in parts:
        check_observations(part)
    return xr.merge(parts, combine_attrs="override", compat="identical", join="exact")


def _open(path: Path) -> xr.Dataset:
    if is_zarr(path):
        return xr.open_dataset(path, engine="zarr", chunks=None, cache=False, consolidated=False)
    with path.open("rb") as file:
        classic = file.read(4) in CLASSIC_NETCDF
    # The netCDF library reads what a truncated classic file lacks as zero, which would pass for
    # dry; scipy refuses the file.
    return xr.open_dataset(path, engine="scipy" if classic else "netcdf4", chunks=None, cache=False)


def _rename_axes(dataset: xr.Dataset, path: Path) -> xr.Dataset:
    """Give the dataset with dimensions ``time``, ``y``, ``x``, chunked by many frames."""
    times = [name for name in dataset.coords if dataset[name].attrs.get("standard_name") == "time"]
    time = next(iter([*(t for t in times if dataset[t].ndim < 2), "time"]))
    if time in dataset.coords and dataset[time].ndim == 0:
        dataset = dataset.expand_dims(str(time))
    dataset = _chunk(dataset, str(time), path)
    axes = {name: axis for axis in _AXES for name in dataset.dims if _is_axis(dataset, name, axis)}
    if len(axes) != 2:
        return dataset.rename({time: "time"} if time in dataset.dims else {})
    names = {**axes, time: "time"}
    return dataset.rename({old: new for old, new in names.items() if old in dataset.dims})


def _chunk(dataset: xr.Dataset, time: str, path: Path) -> xr.Dataset:
    if time not in dataset.dims:
        return dataset
    stored = [array.encoding.get("preferred_chunks", {}).get(time, 1) for array in dataset.values()]
    largest = max((array.size // dataset.sizes[time] for array in dataset.values()), default=1)
    fitting = LARGEST_CHUNK // (largest * np.dtype(np.float32).itemsize)
    frames = max([1, *stored])
    size = frames * max(1, min(FRAMES_PER_CHUNK, fitting) // frames)
    # A chunk that is rewritten in a Zarr store does not touch its folder.
    parts = [path, *path.rglob("*")] if path.is_dir() else [path]
    token = f"{path.resolve()}-{max(part.stat().st_mtime_ns for part in parts)}"
    return dataset.chunk({time: size}, token=token)


def _is_axis(dataset: xr.Dataset, name: Any, axis: str) -> bool:
    if name not in dataset.coords:
        return False
    attributes = dataset[name].attrs
    return (
        attributes.get("standard_name") in _AXES[axis]["standard_name"]
        or attributes.get("axis") == axis.upper()
        or str(name).lower() in (axis, *_AXES[axis]["names"])
    )


def _is_gridded(array: xr.DataArray) -> bool:
    longer = {dim for dim, size in array.sizes.items() if size > 1}
    return {"time", "y", "x"} <= set(array.dims) and longer <= {"time", "y", "x"}


def _quantity(dataset: xr.Dataset, name: str) -> xr.Dataset:
    """Give the dataset of one variable alone, with its grid mapping and bounds of time."""
    array = dataset[name]
    extra = [dim for dim in array.dims if dim not in {"time", "y", "x"}]
    array = array.squeeze(extra, drop=True).transpose("time", "y", "x").reset_coords(drop=True)
    known = _known(array, name)
    array = _in_units(array, known) if known else array.astype(np.float32)
    array.attrs["grid_mapping"] = GRID_MAPPING
    array.attrs.setdefault("long_name", name)
    part = array.drop_encoding().to_dataset(name=known.name if known else name)
    coordinates = {**_grid_mapping(dataset, name), **_bounds(dataset), **_labels(dataset)}
    part = part.assign_coords({axis: _axis(dataset[axis], axis) for axis in ("y", "x")})
    part = part.assign_coords(coordinates).assign_attrs(dataset.attrs)
    return _with_clean_time(part)


def _known(array: xr.DataArray, name: str) -> Variable | None:
    return QUANTITIES.get(array.attrs.get("standard_name", name))


def _in_units(array: xr.DataArray, known: Variable) -> xr.DataArray:
    units = str(array.attrs.get("units", "")).strip()
    factors = FACTORS[known.name]
    if units not in factors:
        raise ValueError(
            f"{array.name!r} looks like {known.long_name}, but its units {units!r} are unknown; "
            f"known are {', '.join(factors)}"
        )
    values = array.astype(np.float32)
    if factors[units] != 1.0:
        values = values * np.float32(factors[units])
    # Weaker than 0 dBZ is dry, as everywhere in nowcast; NaN stays NaN.
    values = values.clip(min=np.float32(0.0)) if known == REFLECTIVITY else values
    kept = {key: array.attrs[key] for key in ("long_name", "cell_methods") if key in array.attrs}
    return values.assign_attrs({**known.attributes, **kept})


def _grid_mapping(dataset: xr.Dataset, name: str) -> dict[str, xr.Variable]:
    array = dataset[name]
    named = str(array.attrs.get("grid_mapping") or array.encoding.get("grid_mapping") or "")
    mapping = named.split(":")[0].split(" ")[0]
    if mapping in dataset.variables:
        return {GRID_MAPPING: xr.Variable((), np.int32(0), dataset[mapping].attrs)}
    if not mapping and dataset["y"].attrs.get("units", "").startswith("degree"):
        return {
            GRID_MAPPING: xr.Variable((), np.int32(0), {"grid_mapping_name": "latitude_longitude"})
        }
    raise ValueError(
        f"{name!r} lies on a projection, but names no grid mapping that the file holds "
        f"({named!r}); add one as CF describes"
    )


def _axis(coordinate: xr.DataArray, axis: str) -> xr.Variable:
    units = str(coordinate.attrs.get("units", ""))
    kept = {k: v for k, v in coordinate.attrs.items() if k in ("standard_name", "long_name")}
    values = coordinate.values.astype(np.float64)
    if units in _LENGTHS:
        values, units = values * _LENGTHS[units], "m"
    elif units in _DEGREES:
        units = {"y": "degrees_north", "x": "degrees_east"}[axis]
    return xr.Variable((axis,), values, {**kept, "units": units, "axis": axis.upper()})


def _bounds(dataset: xr.Dataset) -> dict[str, Any]:
    time = dataset["time"]
    name = time.attrs.get("bounds") or time.encoding.get("bounds")
    if not name or name not in dataset.variables or dataset[name].ndim != 2:
        return {}
    return {"time_bnds": (("time", "bnds"), dataset[name].values)}


def _labels(dataset: xr.Dataset) -> dict[str, xr.Variable]:
    if LABEL not in dataset.variables or "flag_meanings" not in dataset[LABEL].attrs:
        return {}  # or something else of that name
    return {LABEL: dataset[LABEL].variable}


def _with_clean_time(part: xr.Dataset) -> xr.Dataset:
    attributes = {"standard_name": "time"}
    if "time_bnds" in part.coords:
        attributes["bounds"] = "time_bnds"
    time = xr.Variable(("time",), part["time"].values, attributes)
    return part.assign_coords(time=time)


def _shown(dataset: xr.Dataset) -> str:
    held: Iterable[str] = (f"{name}{array.dims}" for name, array in dataset.items())
    return "; ".join(held) or "no variable"
