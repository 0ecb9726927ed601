"""One frame in one file: plain CF netCDF, named from its content, that says all of itself."""

import datetime
import hashlib
import io
import json
import re
import shutil
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nowcast import durable
from nowcast.conventions import CF_CONVENTIONS, GRID_MAPPING, VARIABLES, Variable, grid_id
from nowcast.data.index import Frame
from nowcast.data.quality import frame_statistics
from nowcast.data.readers import first_line

MARK = "nowcast_frame"  # the attribute from which the frame's row can be made again
FRAME_FILES = "*/*/*/[0-9][0-9][0-9][0-9]/[0-9][0-9]/[0-9][0-9]/[0-9]*.nc"
SPARE = 1_000_000  # bytes that must be free beside those of a frame
LIBRARY = threading.RLock()  # the netCDF library is not safe in threads: its users take turns

_KEPT = ("title", "institution", "source", "product", "references", "license", "comment")
_TIMES = ("time", "time_bnds")
# What the writer sets itself, and what netCDF takes as the name of an attribute.
_ENCODED = {"_FillValue", "missing_value", "scale_factor", "add_offset", "coordinates", "dtype"}
_ATTRIBUTE = re.compile(r"[A-Za-z][\w.+-]*")
_OF_HDF5 = ("_Netcdf4Dimid", "_Netcdf4Coordinates", "CLASS", "NAME", "DIMENSION_LIST")
_UNSAFE = re.compile(r"[^a-z0-9_-]+")


def sanitise(text: str) -> str:
    """Give a text as part of a path: lowercase letters, digits, ``_`` and ``-`` only.

    Examples
    --------
    >>> sanitise("RAD_NL25/../H1.5")
    'rad_nl25-h1-5'
    """
    return _UNSAFE.sub("-", text.lower())[:64].strip("-") or "unknown"


def path_of(frame: Frame) -> str:
    """Give where a frame lies in its archive; nothing in a name comes from outside.

    Source, slot and the hash of the input make the name.
    """
    at = datetime.datetime.fromtimestamp(frame.time, datetime.UTC)
    return f"{frame.partition}/{at:%Y/%m/%d/%H%M%S}Z-{frame.input_sha256[:8]}.nc"


def write(observed: xr.Dataset, frame: Frame, archive: Path) -> Frame:
    """Write a frame, whole or not at all, and give its complete row.

    The bytes depend on the arguments alone, so writing what is already there changes nothing.

    Parameters
    ----------
    observed
        One frame that keeps the convention, in memory.
    frame
        Its row, of which what is only known on disk is still empty.
    archive
        Folder.
    """
    path = archive / path_of(frame)
    plain = _plain(observed, frame)
    with LIBRARY, durable.replacing(path) as temporary:
        # On a full disk HDF5 speaks of other things, and may end the process.
        durable.require_space(path.parent, plain.nbytes + SPARE)
        problem = ""
        try:
            plain.to_netcdf(temporary, engine="netcdf4", encoding=_encoding(plain))
        except (OSError, RuntimeError) as error:
            problem = first_line(error) or type(error).__name__
        # Raised out here, since the error would keep the file open until some thread without
        # the lock lets go of it, which ends the process.
        if problem:
            free = shutil.disk_usage(path.parent).free
            problem = f"{path} cannot be written: {problem}; is there space left?"
            raise OSError(f"{problem} {free:,} bytes are free")
    return _with_disk(frame, path, archive)


def content(path: Path, sha256: str) -> bytes:
    """Give the bytes of a frame's file, once they are known to be those written.

    Raises
    ------
    ValueError
        If the file is gone or changed.
    """
    if not path.exists():
        raise ValueError(f"the frame {path} is gone; restore it, or run nowcast fsck")
    found = path.read_bytes()
    if hashlib.sha256(found).hexdigest() != sha256:
        raise ValueError(
            f"the frame {path} is damaged: its bytes are not those written; restore it, or run "
            "nowcast fsck and ingest its file again"
        )
    return found


def values(path: Path, sha256: str, variable: str, *, time: int) -> Any:
    """Give the values of a frame, once file and index are known to be those written.

    Parameters
    ----------
    path, sha256, time
        As the index has them; the time in seconds since 1970.
    variable
        Its name.

    Returns
    -------
    values : (y, x)
        float32, NaN where not observed.

    Raises
    ------
    ValueError
        If the file is gone or changed, or is of another time.
    """
    import h5py

    with h5py.File(io.BytesIO(content(path, sha256)), "r") as file:
        found = int(np.ravel(file["time"])[0])
        if found != time:
            told, own = (datetime.datetime.fromtimestamp(at, datetime.UTC) for at in (time, found))
            raise ValueError(
                f"the index of the archive is damaged: it says that the frame {path} is of "
                f"{told:%Y-%m-%dT%H:%M:%SZ}, and its file that it is of {own:%Y-%m-%dT%H:%M:%SZ}; "
                "run nowcast fsck, which makes the index anew"
            )
        return file[variable][0]


def described(path: Path, archive: Path) -> Frame:
    """Give the row of a frame from its file alone, whose values, grid and name are checked.

    Raises
    ------
    ValueError
        If the file is not what the archive wrote.
    """
    import h5py

    found = path.read_bytes()
    try:
        with h5py.File(io.BytesIO(found), "r") as file:
            frame = Frame.of(json.loads(_text(file.attrs[MARK])))
            field, same_grid = file[frame.variable][0], grid_id(_grid(file)) == frame.grid_id
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise ValueError(f"the frame {path} is damaged: {first_line(error)}") from error
    variable = VARIABLES.get(frame.variable, Variable(frame.variable, "", "", "", -np.inf, np.inf))
    values_sha256 = frame_statistics(field, variable).values_sha256
    if values_sha256 != frame.statistics.values_sha256 or not same_grid:
        raise ValueError(f"the frame {path} is damaged: its values or grid are not those written")
    if path_of(frame) != path.relative_to(archive).as_posix():
        raise ValueError(f"the frame {path} says that it belongs at {path_of(frame)}")
    return _with_disk(frame, path, archive, sha256=hashlib.sha256(found).hexdigest())


def _grid(file: Any) -> xr.Dataset:
    """Give the grid of an open HDF5 file, for its identity."""
    mapping = {
        name: _text(value) if isinstance(value, bytes | str) else np.squeeze(value)[()]
        for name, value in file[GRID_MAPPING].attrs.items()
        if name not in _OF_HDF5
    }
    axes = {
        axis: (axis, file[axis][...], {"units": _text(file[axis].attrs["units"])})
        for axis in ("y", "x")
    }
    return xr.Dataset(coords={**axes, GRID_MAPPING: ((), 0, mapping)})


def _text(attribute: Any) -> str:
    return attribute.decode() if isinstance(attribute, bytes) else str(attribute)


def _with_disk(frame: Frame, path: Path, archive: Path, sha256: str = "") -> Frame:
    place = path.relative_to(archive).as_posix()
    arrived = int(path.stat().st_mtime)
    return replace(frame, path=place, sha256=sha256 or durable.sha256(path), arrived=arrived)


def _plain(observed: xr.Dataset, frame: Frame) -> xr.Dataset:
    """Give a frame with nothing but what the convention asks for and the index needs."""
    given = {name: str(observed.attrs[name]) for name in _KEPT if name in observed.attrs}
    mark = json.dumps(frame.content(), sort_keys=True)
    plain = observed.reset_coords([name for name in observed.coords if name not in observed.dims])
    plain = plain.drop_encoding()
    plain.attrs = {"Conventions": CF_CONVENTIONS, **given, MARK: mark}
    simple = (str, int, float, list, np.ndarray, np.generic)
    for name, array in plain.variables.items():
        encoded = _ENCODED | ({"units", "calendar"} if name in _TIMES else set())
        array.attrs = {
            k: v
            for k, v in array.attrs.items()
            if isinstance(v, simple) and k not in encoded and _ATTRIBUTE.fullmatch(k)
        }
    return plain


def _encoding(plain: xr.Dataset) -> dict[str, Any]:
    times = {"units": "seconds since 1970-01-01", "dtype": "int64", "_FillValue": None}
    packed = {"dtype": "float32", "_FillValue": np.float32(np.nan), "zlib": True, "complevel": 1}
    encoding: dict[str, Any] = {axis: {"_FillValue": None} for axis in ("y", "x")}
    for name, array in plain.variables.items():
        if name in _TIMES:
            encoding[str(name)] = times
        elif {"y", "x"} <= set(array.dims):
            # HDF5's shuffle filter leaves a byte of the file to chance; rain packs better without.
            encoding[str(name)] = {**packed, "shuffle": False, "fletcher32": True}
    return encoding
