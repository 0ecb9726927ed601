"""ODIM_H5 composites, the European exchange format: OPERA and national services."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import RAIN_RATE, REFLECTIVITY, Variable
from nowcast.data.readers import hdf5
from nowcast.data.readers.building import axis, grid_mapping, observations, within_range
from nowcast.data.readers.projections import parse_projection

REFERENCES = "EUMETNET OPERA weather radar information model ODIM_H5, versions 2.0 to 2.4"
OBJECTS = ("COMP", "IMAGE")
VERSION = re.compile(r"H5rad 2\.[0-4]")
LONGEST_ACCUMULATION = pd.Timedelta(days=1)
CORNER_TOLERANCE = 0.1  # pixels by which a corner may lie beside where the projection puts it
MOST_GROUPS = 64  # of datasets in a file and of fields in a dataset

# What ODIM_H5 says the units of a quantity are: mm/h, mm, dBZ. Reflectivity below 0 dBZ is a
# measurement all the same, until it becomes dry.
RATE, ACCUMULATION, QUALITY = "RATE", "ACRR", "QIND"
QUANTITIES: dict[str, Variable] = {
    RATE: RAIN_RATE,
    ACCUMULATION: RAIN_RATE,
    "DBZH": replace(REFLECTIVITY, valid_min=-100.0),
}
# Numbers of originating centres, WMO Common Code Table C-11.
CENTRES = {
    "74": ("UKMO", "Met Office"),
    "78": ("DWD", "Deutscher Wetterdienst"),
    "82": ("SMHI", "Swedish Meteorological and Hydrological Institute"),
    "85": ("Meteo-France", "Météo-France"),
    "86": ("FMI", "Finnish Meteorological Institute"),
    "88": ("METNorway", "Norwegian Meteorological Institute"),
    "94": ("DMI", "Danish Meteorological Institute"),
    "99": ("KNMI", "Royal Netherlands Meteorological Institute (KNMI)"),
    "215": ("MeteoSwiss", "MeteoSwiss"),
    "227": ("RMI", "Royal Meteorological Institute of Belgium"),
    "247": ("OPERA", "EUMETNET OPERA"),
}

_CORNERS = {"LL": (0, 0), "LR": (1, 0), "UL": (0, 1), "UR": (1, 1)}  # columns and rows from LL
# Attributes that are looked at, by the group that they are in.
_WHAT = ("quantity", "gain", "offset", "nodata", "undetect", "product", "prodname")
_WHEN = ("startdate", "starttime", "enddate", "endtime")
_WHERE = ("projdef", "xsize", "ysize", "xscale", "yscale")
_NAMES = {
    "what": (*_WHAT, *_WHEN),
    "where": (*_WHERE, *(f"{corner}_{part}" for corner in _CORNERS for part in ("lon", "lat"))),
    "how": ("simulated",),
}


@dataclass(frozen=True)
class _Field:
    """One array of numbers and what holds for it, from its own group and those above."""

    group: Any
    dataset: Any
    what: dict[str, Any]

    @property
    def quantity(self) -> str:
        return str(self.what.get("quantity") or "")


def read_odim(path: Path | str) -> xr.Dataset:
    """Read one composite in ODIM_H5: rain rate, accumulated rain or reflectivity.

    `time` is the nominal time of the file, `time_bnds` the interval of its field: OPERA's frame
    of 18:00 was measured from 17:50 to 18:05. Accumulated rain becomes the mean rate over its
    interval. The quality index, if there is one, is `quality`. Forecasts in this format are
    refused: an accumulation that ends after the nominal time, a rate or reflectivity whose
    interval begins no earlier than it, and whatever calls itself simulated.

    Seen on real files: OPERA's rain rate of 2018. Everything else follows the description.

    Parameters
    ----------
    path
        An HDF5 file such as ``T_PAAH21_C_EUOC_20180824180000.hdf``.

    Returns
    -------
    xr.Dataset
        ``rain_rate(time, y, x)`` in mm h-1 or ``reflectivity`` in dBZ; ``nodata`` is NaN,
        ``undetect`` is 0.

    Raises
    ------
    ValueError
        If the content disagrees with the description, or leaves open what it means.

    Examples
    --------
    >>> parse_time("20180824", "180500")
    Timestamp('2018-08-24 18:05:00')
    """
    import h5py

    with h5py.File(path, "r") as file:
        nominal = _nominal_time(file)
        fields = _fields(file)
        field = _only(fields)
        _check_observed(file, field)
        start, end = _interval(field, nominal)
        shape, mapping, y, x = _grid(file, field)
        variable = QUANTITIES[field.quantity]
        values, out_of_range = within_range(_measured(field, shape, end - start), variable)
        quality = _quality(fields, field, shape)
        provenance = _provenance(file, field, end - start)
    if variable.name == REFLECTIVITY.name:
        values, variable = np.maximum(values, np.float32(0.0)), REFLECTIVITY
    attributes: dict[str, Any] = {"out_of_range": out_of_range}
    if field.quantity == ACCUMULATION:
        attributes["cell_methods"] = "time: mean"
    return observations(
        values[None],
        variable=variable,
        times=nominal,
        interval=None,
        bounds=[[start, end]],
        y=y,
        x=x,
        mapping=mapping,
        provenance=provenance,
        path=path,
        quality=None if quality is None else quality[None],
        attributes=attributes,
    )


def parse_time(date: Any, time: Any) -> pd.Timestamp:
    """Give the UTC time of a date and a time as ODIM_H5 writes them."""
    text = f"{date}T{time}"
    if not re.fullmatch(r"\d{8}T\d{6}", text, re.ASCII):
        raise ValueError(f"{text!r} is no time of ODIM_H5; one looks like '20180824T180000'")
    return pd.Timestamp(text)


def _nominal_time(file: Any) -> pd.Timestamp:
    what = hdf5.find(file, "what")
    kind = hdf5.attribute(what, "object")
    if kind not in OBJECTS:
        raise ValueError(f"the object is {kind!r}; only composites are read: {', '.join(OBJECTS)}")
    version = str(hdf5.attribute(what, "version"))
    if not VERSION.fullmatch(version):
        raise ValueError(f"the version is {version!r}; 'H5rad 2.0' to 'H5rad 2.4' are known")
    return parse_time(hdf5.attribute(what, "date"), hdf5.attribute(what, "time"))


def _fields(file: Any) -> list[_Field]:
    """Give all fields of a file, with ``what`` inherited from above where a field is silent."""
    found = []
    for number in range(1, MOST_GROUPS + 1):
        dataset = hdf5.find(file, f"dataset{number}")
        for part in range(1, MOST_GROUPS + 1):
            group = hdf5.find(dataset, f"data{part}")
            if group is None:
                break
            found.append(_Field(group, dataset, _inherited("what", file, dataset, group)))
    return found


def _inherited(kind: str, *groups: Any) -> dict[str, Any]:
    """Give the attributes of a kind for the last of these groups, each within the one before."""
    found: dict[str, Any] = {}
    for group in groups:
        own = hdf5.find(group, kind)
        values = {name: hdf5.attribute(own, name) for name in _NAMES[kind]}
        found |= {name: value for name, value in values.items() if value is not None}
    return found


def _only(fields: list[_Field]) -> _Field:
    known = [field for field in fields if field.quantity in QUANTITIES]
    if len(known) != 1:
        held = ", ".join(field.quantity or "unnamed" for field in fields) or "none"
        raise ValueError(
            f"{len(known)} fields of {', '.join(QUANTITIES)} are in the file, and one is needed; "
            f"it holds {held}"
        )
    return known[0]


def _interval(field: _Field, nominal: pd.Timestamp) -> tuple[pd.Timestamp, pd.Timestamp]:
    what = field.what
    start = parse_time(what.get("startdate"), what.get("starttime"))
    end = parse_time(what.get("enddate"), what.get("endtime"))
    if end < start or (field.quantity == ACCUMULATION and end == start):
        raise ValueError(f"the interval from {start} to {end} is none")
    if end - start > LONGEST_ACCUMULATION:
        raise ValueError(f"the interval from {start} to {end} is longer than a day")
    ahead = end > nominal and (field.quantity == ACCUMULATION or start >= nominal)
    if ahead or start > nominal:
        raise ValueError(
            f"the field, from {start} to {end}, is a forecast made at {nominal}; only "
            "observations are read"
        )
    return start, end


def _check_observed(file: Any, field: _Field) -> None:
    how = _inherited("how", file, field.dataset, field.group)
    if str(how.get("simulated", "")).lower() in ("true", "1.0"):
        raise ValueError("the field calls itself simulated; only observations are read")


def _grid(file: Any, field: _Field) -> tuple[tuple[int, int], dict[str, Any], Any, Any]:
    """Give shape, grid mapping, y and x, once the corners are where the projection puts them."""
    from pyproj import CRS, Transformer

    where = _inherited("where", file, field.dataset)
    missing = [name for name in _NAMES["where"] if name not in where]
    if missing:
        raise ValueError(f"the grid lacks {', '.join(missing)}")
    mapping = grid_mapping(parse_projection(str(where.pop("projdef"))))
    crs = CRS.from_cf(mapping)
    numbers = {name: _number(value, name) for name, value in where.items()}
    rows, columns = int(numbers["ysize"]), int(numbers["xsize"])
    height, width = numbers["yscale"], numbers["xscale"]
    if (rows, columns) != (numbers["ysize"], numbers["xsize"]) or min(height, width) <= 0:
        raise ValueError(f"{rows} rows of {height} m and {columns} columns of {width} m: no grid")
    project = Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform
    corners = {name: project(numbers[f"{name}_lon"], numbers[f"{name}_lat"]) for name in _CORNERS}
    left, top = (
        _snapped(at, size) for at, size in zip(corners["UL"], (width, height), strict=True)
    )
    for name, (right, upper) in _CORNERS.items():
        expected = (left + right * columns * width, top - (1 - upper) * rows * height)
        _check_corner(name, corners[name], expected, (width, height))
    y = axis("y", top - (np.arange(rows) + 0.5) * height)
    x = axis("x", left + (np.arange(columns) + 0.5) * width)
    return (rows, columns), mapping, y, x


def _snapped(position: float, size: float) -> float:
    """Give a corner without the noise of its longitude and latitude, a thousandth of a pixel."""
    return round(position / size, 3) * size


def _check_corner(
    name: str, found: tuple[float, float], expected: tuple[float, float], size: tuple[float, float]
) -> None:
    away = max(abs(f - e) / s for f, e, s in zip(found, expected, size, strict=True))
    if not away <= CORNER_TOLERANCE:
        raise ValueError(
            f"the corner {name} lies {away:.3g} pixels from where projection and pixel size put "
            f"it; at most {CORNER_TOLERANCE} would do"
        )


def _measured(field: _Field, shape: tuple[int, int], interval: pd.Timedelta) -> Any:
    """Give the field in the units of the convention: nodata is NaN, undetect and dry are 0."""
    stored = hdf5.frame(hdf5.find(field.group, "data"), shape)
    if stored.dtype.kind in "iu" and "nodata" not in field.what:
        raise ValueError(
            "the counts are whole numbers, and 'nodata' does not say which is 'not observed'"
        )
    values, undetected = _decoded(stored, field.what)
    if field.quantity == ACCUMULATION:
        values *= pd.Timedelta(hours=1) / interval
    values[undetected] = 0.0
    return values.astype(np.float32)


def _decoded(stored: Any, what: dict[str, Any]) -> tuple[Any, Any]:
    """Give the numbers of a field, NaN for nodata, and where nothing was detected."""
    gain = _number(what.get("gain", 1.0), "gain")
    offset = _number(what.get("offset", 0.0), "offset")
    if gain <= 0:
        raise ValueError(f"the gain is {gain}; it must be positive")
    nodata, undetect = (
        float("nan") if name not in what else _number(what[name], name, finite=False)
        for name in ("nodata", "undetect")
    )
    if nodata == undetect:
        raise ValueError(f"nodata and undetect are both {nodata}: missing and dry look alike")
    missing, undetected = stored == nodata, stored == undetect
    values = stored.astype(np.float64)
    values *= gain
    values += offset
    values[missing] = np.nan
    return values, undetected


def _quality(fields: list[_Field], field: _Field, shape: tuple[int, int]) -> Any:
    """Give the quality index of a field, NaN where it says nothing; None if there is none.

    It is a field of its own named QIND, or a group ``quality1`` of the field or of its dataset.
    Such groups may hold other things, such as the distance to the radar: one that is not named
    QIND counts if it stands alone and stays within 0 and 1.
    """
    found = [each for each in fields if each.quantity == QUALITY] or _quality_groups(field)
    named = [each for each in found if each.quantity == QUALITY]
    chosen = named or found
    if len(chosen) != 1:
        return None
    stored = hdf5.frame(hdf5.find(chosen[0].group, "data"), shape)
    values, undetected = _decoded(stored, chosen[0].what)
    values[undetected] = np.nan
    within = np.isnan(values) | ((values >= 0.0) & (values <= 1.0))
    if within.all():
        return values.astype(np.float32)
    if named:
        raise ValueError("the quality index leaves 0 to 1")
    return None


def _quality_groups(field: _Field) -> list[_Field]:
    """Give the groups ``quality1`` and so on of a field, or else of its dataset.

    They inherit nothing: what is above them is about the field.
    """
    for parent in (field.group, field.dataset):
        groups = [hdf5.find(parent, f"quality{number}") for number in range(1, MOST_GROUPS + 1)]
        found = [
            _Field(group, field.dataset, _inherited("what", group)) for group in groups if group
        ]
        if found:
            return found
    return []


def _provenance(file: Any, field: _Field, interval: pd.Timedelta) -> dict[str, str]:
    source, institution = _sender(str(hdf5.attribute(hdf5.find(file, "what"), "source")))
    return {
        "title": f"{institution} radar composite, {field.quantity}",
        "institution": institution,
        "source": source,
        "product": _product(field, interval),
        "references": REFERENCES,
    }


def _product(field: _Field, interval: pd.Timedelta) -> str:
    """Give what tells the products of one sender apart, such as ``MAX-DBZH`` or ``ACRR-60min``."""
    kinds = (str(field.what.get(name, "")) for name in ("prodname", "product"))
    parts = [*[kind for kind in kinds if kind and kind not in OBJECTS][:1], field.quantity]
    if field.quantity == ACCUMULATION:
        parts.append(f"{interval / pd.Timedelta(minutes=1):g}min")
    return re.sub(r"[^\w.-]+", "_", "-".join(parts), flags=re.ASCII)[:60]


def _sender(source: str) -> tuple[str, str]:
    """Give a short id and the name of the sender, from identifiers such as ``ORG:247``."""
    identifiers = dict(re.findall(r"(ORG|NOD|WMO):(\w{1,16})(?:,|$)", source, re.ASCII))
    if identifiers.get("ORG") in CENTRES:
        return CENTRES[identifiers["ORG"]]
    for kind in ("ORG", "NOD", "WMO"):
        if kind in identifiers:
            name = f"{kind}-{identifiers[kind]}"
            return name, name
    raise ValueError(f"the sender {source!r} is not told by ORG, NOD or WMO")


def _number(value: Any, name: str, *, finite: bool = True) -> float:
    if not isinstance(value, float) or (finite and not np.isfinite(value)):
        raise ValueError(f"{name} is {value!r}; a number is needed")
    return value
