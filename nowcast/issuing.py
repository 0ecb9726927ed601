"""The issued forecast: one CF netCDF file, one panel and one animation per base time."""

import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast import __version__
from nowcast.conventions import (
    CF_CONVENTIONS,
    VARIABLES,
    check_nowcast,
    grid_mapping_name,
    select,
    variable_of,
)
from nowcast.data.observations import fingerprint
from nowcast.data.quality import FAULTS, flag_names
from nowcast.durable import replacing
from nowcast.frames import input_frames, step_of
from nowcast.nowcasters import Nowcaster
from nowcast.plots import animation, panel

TIME_ENCODING = {"units": "seconds since 1970-01-01T00:00:00Z", "dtype": "int64"}
# xarray adds the attribute dtype = "timedelta64[..]", by which it reopens this as a timedelta;
# from units alone it would read an integer, silently.
LEAD_TIME_ENCODING = {"units": "seconds", "dtype": "int64"}
# The observations' clock is UTC and took the leap seconds in; see CF section 4.4.3.
TIME_ATTRIBUTES = {"units_metadata": "leap_seconds: utc"}
COMPRESSION = {"zlib": True, "complevel": 4, "shuffle": True}
COMMENT = (
    "The fill value (NaN) means missing: not observed, or not reached by the forecast; zero is a "
    "value{}. Times are UTC; valid_time is base_time + lead_time."
)
REFERENCES = "The documentation of nowcast names the sources of each nowcaster."
GOOD = "no flag"
CARRIED = ("title", "institution", "source", "license", "references")  # of the observations

_LOG = logging.getLogger(__name__)


def issue(
    nowcaster: Nowcaster,
    observed: xr.Dataset,
    *,
    base_times: pd.DatetimeIndex,
    lead_times: pd.TimedeltaIndex,
    out: Path | str,
    name: str = "nowcast",
    provenance: dict[str, Any] | None = None,
) -> list[Path]:
    """Write a netCDF file, a panel and an animation of the nowcast from each base time.

    Every file is whole or not there. The netCDF file comes first, so that a plot that fails costs
    no forecast; the error is raised all the same.

    Parameters
    ----------
    nowcaster
        What makes the nowcasts.
    observed
        Dims ``(time, y, x)``; frames after a base time are only drawn, for comparison.
    base_times, lead_times
        UTC. Each base time must be the time of a frame.
    out
        Folder, made if missing.
    name
        First part of the file names, as in ``nowcast-20240601T1230Z.nc``.
    provenance
        Global attributes that say what made the nowcast: ``nowcaster``, ``nowcaster_version``,
        ``nowcaster_sha256``, ``institution`` and the like. What it leaves out of ``nowcaster``,
        ``nowcast_version``, ``input_frames`` and ``input_fingerprint`` is filled in, and
        ``input_quality`` where the observations have flags; faults of frames are warned of.

    Returns
    -------
    list of Path
        Three per base time: ``.nc``, ``.png`` and ``.gif``.

    Raises
    ------
    ValueError
        If there is no frame at a base time, or one of its input frames is absent; nothing is
        written then.

    Examples
    --------
    >>> import tempfile
    >>> from nowcast.data.synthetic import synthesise
    >>> from nowcast.nowcasters import open_nowcaster
    >>> observed = synthesise(hours=1, size=16)
    >>> paths = issue(
    ...     open_nowcaster("persistence"),
    ...     observed,
    ...     base_times=observed["time"].to_index()[3:4],
    ...     lead_times=pd.to_timedelta([10], unit="min"),
    ...     out=tempfile.mkdtemp(),
    ... )
    >>> [path.name for path in paths]
    ['nowcast-20240101T0030Z.nc', 'nowcast-20240101T0030Z.png', 'nowcast-20240101T0030Z.gif']
    >>> open_nowcast(paths[0]).attrs["input_frames"]
    '2024-01-01T00:30:00Z'
    """
    inputs = {time: _input_frames(nowcaster, observed, time) for time in base_times}
    paths: list[Path] = []
    for base_time, frames in inputs.items():
        one = nowcaster.nowcast(
            observed, base_times=pd.DatetimeIndex([base_time]), lead_times=lead_times
        )
        told = _provenance(nowcaster, frames, variable_of(one))
        one = one.assign_attrs({**told, **(provenance or {})})
        stem = f"{name}-{base_time:%Y%m%dT%H%MZ}"
        paths.append(write_nowcast(one, Path(out) / f"{stem}.nc"))
        paths.append(panel(observed, one, path=Path(out) / f"{stem}.png"))
        paths.append(animation(observed, one, path=Path(out) / f"{stem}.gif"))
    return paths


def write_nowcast(nowcast: xr.Dataset, path: Path | str) -> Path:
    """Write a nowcast as a CF netCDF file, whole or not at all.

    Values are packed as compressed float32, and missing stays missing. What is in the attributes
    of the Dataset becomes global attributes; those that CF recommends are added where absent.

    Parameters
    ----------
    nowcast
        Dims ``(base_time, [member,] lead_time, y, x)``; it stays as it is.
    path
        Destination, replaced if there.

    Returns
    -------
    Path
        The destination.

    Raises
    ------
    ValueError
        If the nowcast does not keep the convention.

    Examples
    --------
    >>> import tempfile
    >>> from nowcast.data.synthetic import synthesise
    >>> from nowcast.nowcasters import open_nowcaster
    >>> observed = synthesise(hours=1, size=16)
    >>> nowcast = open_nowcaster("persistence").nowcast(
    ...     observed,
    ...     base_times=observed["time"].to_index()[3:4],
    ...     lead_times=pd.to_timedelta([10, 20], unit="min"),
    ... )
    >>> path = write_nowcast(nowcast, Path(tempfile.mkdtemp()) / "nowcast.nc")
    >>> open_nowcast(path).equals(nowcast)
    True
    """
    content = _as_cf(check_nowcast(nowcast))
    with replacing(path) as temporary:
        # Unlimited, so that files of several base times can be joined by any netCDF tool.
        content.to_netcdf(temporary, engine="netcdf4", unlimited_dims=["base_time"])
    return Path(path)


def open_nowcast(path: Path | str) -> xr.Dataset:
    """Read a nowcast that `write_nowcast` wrote; it is in memory and the file closed.

    Parameters
    ----------
    path
        Of the netCDF file.

    Returns
    -------
    xarray.Dataset
        Dims ``(base_time, [member,] lead_time, y, x)``, ``lead_time`` a timedelta.

    Raises
    ------
    ValueError
        If the file does not keep the convention.
    """
    with xr.open_dataset(path, engine="netcdf4") as file:
        nowcast = file.load()
    mapping = grid_mapping_name(nowcast)
    return check_nowcast(nowcast.set_coords(mapping) if mapping in nowcast else nowcast)


def _as_cf(nowcast: xr.Dataset) -> xr.Dataset:
    mapping = grid_mapping_name(nowcast)
    content = nowcast.reset_coords(mapping).drop_encoding()
    content.attrs = _global_attributes(nowcast)
    # A grid mapping is named by grid_mapping, never by coordinates.
    content[mapping].encoding["coordinates"] = None
    for variable in content.coords.values():
        variable.encoding["_FillValue"] = None  # CF: coordinates have no missing values
    for variable in content.data_vars.values():
        if {"y", "x"} <= set(variable.dims):
            variable.attrs["grid_mapping"] = mapping
            variable.encoding.update(_field_encoding(variable))
    for time in ("base_time", "valid_time"):
        content[time].encoding.update({**TIME_ENCODING, "chunksizes": content[time].shape})
        content[time].attrs.update(TIME_ATTRIBUTES)
    content["lead_time"].encoding.update(LEAD_TIME_ENCODING)
    for axis in ("y", "x"):
        geographic = nowcast[mapping].attrs["grid_mapping_name"] == "latitude_longitude"
        content[axis].attrs = {**_AXES[axis, geographic], **content[axis].attrs}
    return content


_AXES = {
    ("y", False): {"standard_name": "projection_y_coordinate", "axis": "Y"},
    ("x", False): {"standard_name": "projection_x_coordinate", "axis": "X"},
    ("y", True): {"standard_name": "latitude", "axis": "Y"},
    ("x", True): {"standard_name": "longitude", "axis": "X"},
}


def _field_encoding(field: xr.DataArray) -> dict[str, Any]:
    chunks = tuple(size if dim in ("y", "x") else 1 for dim, size in field.sizes.items())
    fill = {"dtype": "float32", "_FillValue": np.float32(np.nan)}
    return {**fill, **COMPRESSION, "chunksizes": chunks}


def _global_attributes(nowcast: xr.Dataset) -> dict[str, Any]:
    given = {key: value for key, value in nowcast.attrs.items() if value is not None}
    field = nowcast[variable_of(nowcast)]
    nowcaster = given.get("nowcaster", "an unnamed nowcaster")
    version = given.get("nowcast_version", __version__)
    by = f"{nowcaster} (version {given.get('nowcaster_version', version)})"
    ends = [f"{time:%Y-%m-%dT%H:%MZ}" for time in nowcast["base_time"].to_index()[[0, -1]]]
    default = {
        "title": f"Nowcast of {field.attrs.get('long_name', field.name)} by {nowcaster}, "
        f"base time {' to '.join(dict.fromkeys(ends))}",
        "institution": "not stated",
        "source": f"forecast from gridded observations by {by}, nowcast {version}",
        "history": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} written by nowcast {version}",
        "references": REFERENCES,
        "comment": COMMENT.format(", dry" if field.name in VARIABLES else ""),
        "nowcast_version": version,
    }
    return {**default, **given, "Conventions": CF_CONVENTIONS}


def _input_frames(
    nowcaster: Nowcaster, observed: xr.Dataset, base_time: pd.Timestamp
) -> xr.Dataset:
    number = nowcaster.input_frames
    step = nowcaster.step or (step_of(observed) if number > 1 else pd.Timedelta(0))
    return input_frames(observed, base_time=base_time, frames=number, step=step)


def _provenance(nowcaster: Nowcaster, frames: xr.Dataset, name: str) -> dict[str, str]:
    """Give what can be told without the caller: what was used, and where that came from."""
    carried = {f"input_{key}": str(frames.attrs[key]) for key in CARRIED if frames.attrs.get(key)}
    return {
        "nowcaster": type(nowcaster).__name__,
        "nowcast_version": __version__,
        "input_frames": " ".join(f"{time.isoformat()}Z" for time in frames["time"].to_index()),
        "input_fingerprint": fingerprint(select(frames, name)),
        **_quality(frames),
        **carried,
    }


def _quality(frames: xr.Dataset) -> dict[str, str]:
    """Tell the flags of the frames that were used, where they have any; warn of faults."""
    if "quality_flag" not in frames.coords:
        return {}
    flags = {
        f"{time.isoformat()}Z": int(flag)
        for time, flag in zip(frames["time"].to_index(), frames["quality_flag"].values, strict=True)
    }
    faults = {time: flag_names(flag & FAULTS) for time, flag in flags.items() if flag & FAULTS}
    if faults:
        _LOG.warning(
            "the nowcast is made from frames that are suspicious: %s; data.leave_out leaves such "
            "frames out",
            _listed(faults),
        )
    return {"input_quality": _listed({t: flag_names(f) for t, f in flags.items() if f}) or GOOD}


def _listed(names: dict[str, list[str]]) -> str:
    return ", ".join(f"{time} {' '.join(its)}" for time, its in names.items())
