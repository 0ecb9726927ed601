"""RADOLAN composites with chosen content."""

import gzip
from pathlib import Path

import numpy as np

RAIN = "{product}22005010000{date}BY{size:7d}VS{version:2d}SW   2.21.0PR{precision}INT{interval:4d}"


def write_radolan(
    path,
    counts,
    *,
    product="RW",
    date="1118",
    precision=" E-01",
    interval=60,
    version=3,
    tail="GP{rows:4d}x{columns:4d}MF 00000001MS  5<asb>",
    shape=None,
    size=None,
):
    """Write counts as they are; a `shape` or `size` declares another than theirs.

    The name of the file says whether it is gzipped.
    """
    counts = np.asarray(counts)
    numbers = counts.astype("u1" if product in ("RX", "WX", "EX") else "<u2").tobytes()
    rows, columns = shape or counts.shape
    settings = {
        "product": product,
        "date": date,
        "precision": precision,
        "interval": interval,
        "version": version,
        "rows": rows,
        "columns": columns,
    }
    length = len((RAIN + tail).format(size=0, **settings)) + 1 + len(numbers)
    header = (RAIN + tail).format(size=length if size is None else size, **settings)
    content = header.encode("ascii") + b"\x03" + numbers
    path = Path(path)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path
