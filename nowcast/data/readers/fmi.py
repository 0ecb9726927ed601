"""FMI's radar composites: reflectivity as PGM, reflectivity or rain rate as GeoTIFF.

What a pixel means is published in FMI's open data manual (https://en.ilmatieteenlaitos.fi/
open-data-manual-radar-data): dBZ = 0.5 pixel - 32 and mm/h = 0.01 pixel; zero is no echo, and the
greatest value that a pixel can hold is no data.
"""

import io
import math
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import RAIN_RATE, REFLECTIVITY, Variable
from nowcast.data.readers.building import axis, content, grid_mapping, observations

GAIN, OFFSET = 0.5, -32.0  # dBZ per count and dBZ; the PGM files do not say
MISSING = 255  # of the PGM files
# The radius of the sphere on which the two corners that a PGM file gives lie as many of its pixel
# sizes apart as it has pixels, to a millionth; the file does not give it.
RADIUS_M = 6_371_288.0
SIZE_ERROR = 1e-5  # of a pixel, as a part of its size; 0.01 m in 1 km
MOST_PIXELS = 50_000_000  # a frame that claims more is refused before memory is taken
LONGEST_HEADER = 100_000  # bytes
REFERENCES = "https://en.ilmatieteenlaitos.fi/open-data-manual-radar-data"

_SIZE = re.compile(rb"([1-9]\d{0,5})[ \t]+([1-9]\d{0,5})")
_TIME = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)")
# The tags of a TIFF file, by their numbers; see the GeoTIFF standard, OGC 19-008r4.
_OFFSETS, _COUNTS = (273, 324), (279, 325)  # of strips, of tiles
_SAMPLES = 277
_PIXEL_SCALE, _TIEPOINT, _GEOKEYS = 33550, 33922, 34735
_GDAL_METADATA = 42112
_PROJECTED, _PIXEL_IS_AREA = 1, 1
_MODEL_TYPE, _RASTER_TYPE, _PROJECTED_CRS = 1024, 1025, 3072
_EPSG = 3067  # ETRS89 / TM35FIN, which is
TM35FIN = "+proj=utm +zone=35 +ellps=GRS80"
_ITEM = re.compile(r'<Item name="([^"]+)"(?: \w+="([^"]*)")?[^>]*>([^<]*)</Item>')
_OF_ONE_RADAR = "Elevation angle"
# By unit: the variable, gain and offset to it, and the value and pixel type of no data.
_QUANTITIES = {
    "dBZ": (REFLECTIVITY, GAIN, OFFSET, MISSING, "u1"),
    "mm/h": (RAIN_RATE, 0.01, 0.0, 65535, "u2"),
}


def read_fmi_pgm(path: Path | str) -> xr.Dataset:
    r"""Read one frame of FMI's reflectivity composite, a PGM file, gzipped or not.

    Quantity, time and grid come from the comments of its header, the meaning of a pixel from
    FMI's description. The header gives no interval. Echoes of 0 dBZ and below are dry.

    Parameters
    ----------
    path
        Such as ``201609281445_fmi.radar.composite.lowest_FIN_SUOMI1.pgm.gz``.

    Returns
    -------
    xr.Dataset
        ``reflectivity(time, y, x)`` in dBZ; not observed is NaN, dry is 0.

    Raises
    ------
    ValueError
        If the content disagrees with what is known of these files.

    Examples
    --------
    >>> parse_header(b"P5\n# obstime 201609281445\n3 2\n255\n" + bytes(6))
    ({'obstime': '201609281445'}, (2, 3), 34)
    """
    raw = content(path)
    header, shape, start = parse_header(raw)
    expected = math.prod(shape)
    if len(raw) - start != expected:
        raise ValueError(
            f"the frame of {shape[0]} by {shape[1]} pixels needs {expected} bytes; "
            f"there are {len(raw) - start}"
        )
    if _entry(header, "param") != "CorrectedReflectivity":
        raise ValueError(f"the quantity is {header['param']!r}; CorrectedReflectivity is known")
    counts = np.frombuffer(raw, np.uint8, offset=start).reshape(shape)
    y, x, mapping = _pgm_grid(header, shape)
    parts = ("producttype", "productname", "composite_area", "projection_name")
    return observations(
        _values(counts, REFLECTIVITY, GAIN, OFFSET, MISSING)[None],
        variable=REFLECTIVITY,
        times=[parse_time(_entry(header, "obstime"))],
        interval=None,
        y=y,
        x=x,
        mapping=mapping,
        provenance=_provenance(" ".join(_entry(header, part) for part in parts)),
        path=path,
    )


def read_fmi_geotiff(path: Path | str) -> xr.Dataset:
    """Read one frame of FMI's composite of reflectivity or rain rate, a GeoTIFF file.

    Time, quantity, unit and calibration come from the GDAL metadata of the file and must be those
    that FMI publishes. **Not yet seen on a real file**: written to the published description.

    Parameters
    ----------
    path
        Such as ``202104091015_FIN-DBZ-3067-250M.tif``.

    Returns
    -------
    xr.Dataset
        ``reflectivity(time, y, x)`` in dBZ or ``rain_rate`` in mm h-1; not observed is NaN, dry
        is 0.

    Raises
    ------
    ValueError
        If the content disagrees with what is known of these files.
    """
    raw = content(path)
    tags, counts = _tiff(raw)
    items = {name: (unit, text) for name, unit, text in _ITEM.findall(tags[_GDAL_METADATA])}
    if _OF_ONE_RADAR in items:
        raise ValueError("it is a scan of one radar; composites are known")
    variable, gain, offset, missing, pixels = _quantity(items)
    if counts.dtype.str[1:] != pixels:
        raise ValueError(f"the pixels are {counts.dtype}; FMI's of {variable.units} are {pixels}")
    y, x = _tiff_axes(tags, counts.shape)
    product = f"{_item(items, 'Quantity')} {abs(float(x[1] - x[0])):g} m"
    return observations(
        _values(counts, variable, gain, offset, missing)[None],
        variable=variable,
        times=[parse_time(_item(items, "Observation time"))],
        interval=None,
        y=y,
        x=x,
        mapping=grid_mapping(TM35FIN),
        provenance=_provenance(product),
        path=path,
    )


def parse_header(raw: bytes) -> tuple[dict[str, str], tuple[int, int], int]:
    """Give the comments of a PGM file by name, its rows and columns, and where its pixels start.

    Names and values are parted by the first space. Of a name that is given more than once, such
    as ``radar``, the last value is kept.
    """
    lines = raw[:LONGEST_HEADER].split(b"\n")
    comments = [line for line in lines[1:] if line.startswith(b"#")]
    size, greatest = (*lines[len(comments) + 1 :], b"", b"")[:2]
    shape = _SIZE.fullmatch(size.strip())
    if lines[0].strip() != b"P5" or not shape or greatest.strip() != b"255":
        raise ValueError(
            "the header is no FMI's: P5, lines that start with #, two sizes and 255 are expected"
        )
    columns, rows = int(shape[1]), int(shape[2])
    if rows * columns > MOST_PIXELS:
        raise ValueError(f"the frame claims {rows} by {columns} pixels; {MOST_PIXELS:,} is most")
    texts = [comment[1:].decode("latin-1").strip().partition(" ") for comment in comments]
    start = sum(len(line) + 1 for line in lines[: len(comments) + 3])
    return {name: value.strip() for name, _, value in texts if value}, (rows, columns), start


def parse_time(text: str) -> pd.Timestamp:
    """Give the UTC time that FMI writes as ``201609281445``."""
    match = _TIME.fullmatch(text)
    try:
        return pd.Timestamp(*map(int, match.groups() if match else ()))
    except (TypeError, ValueError):
        raise ValueError(f"{text!r} is no time of FMI; one looks like '201609281445'") from None


def _values(counts: Any, variable: Variable, gain: float, offset: float, missing: int) -> Any:
    """Give values by a table of what each count means; no echo is the least value, dry."""
    table = np.arange(missing + 1) * gain + offset
    if variable is REFLECTIVITY:
        table = np.maximum(table, REFLECTIVITY.valid_min)
    table[missing] = np.nan
    return table.astype(np.float32)[counts]


def _pgm_grid(
    header: dict[str, str], shape: tuple[int, int]
) -> tuple[xr.Variable, xr.Variable, dict[str, Any]]:
    from pyproj import CRS, Transformer

    names = ("type", "centrallongitude", "centrallatitude", "truelatitude")
    kind, *angles = (_entry(header, name) for name in names)
    longitude, latitude, true_latitude = (_numbers(angle, 1)[0] for angle in angles)
    if kind != "stereographic" or latitude != 90.0:
        raise ValueError(f"the projection {kind!r} about {latitude} N is unknown; FMI's is polar")
    projection = CRS.from_dict(
        {"proj": "stere", "lat_0": 90, "lon_0": longitude, "lat_ts": true_latitude, "R": RADIUS_M}
    )
    to_grid = Transformer.from_crs(projection.geodetic_crs, projection, always_xy=True)
    left, bottom = to_grid.transform(*_numbers(_entry(header, "bottomleft"), 2))
    right, top = to_grid.transform(*_numbers(_entry(header, "topright"), 2))
    sizes = {"x": (right - left) / shape[1], "y": (top - bottom) / shape[0]}
    for name, size in sizes.items():
        declared = _numbers(_entry(header, f"metersperpixel_{name}"), 1)[0]
        if not abs(size - declared) < SIZE_ERROR * abs(declared):
            raise ValueError(
                f"the corners give pixels of {size:.3f} m along {name}, but {declared} m is "
                "declared: the grid is not as it is said to be"
            )
    y = top - (np.arange(shape[0]) + 0.5) * sizes["y"]
    x = left + (np.arange(shape[1]) + 0.5) * sizes["x"]
    return axis("y", y), axis("x", x), grid_mapping(projection)


def _tiff(raw: bytes) -> tuple[dict[int, Any], Any]:
    """Give the tags and the pixels of a TIFF file that holds one whole image."""
    from PIL import Image

    with warnings.catch_warnings():
        # What PIL warns of is damage, or an image that is larger than it should be.
        warnings.simplefilter("error")
        try:
            with Image.open(io.BytesIO(raw), formats=["TIFF"]) as image:
                tags = dict(image.tag_v2)
                _check_tiff(tags, image.size, image.n_frames, len(raw))
                return tags, np.asarray(image)
        except (OSError, SyntaxError, Warning, Image.DecompressionBombError) as error:
            raise ValueError(f"the TIFF file is damaged or cut short: {error}") from error


def _check_tiff(tags: dict[int, Any], size: tuple[int, int], frames: int, length: int) -> None:
    wanted = {_PIXEL_SCALE, _TIEPOINT, _GEOKEYS, _GDAL_METADATA}
    if not wanted <= set(tags):
        raise ValueError(f"it lacks the tags {sorted(wanted - set(tags))} of a GeoTIFF of FMI's")
    if frames != 1 or tags.get(_SAMPLES, 1) != 1:
        raise ValueError("it holds more than one image; one is known")
    if math.prod(size) > MOST_PIXELS:
        raise ValueError(f"the frame claims {size} pixels; {MOST_PIXELS:,} is most")
    offsets, counts = (
        [each for number in kinds for each in tags.get(number, ())] for kinds in (_OFFSETS, _COUNTS)
    )
    parts = list(zip(offsets, counts, strict=True))
    # A part without bytes was never written, and is read as zero, which would pass for dry.
    if not parts or not all(offset and count for offset, count in parts):
        raise ValueError("the frame is incomplete: part of its pixels was never written")
    if max(offset + count for offset, count in parts) > length:
        raise ValueError("the file is cut short: part of its pixels lies beyond its end")


def _quantity(items: dict[str, tuple[str, str]]) -> tuple[Variable, float, float, int, str]:
    unit = items.get("Quantity", ("", ""))[0]
    if unit not in _QUANTITIES:
        raise ValueError(f"the unit is {unit!r}; known ones are {', '.join(_QUANTITIES)}")
    _, *known, _ = _QUANTITIES[unit]
    names = ("Gain", "Offset", "Nodata", "Undetect")
    declared = [_numbers(_item(items, name), 1)[0] for name in names]
    if declared != [*known, 0]:
        raise ValueError(f"{', '.join(names)} of {unit} are {declared}; FMI's are {[*known, 0]}")
    return _QUANTITIES[unit]


def _tiff_axes(tags: dict[int, Any], shape: tuple[int, int]) -> tuple[xr.Variable, xr.Variable]:
    # Fours of key, tag in which its value lies (0: here), count and value, after a head of four.
    entries = np.reshape(tags[_GEOKEYS], (-1, 4)).tolist()[1:]
    keys = {key: value for key, tag, _, value in entries if not tag}
    wanted = {_MODEL_TYPE: _PROJECTED, _RASTER_TYPE: _PIXEL_IS_AREA, _PROJECTED_CRS: _EPSG}
    found = {key: keys.get(key) for key in wanted}
    if found != wanted:
        raise ValueError(f"the GeoTIFF keys are {found}; {wanted}, EPSG:{_EPSG}, is known")
    width, height, *_ = tags[_PIXEL_SCALE]
    column, row, _, left, top, _ = tags[_TIEPOINT]
    if (column, row) != (0, 0) or not (width > 0 and height > 0):
        raise ValueError(f"pixels of {width} by {height} m from ({column}, {row}) give no grid")
    y = top - (np.arange(shape[0]) + 0.5) * height
    return axis("y", y), axis("x", left + (np.arange(shape[1]) + 0.5) * width)


def _entry(header: dict[str, str], name: str) -> str:
    if name not in header:
        raise ValueError(f"the header lacks {name!r}; it has {', '.join(sorted(header))}")
    return header[name]


def _item(items: dict[str, tuple[str, str]], name: str) -> str:
    if name not in items:
        raise ValueError(f"the metadata lacks {name!r}; it has {', '.join(sorted(items))}")
    return items[name][1].strip()


def _numbers(text: str, count: int) -> list[float]:
    try:
        numbers = [float(part) for part in text.split()]
    except ValueError:
        numbers = []
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{text!r} is not {count} number{'s' * (count > 1)}")
    return numbers


def _provenance(product: str) -> dict[str, str]:
    return {
        "title": f"FMI radar composite, {product}",
        "institution": "Finnish Meteorological Institute (FMI)",
        "source": "FMI",
        "product": product,
        "references": REFERENCES,
    }
