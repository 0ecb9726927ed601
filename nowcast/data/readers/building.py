"""What every reader needs: bytes within limits, grids, observations that keep the convention."""

import gzip
import io
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast import durable
from nowcast.conventions import (
    CF_CONVENTIONS,
    GRID_MAPPING,
    Variable,
    check_observations,
)

LARGEST_FILE = 200_000_000  # bytes, unpacked; no radar composite known comes near
GZIP = b"\x1f\x8b"
MOST_OUT_OF_RANGE = 1e-3  # part of the observed pixels; a file with more of them is refused
QUALITY = "quality"  # of an ancillary variable, from 0 (useless) to 1 (best)
_QUALITY = {"long_name": "quality index", "units": "1", "grid_mapping": GRID_MAPPING}

# The WKT and what follows from other parameters change with the version of PROJ, and the grid's
# identity must not.
_LEFT_OUT = frozenset({"crs_wkt", "inverse_flattening", "prime_meridian_name"})


def content(path: Path | str, *, limit: int = LARGEST_FILE) -> bytes:
    """Give the bytes of a file, unpacked if it is gzipped, within a limit.

    Raises
    ------
    ValueError
        If there are more than `limit` bytes, or the packed ones are damaged or cut short.
    """
    with Path(path).open("rb") as file:
        raw = _most(file, limit)
    if not raw.startswith(GZIP):
        return raw
    try:
        with gzip.open(io.BytesIO(raw)) as unpacked:
            return _most(unpacked, limit)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"the gzipped content is damaged or cut short: {error}") from error


def grid_mapping(projection: Any) -> dict[str, Any]:
    """Give the CF attributes of a projection, without what changes between versions of PROJ.

    Parameters
    ----------
    projection
        Anything that `pyproj.CRS.from_user_input` takes.

    Examples
    --------
    >>> grid_mapping("+proj=laea +lat_0=55 +lon_0=10 +ellps=WGS84")["grid_mapping_name"]
    'lambert_azimuthal_equal_area'
    """
    from pyproj import CRS

    crs = CRS.from_user_input(projection)
    mapping = crs.to_cf()
    if "grid_mapping_name" not in mapping:
        mapping = _spherical_laea(crs)
    if mapping["grid_mapping_name"] == "polar_stereographic":
        # CF asks for the pole itself, which PROJ leaves to the sign of the parallel.
        north = mapping.get("standard_parallel", 90.0) > 0
        mapping.setdefault("latitude_of_projection_origin", 90.0 if north else -90.0)
    unnamed = {k for k, v in mapping.items() if str(v).lower().startswith("unknown")}
    return {k: v for k, v in mapping.items() if k not in _LEFT_OUT | unnamed}


def axis(name: str, centres: Any, units: str = "m") -> xr.Variable:
    """Give the coordinate ``y`` or ``x`` of pixel centres, in metres or degrees.

    Parameters
    ----------
    name
        ``y`` or ``x``.
    centres
        In `units`.
    units
        ``m`` or ``degrees``.
    """
    if units == "m":
        attributes = {"standard_name": f"projection_{name}_coordinate", "units": "m"}
    else:
        names = {"y": ("latitude", "degrees_north"), "x": ("longitude", "degrees_east")}
        attributes = dict(zip(("standard_name", "units"), names[name], strict=True))
    values = np.asarray(centres, np.float64)
    return xr.Variable((name,), values, {**attributes, "axis": name.upper()})


def observations(
    values: Any,
    *,
    variable: Variable,
    times: Any,
    interval: pd.Timedelta | None,
    y: xr.Variable,
    x: xr.Variable,
    mapping: dict[str, Any],
    provenance: dict[str, str],
    path: Path | str,
    quality: Any = None,
    bounds: Any = None,
    attributes: dict[str, Any] | None = None,
) -> xr.Dataset:
    """Give observations that keep the convention, from what a reader found in a file.

    Parameters
    ----------
    values : (time, y, x)
        In the units of the variable; NaN where not observed, its least value where dry.
    variable
        What was measured.
    times
        Nominal, UTC.
    interval
        Over which a frame was measured, up to its nominal time; None where the file does not say,
        or `bounds` does.
    y, x
        See `axis`.
    mapping
        CF attributes of the projection; see `grid_mapping`.
    provenance
        ``title``, ``institution``, ``source``, ``product``, ``references``; where the sender
        tells versions of one frame apart, ``product_time`` (ISO) or ``product_version``.
    path
        Of the file, whose hash is noted.
    quality : (time, y, x)
        Index from 0 to 1, NaN where there is none.
    bounds : (time, bnds)
        Start and end of the measurement, where it does not end at the nominal time.
    attributes
        More attributes of the variable, such as ``cell_methods``.

    Raises
    ------
    ValueError
        If they do not keep the convention.
    """
    times = pd.DatetimeIndex(np.atleast_1d(np.asarray(times, "datetime64[ns]")))
    attributes = {**variable.attributes, **(attributes or {})}
    data = {variable.name: (("time", "y", "x"), values, attributes)}
    if quality is not None:
        attributes["ancillary_variables"] = QUALITY
        data[QUALITY] = (("time", "y", "x"), quality, dict(_QUALITY))
    time = {"standard_name": "time"}
    if interval is not None:
        bounds = np.stack([times - interval, times], axis=1)
    coordinates: dict[str, Any] = {"y": y, "x": x, GRID_MAPPING: ((), np.int32(0), mapping)}
    if bounds is not None:
        time["bounds"] = "time_bnds"
        coordinates["time_bnds"] = (("time", "bnds"), np.asarray(bounds, "datetime64[ns]"))
    coordinates["time"] = ("time", times, time)
    sha256 = durable.sha256(path) if Path(path).is_file() else ""
    heading = {"Conventions": CF_CONVENTIONS, **provenance, "input_sha256": sha256}
    return check_observations(xr.Dataset(data, coordinates, heading), variable)


def within_range(values: Any, variable: Variable) -> tuple[Any, int]:
    """Give values with NaN for the few that cannot be, and how many those were.

    Composites hold a stray pixel of thousands of millimetres now and then, or a small negative
    one. Where they are many, the units or the calibration are not what they are said to be.

    Parameters
    ----------
    values
        In the units of the variable; NaN where not observed. Changed in place.
    variable
        Whose valid range counts.

    Raises
    ------
    ValueError
        If they are more than a thousandth of the observed pixels.

    Examples
    --------
    >>> from nowcast.conventions import RAIN_RATE
    >>> values, count = within_range(np.append(np.ones(2000), 4000.0), RAIN_RATE)
    >>> count, float(values[-1])
    (1, nan)
    """
    wrong = (values < variable.valid_min) | (values > variable.valid_max)
    count = int(np.count_nonzero(wrong))
    if not count:
        return values, 0
    observed = values.size - int(np.count_nonzero(np.isnan(values)))
    if count > MOST_OUT_OF_RANGE * observed:
        raise ValueError(
            f"{count:,} of {observed:,} observed pixels lie outside {variable.valid_min:g} to "
            f"{variable.valid_max:g} {variable.units}, from {np.nanmin(values):g} to "
            f"{np.nanmax(values):g}; check the units and the calibration"
        )
    values[wrong] = np.nan
    return values, count


def _spherical_laea(crs: Any) -> dict[str, Any]:
    """Give the CF attributes of the one projection for which pyproj has none."""
    operation = crs.coordinate_operation
    if operation is None or operation.method_name != "Lambert Azimuthal Equal Area (Spherical)":
        raise ValueError("CF has no words for the projection")
    numbers = {parameter.name: parameter.value for parameter in operation.params}
    return {
        "semi_major_axis": crs.ellipsoid.semi_major_metre,
        "semi_minor_axis": crs.ellipsoid.semi_minor_metre,
        "grid_mapping_name": "lambert_azimuthal_equal_area",
        "latitude_of_projection_origin": numbers["Latitude of natural origin"],
        "longitude_of_projection_origin": numbers["Longitude of natural origin"],
        "false_easting": numbers["False easting"],
        "false_northing": numbers["False northing"],
    }


def _most(stream: Any, limit: int) -> bytes:
    read: bytes = stream.read(limit + 1)
    if len(read) > limit:
        raise ValueError(f"is larger than {limit:,} bytes, the limit for one file")
    return read
