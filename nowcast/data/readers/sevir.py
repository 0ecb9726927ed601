"""SEVIR, storm events for machine learning: vertically integrated liquid, one event at a time."""

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast import durable
from nowcast.conventions import Variable
from nowcast.data.readers import hdf5
from nowcast.data.readers.building import axis, grid_mapping, observations
from nowcast.data.readers.projections import parse_projection

REFERENCES = (
    "Veillette et al. (2020), SEVIR, https://nbviewer.org/github/MIT-AI-Accelerator/eie-sevir"
)
CATALOG = "CATALOG.csv"
LEVELS_ABOVE = 4  # folders above a file in which its catalog is looked for
LARGEST_CATALOG = 200_000_000  # bytes; that of 2020 has 34 million
COLUMNS = {
    "id": str,
    "file_name": str,
    "file_index": "Int64",
    "img_type": str,
    "time_utc": str,
    "minute_offsets": str,
    "llcrnrlat": float,
    "llcrnrlon": float,
    "urcrnrlat": float,
    "urcrnrlon": float,
    "proj": str,
}

PIXELS = 384  # along either side
FRAMES = 49
SPACING = 1000.0  # metres
CORNER_TOLERANCE = 0.1  # pixels
MISSING = 255
# Counts up to 5 are dry, up to 18 linear, and exponential above; kg m-2.
DRY, LINEAR = 5, 18
VIL = Variable(
    "vertically_integrated_liquid", "kg m-2", "vertically integrated liquid water", "", 0.0, 80.0
)


def read_sevir(path: Path | str) -> xr.Dataset:
    """Read the frames of the one event in a SEVIR file of vertically integrated liquid.

    Every event has a grid and a time of its own, and observations are on one grid: a file of
    several events is refused here, and read one event after the other by `read_events`.

    Neither times nor places are in the file. They are in SEVIR's ``CATALOG.csv``, which must lie
    in the folder of the file or one of the four above. A frame whose time does not come after
    that of the one before repeats it, by which SEVIR fills gaps, and is left out.

    Not yet seen on a real file: this follows the published description.

    Parameters
    ----------
    path
        A file such as ``SEVIR_VIL_STORMEVENTS_2018_0101_0630.h5``.

    Returns
    -------
    xr.Dataset
        ``vertically_integrated_liquid(time, y, x)`` in kg m-2; missing is NaN, dry is 0.

    Raises
    ------
    ValueError
        If there is no catalog, more than one event, or the file or its row of the catalog
        disagree with the description.
    """
    with _open(path) as file:
        events = _event_ids(file)
    if len(events) != 1:
        raise ValueError(
            f"holds {len(events)} events, each on a grid of its own; read them one by one with "
            "nowcast.data.readers.sevir.read_events"
        )
    return next(read_events(path))


def read_events(path: Path | str) -> Iterator[xr.Dataset]:
    """Give the observations of each event of a SEVIR file, in the order of the file.

    Events are decoded when asked for, so that a file of many needs the memory of one. See
    `read_sevir` for what is read and what is refused.
    """
    catalog_path = _find_catalog(Path(path))
    catalog = _read_catalog(catalog_path, Path(path).name)
    provenance = {
        "title": "SEVIR, vertically integrated liquid water from NEXRAD",
        "institution": "MIT Lincoln Laboratory",
        "source": "SEVIR",
        "product": "VIL",
        "references": REFERENCES,
        "catalog_sha256": durable.sha256(catalog_path),
    }
    with _open(path) as file:
        for index, event in enumerate(_event_ids(file)):
            stored = hdf5.find(file, "vil")[index]
            yield _observations(stored, _row(catalog, event, index), provenance)


def decode(counts: Any) -> Any:
    """Give vertically integrated liquid in kg m-2 for the counts of SEVIR, NaN where missing.

    SEVIR prints the third part as ``exp(X - 83.9) / 38.9``. The division belongs into the
    exponent: only so do the parts meet, and the greatest count is 79 kg m-2.

    Examples
    --------
    >>> [f"{vil:.3f}" for vil in decode(np.array([0, 5, 18, 19, 254, 255]))]
    ['0.000', '0.000', '0.176', '0.189', '79.261', 'nan']
    """
    count = np.arange(256, dtype=np.float64)
    table = np.where(count <= LINEAR, (count - 2) / 90.66, np.exp((count - 83.9) / 38.9))
    table[: DRY + 1] = 0.0
    table[MISSING] = np.nan
    return table.astype(np.float32)[counts]


def _open(path: Path | str) -> Any:
    import h5py

    return h5py.File(path, "r")


def _event_ids(file: Any) -> list[str]:
    """Give the ids of the events, once their frames are safe and complete enough to be read."""
    names, images = hdf5.find(file, "id"), hdf5.find(file, "vil")
    hdf5.check_stored(images)
    if images.shape[1:] != (PIXELS, PIXELS, FRAMES) or images.dtype != np.uint8:
        raise ValueError(
            f"the events are {images.shape[1:]} of {images.dtype}; SEVIR's are "
            f"({PIXELS}, {PIXELS}, {FRAMES}) of uint8"
        )
    plain = names is not None and not names.external and not names.is_virtual
    if not plain or names.shape != images.shape[:1] or names.dtype.kind not in "SO":
        raise ValueError("the events lack an id each")
    ids = [name.decode("ascii") if isinstance(name, bytes) else str(name) for name in names[...]]
    if len(set(ids)) != len(ids):
        raise ValueError("two events have the same id")
    return ids


def _find_catalog(path: Path) -> Path:
    folders = path.resolve().parents[: LEVELS_ABOVE + 1]
    found = next((folder / CATALOG for folder in folders if (folder / CATALOG).is_file()), None)
    if found is None:
        raise ValueError(
            f"a SEVIR file has no times of its own; put SEVIR's {CATALOG} into its folder or one "
            f"of the {LEVELS_ABOVE} above"
        )
    if found.stat().st_size > LARGEST_CATALOG:
        raise ValueError(f"{found} is larger than {LARGEST_CATALOG:,} bytes")
    return found


def _read_catalog(path: Path, file_name: str) -> pd.DataFrame:
    """Give the rows of a catalog that are about one file of vertically integrated liquid."""
    try:
        rows = pd.read_csv(path, usecols=list(COLUMNS), dtype=COLUMNS, encoding="utf-8")
    except ValueError as error:
        raise ValueError(f"{path} is no catalog of SEVIR: {error}") from error
    names = rows["file_name"].str.rsplit("/", n=1).str[-1]
    return rows[(rows["img_type"] == "vil") & (names == file_name)]


def _row(catalog: pd.DataFrame, event: str, index: int) -> Any:
    rows = catalog[catalog["id"] == event]
    if len(rows) != 1 or rows["file_index"].iloc[0] != index:
        raise ValueError(
            f"the catalog has {len(rows)} rows for the event {event!r} in this file; one, with "
            f"the file_index {index}, is needed"
        )
    return rows.iloc[0]


def _observations(stored: Any, row: Any, provenance: dict[str, str]) -> xr.Dataset:
    times, kept = _times(row)
    y, x, mapping = _grid(row)
    frames = np.moveaxis(stored, -1, 0)[kept]
    observed = observations(
        decode(frames),
        variable=VIL,
        times=times,
        interval=None,
        y=y,
        x=x,
        mapping=mapping,
        provenance={**provenance, "title": f"{provenance['title']}, event {row['id']}"},
        path="",
        attributes={"valid_min": np.float32(VIL.valid_min), "valid_max": np.float32(VIL.valid_max)},
    )
    # Of the event alone: the file holds gigabytes of others.
    digest = hashlib.sha256(f"{row['id']} {times[0]}".encode() + np.ascontiguousarray(frames).data)
    return observed.assign_attrs(event=str(row["id"]), input_sha256=digest.hexdigest())


def _times(row: Any) -> tuple[pd.DatetimeIndex, Any]:
    """Give the times of the frames, and which frames they belong to; repeated ones are left out."""
    try:
        offsets = np.array([int(text) for text in str(row["minute_offsets"]).split(":")])
        middle = pd.Timestamp(row["time_utc"])
    except ValueError as error:
        raise ValueError(f"the event {row['id']!r} has no times: {error}") from error
    if len(offsets) != FRAMES or pd.isna(middle) or middle.tzinfo is not None:
        raise ValueError(
            f"the event {row['id']!r} is at {middle} and has {len(offsets)} offsets; a UTC time "
            f"and {FRAMES} are needed"
        )
    latest = np.maximum.accumulate(offsets)
    kept = np.append(True, offsets[1:] > latest[:-1])
    return middle + pd.to_timedelta(offsets[kept], unit="min"), kept


def _grid(row: Any) -> tuple[xr.Variable, xr.Variable, dict[str, Any]]:
    """Give y, x and the grid mapping of an event; its first row is the southernmost."""
    from pyproj import CRS, Transformer

    mapping = grid_mapping(parse_projection(str(row["proj"])))
    crs = CRS.from_cf(mapping)
    project = Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform
    left, bottom = project(row["llcrnrlon"], row["llcrnrlat"])
    right, top = project(row["urcrnrlon"], row["urcrnrlat"])
    away = max(abs(side / SPACING - PIXELS) for side in (right - left, top - bottom))
    if not away <= CORNER_TOLERANCE or not math.isfinite(left + bottom):
        raise ValueError(
            f"the event {row['id']!r} is not {PIXELS} pixels of {SPACING:g} m wide and high: its "
            f"corners are {away:.3g} pixels away from that"
        )
    centres = (np.arange(PIXELS) + 0.5) * SPACING
    return axis("y", round(bottom) + centres), axis("x", round(left) + centres), mapping
