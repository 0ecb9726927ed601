"""Files in the formats of FMI's radar composites, with chosen content."""

import gzip
from pathlib import Path

import numpy as np

# The real grid is 760 by 1226 pixels of these sizes; another shape divides the same area.
EXTENT_M = (760 * 999.674053, 1226 * 999.62859)
COMMENTS = {
    "composite_area": "FIN",
    "projection_name": "SUOMI1",
    "radar": "VAN 1 24.8730 60.2710",
    "obstime": "201609281445",
    "producttype": "CAPPI",
    "productname": "LOWEST",
    "param": "CorrectedReflectivity",
    "projection": "radar {",
    "type": "stereographic",
    "centrallongitude": "25",
    "centrallatitude": "90",
    "truelatitude": "60",
    "bottomleft": "18.600000 57.930000",
    "topright": "34.903000 69.005000",
}
ITEMS = {
    "Observation time": ("format", "YYYYMMDDhhmm", "202104091015"),
    "Quantity": ("unit", "dBZ", "Corrected reflectivity"),
    "Gain": ("", "", "0.500000"),
    "Offset": ("", "", "-32.000000"),
    "Nodata": ("", "", "255"),
    "Undetect": ("", "", "0"),
}
RAIN_RATE_ITEMS = {
    "Quantity": ("unit", "mm/h", "Rain intensity"),
    "Gain": ("", "", "0.010000"),
    "Offset": ("", "", "0.000000"),
    "Nodata": ("", "", "65535"),
}
GEOKEYS = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 3067)


def write_pgm(path, counts, *, greatest=255, more=b"", left_out=(), **comments):
    """Write counts of 8 bits; a name that ends in ``.gz`` is gzipped."""
    counts = np.asarray(counts, np.uint8)
    rows, columns = counts.shape
    sizes = (EXTENT_M[0] / columns, EXTENT_M[1] / rows)
    entries = {"metersperpixel_x": f"{sizes[0]:.6f}", "metersperpixel_y": f"{sizes[1]:.6f}"}
    entries = {**COMMENTS, **entries, **comments}
    lines = [f"# {name} {text}" for name, text in entries.items() if name not in left_out]
    header = "\n".join(["P5", *lines, "# }", f"{columns} {rows}", f"{greatest}", ""])
    raw = header.encode() + counts.tobytes() + more
    Path(path).write_bytes(gzip.compress(raw) if str(path).endswith(".gz") else raw)
    return Path(path)


def metadata(**items):
    """Give the GDAL metadata of a file."""
    lines = []
    for name, (kind, word, text) in {**ITEMS, **items}.items():
        attribute = f' {kind}="{word}"' if kind else ""
        lines.append(f'<Item name="{name}"{attribute}>{text}</Item>')
    return "\n".join(["<GDALMetadata>", *lines, "</GDALMetadata>", ""])


def write_geotiff(path, counts, *, items=None, geokeys=GEOKEYS, scale=1000.0, left_out=(), **more):
    """Write counts as FMI does its composites on EPSG:3067."""
    from PIL import Image
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    tags = ImageFileDirectory_v2()
    values = {
        33550: (12, (scale, scale, 0.0)),
        33922: (12, (0.0, 0.0, 0.0, -118_331.366, 7_907_751.537, 0.0)),
        34735: (3, geokeys),
        42112: (2, metadata(**(items or {}))),
    }
    for tag, (kind, value) in values.items():
        if tag not in left_out:
            tags.tagtype[tag] = kind
            tags[tag] = value
    image = Image.fromarray(np.asarray(counts))
    image.save(path, "TIFF", tiffinfo=tags, compression="tiff_adobe_deflate", **more)
    return Path(path)
