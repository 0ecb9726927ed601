"""NOAA's GRIB files: rain rate of MRMS (GRIB2, PNG) and amounts of Stage IV (GRIB1, packed).

Both are decoded here. What proves a file (its length, identity, scale, grid and time) lies in the
bytes of its sections, and what is left is a table: no GRIB library is needed, whose names for these
fields differ from version to version, and none that reads a message cut short as far as it goes.
The sections are those of the WMO Manual on Codes (WMO-No. 306), FM 92 GRIB, editions 1 and 2.
"""

import io
import math
import zlib
from pathlib import Path
from struct import unpack_from
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import RAIN_RATE
from nowcast.data.readers.building import axis, content, grid_mapping, observations, within_range

MOST_PIXELS = 50_000_000  # a frame that claims more is refused before memory is taken
LARGEST_EXPONENT = 60  # of a scale

# MRMS: as NSSL numbers its parameters, https://www.nssl.noaa.gov/projects/mrms/operational/tables.php
_DISCIPLINE, _CENTRE = 209, 161
_PRECIPITATION_RATE = (6, 1)  # category and number; mm/h
_MISSING = (-1.0, -3.0)  # mm/h: no data, no coverage
_OBSERVED = 3  # what the reference time is
_NO_BITMAP = 255
_PNG_PACKING = 41  # template of section 5
_MICRODEGREES = (1, 1_000_000)  # basic angle and its parts
_ELLIPSOIDS: dict[int, dict[str, Any]] = {  # code table 3.2; semi-axes in m
    0: {"R": 6_367_470.0},
    2: {"a": 6_378_160.0, "b": 6_356_775.0},
    4: {"ellps": "GRS80"},
    5: {"ellps": "WGS84"},
    6: {"R": 6_371_229.0},
}
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_MODES = {8: "L", 16: "I;16"}

# Stage IV: https://www.emc.ncep.noaa.gov/mmb/ylin/pcpanl/stage4/ and, of its grid, QandA there.
_NCEP, _TABLE, _TOTAL_PRECIPITATION = 7, 2, 61  # kg m-2
_HOURS, _ACCUMULATED = 1, 4  # unit of time, kind of interval
_POLAR_STEREOGRAPHIC = 5
_UPWARDS = 64  # scanning mode: x grows, y grows, along x first
# The Hydrologic Rainfall Analysis Project's grid. Its pixels are centred on odd halves of the
# mesh, counted from the pole; the headers round the mesh to metres, and name another radius.
HRAP_MESH_M = 4762.5  # at 60 N
HRAP_PROJECTION = "+proj=stere +lat_0=90 +lat_ts=60 +lon_0=-105 +R=6371200"
_HRAP_LONGITUDE = 255_000  # thousandths of a degree, as the headers have it
_HRAP_MESHES = (4762, 4763)  # m, as the headers have it
# Of a mesh: that the first pixel may be off. It is 0.13 before May 2004, when the headers gave the
# first longitude as 119.017 W for 119.023 W.
_HRAP_ERROR = 0.2


def read_mrms(path: Path | str) -> xr.Dataset:
    """Read one field of MRMS PrecipRate, a GRIB2 file, gzipped or not.

    The rate is one of a moment: there is no interval. Rows go from north to south.

    Parameters
    ----------
    path
        Such as ``PrecipRate_00.00_20190610-000000.grib2``.

    Returns
    -------
    xr.Dataset
        ``rain_rate(time, y, x)`` in mm h-1; no coverage and no data are NaN, dry is 0.

    Raises
    ------
    ValueError
        If the content disagrees with what is known of these files, or is cut short.
    """
    discipline, sections = _edition2(content(path))
    identity = (discipline, *unpack_from(">H", sections[1], 5), *unpack_from(">BB", sections[4], 9))
    if identity != (_DISCIPLINE, _CENTRE, *_PRECIPITATION_RATE):
        raise ValueError(
            f"discipline, centre, category and number are {identity}; MRMS PrecipRate is "
            f"{(_DISCIPLINE, _CENTRE, *_PRECIPITATION_RATE)}"
        )
    y, x, mapping = _latitude_longitude(sections[3])
    values, out_of_range = within_range(_rates(sections, (y.size, x.size))[None], RAIN_RATE)
    return observations(
        values,
        variable=RAIN_RATE,
        times=[_observation_time(sections[1], sections[4])],
        interval=None,
        y=y,
        x=x,
        mapping=mapping,
        provenance={
            "title": "MRMS radar precipitation rate",
            "institution": "NOAA National Severe Storms Laboratory",
            "source": "NOAA",
            "product": "PrecipRate",
            "references": "https://www.nssl.noaa.gov/projects/mrms",
        },
        path=path,
        attributes={"out_of_range": out_of_range},
    )


def read_stage4(path: Path | str) -> xr.Dataset:
    """Read one accumulation of NCEP's Stage IV analysis, a GRIB1 file, as rain rate.

    The interval of 1, 6 or 24 hours comes from the header, and `time` is its end. **Not yet seen
    on a real file**: written to the published description. Files since July 2020 are GRIB2, which
    is not read.

    Parameters
    ----------
    path
        Such as ``ST4.2005010112.01h``.

    Returns
    -------
    xr.Dataset
        ``rain_rate(time, y, x)`` in mm h-1, its mean over the interval; not analysed is NaN, dry
        is 0. Rows go from south to north.

    Raises
    ------
    ValueError
        If the content disagrees with what is known of these files, or is cut short.
    """
    product, grid, bitmap, data = _edition1(content(path))
    identity = tuple(product[place] for place in (4, 3, 8))
    if identity != (_NCEP, _TABLE, _TOTAL_PRECIPITATION):
        raise ValueError(
            f"centre, table and parameter are {identity}; Stage IV's are "
            f"{(_NCEP, _TABLE, _TOTAL_PRECIPITATION)}, total precipitation in kg m-2"
        )
    end, hours = _accumulation(product)
    y, x = _hrap(grid)
    amounts = _amounts(product, bitmap, data, (y.size, x.size))
    values, out_of_range = within_range((amounts / hours).astype(np.float32)[None], RAIN_RATE)
    return observations(
        values,
        variable=RAIN_RATE,
        times=[end],
        interval=pd.Timedelta(hours=hours),
        y=y,
        x=x,
        mapping=grid_mapping(HRAP_PROJECTION),
        provenance={
            "title": f"Stage IV multi-sensor precipitation analysis, {hours} h",
            "institution": "NOAA National Centers for Environmental Prediction",
            "source": "NOAA",
            "product": f"StageIV {hours:02} h",
            "references": "doi:10.5065/D6PG1QDD",
        },
        path=path,
        attributes={"cell_methods": "time: mean", "out_of_range": out_of_range},
    )


def _edition2(raw: bytes) -> tuple[int, dict[int, bytes]]:
    """Give the discipline and the sections of a GRIB2 file of one message that is whole."""
    if len(raw) < 16 or raw[:4] != b"GRIB" or raw[7] != 2:
        raise ValueError("is no GRIB2 file")
    _check_length(raw, unpack_from(">Q", raw, 8)[0])
    sections: dict[int, bytes] = {}
    place = 16
    while place < len(raw) - 4:
        length, number = unpack_from(">IB", raw, place)
        if number in sections or not 5 <= length <= len(raw) - 4 - place:
            raise ValueError(f"section {number} of {length} bytes at {place} is one too many")
        sections[number] = raw[place : place + length]
        place += length
    if not {1, 3, 4, 5, 6, 7} <= set(sections):
        raise ValueError(f"it has the sections {sorted(sections)}; 1 and 3 to 7 are needed")
    for number, least in ((1, 21), (3, 72), (4, 22), (5, 21), (6, 6)):
        if len(sections[number]) < least:
            raise ValueError(f"section {number} has {len(sections[number])} bytes, not {least}")
    return raw[6], sections


def _edition1(raw: bytes) -> tuple[bytes, bytes, bytes, bytes]:
    """Give product, grid, bitmap and data of a GRIB1 file of one message that is whole."""
    if len(raw) < 8 or raw[:4] != b"GRIB" or raw[7] != 1:
        raise ValueError("is no GRIB1 file")
    _check_length(raw, int.from_bytes(raw[4:7]))
    sections: list[bytes] = []
    place = 8
    # Whether there is a grid and a bitmap, a byte of the product says.
    for name, least, flag in (
        ("product", 28, 0),
        ("grid", 32, 128),
        ("bitmap", 6, 64),
        ("data", 11, 0),
    ):
        length = int.from_bytes(raw[place : place + 3])
        if flag and not sections[0][7] & flag:
            length = 0
        elif not least <= length <= len(raw) - 4 - place:
            raise ValueError(f"the section of the {name} has {length} bytes, which cannot be")
        sections.append(raw[place : place + length])
        place += length
    if place != len(raw) - 4:
        raise ValueError("the sections do not fill the message")
    return sections[0], sections[1], sections[2], sections[3]


def _check_length(raw: bytes, declared: int) -> None:
    if declared != len(raw) or raw[-4:] != b"7777":
        raise ValueError(
            f"the message declares {declared:,} bytes and there are {len(raw):,}: it is cut short, "
            "or followed by more"
        )


def _observation_time(identification: bytes, product: bytes) -> pd.Timestamp:
    if identification[11] != _OBSERVED or unpack_from(">I", product, 18)[0]:
        raise ValueError("the field is not one of an observation at its reference time")
    parts = unpack_from(">HBBBBB", identification, 12)
    try:
        return pd.Timestamp(*parts)
    except ValueError as error:
        raise ValueError(f"its time is {parts}, which is none: {error}") from error


def _latitude_longitude(grid: bytes) -> tuple[xr.Variable, xr.Variable, dict[str, Any]]:
    template, shape_of_earth = unpack_from(">HB", grid, 12)
    columns, rows, *angle = unpack_from(">IIII", grid, 30)
    latitude, longitude, _, last_latitude, last_longitude, dx, dy, scan = unpack_from(
        ">IIBIIIIB", grid, 46
    )
    if (template, *angle, scan) != (0, *_MICRODEGREES, 0) or shape_of_earth not in _ELLIPSOIDS:
        raise ValueError(
            f"template {template}, angle {angle}, scan {scan} or shape of the Earth "
            f"{shape_of_earth} of the grid is unknown"
        )
    _check_size(rows, columns, unpack_from(">I", grid, 6)[0])
    north, south = _signed(latitude, 32), _signed(last_latitude, 32)
    ends = {
        "y": (north - south, dy * (rows - 1)),
        "x": (last_longitude - longitude, dx * (columns - 1)),
    }
    for name, (reach, steps) in ends.items():
        if not 2 * abs(reach - steps) < min(dx, dy):
            raise ValueError(
                f"{name} reaches over {reach / 1e6} degrees, its steps over {steps / 1e6}"
            )
    west = (longitude + 180_000_000) % 360_000_000 - 180_000_000
    y = (north - np.arange(rows) * dy) / 1e6
    x = (west + np.arange(columns) * dx) / 1e6
    mapping = grid_mapping({"proj": "longlat", **_ELLIPSOIDS[shape_of_earth]})
    return axis("y", y, "degrees"), axis("x", x, "degrees"), mapping


def _rates(sections: dict[int, bytes], shape: tuple[int, int]) -> Any:
    """Give mm/h by a table of what each count means; NaN where there is no radar or no data."""
    points, template, reference, binary, decimal, bits = unpack_from(">IHfHHB", sections[5], 5)
    if template != _PNG_PACKING or sections[6][5] != _NO_BITMAP or bits not in _PNG_MODES:
        raise ValueError(
            f"packing {template} of {bits} bits with bitmap {sections[6][5]} is unknown; MRMS's is "
            f"{_PNG_PACKING} of 8 or 16 bits with {_NO_BITMAP}, none"
        )
    if points != math.prod(shape) or not math.isfinite(reference):
        raise ValueError(f"{points:,} values from {reference} do not fill a grid of {shape}")
    counts = _png(sections[7][5:], shape, _PNG_MODES[bits])
    steps = np.arange(2**bits) * 2.0 ** _exponent(binary)
    # Tenths that 32 bits cannot hold are rounded, so that -3 is -3 for certain.
    table = np.round((reference + steps) / 10.0 ** _exponent(decimal), 6)
    table[np.isin(table, _MISSING)] = np.nan
    return table.astype(np.float32)[counts]


def _png(raw: bytes, shape: tuple[int, int], mode: str) -> Any:
    from PIL import Image

    _check_png(raw)
    try:
        with Image.open(io.BytesIO(raw), formats=["PNG"]) as image:
            if image.mode != mode or image.size != shape[::-1]:
                raise ValueError(f"the image is {image.size} in {image.mode}, the grid {shape}")
            return np.asarray(image)
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"the image in it is damaged: {error}") from error


def _check_png(raw: bytes) -> None:
    """Refuse an image with a wrong check sum, which Pillow does not look at for the pixels."""
    place = len(_PNG)
    while raw[:place].startswith(_PNG) and place + 12 <= len(raw):
        length = int.from_bytes(raw[place : place + 4])
        end = place + 8 + length
        if raw[end : end + 4] != zlib.crc32(raw[place + 4 : end]).to_bytes(4):
            break
        if raw[place + 4 : place + 8] == b"IEND" and end + 4 == len(raw):
            return
        place = end + 4
    raise ValueError("the image in it is damaged: a check sum is wrong")


def _accumulation(product: bytes) -> tuple[pd.Timestamp, int]:
    """Give the end of the interval of a GRIB1 accumulation, and its hours."""
    year, month, day, hour, minute, unit, first, last, kind = product[12:21]
    if (unit, first, kind) != (_HOURS, 0, _ACCUMULATED) or last not in (1, 6, 24):
        raise ValueError(
            f"the amount is one of kind {kind} from {first} to {last} in units {unit}; hours "
            f"({_HOURS}) from 0 to 1, 6 or 24 of kind {_ACCUMULATED} are known"
        )
    date = ((product[24] - 1) * 100 + year, month, day, hour, minute)
    try:
        return pd.Timestamp(*date) + pd.Timedelta(hours=last), last
    except ValueError as error:
        raise ValueError(f"its time is {date}, which is none: {error}") from error


def _hrap(grid: bytes) -> tuple[xr.Variable, xr.Variable]:
    """Give the coordinates, on the exact HRAP grid, of the pixels that a header tells of."""
    from pyproj import CRS, Transformer

    if not grid or grid[5] != _POLAR_STEREOGRAPHIC:
        raise ValueError("the grid is not polar stereographic, as Stage IV's is")
    columns, rows = unpack_from(">HH", grid, 6)
    latitude, longitude, orientation, dx, dy = (
        int.from_bytes(grid[place : place + 3]) for place in (10, 13, 17, 20, 23)
    )
    orientation = _signed(orientation, 24) % 360_000
    if orientation != _HRAP_LONGITUDE or not {dx, dy} <= set(_HRAP_MESHES) or grid[26] & 128:
        raise ValueError(
            f"the grid of {dx} by {dy} m about {orientation / 1000} E is unknown; HRAP's is "
            f"{HRAP_MESH_M} m about {_HRAP_LONGITUDE / 1000} E"
        )
    if grid[27] != _UPWARDS:
        raise ValueError(
            f"the scanning mode is {grid[27]}; {_UPWARDS}, from the south west, is known"
        )
    _check_size(rows, columns, rows * columns)
    projection = CRS.from_user_input(HRAP_PROJECTION)
    to_grid = Transformer.from_crs(projection.geodetic_crs, projection, always_xy=True)
    first = to_grid.transform(_signed(longitude, 24) / 1000, _signed(latitude, 24) / 1000)
    x, y = (_snapped(metres, size) for metres, size in zip(first, (columns, rows), strict=True))
    return axis("y", y), axis("x", x)


def _snapped(metres: float, size: int) -> Any:
    """Give the centres of pixels, from that one which the first must be."""
    pixel = metres / HRAP_MESH_M
    if not math.isfinite(pixel) or abs(pixel - math.floor(pixel) - 0.5) > _HRAP_ERROR:
        raise ValueError(f"the first pixel lies {pixel:.3f} meshes from the pole, not on HRAP")
    return (math.floor(pixel) + 0.5 + np.arange(size)) * HRAP_MESH_M


def _amounts(product: bytes, bitmap: bytes, data: bytes, shape: tuple[int, int]) -> Any:
    """Give amounts in mm of simple packing, NaN where the bitmap has none."""
    flags, binary, reference, bits = unpack_from(">BHIB", data, 3)
    if flags & 0xD0 or not bits <= 24:
        raise ValueError(f"packing {flags >> 4} of {bits} bits is unknown; simple packing is known")
    present = _present(bitmap, math.prod(shape))
    count = int(np.count_nonzero(present))
    used = 8 * (len(data) - 11) - (flags & 15)
    if used != count * bits:
        raise ValueError(f"{count:,} values of {bits} bits do not fill {used:,} bits")
    unpacked = np.unpackbits(np.frombuffer(data, np.uint8, offset=11))[: count * bits]
    counts = np.zeros(count)
    for bit in unpacked.reshape(count, bits).T:
        counts = 2 * counts + bit
    decimal = _exponent(unpack_from(">H", product, 26)[0])
    scaled = _ibm_float(reference) + counts * 2.0 ** _exponent(binary)
    amounts = np.full(math.prod(shape), np.nan)
    amounts[present] = scaled / 10.0**decimal
    return amounts.reshape(shape)


def _present(bitmap: bytes, count: int) -> Any:
    if not bitmap:
        return np.ones(count, bool)
    if unpack_from(">H", bitmap, 4)[0] or 8 * (len(bitmap) - 6) - bitmap[3] != count:
        raise ValueError(f"the bitmap is predefined, or not of {count:,} pixels")
    return np.unpackbits(np.frombuffer(bitmap, np.uint8, offset=6))[:count].astype(bool)


def _check_size(rows: int, columns: int, points: int) -> None:
    if rows < 2 or columns < 2 or rows * columns > MOST_PIXELS or points != rows * columns:
        raise ValueError(
            f"the frame claims {rows} by {columns} and {points:,} pixels; {MOST_PIXELS:,} is most"
        )


def _signed(number: int, bits: int) -> int:
    """Give a number whose first bit is its sign, as GRIB has them; no complement of two."""
    size = 1 << (bits - 1)
    return size - number if number >= size else number


def _exponent(number: int) -> int:
    """Give the exponent of a scale, signed in 16 bits, if it is one that rain can have."""
    exponent = _signed(number, 16)
    if abs(exponent) > LARGEST_EXPONENT:
        raise ValueError(f"a scale with the exponent {exponent} is none of rain's")
    return exponent


def _ibm_float(number: int) -> float:
    """Give a number of IBM's: sign, exponent of 16 plus 64, and 24 bits of the fraction."""
    sign = -1.0 if number >> 31 else 1.0
    return float(sign * (number & 0xFFFFFF) / 2**24 * 16.0 ** ((number >> 24 & 127) - 64))
