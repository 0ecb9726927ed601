import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nowcast.config import ConfigError
from nowcast.conventions import RAIN_RATE, build_nowcast
from nowcast.data.observations import open_observations
from nowcast.data.series import series_of
from nowcast.places import Grid, read_areas, read_places, read_points

DEGREES = {"grid_mapping_name": "latitude_longitude"}
PROJECTED = {
    "grid_mapping_name": "lambert_azimuthal_equal_area",
    "latitude_of_projection_origin": 52.0,
    "longitude_of_projection_origin": 5.0,
    "semi_major_axis": 6378137.0,
    "inverse_flattening": 298.257223563,
}
WHOLE = [[4.0, 51.0], [8.0, 51.0], [8.0, 53.0], [4.0, 53.0]]


def observations(values, *, mapping=DEGREES, y=None, x=None):
    """Rain rate on a grid of degrees whose pixels meet at 4, 5, .. east and 51, 52, .. north."""
    values = np.atleast_3d(np.asarray(values, np.float32))
    rows, columns = values.shape[1:]
    y = 50.5 + np.arange(rows) if y is None else y
    x = 3.5 + np.arange(columns) if x is None else x
    units = ("degrees_north", "degrees_east") if mapping is DEGREES else ("m", "m")
    return xr.Dataset(
        {"rain_rate": (("time", "y", "x"), values, RAIN_RATE.attributes)},
        coords={
            "time": pd.date_range("2024-06-01", periods=len(values), freq="5min"),
            "y": ("y", y, {"units": units[0]}),
            "x": ("x", x, {"units": units[1]}),
            "crs": ((), 0, mapping),
        },
    )


def grid(rows=4, columns=6, **settings):
    values = np.arange(rows * columns, dtype=np.float32).reshape(1, rows, columns)
    return observations(values, **settings)


def write_areas(path, *rings, names=None, **members):
    features = [
        {
            "type": "Feature",
            "properties": {"name": name},
            "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
        }
        for name, ring in zip(names or "ABCDEF", rings, strict=False)
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features, **members}))
    return path


def weights(places, place=0):
    """Give the weights of a place as a field."""
    field = np.zeros(places.shape)
    field.ravel()[places.pixels] = places.weights.toarray()[place]
    return field


def points(tmp_path, text):
    path = tmp_path / "points.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_triangle_weighs_each_pixel_by_the_part_that_lies_inside(tmp_path):
    """Right-angled at 4 E 51 N, legs of two pixels: one whole pixel and two halves, by hand."""
    path = write_areas(tmp_path / "a.geojson", [[4.0, 51.0], [6.0, 51.0], [4.0, 53.0]])
    places = read_areas(path, grid())
    expected = np.zeros((4, 6))
    expected[1, 1], expected[1, 2], expected[2, 1] = 0.5, 0.25, 0.25  # parts of an area of 2
    np.testing.assert_allclose(weights(places), expected, atol=1e-12)
    values = places.of(grid()["rain_rate"])
    assert values.dims == ("time", "place")
    assert values.item() == pytest.approx(0.5 * 7 + 0.25 * 8 + 0.25 * 13)


@pytest.mark.parametrize("mapping", [DEGREES, PROJECTED], ids=["degrees", "projected"])
def test_weights_are_those_of_counting_many_small_parts_of_pixels(tmp_path, mapping):
    """Against brute force: 100 x 100 places in each pixel, told inside or outside by matplotlib."""
    from matplotlib.path import Path as Outline

    ring = [[4.3, 51.2], [6.9, 51.5], [5.6, 52.0], [6.2, 52.9], [4.8, 52.3]]
    metres = {"y": 30_000.0 * np.arange(8)[::-1] - 100_000, "x": 25_000.0 * np.arange(10) - 90_000}
    observed = grid() if mapping is DEGREES else grid(8, 10, mapping=mapping, **metres)
    places = read_areas(write_areas(tmp_path / "a.geojson", ring), observed)
    here = Grid(observed)
    offsets = (np.arange(100) + 0.5) / 100 - 0.5
    y = (here.y[:, None] + here.height * offsets).ravel()
    x = (here.x[:, None] + here.width * offsets).ravel()
    lon, lat = here.unproject(*(one.ravel() for one in np.meshgrid(x, y)))
    inside = Outline([*ring, ring[0]]).contains_points(np.stack([lon, lat], axis=1))
    rows, columns = places.shape
    parts = inside.reshape(rows, 100, columns, 100).mean(axis=(1, 3))
    np.testing.assert_allclose(weights(places), parts / parts.sum(), atol=3e-4)
    assert places.covered.item() == pytest.approx(1.0)


def test_a_polygon_with_a_hole_and_one_of_two_parts_are_areas_too(tmp_path):
    around = [[4.0, 50.0], [8.0, 50.0], [8.0, 53.0], [4.0, 53.0], [4.0, 50.0]]
    hole = [[5.0, 51.0], [5.0, 52.0], [6.0, 52.0], [6.0, 51.0], [5.0, 51.0]]
    square = [[4.0, 50.0], [5.0, 50.0], [5.0, 51.0], [4.0, 51.0], [4.0, 50.0]]
    shapes = {
        "ring": {"type": "Polygon", "coordinates": [around, hole]},
        "two": {"type": "MultiPolygon", "coordinates": [[hole], [square]]},
    }
    features = [
        {"type": "Feature", "id": name, "properties": None, "geometry": shape}
        for name, shape in shapes.items()
    ]
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    places = read_areas(path, grid())
    assert places.names == ("ring", "two")
    expected = np.zeros((4, 6))
    expected[0:3, 1:5] = 1 / 11
    expected[1, 2] = 0.0
    np.testing.assert_allclose(weights(places, 0), expected, atol=1e-12)
    assert weights(places, 1)[1, 2] == weights(places, 1)[0, 1] == pytest.approx(0.5)


def test_what_is_missing_in_an_area_is_no_dry_pixel_and_half_of_it_must_be_observed(tmp_path):
    path = write_areas(tmp_path / "a.geojson", [[4.0, 51.0], [6.0, 51.0], [4.0, 53.0]])
    values = np.full((3, 4, 6), 8.0)
    values[:, 1, 2] = 2.0  # a quarter of the area
    values[1, 1, 1] = np.nan  # half of it
    values[2, 1, 1] = values[2, 2, 1] = np.nan  # three quarters
    observed = observations(values)
    rain = read_areas(path, observed).of(observed["rain_rate"]).values.ravel()
    assert rain[:2].tolist() == [6.5, 5.0]
    assert np.isnan(rain[2])


def test_the_mean_over_the_whole_grid_is_that_of_the_series(tmp_path):
    generator = np.random.default_rng(0)
    values = generator.gamma(1.0, 2.0, (40, 4, 6))
    values[generator.random(values.shape) < generator.random((40, 1, 1))] = np.nan
    observed = observations(values)
    ring = [[3.0, 50.0], [9.0, 50.0], [9.0, 54.0], [3.0, 54.0]]
    places = read_areas(write_areas(tmp_path / "a.geojson", ring), observed)
    whole = series_of(observed["rain_rate"]).values
    assert 5 < np.isnan(whole).sum() < 35
    np.testing.assert_allclose(places.of(observed["rain_rate"]).values, whole, rtol=1e-6)


def test_an_area_that_reaches_out_of_the_grid_needs_half_of_itself_inside(tmp_path):
    path = write_areas(
        tmp_path / "a.geojson",
        [[2.0, 51.0], [5.0, 51.0], [5.0, 52.0], [2.0, 52.0]],
        [[1.0, 51.0], [4.0, 51.0], [4.0, 52.0], [1.0, 52.0]],
    )
    places = read_areas(path, grid())
    assert places.covered.tolist() == pytest.approx([2 / 3, 1 / 3])
    values = places.of(grid()["rain_rate"]).values.ravel()
    assert values[0] == pytest.approx(6.5)  # of the part inside, which is not shared with nothing
    assert np.isnan(values[1])


def test_an_area_wholly_outside_is_refused_by_name(tmp_path):
    path = write_areas(tmp_path / "a.geojson", WHOLE, [[10, 51], [11, 51], [11, 52]])
    with pytest.raises(ValueError, match=r"area 'B', from longitude 10 to 11 .* reaches from x 3"):
        read_areas(path, grid())
    metres = {"y": np.arange(4.0) * 1e4, "x": np.arange(6.0) * 1e4}
    away = write_areas(tmp_path / "b.geojson", [[-175, -52], [-174, -52], [-174, -51]])
    with pytest.raises(ValueError, match=r"'A'.*lies outside of the grid.*longitude 4.9"):
        read_areas(away, grid(mapping=PROJECTED, **metres))


def test_the_sides_of_an_area_follow_parallels_on_a_projected_grid(tmp_path):
    """A parallel is curved there: the middle of a long side lies kilometres off its chord."""
    metres = {"y": 4000.0 * np.arange(100)[::-1] - 200_000, "x": 4000.0 * np.arange(150) - 300_000}
    observed = grid(100, 150, mapping=PROJECTED, **metres)
    box = [[2.0, 51.0], [8.0, 51.0], [8.0, 53.0], [2.0, 53.0]]
    found = weights(read_areas(write_areas(tmp_path / "a.geojson", box), observed)) > 0
    middle = np.flatnonzero(found[:, 75])
    edges = [Grid(observed).project(5.0, lat)[1] for lat in (51.0, 53.0)]
    assert metres["y"][middle[[-1, 0]]] == pytest.approx(edges, abs=2001)


def test_a_point_is_the_pixel_that_is_nearest(tmp_path):
    path = points(tmp_path, "name,lon,lat,note\nA,5.6,51.4,x\nB,3.01,53.99,y\nC,5.4,51.6,\n")
    places = read_points(path, grid())
    assert places.names == ("A", "B", "C")
    assert places.of(grid()["rain_rate"]).values.tolist() == [[8.0, 18.0, 8.0]]
    # A tenth of a degree both ways from its centre, at 51.45 N.
    assert places.distance[0] == pytest.approx(np.hypot(11_126, 6_950), rel=0.01)


def test_points_in_the_coordinates_of_the_grid_are_those_in_degrees(tmp_path):
    metres = {"y": 1000.0 * np.arange(50)[::-1], "x": 1000.0 * np.arange(60)}
    observed = grid(50, 60, mapping=PROJECTED, **metres)
    by_metres = read_points(points(tmp_path, "name,x,y\nA,20100,30200\nB,0,0\n"), observed)
    rows = "".join(
        f"{name},{lon:.9f},{lat:.9f}\n"
        for name, lon, lat in zip("AB", by_metres.lon, by_metres.lat, strict=True)
    )
    by_degrees = read_points(points(tmp_path, "name,lon,lat\n" + rows), observed)
    values = by_degrees.of(observed["rain_rate"]).values.tolist()
    assert values == by_metres.of(observed["rain_rate"]).values.tolist() == [[1160.0, 2940.0]]
    assert by_metres.distance == pytest.approx([np.hypot(100, 200), 0.0], rel=1e-3, abs=1e-6)
    assert by_metres != by_degrees


@pytest.mark.parametrize("ways", [(1, 1), (1, -1), (-1, 1), (-1, -1)])
def test_places_do_not_depend_on_the_direction_of_the_axes(tmp_path, ways):
    turned = grid().isel(y=slice(None, None, ways[0]), x=slice(None, None, ways[1]))
    path = points(tmp_path, "name,lon,lat\nA,5.6,51.4\n")
    area = write_areas(tmp_path / "a.geojson", [[4.0, 51.0], [6.0, 51.0], [4.0, 53.0]])
    assert read_points(path, turned).of(turned["rain_rate"]).item() == 8.0
    assert read_areas(area, turned).of(turned["rain_rate"]).item() == pytest.approx(8.75)


def test_a_grid_of_longitudes_up_to_360_holds_the_same_places(tmp_path):
    west, east = grid(x=-120.5 + np.arange(6)), grid(x=239.5 + np.arange(6))
    path = points(tmp_path, "name,lon,lat\nA,-118.4,51.4\n")
    area = write_areas(tmp_path / "a.geojson", [[-120, 51], [-118, 51], [-120, 53]])
    for read, file in ((read_points, path), (read_areas, area)):
        np.testing.assert_allclose(weights(read(file, west)), weights(read(file, east)), atol=1e-9)
    assert read_points(path, east).lon.tolist() == [-118.4]


def test_spreadsheets_of_half_the_world_can_be_read(tmp_path):
    """A mark of UTF-8, semicolons, decimal commas, capitals and blank lines."""
    text = "\ufeffName; Lon ;LAT\r\nDe Bilt;5,6;51,4\r\n\r\nÅmli;3,5;50,5\r\n"
    places = read_points(points(tmp_path, text), grid())
    assert places.names == ("De Bilt", "Åmli")
    assert places.lon.tolist() == [5.6, 3.5]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "its heading has nothing"),
        ("name,lon\nA,5\n", "either lon and lat .* its heading has name, lon"),
        ("station,lon,lat\nA,5,51\n", "need the column name"),
        ("name,lon,lat,x,y\nA,5,51,5,51\n", "either lon and lat .* or x and y"),
        ("name,lon,lat\n", "holds no points"),
        ("name,lon,lat\nA,5,51\nB,east,51\n", "line 3: lon must be a number; it is 'east'"),
        ("name,lon,lat\nA,5\n", "line 2: lat must be a number; it is ''"),
        ("name,lon,lat\nA,5,nan\n", "line 2: lat must be a number; it is 'nan'"),
        ("name,lon,lat\nA,5,51\nA,6,51\n", "'A' stands there twice"),
        ("name,lon,lat\n ,5,51\n", "one has none"),
        ("name,lon,lat\nA,51.4,155000\n", "must be in degrees"),
        ("name,lon,lat\nA,9.6,51.4\n", r"'A' \(lon 9.6, lat 51.4\) lies outside .* from x 3 to 9"),
        ("name,lon,lat\nÅmli,5,51\n".encode("latin-1"), "is not text in UTF-8"),
    ],
)
def test_points_that_cannot_be_used_are_refused_in_words(tmp_path, text, complaint):
    path = points(tmp_path, text)
    with pytest.raises(ValueError, match=rf"(?s)points\.csv.*{complaint}"):
        read_points(path, grid())


def _geojson(**changes):
    feature = {
        "type": "Feature",
        "properties": {"name": "A"},
        "geometry": {"type": "Polygon", "coordinates": [[*WHOLE, WHOLE[0]]]},
    }
    return {"type": "FeatureCollection", "features": [{**feature, **changes}]}


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "is not JSON"),
        ([1], "a GeoJSON FeatureCollection; this is none"),
        ({"type": "FeatureCollection", "features": []}, "holds no areas"),
        (_geojson(properties={}), "feature 1 has neither the property name nor an id"),
        (_geojson(geometry=None), "'A' must be a Polygon or MultiPolygon; it is None"),
        (_geojson(geometry={"type": "Point", "coordinates": [5, 51]}), "it is Point"),
        (
            _geojson(geometry={"type": "Polygon", "coordinates": [[[4, "b"]]]}),
            "that are no Polygon",
        ),
        (_geojson(geometry={"type": "Polygon", "coordinates": [5]}), "that are no Polygon"),
        (_geojson(geometry={"type": "Polygon", "coordinates": []}), "no valid Polygon: empty"),
        (
            _geojson(
                geometry={
                    "type": "Polygon",
                    "coordinates": [[[4, 51], [6, 53], [6, 51], [4, 53], [4, 51]]],
                }
            ),
            r"no valid Polygon: Self-intersection\[5 52\]; mend it",
        ),
        (
            _geojson(
                geometry={
                    "type": "Polygon",
                    "coordinates": [[[155000, 463000], [156000, 463000], [155000, 464000]] * 2],
                }
            ),
            "no valid Polygon|must be in degrees",
        ),
        ({**_geojson(), "crs": {"properties": {"name": "EPSG:28992"}}}, "EPSG:28992.*ogr2ogr"),
        ({"type": "FeatureCollection", "features": _geojson()["features"] * 2}, "'A' .* twice"),
        ({"type": "FeatureCollection", "features": ["A"]}, "feature 1 is none: A"),
    ],
)
def test_areas_that_cannot_be_used_are_refused_in_words(tmp_path, content, complaint):
    path = tmp_path / "areas.geojson"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ValueError, match=rf"areas\.geojson.*({complaint})"):
        read_areas(path, grid())


def test_an_old_file_that_says_it_is_in_longitude_and_latitude_is_read(tmp_path):
    system = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}
    assert read_areas(write_areas(tmp_path / "a.geojson", WHOLE, crs=system), grid()).names == (
        "A",
    )


def test_places_are_either_points_or_areas(tmp_path):
    path = points(tmp_path, "name,lon,lat\nA,5.6,51.4\n")
    assert read_places(grid(), points=path) == read_points(path, grid())
    with pytest.raises(ConfigError, match="none is given"):
        read_places(grid())
    with pytest.raises(ConfigError, match="both are given"):
        read_places(grid(), points=path, areas=path)


def test_the_hash_of_places_follows_names_and_geometry_alone(tmp_path):
    def sha256(text, **settings):
        return read_points(points(tmp_path, text), grid(**settings)).sha256

    first = sha256("name,lon,lat\nA,5.6,51.4\n")
    assert first == sha256("name,lon,lat,more\nA,5.60,51.4,1\n")
    assert first == sha256("name,lon,lat\nA,5.6,51.4\n", rows=5)
    assert first != sha256("name,lon,lat\nB,5.6,51.4\n")
    assert first != sha256("name,lon,lat\nA,5.6,51.41\n")


def test_fields_on_another_grid_are_refused(tmp_path):
    places = read_points(points(tmp_path, "name,lon,lat\nA,5.6,51.4\n"), grid())
    with pytest.raises(ValueError, match=r"grid of \(4, 6\) rows and columns, the fields of \(5"):
        places.of(grid(5)["rain_rate"])
    with pytest.raises(ValueError, match="the places are on the grid"):
        places.check_grid(grid(x=3.6 + np.arange(6)))
    places.check_grid(grid())


def test_lazy_fields_and_those_with_members_give_the_same(tmp_path):
    values = np.random.default_rng(1).gamma(1.0, size=(2, 3, 4, 4, 6)).astype(np.float32)
    values[0, 1, 2] = np.nan
    times = pd.date_range("2024-06-01", periods=2, freq="5min")
    nowcast = build_nowcast(
        values,
        observed=grid(),
        variable=RAIN_RATE,
        base_times=times,
        lead_times=pd.to_timedelta([5, 10, 15, 20], unit="min"),
    )
    area = write_areas(tmp_path / "a.geojson", WHOLE)
    places = read_areas(area, nowcast)
    at_once = places.of(nowcast["rain_rate"])
    assert at_once.dims == ("base_time", "member", "lead_time", "place")
    expected = values[..., 1:3, 1:5].mean(axis=(-2, -1))
    np.testing.assert_allclose(at_once.values[..., 0], expected, rtol=1e-6)
    xr.testing.assert_equal(places.of(nowcast.chunk(base_time=1)["rain_rate"]).compute(), at_once)


def test_a_grid_of_one_row_has_square_pixels():
    one = Grid(grid(1, 6))
    assert (one.height, one.width) == (1.0, 1.0)
    with pytest.raises(ValueError, match="one pixel"):
        Grid(grid(1, 1))


def test_stations_lie_in_the_right_pixels_of_knmis_composite(shared_data, tmp_path):
    """By the corners that KNMI publishes of its grid: 0.0 E 49.362 N and 9.009 E 48.895 N."""
    file = sorted((shared_data / "radar" / "knmi_hdf5").glob("*.h5"))[0]
    observed = open_observations(str(file))
    text = "name,lon,lat\nsouth-west,0.0001,49.3622\nsouth-east,9.0088,48.8954\n"
    places = read_points(points(tmp_path, text), observed)
    rows, columns = np.divmod(places.pixels, observed.sizes["x"])
    assert rows.tolist() == [764, 764]
    assert columns.tolist() == [0, 699]
    assert (places.distance < 1000.0).all()
