"""Meteo-France's MeteoNet: ten days of radar composites in one npz file, many of them missing."""

import functools
import math
import os
import pickletools
import threading
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import RAIN_RATE, REFLECTIVITY, Variable
from nowcast.data.readers import building

# Of the zone NW. The published description gives the centres of pixels (EPSG:4326, 0.01 degrees);
# the files of frames hold no coordinates, and `radar_coords_NW.npz` must agree with these.
SHAPE = (565, 784)
NORTH, WEST, SPACING = 51.891, -5.837, 0.01  # degrees, of the first pixel's centre
COORDINATES = "radar_coords_NW.npz"
WGS84 = {
    "grid_mapping_name": "latitude_longitude",
    "semi_major_axis": 6378137.0,
    "inverse_flattening": 298.257223563,
    "longitude_of_prime_meridian": 0.0,
}
INTERVAL = pd.Timedelta(minutes=5)  # of an accumulation
MOST_FRAMES = 11 * 288  # a file holds a third of a month, every five minutes
FRAMES_PER_CHUNK = 32
REFERENCES = "https://meteofrance.github.io/meteonet/english/data/rain-radar/"

_MOST_BYTES_OF_DATES = 1_000_000
_MOST_BYTES_OF_HEADER = 10_000
_AGREEMENT = 1e-6  # degrees

# What an array of dates is pickled with, by NumPy before and after its second version.
_OPCODES = frozenset(
    [
        *(
            "PROTO",
            "FRAME",
            "STOP",
            "MARK",
            "NONE",
            "NEWTRUE",
            "NEWFALSE",
            "GLOBAL",
            "STACK_GLOBAL",
        ),
        *("REDUCE", "BUILD", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
        *("BININT", "BININT1", "BININT2", "BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINBYTES"),
        *("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"),
    ]
)
_WORDS = frozenset(
    [
        *("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "_reconstruct"),
        *("ndarray", "dtype", "datetime", "O8", "O", "|"),
    ]
)
_EMPTY = b"b"  # the one other text of bytes in such a pickle: the type of an empty array


@dataclass(frozen=True)
class _Product:
    """What the published description says of the counts of a product."""

    name: str
    variable: Variable
    factor: float  # to the units of the variable
    missing: int
    least: int
    most: int
    levels: frozenset[int] = frozenset()  # all there are; empty: any from least to most

    def admits(self, counts: Any) -> bool:
        """Tell whether these may be counts of the product."""
        observed = counts[counts != self.missing]
        if observed.size and not self.least <= observed.min() <= observed.max() <= self.most:
            return False
        if not self.levels:
            return True
        held = np.bincount(observed.ravel().astype(np.intp)).nonzero()[0]
        return self.levels.issuperset(held.tolist())


_RAINFALL = _Product("MeteoNet rainfall NW", RAIN_RATE, 0.01 * 12, -1, 0, 8333)
# Lower bounds of classes, in dBZ: none, 8, 16, then each from 20 to 70.
_OLD = _Product(
    "MeteoNet reflectivity old NW",
    REFLECTIVITY,
    1.0,
    255,
    0,
    70,
    frozenset({0, 8, 16, *range(20, 71)}),
)
_NEW = _Product("MeteoNet reflectivity new NW", REFLECTIVITY, 0.1, -200, -100, 950)


def read_meteonet(path: Path | str) -> xr.Dataset:
    """Open the composites of one MeteoNet file of north-west France, lazily.

    The files say nothing of themselves. The published description says that rainfall is in
    hundredths of a millimetre in five minutes with -1 for missing, that reflectivity until 2018
    is the lower bound in dBZ of one of 54 classes with 255 for missing, and that the new one,
    which comes with `prob` and `height`, is in tenths of dBZ with -200 for missing and -100 for
    no echo. Which of these a file is, its first frame and its members tell; a value that the
    description does not know is refused, the quality codes too.

    The nominal time of an accumulation is taken to be its end, which the description leaves
    open: in the sample, rainfall resembles the reflectivity five minutes before its time more
    (correlation 0.50 to 0.62) than that five minutes after it (0.36 to 0.38).

    Parameters
    ----------
    path
        An npz file such as ``rainfall_NW_2016_08.3.npz``. If `COORDINATES` lies beside it, its
        coordinates must be those known.

    Returns
    -------
    xr.Dataset
        ``rain_rate(time, y, x)`` in mm h-1 or ``reflectivity`` in dBZ, in Dask chunks of many
        frames; a frame that the file does not hold is absent.

    Raises
    ------
    ValueError
        If the content disagrees with what is known of these files.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            count, dtype, offset = _frames_header(archive)
            times = _times(archive, count)
            product = _product(archive, dtype, offset)
        _check_coordinates(path.parent / COORDINATES)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError) as error:
        raise ValueError(f"the npz file is damaged or cut short: {error}") from error
    rain = product.variable == RAIN_RATE
    return building.observations(
        _lazy(path, count, dtype, offset, product),
        variable=product.variable,
        times=times,
        interval=INTERVAL if rain else None,
        y=building.axis("y", (NORTH - SPACING * np.arange(SHAPE[0])).round(3), "degrees"),
        x=building.axis("x", (WEST + SPACING * np.arange(SHAPE[1])).round(3), "degrees"),
        mapping=WGS84,
        provenance={
            "title": f"{product.name}, radar composite",
            "institution": "Meteo-France",
            "source": "Meteo-France",
            "product": product.name,
            "license": "Licence Ouverte / Open Licence 2.0 (Etalab)",
            "references": REFERENCES,
        },
        path=path,
        attributes={"cell_methods": "time: mean"} if rain else None,
    )


def parse_dates(pickled: bytes) -> list[pd.Timestamp]:
    """Give the times in a pickled array of dates, which is looked through and never run.

    A date is pickled as ten bytes: year, month, day, hour, minute, second and microseconds.

    Raises
    ------
    ValueError
        If there is anything in it but an array of dates without a zone.

    Examples
    --------
    >>> import datetime, pickle
    >>> dates = np.array([datetime.datetime(2016, 8, 21, 0, 10)], dtype=object)
    >>> parse_dates(pickle.dumps(dates, protocol=4))
    [Timestamp('2016-08-21 00:10:00')]
    """
    states = [argument for argument in _arguments(pickled) if isinstance(argument, bytes)]
    try:
        return [_parse_date(state) for state in states if state != _EMPTY]
    except ValueError as error:
        raise ValueError(f"the dates cannot be read: {error}") from error


def _arguments(pickled: bytes) -> Iterator[Any]:
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            words = argument.split() if isinstance(argument, str) else []
            if opcode.name not in _OPCODES or not _WORDS.issuperset(words):
                raise ValueError(f"{opcode.name} {argument!r} has no place among dates")
            yield argument
    except ValueError as error:
        raise ValueError(f"the pickled dates are no plain array of dates: {error}") from error


def _parse_date(state: bytes) -> pd.Timestamp:
    if len(state) != 10:
        raise ValueError(f"{state!r} is no date")
    year, microsecond = int.from_bytes(state[:2], "big"), int.from_bytes(state[7:], "big")
    month, day, hour, minute, second = state[2:7]
    return pd.Timestamp(year, month, day, hour, minute, second, microsecond)


def _header(member: Any, size: int) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Give shape and type of an array in a zip file, and where in its member it starts."""
    version = np.lib.format.read_magic(member)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"the version {version} of the npy format is unknown; 1 or 2 would do")
    shape, by_columns, dtype = readers[version](member, max_header_size=_MOST_BYTES_OF_HEADER)
    offset = member.tell()
    if not dtype.hasobject and (by_columns or math.prod(shape) * dtype.itemsize != size - offset):
        raise ValueError(
            f"an array of shape {shape} and type {dtype} is declared, in {size - offset:,} bytes"
        )
    return shape, dtype, offset


def _open(archive: zipfile.ZipFile, name: str) -> tuple[Any, int]:
    """Give a member and its size, to which reading is limited."""
    try:
        info = archive.getinfo(f"{name}.npy")
        return archive.open(info), info.file_size
    except KeyError as error:
        held = ", ".join(archive.namelist()[:8]) or "nothing"
        raise ValueError(f"holds no {name}.npy, but {held}") from error
    except RuntimeError as error:  # what zipfile raises if it needs a password
        raise ValueError(f"{name}.npy cannot be read: {error}") from error


def _frames_header(archive: zipfile.ZipFile) -> tuple[int, np.dtype[Any], int]:
    member, size = _open(archive, "data")
    with member:
        shape, dtype, offset = _header(member, size)
    if dtype.kind not in "iu" or dtype.itemsize > 4:
        raise ValueError(f"the frames are {dtype}; whole numbers of up to 32 bits are known")
    if len(shape) != 3 or shape[1:] != SHAPE:
        raise ValueError(
            f"the frames have the shape {shape}; only those of the zone NW are known, "
            f"(frames, {SHAPE[0]}, {SHAPE[1]})"
        )
    if not 0 < shape[0] <= MOST_FRAMES:
        raise ValueError(f"{shape[0]} frames are declared; from 1 to {MOST_FRAMES} would do")
    return shape[0], dtype, offset


def _times(archive: zipfile.ZipFile, count: int) -> pd.DatetimeIndex:
    """Give the times of the frames there are, none of which may be among those missing."""
    times, missing = _dates(archive, "dates"), _dates(archive, "miss_dates")
    if len(times) != count:
        raise ValueError(f"there are {count} frames, but {len(times)} dates")
    both = times.intersection(missing)
    if len(both):
        raise ValueError(f"{len(both)} frames, that of {both[0]} first, are both there and missing")
    return times


def _dates(archive: zipfile.ZipFile, name: str) -> pd.DatetimeIndex:
    member, size = _open(archive, name)
    if size > _MOST_BYTES_OF_DATES:
        raise ValueError(f"{name} takes {size:,} bytes; {_MOST_BYTES_OF_DATES:,} is the limit")
    with member:
        shape, dtype, _ = _header(member, size)
        if not dtype.hasobject:
            raise ValueError(f"{name} are {dtype}; pickled dates are known")
        dates = parse_dates(member.read())
    if shape != (len(dates),):
        raise ValueError(f"{name} have the shape {shape}, but are {len(dates)}")
    return pd.DatetimeIndex(dates)


def _product(archive: zipfile.ZipFile, dtype: np.dtype[Any], offset: int) -> _Product:
    """Give the product that the first frame can be of; see `read_meteonet`."""
    member, _ = _open(archive, "data")
    with member:
        member.seek(offset)
        frame = _counts(member, 1, dtype)
    if {"prob.npy", "height.npy"} <= set(archive.namelist()):
        possible = [_NEW]
    else:
        # Part of the zone is beyond the reach of any radar, so that every frame has missing
        # pixels, and these tell the two apart.
        possible = [each for each in (_RAINFALL, _OLD) if (frame == each.missing).any()]
    fitting = [product for product in possible if product.admits(frame)]
    if len(fitting) != 1:
        raise ValueError(
            f"the first frame, with values from {frame.min()} to {frame.max()}, is neither "
            "rainfall (missing: -1) nor reflectivity (missing: 255, or -200 if it has prob and "
            "height)"
        )
    return fitting[0]


def _check_coordinates(path: Path) -> None:
    if not path.is_file():
        return
    known = (
        NORTH - SPACING * np.arange(SHAPE[0])[:, None],
        WEST + SPACING * np.arange(SHAPE[1])[None, :],
    )
    with zipfile.ZipFile(path) as archive:
        for name, expected in zip(("lats", "lons"), known, strict=True):
            member, size = _open(archive, name)
            with member:
                shape, dtype, _ = _header(member, size)
                if shape != SHAPE or dtype != np.float64:
                    raise ValueError(f"{path.name} beside it holds {name} as {dtype} {shape}")
                found = np.frombuffer(member.read(), dtype).reshape(shape)
            if not np.allclose(found, expected, rtol=0, atol=_AGREEMENT):
                raise ValueError(
                    f"{path.name} beside it gives other {name} than those known of the zone NW"
                )


def _lazy(path: Path, count: int, dtype: np.dtype[Any], offset: int, product: _Product) -> Any:
    import dask.array

    positions = dask.array.arange(count, chunks=FRAMES_PER_CHUNK)
    return positions.map_blocks(
        _decode,
        path=str(path),
        modified=path.stat().st_mtime_ns,  # keeps two contents of one path apart
        layout=(dtype, offset),
        product=product,
        new_axis=[1, 2],
        chunks=(positions.chunks[0], (SHAPE[0],), (SHAPE[1],)),
        meta=np.empty((0, 0, 0), np.float32),
    )


def _decode(
    positions: Any, *, path: str, modified: int, layout: tuple[Any, int], product: _Product
) -> Any:
    """Give the frames at these positions of a file that `read_meteonet` has checked."""
    dtype, offset = layout
    start = offset + int(positions[0]) * math.prod(SHAPE) * dtype.itemsize
    counts = _unpacked(path, modified, start, len(positions), dtype)
    if not product.admits(counts):
        raise ValueError(
            f"{path} holds values from {counts.min()} to {counts.max()} that are unknown of "
            f"{product.name}"
        )
    values = (counts * product.factor).astype(np.float32)
    values = values.clip(min=np.float32(0.0))  # no echo is below 0 dBZ, which is dry
    values[counts == product.missing] = np.nan
    return values


def _unpacked(path: str, modified: int, start: int, frames: int, dtype: np.dtype[Any]) -> Any:
    lock, member = _stream(path, modified, os.getpid())
    try:
        with lock:
            member.seek(start)
            return _counts(member, frames, dtype)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        _stream.cache_clear()
        member.close()
        raise ValueError(f"{path} is damaged: its frames cannot be read: {error}") from error


# The frames lie packed one after the other, so that a block can only be reached through those
# before it. A stream that stays open makes reading one block after the other linear; a forked
# process needs one of its own, since the place in the file would be shared.
@functools.lru_cache(maxsize=1)
def _stream(path: str, _modified: int, _process: int) -> tuple[threading.Lock, Any]:
    return threading.Lock(), zipfile.ZipFile(path).open("data.npy")


def _counts(member: Any, frames: int, dtype: np.dtype[Any]) -> Any:
    size = frames * math.prod(SHAPE) * dtype.itemsize
    content = member.read(size)
    if len(content) != size:
        raise EOFError(f"{len(content):,} bytes of {size:,} are there")
    return np.frombuffer(content, dtype).reshape(frames, *SHAPE)
