"""Places: points and areas on a grid, and what fields are there.

A place is a set of pixels with weights. A point is the pixel whose centre is nearest; an area is
every pixel that it touches, by the part of the pixel that lies inside.
"""

import collections
import csv
import functools
import hashlib
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xarray as xr

from nowcast.config import ConfigError
from nowcast.conventions import DEGREES, grid_id, grid_mapping_name
from nowcast.data.series import LEAST_OBSERVED

WGS84 = "OGC:CRS84"  # longitude, latitude in degrees: what RFC 7946 says of every GeoJSON file
SAME_AS_WGS84 = ("CRS84", "EPSG::4326", "EPSG:4326")  # how files name it that name it all the same
# The sides of an area are straight on the map of longitude and latitude, and are followed in
# pieces of this length, degrees: such a piece departs from the curve by half a metre.
PIECE = 0.05
POINT_AXES = (("lon", "lat"), ("x", "y"))


@dataclass(frozen=True)
class Places:
    """Points or areas on one grid.

    Parameters
    ----------
    names
        Each once.
    kind
        What they are.
    lon, lat : (place,)
        WGS84, degrees: of a point itself, of an area a point inside it.
    pixels : (pixel,)
        All that take part, as places in a flattened field.
    weights : (place, pixel)
        Sparse. Of a point 1; of an area the part of the area that lies in the pixel, which add up
        to less than 1 where the area reaches out of the grid.
    distance : (place,)
        Metres from a point to the centre of its pixel; of an area 0.
    shape
        Rows and columns of the grid.
    grid
        Its `nowcast.conventions.grid_id`.
    sha256
        Of names and geometry as they were given.
    """

    names: tuple[str, ...]
    kind: Literal["point", "area"]
    lon: np.ndarray = field(compare=False)
    lat: np.ndarray = field(compare=False)
    pixels: np.ndarray = field(compare=False)
    weights: Any = field(compare=False)
    distance: np.ndarray = field(compare=False)
    shape: tuple[int, int]
    grid: str
    sha256: str

    @cached_property
    def covered(self) -> np.ndarray:
        """The part of each place that lies in the grid; (place,)."""
        covered: np.ndarray = np.asarray(self.weights.sum(axis=1)).ravel()
        return covered

    def of(self, fields: xr.DataArray) -> xr.DataArray:
        """Give the values of fields at the places.

        Of an area the mean over its observed pixels, each by the part of it that lies in the area,
        and missing where less than half (`LEAST_OBSERVED`) of the area is observed; what lies
        out of the grid is not. Pixels count alike, whatever their true size.

        Parameters
        ----------
        fields : (..., y, x)
            On the grid of the places; may be lazy.

        Returns
        -------
        DataArray : (..., place)
            In the units of the fields.

        Raises
        ------
        ValueError
            If they have other rows or columns.
        """
        shape = (fields.sizes["y"], fields.sizes["x"])
        if shape != self.shape:
            raise ValueError(
                f"the places are on a grid of {self.shape} rows and columns, the fields of "
                f"{shape}; read the places for the grid of the fields"
            )
        reduced: xr.DataArray = xr.apply_ufunc(
            self._means,
            fields,
            input_core_dims=[["y", "x"]],
            output_core_dims=[["place"]],
            dask="parallelized",
            dask_gufunc_kwargs={"output_sizes": {"place": len(self.names)}},
            output_dtypes=[fields.dtype],
            keep_attrs=True,
        )
        reduced.attrs.pop("grid_mapping", None)
        return reduced.assign_coords(place=list(self.names))

    def check_grid(self, dataset: xr.Dataset) -> None:
        """Refuse fields on another grid.

        Raises
        ------
        ValueError
            Telling both grids.
        """
        found = grid_id(dataset)
        if found != self.grid:
            raise ValueError(
                f"the places are on the grid {self.grid}, the fields on {found}; read the places "
                "for the grid of the fields"
            )

    def _means(self, values: np.ndarray) -> np.ndarray:
        flat = values.reshape(-1, self.shape[0] * self.shape[1])[:, self.pixels]
        seen = ~np.isnan(flat)
        observed = (self.weights @ seen.T.astype(np.float64)).T
        total = (self.weights @ np.where(seen, flat, 0.0).T.astype(np.float64)).T
        # As a part of the area: one of which exactly half is observed must not miss it by rounding.
        enough = observed >= LEAST_OBSERVED - 1e-9
        means = np.divide(total, observed, out=np.full_like(total, np.nan), where=enough)
        reduced: np.ndarray = means.reshape(*values.shape[:-2], -1).astype(values.dtype)
        return reduced


def read_places(
    grid: xr.Dataset, *, points: Path | str | None = None, areas: Path | str | None = None
) -> Places:
    """Read points or areas, whichever is given; see `read_points` and `read_areas`.

    Raises
    ------
    ConfigError
        If both are given, or none.
    """
    if points and not areas:
        return read_points(points, grid)
    if areas and not points:
        return read_areas(areas, grid)
    given = "both are" if points else "none is"
    raise ConfigError(f"places are points (CSV) or areas (GeoJSON); {given} given; give one")


def read_points(path: Path | str, grid: xr.Dataset) -> Places:
    """Read points from a CSV file, for fields on a grid.

    Parameters
    ----------
    path
        With a heading: ``name``, and ``lon``, ``lat`` (WGS84, degrees) or ``x``, ``y`` (in the
        coordinates of the grid). Other columns do not matter. Separated by commas; or by
        semicolons, where a comma may be the decimal sign.
    grid
        Observations or a nowcast; only its coordinates are read.

    Raises
    ------
    ValueError
        Naming the file, and the line or the place that is wrong.
    """
    names, given, axes = _points_in(Path(path))
    here = Grid(grid)
    if axes == ("lon", "lat"):
        lon, lat = given
        x, y = here.project(lon, lat)
    else:
        x, y = given
        lon, lat = here.unproject(x, y)
    inside = here.inside(x, y)
    if not inside.all():
        place = int(np.flatnonzero(~inside)[0])
        at = f"{axes[0]} {given[0][place]:g}, {axes[1]} {given[1][place]:g}"
        raise ValueError(
            f"{path}: the point {names[place]!r} ({at}) lies outside of the grid, which reaches "
            f"{here.extent}"
        )
    row, column = here.pixel(x, y)
    return _places(
        names,
        "point",
        here,
        lon=lon,
        lat=lat,
        parts=[{int(at): 1.0} for at in row * len(here.x) + column],
        distance=here.distance(lon, lat, here.x[column], here.y[row]),
        geometry=repr((axes, [one.tolist() for one in given])).encode(),
    )


def read_areas(path: Path | str, grid: xr.Dataset) -> Places:
    """Read areas from a GeoJSON file (RFC 7946), for fields on a grid.

    Parameters
    ----------
    path
        A FeatureCollection of Polygons and MultiPolygons in WGS84 longitude and latitude; the name
        of each is its property ``name``, or else its ``id``.
    grid
        Observations or a nowcast; only its coordinates are read.

    Raises
    ------
    ValueError
        Naming the file, and the area that is wrong: no valid polygon, or wholly outside of the
        grid. One that lies partly outside is taken; see `Places.of`, and `Places.covered` for how
        much of it lies inside.
    """
    import shapely

    shapes = _areas_in(Path(path))
    here = Grid(grid)
    parts = []
    for name, shape in shapes.items():
        parts.append(here.parts_of(shape))
        if not parts[-1]:
            west, south, east, north = shape.bounds
            raise ValueError(
                f"{path}: the area {name!r}, from longitude {west:g} to {east:g} and latitude "
                f"{south:g} to {north:g}, lies outside of the grid, which reaches {here.extent}"
            )
    inner = [shape.representative_point() for shape in shapes.values()]
    return _places(
        list(shapes),
        "area",
        here,
        lon=np.array([point.x for point in inner]),
        lat=np.array([point.y for point in inner]),
        parts=parts,
        distance=np.zeros(len(inner)),
        geometry=b"".join(shapely.to_wkb(shape) for shape in shapes.values()),
    )


class Grid:
    """Where the pixels of a dataset lie."""

    def __init__(self, dataset: xr.Dataset) -> None:
        from pyproj import Transformer

        mapping = dataset[grid_mapping_name(dataset)].attrs
        told = json.dumps(mapping, sort_keys=True, default=lambda value: value.tolist())
        self.crs = _crs(told)
        self.id = grid_id(dataset)
        self.y, self.x = (dataset[axis].values.astype(np.float64) for axis in ("y", "x"))
        self.geographic = dataset["x"].attrs["units"] in DEGREES
        spacings = [abs(np.diff(axis).mean()) for axis in (self.y, self.x) if len(axis) > 1]
        if not spacings:
            raise ValueError("a grid of one pixel does not say how large that pixel is")
        # A grid of one row or column has square pixels.
        self.height = spacings[0]
        self.width = spacings[-1]
        self.transformer = Transformer.from_crs(WGS84, self.crs, always_xy=True)

    @property
    def extent(self) -> str:
        """In words, for messages."""
        (west, east), (south, north) = self._edges
        corners = self.unproject(
            np.array([west, west, east, east]), np.array([south, north, south, north])
        )
        lon, lat = (f"{one.min():.4g} to {one.max():.4g}" for one in corners)
        told = f"from x {west:g} to {east:g} and y {south:g} to {north:g}"
        return f"{told} (its corners: longitude {lon}, latitude {lat})"

    @property
    def _edges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        return (
            (self.x.min() - self.width / 2, self.x.max() + self.width / 2),
            (self.y.min() - self.height / 2, self.y.max() + self.height / 2),
        )

    def project(self, lon: np.ndarray, lat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give x and y; infinite where the projection shows no such place."""
        x, y = self.transformer.transform(lon, lat)
        if self.geographic:  # a grid may count longitude from 0 to 360
            middle = (self.x.min() + self.x.max()) / 2
            x = middle + (x - middle + 180.0) % 360.0 - 180.0
        return x, y

    def unproject(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give longitude and latitude, from -180 to 180 and -90 to 90 degrees."""
        lon, lat = self.transformer.transform(x, y, direction="INVERSE")
        return np.where(abs(lon) > 180.0, (lon + 180.0) % 360.0 - 180.0, lon), lat

    def inside(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Tell which points lie in a pixel; one on the outer edge does."""
        (west, east), (south, north) = self._edges
        loose = 1e-6 * self.width, 1e-6 * self.height
        inside: np.ndarray = (abs(x - (west + east) / 2) <= (east - west) / 2 + loose[0]) & (
            abs(y - (south + north) / 2) <= (north - south) / 2 + loose[1]
        )
        return inside

    def pixel(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Give row and column of the nearest pixels."""
        row, column = (
            abs(np.subtract.outer(at, axis)).argmin(axis=1)
            for at, axis in ((y, self.y), (x, self.x))
        )
        return row, column

    def distance(self, lon: np.ndarray, lat: np.ndarray, x: np.ndarray, y: np.ndarray) -> Any:
        """Give metres between places on the ground."""
        from pyproj import Geod

        return Geod(ellps="WGS84").inv(lon, lat, *self.unproject(x, y))[2]

    def parts_of(self, area: Any) -> dict[int, float]:
        """Give which part of an area lies in each of the pixels that it touches."""
        import shapely

        def project(lonlat: np.ndarray) -> np.ndarray:
            return np.stack(self.project(*lonlat.T), axis=1)

        shape = shapely.transform(shapely.segmentize(area, PIECE), project)
        if not np.isfinite(shapely.get_coordinates(shape)).all():
            return {}  # so far away that the projection does not show it
        _, south, _, north = shape.bounds
        rows = np.flatnonzero(
            (self.y + self.height / 2 > south) & (self.y - self.height / 2 < north)
        )
        parts: dict[int, float] = {}
        for row in rows:  # a slice is simple even where the shape is not
            columns, areas = self._areas_in_row(shape, self.y[row])
            pixels = row * len(self.x) + columns
            parts |= dict(zip(pixels.tolist(), (areas / shape.area).tolist(), strict=True))
        return {pixel: part for pixel, part in parts.items() if part > 0}

    def _areas_in_row(self, shape: Any, y: float) -> tuple[np.ndarray, np.ndarray]:
        """Give the columns of a row of pixels that a shape may touch, and its area in each."""
        import shapely

        west, _, east, _ = shape.bounds
        half = self.height / 2
        piece = shapely.intersection(shape, shapely.box(west, y - half, east, y + half))
        west, _, east, _ = piece.bounds  # NaN of nothing, which touches no column
        columns = np.flatnonzero(
            (self.x + self.width / 2 > west) & (self.x - self.width / 2 < east)
        )
        x = self.x[columns]
        pixels = shapely.box(x - self.width / 2, y - half, x + self.width / 2, y + half)
        return columns, shapely.area(shapely.intersection(piece, pixels))


@functools.lru_cache(maxsize=8)
def _crs(grid_mapping: str) -> Any:
    """Give the projection of CF attributes in JSON: a fifth of a second each, of every file."""
    from pyproj import CRS

    return CRS.from_cf(json.loads(grid_mapping))


def _places(
    names: list[str],
    kind: Literal["point", "area"],
    grid: Grid,
    *,
    lon: np.ndarray,
    lat: np.ndarray,
    parts: list[dict[int, float]],
    distance: np.ndarray,
    geometry: bytes,
) -> Places:
    from scipy.sparse import csr_array

    pixels = np.unique([at for part in parts for at in part])
    entries = [
        (place, at, weight) for place, part in enumerate(parts) for at, weight in part.items()
    ]
    place, at, weight = (np.array(column) for column in zip(*entries, strict=True))
    shape = (len(names), len(pixels))
    told = json.dumps([kind, names]).encode()
    return Places(
        names=tuple(names),
        kind=kind,
        lon=lon,
        lat=lat,
        pixels=pixels,
        weights=csr_array((weight, (place, np.searchsorted(pixels, at))), shape=shape),
        distance=np.asarray(distance),
        shape=(len(grid.y), len(grid.x)),
        grid=grid.id,
        sha256=hashlib.sha256(told + geometry).hexdigest(),
    )


def _points_in(path: Path) -> tuple[list[str], tuple[np.ndarray, np.ndarray], tuple[str, str]]:
    """Give names, two coordinates, and what these are."""
    text = _text(path)
    heading = text.partition("\n")[0]
    separator = ";" if ";" in heading else ","
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    columns = [column.strip().lower() for column in reader.fieldnames or ()]
    reader.fieldnames = columns
    pairs = [pair for pair in POINT_AXES if set(pair) <= set(columns)]
    if "name" not in columns or len(pairs) != 1:
        raise ValueError(
            f"{path}: points need the column name, and either lon and lat (degrees) or x and y "
            f"(coordinates of the grid); its heading has {', '.join(columns) or 'nothing'}"
        )
    axes = pairs[0]
    names, numbers = [], []
    for row in reader:
        where = f"{path}, line {reader.line_num}"
        names.append((row["name"] or "").strip())
        numbers.append([_number(row[axis], axis, where, comma=separator == ";") for axis in axes])
    _check_names(path, names, "points")
    first, second = np.array(numbers).T
    if axes == ("lon", "lat"):
        _check_degrees(f"{path}: the points", first, second)
    return names, (first, second), axes


def _number(text: str | None, column: str, where: str, *, comma: bool) -> float:
    told = (text or "").strip()
    try:
        number = float(told.replace(",", ".") if comma else told)
    except ValueError:
        number = np.nan
    if not np.isfinite(number):
        raise ValueError(f"{where}: {column} must be a number; it is {told!r}")
    return number


def _areas_in(path: Path) -> dict[str, Any]:
    """Give the polygons of a file by name."""
    try:
        content = json.loads(_text(path))
    except ValueError as error:
        raise ValueError(f"{path}: is not JSON: {error}") from error
    features = content.get("features") if isinstance(content, dict) else None
    if not isinstance(features, list) or content.get("type") != "FeatureCollection":
        raise ValueError(f"{path}: areas are a GeoJSON FeatureCollection; this is none")
    system = json.dumps(content.get("crs"))
    if system != "null" and not any(known in system for known in SAME_AS_WGS84):
        raise ValueError(
            f"{path}: GeoJSON is in longitude and latitude (RFC 7946); this file says {system}; "
            "convert it, as by: ogr2ogr -t_srs EPSG:4326 areas.geojson FILE"
        )
    names = [_name_of(path, number, feature) for number, feature in enumerate(features, 1)]
    _check_names(path, names, "areas")
    return {
        name: _polygon(f"{path}: the area {name!r}", feature.get("geometry"))
        for name, feature in zip(names, features, strict=True)
    }


def _name_of(path: Path, number: int, feature: Any) -> str:
    if not isinstance(feature, Mapping):
        raise ValueError(f"{path}: feature {number} is none: {str(feature)[:60]}")
    name = (feature.get("properties") or {}).get("name")
    name = feature.get("id") if name is None else name
    if name is None:
        raise ValueError(f"{path}: feature {number} has neither the property name nor an id")
    return str(name).strip()


def _polygon(what: str, geometry: Any) -> Any:
    import shapely
    from shapely.geometry import shape

    kind = geometry.get("type") if isinstance(geometry, Mapping) else geometry
    if kind not in ("Polygon", "MultiPolygon"):
        raise ValueError(f"{what} must be a Polygon or MultiPolygon; it is {kind}")
    try:
        polygon = shapely.force_2d(shape(geometry))
    except (ValueError, TypeError, LookupError, AttributeError, shapely.errors.GEOSException):
        raise ValueError(f"{what} has coordinates that are no {kind}") from None
    if polygon.is_empty or not polygon.is_valid:
        why = shapely.is_valid_reason(polygon) if not polygon.is_empty else "empty"
        raise ValueError(f"{what} is no valid {kind}: {why}; mend it, as by shapely.make_valid")
    _check_degrees(what, *shapely.get_coordinates(polygon).T)
    return polygon


def _check_degrees(what: str, lon: np.ndarray, lat: np.ndarray) -> None:
    if (abs(lat) > 90).any() or (abs(lon) > 360).any():
        raise ValueError(
            f"{what} must be in degrees of longitude and latitude; longitude goes from "
            f"{lon.min():g} to {lon.max():g}, latitude from {lat.min():g} to {lat.max():g}"
        )


def _check_names(path: Path, names: Iterable[str], what: str) -> None:
    counts = collections.Counter(names)
    if not counts:
        raise ValueError(f"{path}: holds no {what}")
    twice = [name for name, count in counts.items() if count > 1 and name]
    if twice or "" in counts:
        wrong = f"{twice[0]!r} stands there twice" if twice else "one has none"
        raise ValueError(f"{path}: {what} need names, each its own; {wrong}")


def _text(path: Path) -> str:
    """Read a file as UTF-8, with or without the mark that spreadsheets put first."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: is not text in UTF-8 ({error.reason}); save it as such"
        ) from None
