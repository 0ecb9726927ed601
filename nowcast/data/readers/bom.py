"""The Bureau of Meteorology's Rainfields 3: rain accumulated over some minutes, as netCDF."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import RAIN_RATE
from nowcast.data.readers import hdf5
from nowcast.data.readers.building import axis, grid_mapping, observations, within_range

AMOUNT = "precipitation"
UNITS = ("kg m-2", "mm")
LONGEST = pd.Timedelta(hours=24)  # interval of an accumulation
TIME_UNITS = "seconds since 1970-01-01 00:00:00 UTC"
REFERENCES = "http://www.bom.gov.au/other/copyright.shtml"

_GRID_MAPPING = "albers_conical_equal_area"
_PARAMETERS = {
    "longitude_of_central_meridian": "lon_0",
    "latitude_of_projection_origin": "lat_0",
    "false_easting": "x_0",
    "false_northing": "y_0",
    "semi_major_axis": "a",
    "inverse_flattening": "rf",
}
_METRES = {"km": 1000.0, "m": 1.0}


def read_bom(path: Path | str) -> xr.Dataset:
    """Read one accumulation of Rainfields 3 as rain rate.

    Unit, scale, interval and grid come from the file. `time` is its valid time, the end of the
    interval. What decodes to less than nothing is missing and counted.

    Parameters
    ----------
    path
        Such as ``2_20180616_120000.prcp-cscn.nc``.

    Returns
    -------
    xr.Dataset
        ``rain_rate(time, y, x)`` in mm h-1; not observed is NaN, dry is 0. `product` names the
        radar station, the kind of product and its minutes.

    Raises
    ------
    ValueError
        If the content disagrees with what is known of these files.
    """
    import h5py

    with h5py.File(path, "r") as file:
        start, end = (_time(file, name) for name in ("start_time", "valid_time"))
        interval = end - start
        if not pd.Timedelta(0) < interval <= LONGEST:
            raise ValueError(f"the amount is one from {start} to {end}; at most a day is known")
        amounts = _amounts(file)
        y, x = (_axis(file, name, size) for name, size in zip("yx", amounts.shape, strict=True))
        mapping = _mapping(file)
        station, title = _number(file, "station_id"), _text(file, "title")
        provenance = {
            "title": f"Rainfields 3, {_text(file, 'station_name')}: {title}",
            "institution": _text(file, "institution"),
            "source": "BoM",
            "product": f"{station:g} {title} {interval / pd.Timedelta(minutes=1):g} min",
            "references": REFERENCES,
            "license": _text(file, "licence"),
        }
    hours = interval / pd.Timedelta(hours=1)
    values, out_of_range = within_range((amounts / hours).astype(np.float32)[None], RAIN_RATE)
    return observations(
        values,
        variable=RAIN_RATE,
        times=[end],
        interval=interval,
        y=y,
        x=x,
        mapping=mapping,
        provenance=provenance,
        path=path,
        attributes={"cell_methods": "time: mean", "out_of_range": out_of_range},
    )


def _amounts(file: Any) -> Any:
    """Give amounts in mm, NaN where missing, once the frame is known and safe to be read."""
    stored = _part(file, AMOUNT, ndim=2)
    units, kind = _text(stored, "units"), _text(stored, "standard_name")
    if units not in UNITS or kind != "precipitation_amount":
        raise ValueError(
            f"it holds {kind!r} in {units!r}; precipitation_amount in {' or '.join(UNITS)} is known"
        )
    if stored.dtype.kind != "i" or stored.dtype.itemsize > 2:
        raise ValueError(f"the amounts are {stored.dtype}; whole numbers of 16 bits are known")
    scale, offset = _number(stored, "scale_factor"), _number(stored, "add_offset")
    if not scale > 0 or offset != 0:
        raise ValueError(f"scale {scale} and offset {offset} give no amount in which dry is 0")
    missing = _number(stored, "_FillValue")
    counts = hdf5.frame(stored, stored.shape)
    return np.where(counts == missing, np.nan, counts * scale)


def _axis(file: Any, name: str, size: int) -> xr.Variable:
    """Give the coordinate in metres, which must reach as far as it says."""
    stored = _part(file, name, ndim=1)
    units, kind = _text(stored, "units"), _text(stored, "standard_name")
    if units not in _METRES or kind != f"projection_{name}_coordinate":
        raise ValueError(f"{name} is a {kind!r} in {units!r}; known units are {', '.join(_METRES)}")
    if stored.shape != (size,):
        raise ValueError(f"{name} has {stored.shape[0]} coordinates for {size} pixels")
    hdf5.check_stored(stored)
    centres = stored[...].astype(np.float64)
    reach, declared = (
        (centres.min(), centres.max()),
        (_number(stored, "valid_min"), _number(stored, "valid_max")),
    )
    if reach != declared:
        raise ValueError(f"{name} reaches from {reach[0]} to {reach[1]}, and says {declared}")
    return axis(name, centres * _METRES[units])


def _mapping(file: Any) -> dict[str, Any]:
    stored = hdf5.find(file, _text(file[AMOUNT], "grid_mapping"))
    name = _text(stored, "grid_mapping_name")
    if name != _GRID_MAPPING:
        raise ValueError(f"the projection is {name!r}; {_GRID_MAPPING!r} is known")
    if "standard_parallel" not in stored.attrs or (
        stored.attrs.get_id("standard_parallel").shape != (2,)
    ):
        raise ValueError("the projection needs two standard parallels")
    first, second = map(float, stored.attrs["standard_parallel"])
    numbers = {proj: _number(stored, cf) for cf, proj in _PARAMETERS.items()}
    return grid_mapping({"proj": "aea", "lat_1": first, "lat_2": second, **numbers})


def _time(file: Any, name: str) -> pd.Timestamp:
    stored = _part(file, name, ndim=0)
    units = _text(stored, "units")
    if units != TIME_UNITS:
        raise ValueError(f"{name} counts {units!r}; {TIME_UNITS!r} is known")
    hdf5.check_stored(stored)
    return pd.Timestamp(int(stored[()]), unit="s")


def _part(file: Any, name: str, *, ndim: int) -> Any:
    stored = hdf5.find(file, name)
    if stored is None or len(getattr(stored, "shape", None) or ()) != ndim:
        raise ValueError(f"it lacks the variable {name!r} of {ndim} dimensions")
    return stored


def _text(stored: Any, name: str) -> str:
    value = hdf5.attribute(stored, name)
    if not isinstance(value, str):
        raise ValueError(f"it lacks the text {name!r}, or that is none: {value!r}")
    return value


def _number(stored: Any, name: str) -> float:
    value = hdf5.attribute(stored, name)
    if not isinstance(value, float) or not math.isfinite(value):
        raise ValueError(f"it lacks the number {name!r}, or that is none: {value!r}")
    return value
