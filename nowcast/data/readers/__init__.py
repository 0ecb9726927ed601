"""Readers: one function, path to Dataset, per file format, found by name or by the file itself.

A reader gives observations that keep the convention. A new one is a module with one function
and one line in `READERS`, plus a line in `sniff` if its files can be told by their content; in a
package of its own it is an entry point, see ``docs/readers.md``.
"""

from __future__ import annotations

import glob
import logging
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import xarray as xr


@dataclass(frozen=True)
class Reader:
    """What is known of a reader without importing it.

    Parameters
    ----------
    function
        ``module:function``, which takes a path and gives observations.
    description
        Of the files, in a few words.
    seen
        Whether it was tested on real files of the sender.
    each
        ``module:function``, which takes a path and gives observations for one grid after
        another, where a file may hold several.
    """

    function: str
    description: str
    seen: bool = True
    each: str = ""


_HERE = "nowcast.data.readers"
READERS: dict[str, Reader] = {
    "bom": Reader(f"{_HERE}.bom:read_bom", "Bureau of Meteorology Rainfields, netCDF"),
    "cf": Reader(f"{_HERE}.cf:read_cf", "gridded netCDF or Zarr that follows CF"),
    "fmi_geotiff": Reader(f"{_HERE}.fmi:read_fmi_geotiff", "FMI composite, GeoTIFF", seen=False),
    "fmi_pgm": Reader(f"{_HERE}.fmi:read_fmi_pgm", "FMI reflectivity composite, PGM"),
    "knmi": Reader(f"{_HERE}.knmi:read_knmi", "KNMI rain composite, HDF5"),
    "mch": Reader(f"{_HERE}.mch:read_mch", "MeteoSwiss AQC rain composite, GIF"),
    "meteonet": Reader(f"{_HERE}.meteonet:read_meteonet", "Meteo-France MeteoNet, npz"),
    "mrms": Reader(f"{_HERE}.grib:read_mrms", "NOAA MRMS PrecipRate, GRIB2"),
    "odim": Reader(f"{_HERE}.odim:read_odim", "OPERA and national composites, ODIM HDF5"),
    "radolan": Reader(f"{_HERE}.radolan:read_radolan", "DWD RADOLAN composite"),
    "sevir": Reader(
        f"{_HERE}.sevir:read_sevir",
        "SEVIR events, HDF5",
        seen=False,
        each=f"{_HERE}.sevir:read_events",
    ),
    "stage4": Reader(f"{_HERE}.grib:read_stage4", "NCEP Stage IV, GRIB1", seen=False),
}
GROUP = "nowcast.readers"  # of the entry points by which other packages add readers

HDF5 = b"\x89HDF\r\n\x1a\n"
CLASSIC_NETCDF = (b"CDF\x01", b"CDF\x02")
ZARR_FILES = ("zarr.json", ".zgroup", ".zmetadata")
START = 4096  # bytes of a file, unpacked if gzipped, by which it is told

_GZIP = b"\x1f\x8b"
_ZIP = b"PK\x03\x04"
_RADOLAN = re.compile(rb"[A-Z][0-9A-Z]\d{15}BY *\d+VS")
_MAGIC = {
    "fmi_geotiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "fmi_pgm": (b"P5\n", b"P5 ", b"P5\r"),
    "mch": (b"GIF87a", b"GIF89a"),
}
_GRIB_EDITIONS = {1: "stage4", 2: "mrms"}  # the byte after GRIB and three more
_METEONET = frozenset({"data.npy", "dates.npy"})
_METEONET_GRID = frozenset({"lats.npy", "lons.npy"})
_SEVIR_CATALOG = (b"id,", b"file_name", b"file_index", b"minute_offsets")  # among its columns
_BOM = ("precipitation", "start_time", "valid_time")  # and the global attribute station_id
_MOST_NAMES = 64  # in a zip file that is looked at

# What HDF5, netCDF and Zarr raise on a damaged file, beside ValueError.
_DAMAGE = (OSError, RuntimeError, KeyError, TypeError, IndexError, AttributeError, OverflowError)
_LOG = logging.getLogger(__name__)


def read(path: Path | str, *, reader: str = "") -> xr.Dataset:
    """Read one radar file, or one NetCDF or Zarr store of frames, lazily.

    Parameters
    ----------
    path
        A file, or the folder of a Zarr store.
    reader
        One of `known_readers`; empty: found by the content of the file.

    Returns
    -------
    xr.Dataset
        Observations that keep the convention.

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    ValueError
        If the file is no radar file that nowcast knows, or is damaged; the message names it.

    Examples
    --------
    >>> import tempfile
    >>> text = Path(tempfile.mkdtemp()) / "notes.txt"
    >>> _ = text.write_text("rain at noon")
    >>> read(text)  # doctest: +IGNORE_EXCEPTION_DETAIL
    Traceback (most recent call last):
    ValueError: notes.txt is not a radar file nowcast knows: it starts with b'rain at ' ...
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        return find_reader(reader or sniff(path))(path)
    except (FileNotFoundError, PermissionError):
        raise
    except ValueError as error:
        raise ValueError(_named(path, str(error))) from error
    except _DAMAGE as error:
        reason = f"damaged or cut short: {type(error).__name__}: {first_line(error)}"
        raise ValueError(_named(path, reason)) from error


def read_each(path: Path | str, *, reader: str = "") -> Iterator[xr.Dataset]:
    """Give the observations of a file for one grid after another: of most files, all at once.

    See `read`, whose errors this raises too.
    """
    name = reader or sniff(Path(path))
    if name in READERS and READERS[name].each:
        yield from _function(READERS[name].each)(Path(path))
    else:
        yield read(path, reader=name)


def expand(path: Path | str | Iterable[Path | str]) -> list[Path]:
    """Give the paths that a path, a pattern or a sequence of them names, in order.

    Raises
    ------
    FileNotFoundError
        If a path or pattern names nothing.
    """
    if not isinstance(path, Path | str):
        found = [each for part in path for each in expand(part)]
        if not found:
            raise FileNotFoundError("no file was named")
        return found
    if Path(path).exists():
        return [Path(path)]
    matches = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207, a pattern may be absolute
    if not matches:
        kind = "file matches" if glob.has_magic(str(path)) else "file or folder"
        raise FileNotFoundError(f"no {kind} {path}")
    return [Path(match) for match in matches]


def known_readers() -> dict[str, Reader]:
    """Give the readers by name: `READERS`, and those of other installed packages.

    These are entry points of the group `GROUP`. None may bear the name of one in `READERS`;
    such a one is left out with a warning. Nothing is imported.
    """
    found = dict(READERS)
    for name, point in sorted(_entry_points().items()):
        found[name] = Reader(point.value, f"of the package {point.dist.name}", seen=False)
    return found


def find_reader(name: str) -> Callable[[Path], xr.Dataset]:
    """Give the function of a reader.

    Raises
    ------
    ValueError
        If there is none of this name, in which case the message lists those there are, or if
        the package that brings it cannot be imported.
    """
    if name in READERS:
        found: Callable[[Path], xr.Dataset] = _function(READERS[name].function)
        return found
    points = _entry_points()
    if name not in points:
        known = ", ".join(sorted({*READERS, *points}))
        raise ValueError(f"no reader {name!r}; known readers: {known}")
    return _load(points[name])


def sniff(path: Path) -> str:
    """Give the name of the reader for a file, by its content alone.

    Readers of other packages are asked after the formats that nowcast knows, but before ``cf``,
    since their files may well be netCDF.

    Raises
    ------
    ValueError
        If the file is none that a reader knows.
    """
    if path.is_dir():
        if is_zarr(path):
            return "cf"
        raise ValueError(f"is a folder and no Zarr store; name its files, as in '{path}/*'")
    raw, start = _start(path)
    name = _sniff_own(path, raw, start)
    if name in ("", "cf"):
        name = _sniff_others(path, start) or name
    if not name:
        beginning = f"it starts with {start[:8]!r}" if start else "it is empty"
        known = ", ".join(sorted(known_readers()))
        raise ValueError(
            f"is not a radar file nowcast knows: {beginning}; known readers: {known}; "
            "name one with --reader"
        )
    return name


def auxiliary(path: Path) -> str:
    """Give the reason why a file belongs to a family but holds no frame; empty if it does.

    Such files lie beside the frames: they are neither ingested nor refused.
    """
    if not path.is_file():
        return ""
    raw, _ = _start(path)
    if raw.startswith(_ZIP) and _members(path) == _METEONET_GRID:
        return "grid of the MeteoNet frames beside it"
    if all(column in raw.partition(b"\n")[0] for column in _SEVIR_CATALOG):
        return "catalog of the SEVIR events beside it"
    return ""


def is_zarr(path: Path) -> bool:
    """Tell whether a folder is a Zarr store."""
    return path.is_dir() and any((path / name).exists() for name in ZARR_FILES)


def first_line(error: BaseException) -> str:
    """Give the first line of what an error says."""
    return (str(error).splitlines() or [""])[0]


def _function(place: str) -> Any:
    module, _, function = place.partition(":")
    return getattr(import_module(module), function)


def _start(path: Path) -> tuple[bytes, bytes]:
    """Give the first bytes of a file as they are, and unpacked if they are gzipped."""
    with path.open("rb") as file:
        raw = file.read(START)
    if not raw.startswith(_GZIP):
        return raw, raw
    try:
        return raw, zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(raw, START)
    except zlib.error:
        return raw, raw


def _sniff_own(path: Path, raw: bytes, start: bytes) -> str:
    if raw.startswith(HDF5):
        return _sniff_hdf5(path)
    if start.startswith(CLASSIC_NETCDF):
        return "cf"
    if start.startswith(b"GRIB") and len(start) > 7:
        return _GRIB_EDITIONS.get(start[7], "")
    if _RADOLAN.match(start):
        return "radolan"
    if raw.startswith(_ZIP):
        return "meteonet" if _members(path) >= _METEONET else ""
    return next((name for name, magic in _MAGIC.items() if start.startswith(magic)), "")


def _members(path: Path) -> frozenset[str]:
    """Give the names in a zip file; none if it is damaged, or holds many."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return frozenset()
    return frozenset(names) if len(names) <= _MOST_NAMES else frozenset()


def _sniff_hdf5(path: Path) -> str:
    import h5py

    with h5py.File(path, "r") as file:
        if _holds(file, "image1/calibration") and _holds(file, "geographic"):
            return "knmi"
        odim = _text(file.attrs.get("Conventions", "")).startswith("ODIM_H5")
        if odim or (_holds(file, "what") and "object" in file["what"].attrs):
            return "odim"
        if _holds(file, "id") and _holds(file, "vil"):
            return "sevir"
        if "station_id" in file.attrs and all(_holds(file, name) for name in _BOM):
            return "bom"
        names = (name for name in file if _holds(file, name))
        scales = (file[name].attrs.get("CLASS") == b"DIMENSION_SCALE" for name in names)
        return "cf" if "_NCProperties" in file.attrs or any(scales) else ""


def _holds(file: Any, name: str) -> bool:
    """Tell whether an HDF5 file itself holds what has this name; no link is followed."""
    import h5py

    parents = [name[:at] for at, letter in enumerate(name) if letter == "/"]
    return all(isinstance(file.get(part, getlink=True), h5py.HardLink) for part in (*parents, name))


def _text(value: Any) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


@cache
def _entry_points() -> dict[str, Any]:
    """Give the entry points of other packages by name; one that may not be is warned of."""
    from importlib.metadata import entry_points

    found: dict[str, Any] = {}
    points: list[Any] = sorted(entry_points(group=GROUP), key=lambda each: (each.name, each.value))
    for point in points:
        if point.name in READERS or point.name in found:
            _LOG.warning(
                "the reader %r of the package %s is left out: there is one of this name already",
                point.name,
                point.dist.name,
            )
        else:
            found[point.name] = point
    return found


def _load(point: Any) -> Callable[[Path], xr.Dataset]:
    try:
        found: Callable[[Path], xr.Dataset] = point.load()
    except Exception as error:  # whatever the package of someone else does when imported
        raise ValueError(
            f"the reader {point.name!r} of the package {point.dist.name} cannot be loaded: "
            f"{type(error).__name__}: {first_line(error)}"
        ) from error
    return found


@cache
def _recognisers() -> dict[str, Callable[[bytes, Path], bool]]:
    """Give, by the name of the reader, what tells the files of other packages' readers."""
    found = {}
    for name, point in _entry_points().items():
        try:
            found[name] = getattr(_load(point), "recognises", None)
        except ValueError as error:
            _LOG.warning("%s; its files are not recognised", error)
    return {name: recognises for name, recognises in found.items() if recognises}


def _sniff_others(path: Path, start: bytes) -> str:
    """Give the name of the first reader of another package that recognises the file."""
    for name, recognises in _recognisers().items():
        try:
            if recognises(start, path):
                return name
        except Exception as error:  # a broken package must not stop the others
            reason = f"{type(error).__name__}: {first_line(error)}"
            _LOG.warning("the reader %r cannot tell whether %s is its own: %s", name, path, reason)
    return ""


def _named(path: Path, message: str) -> str:
    if message.startswith(str(path)):
        return message
    return f"{path} {message}" if message.startswith("is ") else f"{path}: {message}"
