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

    mapping = CRS.from_user_input(projection).to_cf()
    return {k: v for k, v in mapping.items() if k not in _LEFT_OUT and v != "unknown"}


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


def _most(stream: Any, limit: int) -> bytes:
    read: bytes = stream.read(limit + 1)
    if len(read) > limit:
        raise ValueError(f"is larger than {limit:,} bytes, the limit for one file")
    return read
