"""RADOLAN composites of Deutscher Wetterdienst, in their binary format: rain and reflectivity."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import RAIN_RATE, REFLECTIVITY, Variable
from nowcast.data.readers.building import axis, content, grid_mapping, observations, within_range

REFERENCES = "DWD, RADOLAN/RADVOR-OP Kompositformat, version 2.5"
PLACE = "10000"  # of a composite, where a single radar has its WMO number
END_OF_HEADER = b"\x03"
LONGEST_HEADER = 2000  # bytes

# Minutes that a product covers, and millimetres per count. What the header says must be the same.
RAIN: dict[str, tuple[int, float]] = {
    **dict.fromkeys(("RY", "RZ", "RV", "YW", "EY", "EZ"), (5, 0.01)),
    **dict.fromkeys(("RW", "RB", "RH", "RL", "RU", "EB", "EH", "EW"), (60, 0.1)),
    "SQ": (360, 0.1),
    "SH": (720, 0.1),
    "SF": (1440, 0.1),
}
DBZ = {"RX": (5, 1.0), "WX": (5, 1.0), "EX": (5, 1.0)}  # one byte per pixel; see DBZ_PER_COUNT
DBZ_PER_COUNT, WEAKEST_DBZ = 0.5, -32.5
DBZ_CLUTTER, DBZ_MISSING = 249, 250  # counts; none is greater

# Bits above the twelve of the count. The thirteenth marks data from a secondary source, which
# are data all the same; the fifteenth the minus sign of products that hold differences.
COUNT, MISSING, NEGATIVE, CLUTTER = 0x0FFF, 0x2000, 0x4000, 0x8000

# Kilometres from the corner in the south-west to the point at 9 E, 51 N, by rows and columns.
REFERENCE_POINT = (9.0, 51.0)
GRIDS = {
    (900, 900): (450, 450),
    (1100, 900): (550, 370),
    (1200, 1100): (600, 470),
    (1500, 1400): (800, 600),
}
SPACING = 1000.0  # metres
_SPHERE = {"R": 6370040.0}
# By version of the format.
EARTHS: dict[int, dict[str, Any]] = {
    **dict.fromkeys((0, 1, 2, 3), _SPHERE),
    5: {"ellps": "WGS84"},
}

_HEADER = re.compile(
    r"(?P<product>[A-Z]{2})(?P<day>\d\d)(?P<clock>\d{4})(?P<place>\d{5})(?P<month>\d\d)"
    r"(?P<year>\d\d)BY(?P<bytes>[ \d]{7})VS(?P<version>[ \d]{2})SW(?P<software>[ .\w]{1,10})"
    r"PR(?P<precision> E[+-]\d\d)INT(?P<interval>[ \d]{4})(?:U(?P<days>[01]))?"
    r"GP(?P<rows>[ \d]{4})x(?P<columns>[ \d]{4})(?:VV(?P<lead> *\d+))?(?:MF(?P<flags>[ \d]{9}))?"
    r"(?:QN(?P<quantification>[ \d]{4}))?(?:VR(?P<reanalysis>[ .\w]{8}))?"
    r"MS(?P<length>[ \d]{3})(?P<message>.*)",
    re.ASCII,
)


@dataclass(frozen=True)
class Header:
    """What the header of a RADOLAN composite says.

    Parameters
    ----------
    product
        Two letters.
    time
        UTC: the end of the interval.
    interval
        That the values cover.
    precision
        Of one count, in the product's units.
    shape
        Rows and columns.
    size
        Of the whole content, header included, in bytes.
    version
        Of the format.
    lead_minutes
        Of a forecast; 0 of an observation.
    reanalysis
        Version of the climatology RADKLIM; empty if the file is none of it.
    """

    product: str
    time: pd.Timestamp
    interval: pd.Timedelta
    precision: float
    shape: tuple[int, int]
    size: int
    version: int
    lead_minutes: int
    reanalysis: str


def read_radolan(path: Path | str) -> xr.Dataset:
    """Read one RADOLAN composite, gzipped or plain, as rain rate or reflectivity.

    Rain sums become the mean rate over their interval, which ends at the time in the header:
    RW of 00:50 covers 23:50 to 00:50. What DWD marks as clutter is not observed.

    Seen on real files: RW, RY and RX. Everything else follows the description.

    Parameters
    ----------
    path
        A file such as ``raa01-rw_10000-1811220050-dwd---bin.gz``.

    Returns
    -------
    xr.Dataset
        ``rain_rate(time, y, x)`` in mm h-1 or ``reflectivity`` in dBZ; no data is NaN, dry is 0.

    Raises
    ------
    ValueError
        If the header disagrees with what is known of the product, or the content with it.
    """
    raw = content(path)
    end = raw.find(END_OF_HEADER, 0, LONGEST_HEADER)
    if end < 0:
        raise ValueError("there is no end of a RADOLAN header")
    header = parse_header(raw[:end].decode("latin-1"))
    _check(header)
    if len(raw) != header.size:
        raise ValueError(
            f"the header declares {header.size:,} bytes and there are {len(raw):,}: damaged or "
            "cut short"
        )
    y, x, mapping = _grid(header)
    values, variable, out_of_range = _decoded(header, raw, end + 1)
    attributes: dict[str, Any] = {"out_of_range": out_of_range}
    if variable == RAIN_RATE:
        attributes["cell_methods"] = "time: mean"
    return observations(
        values[None],
        variable=variable,
        times=header.time,
        interval=header.interval,
        y=y,
        x=x,
        mapping=mapping,
        provenance=_provenance(header),
        path=path,
        attributes=attributes,
    )


def parse_header(text: str) -> Header:
    """Give what the header of a composite says.

    Examples
    --------
    >>> header = parse_header(
    ...     "RW220050100001118BY1620153VS 3SW   2.21.0PR E-01INT  60GP 900x 900MF 00000001"
    ...     "MS  5<asb>"
    ... )
    >>> header.product, str(header.time), header.interval.seconds, header.precision
    ('RW', '2018-11-22 00:50:00', 3600, 0.1)
    """
    match = _HEADER.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:100]!r} is no header of a RADOLAN composite")
    if match["place"] != PLACE:
        raise ValueError(f"the place is {match['place']}; composites have {PLACE}")
    if int(match["length"]) != len(match["message"]):
        raise ValueError("the header's message is not as long as it says")
    unit = "days" if match["days"] == "1" else "minutes"
    date = f"20{match['year']}{match['month']}{match['day']}T{match['clock']}"
    return Header(
        product=match["product"],
        time=pd.Timestamp(date),
        interval=pd.Timedelta(int(match["interval"]), unit=unit),
        precision=float(f"1{match['precision'].strip()}"),
        shape=(int(match["rows"]), int(match["columns"])),
        size=int(match["bytes"]),
        version=int(match["version"]),
        lead_minutes=int(match["lead"] or 0),
        reanalysis=(match["reanalysis"] or "").strip(),
    )


def _check(header: Header) -> None:
    known = {**RAIN, **DBZ}
    if header.product not in known:
        raise ValueError(f"the product is {header.product!r}; known are {', '.join(sorted(known))}")
    if header.lead_minutes:
        raise ValueError(f"is a forecast for {header.lead_minutes} minutes, and no observation")
    minutes, precision = known[header.product]
    if header.interval != pd.Timedelta(minutes, unit="minutes") or header.precision != precision:
        raise ValueError(
            f"{header.product} covers {minutes} minutes in steps of {precision:g}; the header says "
            f"{header.interval / pd.Timedelta(minutes=1):g} minutes and {header.precision:g}"
        )
    if header.shape not in GRIDS or header.version not in EARTHS:
        raise ValueError(
            f"a grid of {header.shape} pixels in version {header.version} of the format is not "
            f"known; known are {', '.join(map(str, GRIDS))} in versions {sorted(EARTHS)}"
        )


def _grid(header: Header) -> tuple[xr.Variable, xr.Variable, dict[str, Any]]:
    """Give y, x and the grid mapping; the first row is the southernmost."""
    from pyproj import CRS, Transformer

    earth = EARTHS[header.version]
    mapping = grid_mapping({"proj": "stere", "lat_0": 90, "lat_ts": 60, "lon_0": 10, **earth})
    crs = CRS.from_cf(mapping)
    project = Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform
    east, north = project(*REFERENCE_POINT)
    south, west = GRIDS[header.shape]
    rows, columns = (np.arange(size) + 0.5 for size in header.shape)
    y = axis("y", north + (rows - south) * SPACING)
    x = axis("x", east + (columns - west) * SPACING)
    return y, x, mapping


def _decoded(header: Header, raw: bytes, start: int) -> tuple[Any, Variable, int]:
    """Give values in the units of their variable, and how many were out of its range."""
    kind = np.dtype(np.uint8 if header.product in DBZ else "<u2")
    size = header.shape[0] * header.shape[1]
    if len(raw) - start != size * kind.itemsize:
        raise ValueError(
            f"{header.shape} pixels need {size * kind.itemsize:,} bytes; after the header there "
            f"are {len(raw) - start:,}"
        )
    counts = np.frombuffer(raw, kind, count=size, offset=start).reshape(header.shape)
    if header.product in DBZ:
        return _reflectivity(counts), REFLECTIVITY, 0
    values, out_of_range = within_range(_rain_rate(counts, header), RAIN_RATE)
    return values, RAIN_RATE, out_of_range


def _rain_rate(counts: Any, header: Header) -> Any:
    per_hour = pd.Timedelta(hours=1) / header.interval
    values = ((counts & COUNT) * header.precision * per_hour).astype(np.float32)
    values[(counts & NEGATIVE) > 0] *= -1
    values[(counts & (MISSING | CLUTTER)) > 0] = np.nan
    return values


def _reflectivity(counts: Any) -> Any:
    if (counts > DBZ_MISSING).any():
        raise ValueError(f"counts reach {counts.max()}; {DBZ_MISSING}, no data, is the greatest")
    values = (counts * np.float32(DBZ_PER_COUNT) + np.float32(WEAKEST_DBZ)).clip(min=0.0)
    values[np.isin(counts, (DBZ_CLUTTER, DBZ_MISSING))] = np.nan
    return values


def _provenance(header: Header) -> dict[str, str]:
    family = "RADKLIM" if header.reanalysis else "RADOLAN"
    found = {
        "title": f"{family} composite {header.product}",
        "institution": "Deutscher Wetterdienst",
        "source": "DWD",
        "product": f"{family}-{header.product}" if header.reanalysis else header.product,
        "references": REFERENCES,
    }
    return {**found, "product_version": header.reanalysis} if header.reanalysis else found
