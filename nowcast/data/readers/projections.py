"""PROJ strings out of files: only known parameters, and none that PROJ would look up elsewhere."""

import re
from typing import Any

RADII = (6.2e6, 6.5e6)  # metres, between which the Earth's lies

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_PARAMETER = re.compile(
    rf"\+(?:(?P<text>proj|ellps|datum|units|type)=(?P<word>\w+)|(?P<flag>no_defs|wktext)"
    rf"|(?P<name>lat_0|lon_0|lat_ts|lat_1|lat_2|k|k_0|x_0|y_0|a|b|R|rf)=(?P<number>{_NUMBER}))",
    re.ASCII,
)
_PROJECTIONS = ("aea", "aeqd", "laea", "lcc", "merc", "stere", "tmerc")
_ELLIPSOIDS = ("WGS84", "GRS80", "bessel", "sphere", "intl", "clrk66")
_WORDS = {
    "proj": _PROJECTIONS,
    "ellps": _ELLIPSOIDS,
    "datum": ("WGS84",),
    "units": ("m", "km"),
    "type": ("crs",),
}


def parse_projection(projdef: str) -> dict[str, Any]:
    """Give the parameters of a PROJ string, in metres; only known ones are accepted.

    PROJ itself would read grids from files and give the coordinates in kilometres if asked;
    neither is wanted here. Lengths among the parameters are metres whatever ``+units`` says.

    Raises
    ------
    ValueError
        If a parameter is unknown, missing, given twice, or not of this Earth.

    Examples
    --------
    >>> parse_projection("+proj=laea +lat_0=55.0 +lon_0=10 +units=km +ellps=WGS84")
    {'proj': 'laea', 'lat_0': 55.0, 'lon_0': 10.0, 'units': 'm', 'ellps': 'WGS84'}
    """
    matches = [_PARAMETER.fullmatch(part) for part in projdef.split()]
    found: dict[str, Any] = {}
    for part, match in zip(projdef.split(), matches, strict=True):
        if match is None or (match["text"] and match["word"] not in _WORDS[match["text"]]):
            raise ValueError(f"the projection {projdef!r} has {part!r}, which is not known")
        if match["flag"]:
            continue
        name = match["text"] or match["name"]
        if name in found:
            raise ValueError(f"the projection {projdef!r} gives {name!r} twice")
        found[name] = match["word"] if match["text"] else float(match["number"])
    if "proj" not in found or not {"ellps", "datum", "a", "R"} & set(found):
        raise ValueError(f"the projection {projdef!r} lacks its kind or the size of the Earth")
    for name in {"a", "b", "R"} & set(found):
        if not RADII[0] < found[name] < RADII[1]:
            raise ValueError(f"the projection {projdef!r} has an Earth of {found[name]} metres")
    return {**found, "units": "m"}
