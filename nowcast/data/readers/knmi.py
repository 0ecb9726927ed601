"""KNMI's HDF5 composites: rain accumulated over five minutes on a 1 km grid."""

import datetime
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import RAIN_RATE
from nowcast.data.readers import building, hdf5

QUANTITY = "ACCUMULATED_PRECIPITATION_[MM]"
CALIBRATION = (0.01, 0.0)  # mm per count and mm: the only one KNMI gives for this quantity
INTERVAL = pd.Timedelta(minutes=5)  # that each frame accumulates over
REFERENCES = "KNMI HDF5 Data Format Specification, version 3.5"

_NUMBER = r"[+-]?\d+(?:\.\d*)?(?:[eE][+-]?\d+)?"
_FORMULA = re.compile(rf"\s*GEO\s*=\s*({_NUMBER})\s*\*\s*PV\s*\+\s*({_NUMBER})\s*")
_TIME = re.compile(r"(\d{2})-([A-Z]{3})-(\d{4});(\d{2}):(\d{2}):(\d{2})(?:\.0*)?")
_PROJECTION = re.compile(rf"\+(proj|lat_0|lon_0|lat_ts|a|b|x_0|y_0)=(stere|{_NUMBER})")
_LENGTHS = frozenset({"a", "b", "x_0", "y_0"})
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_METRES_PER_UNIT = {"KM,KM": 1000.0, "M,M": 1.0}
_KILOMETRE_RADIUS = 10_000.0  # an Earth radius below this number is in km, not in metres


def read_knmi(path: Path | str) -> xr.Dataset:
    """Read one frame of KNMI's five-minute rain composite as rain rate.

    Unit, calibration and interval come from the file and must be those known of KNMI. `time` is
    the end of the interval. The counts stay on disk until they are computed.

    Parameters
    ----------
    path
        An HDF5 file such as ``RAD_NL25_RAP_5min_201008260000.h5``.

    Returns
    -------
    xr.Dataset
        ``rain_rate(time, y, x)`` in mm h-1; not observed is NaN, dry is 0.

    Raises
    ------
    ValueError
        If the content disagrees with what is known of these files.

    Examples
    --------
    >>> parse_time("26-AUG-2010;00:05:00.000")
    Timestamp('2010-08-26 00:05:00')
    >>> parse_calibration("GEO=0.01*PV+0.0")
    (0.01, 0.0)
    """
    import h5py

    path = Path(path)
    with h5py.File(path, "r") as file:
        image, geographic = hdf5.find(file, "image1"), hdf5.find(file, "geographic")
        _check_quantity(image)
        shape = _check_image(image, geographic)
        y, x, mapping = _grid(geographic, shape)
        end = _end(hdf5.find(file, "overview"))
        product = _text(image, "image_product_name")
    return building.observations(
        _lazy(path, shape),
        variable=RAIN_RATE,
        times=[end],
        interval=INTERVAL,
        y=y,
        x=x,
        mapping=mapping,
        provenance={
            "title": "KNMI radar rain rate, five-minute composite",
            "institution": "Royal Netherlands Meteorological Institute (KNMI)",
            "source": "KNMI",
            "product": product,
            "references": REFERENCES,
        },
        path=path,
        attributes={"cell_methods": "time: mean"},
    )


def parse_time(text: str) -> pd.Timestamp:
    """Give the UTC time of a KNMI date, whatever the language of the computer."""
    match = _TIME.fullmatch(text)
    if not match or match[2] not in _MONTHS:
        raise ValueError(f"{text!r} is no KNMI time; one looks like '26-AUG-2010;00:05:00.000'")
    day, year, hour, minute, second = (int(match[part]) for part in (1, 3, 4, 5, 6))
    month = _MONTHS.index(match[2]) + 1
    return pd.Timestamp(datetime.datetime(year, month, day, hour, minute, second))


def parse_calibration(formula: str) -> tuple[float, float]:
    """Give factor and offset of a calibration such as ``GEO=0.01*PV+0.0``; nothing is run."""
    match = _FORMULA.fullmatch(formula)
    if not match:
        raise ValueError(f"{formula!r} is no calibration; one looks like 'GEO=0.01*PV+0.0'")
    return float(match[1]), float(match[2])


def parse_projection(proj4: str) -> dict[str, float]:
    """Give the parameters, lengths in metres, of KNMI's stereographic proj4 string.

    KNMI writes the Earth's radii in kilometres (``+a=6378.137``), which proj4 would take for
    metres. Only the parameters of this projection are accepted.
    """
    matches = [_PROJECTION.fullmatch(part) for part in proj4.split()]
    found = {match[1]: match[2] for match in matches if match}
    if found.pop("proj", "") != "stere" or not all(matches) or "stere" in found.values():
        raise ValueError(f"the projection {proj4!r} is not KNMI's stereographic one")
    missing = {"lat_0", "lon_0", "lat_ts", "a", "b"} - set(found)
    if missing:
        raise ValueError(f"the projection {proj4!r} lacks {', '.join(sorted(missing))}")
    numbers = {name: float(text) for name, text in found.items()}
    scale = 1000.0 if numbers["a"] < _KILOMETRE_RADIUS else 1.0
    return {n: value * scale if n in _LENGTHS else value for n, value in numbers.items()}


def _check_quantity(image: Any) -> None:
    quantity = _text(image, "image_geo_parameter")
    if quantity != QUANTITY:
        raise ValueError(f"the quantity is {quantity!r}; only {QUANTITY!r} is known")
    formula = _text(hdf5.find(image, "calibration"), "calibration_formulas")
    calibration = parse_calibration(formula)
    if calibration != CALIBRATION:
        raise ValueError(
            f"the calibration is {calibration[0]} mm per count and {calibration[1]} mm; "
            f"KNMI's is {CALIBRATION[0]} and {CALIBRATION[1]}"
        )


def _check_image(image: Any, geographic: Any) -> tuple[int, int]:
    """Give the shape of the frame once it is safe and complete enough to be read."""
    counts = hdf5.find(image, "image_data")
    shape = getattr(counts, "shape", None)
    rows, columns = (int(_number(geographic, f"geo_number_{part}")) for part in ("rows", "columns"))
    if shape != (rows, columns):
        raise ValueError(f"the frame is {shape}, but {(rows, columns)} pixels are declared")
    if rows * columns > hdf5.MOST_PIXELS:
        raise ValueError(f"the frame claims {shape} pixels; {hdf5.MOST_PIXELS:,} is the limit")
    hdf5.check_stored(counts)
    if counts.dtype.kind != "u" or counts.dtype.itemsize > 2:
        raise ValueError(f"the counts are {counts.dtype}; uint8 or uint16 is known")
    return rows, columns


def _end(overview: Any) -> pd.Timestamp:
    """Give the end of the interval, which must be the known one."""
    start = parse_time(_text(overview, "product_datetime_start"))
    end = parse_time(_text(overview, "product_datetime_end"))
    if end - start != INTERVAL:
        minutes = (end - start) / pd.Timedelta(minutes=1)
        raise ValueError(f"the frame covers {minutes:g} minutes; only 5 are known")
    return end


def _grid(
    geographic: Any, shape: tuple[int, int]
) -> tuple[xr.Variable, xr.Variable, dict[str, Any]]:
    """Give y, x and the grid mapping; rows and columns are counted from the pole."""
    units = _text(geographic, "geo_dim_pixel")
    if units not in _METRES_PER_UNIT or _text(geographic, "geo_pixel_def") != "LU":
        raise ValueError(f"pixels in {units!r} are unknown; {sorted(_METRES_PER_UNIT)} would do")
    projection = parse_projection(
        _text(hdf5.find(geographic, "map_projection"), "projection_proj4_params")
    )
    scale = _METRES_PER_UNIT[units]
    y = building.axis("y", scale * _centres(geographic, "y", "row", shape[0]))
    x = building.axis("x", scale * _centres(geographic, "x", "column", shape[1]))
    mapping = building.grid_mapping({"proj": "stere", **projection})
    return y, x, {**mapping, "latitude_of_projection_origin": projection["lat_0"]}


def _centres(geographic: Any, axis: str, part: str, size: int) -> Any:
    offset = _number(geographic, f"geo_{part}_offset")
    pixel_size = _number(geographic, f"geo_pixel_size_{axis}")
    if not (math.isfinite(offset) and math.isfinite(pixel_size) and pixel_size):
        raise ValueError(f"{part} offset {offset} and pixel size {pixel_size} give no grid")
    return (offset + np.arange(size) + 0.5) * pixel_size


def _lazy(path: Path, shape: tuple[int, int]) -> Any:
    import dask
    import dask.array

    # The modification time keeps two contents of one path apart in a Dask graph.
    frame = dask.delayed(_decode, pure=True)(str(path), path.stat().st_mtime_ns)
    return dask.array.from_delayed(frame, (1, *shape), dtype=np.float32)


def _decode(path: str, _modified: int) -> Any:
    """Give rain rate in mm/h for the counts of a file that `read_knmi` has checked."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            counts = file["image1/image_data"][...]
            calibration = file["image1/calibration"]
            names = ("calibration_missing_data", "calibration_out_of_image")
            codes = [_number(calibration, name) for name in names]
    except (OSError, RuntimeError, KeyError) as error:
        raise ValueError(f"{path} is damaged: its counts cannot be read: {error}") from error
    factor, offset = CALIBRATION
    per_hour = pd.Timedelta(hours=1) / INTERVAL
    rain_rate = ((counts * factor + offset) * per_hour).astype(np.float32)
    rain_rate[np.isin(counts, codes)] = np.nan
    return rain_rate[None]


def _text(group: Any, name: str) -> str:
    return str(_attribute(group, name))


def _number(group: Any, name: str) -> float:
    return float(_attribute(group, name))


def _attribute(group: Any, name: str) -> str | float:
    value = hdf5.attribute(group, name)
    if value is None:
        raise ValueError(f"the file lacks the attribute {name!r} where it belongs")
    return value
