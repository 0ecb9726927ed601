"""Composites in ODIM_H5 with chosen content."""

import datetime
from pathlib import Path

import h5py
import numpy as np
from pyproj import CRS, Transformer

OPERA = "+proj=laea +lat_0=55.0 +lon_0=10.0 +x_0=1950000.0 +y_0=-2100000.0 +units=m +ellps=WGS84"
UNDETECTED = -np.inf  # in the values that are written


def write_odim(
    path,
    values,
    *,
    quantity="RATE",
    nominal="2018-08-24T18:00",
    interval=("2018-08-24T17:50", "2018-08-24T18:05"),
    dtype="<f8",
    scale=(1.0, 0.0),
    codes=(-9999000.0, -8888000.0),
    level="dataset1",
    projdef=OPERA,
    corner=(0.0, 0.0),
    pixel=2000.0,
    kind="COMP",
    version="H5rad 2.0",
    source="ORG:247",
    product="COMP",
    quality=None,
):
    """Write a field in the units of the quantity; NaN is nodata, `UNDETECTED` undetect.

    `level` names the group whose ``what`` describes the numbers: ``dataset1/data1``, ``dataset1``
    or an empty text for the root. A `scale` or `codes` of None is left out, and so is a code.
    """
    values = np.asarray(values, float)
    with h5py.File(path, "w") as file:
        root = file.create_group("what")
        day, time = _date_time(nominal)
        root.attrs.update(_texts(object=kind, version=version, source=source, date=day, time=time))
        field = file.create_group("dataset1/data1")
        what = (file[level] if level else file).require_group("what")
        what.attrs.update(_texts(quantity=quantity))
        what.attrs.update(_numbers(scale, codes))
        _write_numbers(field, values, dtype, scale or (1.0, 0.0), codes or (None, None))
        dataset = file["dataset1"].require_group("what")
        (start_day, start), (end_day, end) = map(_date_time, interval)
        dataset.attrs.update(
            _texts(startdate=start_day, starttime=start, enddate=end_day, endtime=end)
        )
        dataset.attrs.update(_texts(product=product))
        _write_grid(file, values.shape, projdef, corner, pixel)
        if quality is not None:
            _write_qind(file, quality)
    return Path(path)


def write_quality(parent, values, *, scale=(1 / 255, 0.0), nodata=None, quantity="QIND"):
    """Write a quality index beside a field, as counts of one byte."""
    group = parent.create_group("quality1")
    what = group.create_group("what")
    what.attrs.update(_texts(quantity=quantity) if quantity else {})
    what.attrs.update(_numbers(scale, (nodata, None)))
    _write_numbers(group, np.asarray(values, float), "u1", scale, (nodata, None))


def _write_qind(file, values):
    """Write the quality index as OPERA did in 2018, in a dataset of its own."""
    file.copy("dataset1/what", "dataset2/what")
    file["dataset2/what"].attrs.update(_texts(quantity="QIND"))
    file["dataset2/what"].attrs.update(_numbers((1.0, 0.0), (-9999000.0, -8888000.0)))
    group = file.create_group("dataset2/data1")
    _write_numbers(group, np.asarray(values, float), "<f8", (1.0, 0.0), (-9999000.0, -8888000.0))


def _write_numbers(group, values, dtype, scale, codes):
    counts = (np.where(np.isnan(values) | np.isneginf(values), 0.0, values) - scale[1]) / scale[0]
    counts = counts.round() if np.dtype(dtype).kind in "iu" else counts
    nodata, undetect = codes
    counts[np.isnan(values)] = np.nan if nodata is None else nodata
    counts[np.isneginf(values)] = 0.0 if undetect is None else undetect
    chunks = tuple(-(-side // 2) for side in counts.shape)
    group.create_dataset("data", data=counts.astype(dtype), chunks=chunks, compression="gzip")


def _write_grid(file, shape, projdef, corner, pixel):
    where = file.create_group("where")
    rows, columns = shape
    where.attrs["projdef"] = np.bytes_(projdef)
    where.attrs.update({"xsize": columns, "ysize": rows, "xscale": pixel, "yscale": pixel})
    crs = CRS.from_user_input(projdef)
    locate = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform
    left, top = corner
    sides = {"L": (left, top - rows * pixel), "R": (left + columns * pixel, top)}
    for name in ("LL", "LR", "UL", "UR"):
        x, y = sides[name[1]][0], top if name[0] == "U" else sides["L"][1]
        where.attrs[f"{name}_lon"], where.attrs[f"{name}_lat"] = locate(x, y)


def _date_time(text):
    time = datetime.datetime.fromisoformat(text)
    return f"{time:%Y%m%d}", f"{time:%H%M%S}"


def _texts(**texts):
    return {name: np.bytes_(text) for name, text in texts.items()}


def _numbers(scale, codes):
    pairs = zip(
        ("gain", "offset", "nodata", "undetect"),
        (*(scale or (None, None)), *(codes or (None, None))),
        strict=True,
    )
    return {name: float(number) for name, number in pairs if number is not None}
