"""Readers: one function, path to Dataset, per file format, found by name or by the file itself.

A reader gives observations that keep the convention. A new one is a module with one function
and one line in `READERS`, plus a line in `sniff` if its files can be told by their content.
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

READERS: dict[str, str] = {
    "cf": "nowcast.data.readers.cf:read_cf",
    "knmi": "nowcast.data.readers.knmi:read_knmi",
}

HDF5 = b"\x89HDF\r\n\x1a\n"
CLASSIC_NETCDF = (b"CDF\x01", b"CDF\x02")
ZARR_FILES = ("zarr.json", ".zgroup", ".zmetadata")

# What HDF5, netCDF and Zarr raise on a damaged file, beside ValueError.
_DAMAGE = (OSError, RuntimeError, KeyError, TypeError, IndexError, AttributeError, OverflowError)


def read(path: Path | str, *, reader: str = "") -> xr.Dataset:
    """Read one radar file, or one NetCDF or Zarr store of frames, lazily.

    Parameters
    ----------
    path
        A file, or the folder of a Zarr store.
    reader
        One of `READERS`; empty: found by the content of the file.

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


def find_reader(name: str) -> Callable[[Path], xr.Dataset]:
    """Give the function of a reader.

    Raises
    ------
    ValueError
        If there is none of this name; the message lists those there are.
    """
    if name not in READERS:
        raise ValueError(f"no reader {name!r}; known readers: {', '.join(sorted(READERS))}")
    module, _, function = READERS[name].partition(":")
    found: Callable[[Path], xr.Dataset] = getattr(import_module(module), function)
    return found


def sniff(path: Path) -> str:
    """Give the name of the reader for a file, by its content alone.

    Raises
    ------
    ValueError
        If the file is none that a reader knows.
    """
    if path.is_dir():
        if is_zarr(path):
            return "cf"
        raise ValueError(f"is a folder and no Zarr store; name its files, as in '{path}/*'")
    with path.open("rb") as file:
        start = file.read(len(HDF5))
    name = _sniff_hdf5(path) if start == HDF5 else ""
    if start.startswith(CLASSIC_NETCDF):
        name = "cf"
    if not name:
        beginning = f"it starts with {start!r}" if start else "it is empty"
        known = ", ".join(sorted(READERS))
        raise ValueError(
            f"is not a radar file nowcast knows: {beginning}; known readers: {known}; "
            "name one with --reader"
        )
    return name


def is_zarr(path: Path) -> bool:
    """Tell whether a folder is a Zarr store."""
    return path.is_dir() and any((path / name).exists() for name in ZARR_FILES)


def first_line(error: BaseException) -> str:
    """Give the first line of what an error says."""
    return (str(error).splitlines() or [""])[0]


def _sniff_hdf5(path: Path) -> str:
    import h5py

    with h5py.File(path, "r") as file:
        if "image1/calibration" in file and "geographic" in file:
            return "knmi"
        scales = (item.attrs.get("CLASS") == b"DIMENSION_SCALE" for item in file.values())
        return "cf" if "_NCProperties" in file.attrs or any(scales) else ""


def _named(path: Path, message: str) -> str:
    if message.startswith(str(path)):
        return message
    return f"{path} {message}" if message.startswith("is ") else f"{path}: {message}"
