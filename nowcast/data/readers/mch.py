"""MeteoSwiss's AQC composite as GIF: rain of five minutes, eight bits a pixel, on the Swiss grid.

The name of a file (``AQC151351545F_00005.801.gif``: year, day of the year, hour and minute) is
not needed: the comment inside repeats it, so that two dry frames differ by their bytes as well.
The letter after the time tells which radars took part, F four and V all five, and is not read.
"""

import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import RAIN_RATE
from nowcast.data.readers.building import axis, content, observations, within_range

INTERVAL = pd.Timedelta(minutes=5)  # that each frame accumulates over, up to its time
SHAPE = (640, 710)  # of the grid CCS4, in pixels
PIXEL_M = 1000.0
LEFT_M, TOP_M = 255_000.0, 480_000.0  # of the grid CCS4, in the Swiss coordinates LV03
# CH1903 / LV03. CF has no attribute for the angle that turns its oblique Mercator's axes to north,
# so that without the WKT a reader of CF takes x for y. It is written out: what PROJ would write
# changes with its version, and the grid's identity must not.
MAPPING = {
    "grid_mapping_name": "oblique_mercator",
    "azimuth_of_central_line": 90.0,
    "latitude_of_projection_origin": 46.9524055555556,
    "longitude_of_projection_origin": 7.43958333333333,
    "scale_factor_at_projection_origin": 1.0,
    "false_easting": 600_000.0,
    "false_northing": 200_000.0,
    "semi_major_axis": 6_377_397.155,
    "inverse_flattening": 299.1528128,
    "crs_wkt": (
        'PROJCRS["CH1903 / LV03",BASEGEOGCRS["CH1903",DATUM["CH1903",'
        'ELLIPSOID["Bessel 1841",6377397.155,299.1528128,LENGTHUNIT["metre",1]]],'
        'PRIMEM["Greenwich",0,ANGLEUNIT["degree",0.0174532925199433]],ID["EPSG",4149]],'
        'CONVERSION["Swiss Oblique Mercator 1903M",'
        'METHOD["Hotine Oblique Mercator (variant B)",ID["EPSG",9815]],'
        'PARAMETER["Latitude of projection centre",46.9524055555556,'
        'ANGLEUNIT["degree",0.0174532925199433],ID["EPSG",8811]],'
        'PARAMETER["Longitude of projection centre",7.43958333333333,'
        'ANGLEUNIT["degree",0.0174532925199433],ID["EPSG",8812]],'
        'PARAMETER["Azimuth at projection centre",90,'
        'ANGLEUNIT["degree",0.0174532925199433],ID["EPSG",8813]],'
        'PARAMETER["Angle from Rectified to Skew Grid",90,'
        'ANGLEUNIT["degree",0.0174532925199433],ID["EPSG",8814]],'
        'PARAMETER["Scale factor at projection centre",1,'
        'SCALEUNIT["unity",1],ID["EPSG",8815]],'
        'PARAMETER["Easting at projection centre",600000,LENGTHUNIT["metre",1],ID["EPSG",8816]],'
        'PARAMETER["Northing at projection centre",200000,LENGTHUNIT["metre",1],'
        'ID["EPSG",8817]]],CS[Cartesian,2],AXIS["easting",east,ORDER[1],LENGTHUNIT["metre",1]],'
        'AXIS["northing",north,ORDER[2],LENGTHUNIT["metre",1]],ID["EPSG",21781]]'
    ),
}
# A code counts half decibels of Z from -35.75, and Z = 316 R^1.5 with R in mm per five minutes: as
# pysteps reads these files, https://pysteps.readthedocs.io.
Z_R = (316.0, 1.5)
CODE_OFFSET, CODES_PER_DECADE = 71.5, 20.0
DRY = 1  # the greatest code that means no rain
GREATEST = 250  # the greatest code that means an amount; 255 is missing, between is unknown
REFERENCES = "https://pysteps.readthedocs.io, import_mch_gif; CCS4 grid of MeteoSwiss"

# From white to red, and black for missing.
_PALETTE = b"".join(bytes((255, 255 - code, 255 - code)) for code in range(255)) + bytes(3)
# The first bytes of a GIF of 710 by 640 pixels with a palette of 256 colours, and those that
# describe an image that fills it and has no palette of its own.
_SCREEN = b"GIF89a\xc6\x02\x80\x02\xf7\x00\x00"
_WHOLE = b"\0\0\0\0\xc6\x02\x80\x02\0"
_PRODUCT = re.compile(r"AQC(\d\d)(\d{3})(\d\d)(\d\d)")  # year, day of the year, hour, minute
_KNOWN = {
    "SCALE": "mmh2LASSEN8bitmm_mn",
    "COLOR": "reddish",
    "ACCUm": "000005",
    "DeltaT": "000005",
    "TOTn": "000001",
}
_BITS, _LONGEST_CODE, _MOST_STRINGS = 8, 12, 4096  # of GIF's LZW
_EXTENSION, _COMMENT, _IMAGE, _END = 0x21, 0xFE, 0x2C, 0x3B  # what a block of a GIF starts with


def read_mch(path: Path | str) -> xr.Dataset:
    """Read one frame of MeteoSwiss's AQC composite as rain rate.

    Time, interval and scale come from the comment of the file, whose palette must be the known
    one; what a code means, and the grid, is published alone. A file with the name of another
    time than it holds is refused.

    Parameters
    ----------
    path
        Such as ``AQC151351545F_00005.801.gif``.

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
    >>> float(rain_rates()[0]), round(float(rain_rates()[100]), 2), float(rain_rates()[255])
    (0.0, 2.31, nan)
    """
    raw = content(path)
    time = parse_comment(_comment(raw))
    named = _PRODUCT.match(Path(path).name)
    if named and parse_product(named[0]) != time:
        raise ValueError(f"its name says {named[0]}, but it holds the frame of {time}")
    values, out_of_range = within_range(rain_rates()[_codes(raw)][None], RAIN_RATE)
    y = TOP_M - (np.arange(SHAPE[0]) + 0.5) * PIXEL_M
    return observations(
        values,
        variable=RAIN_RATE,
        times=[time],
        interval=INTERVAL,
        y=axis("y", y),
        x=axis("x", LEFT_M + (np.arange(SHAPE[1]) + 0.5) * PIXEL_M),
        mapping=dict(MAPPING),
        provenance={
            "title": "MeteoSwiss radar rain rate, AQC composite",
            "institution": "Federal Office of Meteorology and Climatology MeteoSwiss",
            "source": "MeteoSwiss",
            "product": "AQC",
            "references": REFERENCES,
        },
        path=path,
        attributes={"cell_methods": "time: mean", "out_of_range": out_of_range},
    )


def rain_rates() -> Any:
    """Give the rain rate in mm/h that each of the 256 codes stands for."""
    codes = np.arange(256)
    a, b = Z_R
    amounts = (10 ** ((codes - CODE_OFFSET) / CODES_PER_DECADE) / a) ** (1 / b)
    amounts[codes <= DRY] = 0.0
    amounts[codes > GREATEST] = np.nan
    return (amounts * (pd.Timedelta(hours=1) / INTERVAL)).astype(np.float32)


def parse_comment(comment: str) -> pd.Timestamp:
    """Give the UTC time in the comment of an AQC file, if the rest says what is known of them."""
    entries = dict(word.split("=", 1) for word in comment.split() if "=" in word)
    found = {name: entries.get(name, "") for name in _KNOWN}
    if found != _KNOWN:
        raise ValueError(f"the comment says {found}; {_KNOWN} is known")
    return parse_product(entries.get("PRDT", ""))


def parse_product(text: str) -> pd.Timestamp:
    """Give the UTC time in a product such as ``AQC151351545``.

    Examples
    --------
    >>> parse_product("AQC151351545")
    Timestamp('2015-05-15 15:45:00')
    """
    match = _PRODUCT.fullmatch(text)
    year, day, hour, minute = map(int, match.groups()) if match else (0, 0, 24, 60)
    start = pd.Timestamp(2000 + year, 1, 1)
    time = start + pd.Timedelta(days=day - 1, hours=hour, minutes=minute)
    if time.year != start.year or day < 1 or hour > 23 or minute > 59:
        raise ValueError(f"the product is {text!r}; one looks like 'AQC151351545'")
    return time


def _comment(raw: bytes) -> str:
    """Give the comment of a GIF file that is whole, with one image of known size and palette."""
    start = _SCREEN + _PALETTE
    if raw[: len(_SCREEN)] != _SCREEN:
        raise ValueError(
            f"is no GIF of {SHAPE[1]} by {SHAPE[0]} pixels with 256 colours, as AQC is"
        )
    if raw[: len(start)] != start:
        raise ValueError("its palette is not the one of AQC, white to red")
    try:
        comments, images = _blocks(raw, len(start))
    except IndexError:
        raise ValueError("the GIF is cut short") from None
    if images != [_WHOLE] or len(comments) != 1:
        raise ValueError(
            f"it holds {len(images)} images and {len(comments)} comments; one image that fills "
            "the grid and one comment are known"
        )
    return comments[0].decode("latin-1")


def _blocks(raw: bytes, place: int) -> tuple[list[bytes], list[bytes]]:
    """Give the comments, and what describes the images, of the blocks from a place to the end."""
    comments, images = [], []
    while raw[place] != _END:
        if raw[place] not in (_EXTENSION, _IMAGE):
            raise ValueError(f"the GIF is damaged: a block starts with {raw[place]:#04x}")
        # An extension has a byte of its kind, an image nine that describe it and one for its codes.
        if raw[place] == _IMAGE:
            images.append(raw[place + 1 : place + 1 + len(_WHOLE)])
            bits = raw[place + 1 + len(_WHOLE)]
            packed, place = _joined(raw, place + 2 + len(_WHOLE))
            _check_packed(packed, bits)
            continue
        kind = raw[place + 1]
        data, place = _joined(raw, place + 2)
        if kind == _COMMENT:
            comments.append(data)
    if place + 1 != len(raw):
        raise ValueError(f"{len(raw) - place - 1} bytes follow the end of the GIF")
    return comments, images


def _joined(raw: bytes, place: int) -> tuple[bytes, int]:
    """Give the data of the parts of a block, each after a byte of its length, and where it ends."""
    parts = []
    while size := raw[place]:
        parts.append(raw[place + 1 : place + 1 + size])
        place += 1 + size
    return b"".join(parts), place + 1


def _check_packed(packed: bytes, bits: int) -> None:
    """Refuse LZW codes that stand for more or fewer pixels than there are.

    Pillow stops once the image is full. A changed byte alters how long the strings after it are, so
    that damage to more than some pixels shows in their sum.
    """
    if bits != _BITS:
        raise ValueError(f"the pixels are packed from {bits} bits; {_BITS} are known")
    clear, end = 1 << bits, (1 << bits) + 1
    held = left = pixels = previous = 0
    size, lengths = bits + 1, [1] * (clear + 2)
    for place, byte in enumerate(packed, start=1):
        held |= byte << left
        left += 8
        while left >= size:
            code = held & ((1 << size) - 1)
            held >>= size
            left -= size
            if code == end:
                if (place, pixels) != (len(packed), SHAPE[0] * SHAPE[1]):
                    raise ValueError(f"the GIF is damaged: its codes stand for {pixels:,} pixels")
                return
            if code == clear:
                size, lengths, previous = bits + 1, [1] * (clear + 2), 0
                continue
            if previous and len(lengths) < _MOST_STRINGS:
                lengths.append(previous + 1)
                if len(lengths) == 1 << size and size < _LONGEST_CODE:
                    size += 1
            if code >= len(lengths):
                raise ValueError("the GIF is damaged: a code stands for nothing")
            previous = lengths[code]
            pixels += previous
    raise ValueError("the GIF is damaged: its codes have no end")


def _codes(raw: bytes) -> Any:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(raw), formats=["GIF"]) as image:
            return np.asarray(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"the GIF is damaged: {error}") from error
