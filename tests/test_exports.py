import csv
import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from pyproj import CRS, Transformer

from nowcast import exports
from nowcast.cli import main
from nowcast.conventions import (
    RAIN_RATE,
    REFLECTIVITY,
    build_nowcast,
    with_exceedance,
    with_quantiles,
)
from nowcast.issuing import open_nowcast, write_nowcast
from nowcast.nowcasters import open_nowcaster
from nowcast.places import read_areas, read_points

MAPPINGS = {
    "degrees": {"grid_mapping_name": "latitude_longitude"},
    "laea": {
        "grid_mapping_name": "lambert_azimuthal_equal_area",
        "latitude_of_projection_origin": 52.0,
        "longitude_of_projection_origin": 5.0,
        "semi_major_axis": 6378137.0,
        "inverse_flattening": 298.257223563,
    },
    "sphere": {
        "grid_mapping_name": "polar_stereographic",
        "straight_vertical_longitude_from_pole": 10.0,
        "standard_parallel": 60.0,
        "latitude_of_projection_origin": 90.0,
        "earth_radius": 6370040.0,
    },
    "swiss": {
        "grid_mapping_name": "oblique_mercator",
        "latitude_of_projection_origin": 46.95240555555556,
        "longitude_of_projection_origin": 7.439583333333333,
        "azimuth_of_central_line": 90.0,
        "scale_factor_at_projection_origin": 1.0,
        "false_easting": 600000.0,
        "false_northing": 200000.0,
        "semi_major_axis": 6377397.155,
        "inverse_flattening": 299.1528128,
    },
}
CORNERS = {
    "degrees": (53.0, 4.0),
    "laea": (90e3, -60e3),
    "sphere": (-3.9e6, -2e5),
    "swiss": (3e5, 5e5),
}
TIMES = pd.date_range("2024-06-01", periods=12, freq="5min")
LEADS = pd.to_timedelta([5, 10, 15], unit="min")
SHAPE = (8, 7)


def observations(mapping="laea", ways=(-1, 1)):
    """Rain with its missing pixels; row 0 is the north unless the first way is 1."""
    values = np.random.default_rng(0).gamma(1.0, 3.0, (12, *SHAPE)).astype(np.float32)
    values[:, 0, 0] = np.nan
    north, west = CORNERS[mapping]
    dy, dx = (0.1, 0.2) if mapping == "degrees" else (2000.0, 3000.0)
    units = ("degrees_north", "degrees_east") if mapping == "degrees" else ("m", "m")
    dataset = xr.Dataset(
        {"rain_rate": (("time", "y", "x"), values, RAIN_RATE.attributes)},
        coords={
            "time": TIMES,
            "y": ("y", north - dy * np.arange(8), {"units": units[0]}),
            "x": ("x", west + dx * np.arange(7), {"units": units[1]}),
            "crs": ((), 0, MAPPINGS[mapping]),
        },
    )
    return dataset.isel(y=slice(None, None, -ways[0]), x=slice(None, None, ways[1]))


def issued(folder, observed, *, members=0, base_times=TIMES[[4]], leads=LEADS, **attributes):
    """Write a nowcast whose values are known from nothing but themselves."""
    size = (len(base_times), *([members] if members else []), len(leads), *SHAPE)
    values = np.random.default_rng(1).gamma(1.0, 3.0, size).astype(np.float32)
    values[..., 0, 0] = np.nan
    nowcast = build_nowcast(
        values, observed=observed, variable=RAIN_RATE, base_times=base_times, lead_times=leads
    )
    attributes = {"nowcaster": "drawn", "input_frames": str(base_times[0]), **attributes}
    name = f"nowcast-{base_times[0]:%Y%m%dT%H%MZ}.nc"
    return write_nowcast(nowcast.assign_attrs(attributes), folder / name)


def uncertain(folder, observed):
    nowcast = open_nowcast(issued(folder, observed))
    field = nowcast["rain_rate"].values
    chances = np.array([0.75, 0.25], np.float32)[None, :, None, None, None]
    chances = np.where(np.isnan(field[:, None]), np.nan, chances)
    amounts = field[:, None] * np.array([0.5, 2.0])[:, None, None, None]
    nowcast = with_exceedance(nowcast, chances, thresholds=(1.0, 5.0))
    return write_nowcast(with_quantiles(nowcast, amounts, quantiles=(0.1, 0.9)), folder / "u.nc")


@functools.cache
def crs_of(attributes):
    return CRS.from_cf(json.loads(attributes))


def lonlat(observed, row, column):
    """Give longitude and latitude of a pixel, by the projection alone."""
    crs = crs_of(json.dumps(observed["crs"].attrs))
    transform = Transformer.from_crs("OGC:CRS84", crs, always_xy=True).transform
    x, y = observed["x"].values[column], observed["y"].values[row]
    return transform(x, y, direction="INVERSE")


@pytest.fixture
def points(tmp_path):
    """The pixels (row, column) 2, 3 and 5, 1, and the missing one."""
    observed = observations()
    rows = [
        "{},{:.6f},{:.6f}".format(name, *lonlat(observed, *pixel))
        for name, pixel in {"A": (2, 3), "B": (5, 1), "gone": (0, 0)}.items()
    ]
    path = tmp_path / "points.csv"
    path.write_text("\n".join(["name,lon,lat", *rows]))
    return path


@pytest.fixture
def areas(tmp_path):
    """All of the grid, which is two thirds of it."""
    ring = [[4.06, 52.65], [4.42, 52.65], [4.42, 52.84], [4.06, 52.84], [4.06, 52.65]]
    feature = {
        "type": "Feature",
        "properties": {"name": "country"},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    path = tmp_path / "areas.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path


def read_csv(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def run(capsys, *arguments):
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return exit_.value.code, printed.out, printed.err


def test_a_table_holds_the_pixels_values_for_each_time_and_place(capsys, tmp_path, points):
    observed = observations()
    folder = tmp_path / "issued"
    files = [issued(folder, observed, base_times=TIMES[[base]]) for base in (4, 6)]
    out = tmp_path / "out.csv"
    status, printed, said = run(
        capsys, "extract", "--nowcast", folder, "--points", points, "--out", out
    )
    assert (status, printed.strip()) == (0, str(out))
    assert said == "nowcast: gone: every value is missing: not observed, or not reached\n"
    rows = read_csv(out)
    assert len(rows) == 2 * 3 * 3
    assert list(rows[0].values())[:5] == [
        "2024-06-01T00:20:00Z", "5", "2024-06-01T00:25:00Z", "A", "rain_rate",
    ]  # fmt: skip
    field = open_nowcast(files[1])["rain_rate"].values
    found = [float(row["value"]) for row in rows if row["place"] == "B"]
    np.testing.assert_allclose(found[3:], field[0, :, 5, 1], rtol=1e-6)
    assert {row["value"] for row in rows if row["place"] == "gone"} == {""}
    assert {row["units"] for row in rows} == {"mm h-1"}


def test_what_was_observed_stands_beside_the_nowcast(capsys, tmp_path, points):
    observed = observations().drop_isel(time=6)  # 00:30
    observed.to_netcdf(tmp_path / "rain.nc")
    issued(tmp_path / "issued", observed)
    status, _, _ = run(
        capsys, "extract", "--nowcast", tmp_path / "issued", "--points", points, "--accumulate",
        "--observations", tmp_path / "rain.nc", "--out", tmp_path / "out.csv",
    )  # fmt: skip
    assert status == 0
    rows = [row for row in read_csv(tmp_path / "out.csv") if row["place"] == "A"]
    first = float(observed["rain_rate"].sel(time="2024-06-01T00:25").values[2, 3])
    assert float(rows[0]["observed"]) == pytest.approx(first / 12, rel=1e-6)
    assert [row["observed"] for row in rows[1:]] == ["", ""]  # a frame is absent from there on
    assert rows[0]["variable"] == "rain_amount"
    assert rows[0]["units"] == "mm"


def test_amounts_of_an_area_have_the_chances_of_its_members(tmp_path, areas):
    observed = observations()
    path = issued(tmp_path, observed, members=4)
    nowcast = open_nowcast(path)
    places = read_areas(areas, nowcast)
    values = exports.extract([path], places, accumulated=True, thresholds=(0.5, 0.25))
    amounts = nowcast["rain_rate"].values.cumsum(axis=2) / 12
    by_hand = np.nanmean(amounts, axis=(-2, -1))  # the whole grid lies in the area
    assert values["rain_amount"].dims == ("base_time", "member", "lead_time", "place")
    np.testing.assert_allclose(values["rain_amount"].values[..., 0], by_hand, rtol=1e-5)
    for threshold in (0.25, 0.5):
        chance = values["probability_of_exceedance"].sel(threshold=threshold).values[..., 0]
        np.testing.assert_allclose(chance, (by_hand >= threshold).mean(axis=1))
    assert 0 < values["probability_of_exceedance"].values.mean() < 1
    table = exports.as_table(values)
    assert table["members"].tolist() == [4, 4, 4]
    np.testing.assert_allclose(table["value"], by_hand.mean(axis=1)[0], rtol=1e-5)
    chances = values["probability_of_exceedance"].values[0, 1, :, 0]
    assert table["probability_of_reaching_0.5"].tolist() == chances.tolist()


def test_members_that_are_missing_are_not_dry(tmp_path):
    observed = observations()
    nowcast = open_nowcast(issued(tmp_path, observed, members=3))
    nowcast["rain_rate"][:, 0] = np.nan
    path = write_nowcast(nowcast, tmp_path / "n.nc")
    points = tmp_path / "points.csv"
    points.write_text("name,x,y\nA,-51000,86000\ngone,-60000,90000\n")
    values = exports.extract([path], read_points(points, nowcast), thresholds=(0.0,))
    table = exports.as_table(values)
    assert table["members"].tolist() == [2, 2, 2, 0, 0, 0]
    two = nowcast["rain_rate"].values[0, 1:, :, 2, 3].mean(axis=0)
    np.testing.assert_allclose(table["value"][:3], two, rtol=1e-6)
    assert table["value"][3:].isna().all()
    assert table["probability_of_reaching_0"].tolist()[:3] == [1.0, 1.0, 1.0]
    assert table["probability_of_reaching_0"][3:].isna().all()


def test_points_have_the_nowcasts_own_probabilities_and_quantiles(capsys, tmp_path, points):
    path = uncertain(tmp_path, observations())
    out = tmp_path / "out.csv"
    arguments = ("extract", "--nowcast", path, "--points", points, "--out", out)
    assert run(capsys, *arguments)[0] == 0
    row = read_csv(out)[0]
    assert (row["probability_of_reaching_1"], row["probability_of_reaching_5"]) == ("0.75", "0.25")
    assert float(row["quantile_0.9"]) == pytest.approx(2 * float(row["value"]), rel=1e-6)
    assert run(capsys, *arguments, "--thresholds", 5)[0] == 0
    assert "probability_of_reaching_1" not in read_csv(out)[0]
    status, _, said = run(capsys, *arguments, "--thresholds", 3)
    assert status == 1
    assert "no probability of reaching 3 mm h-1; it has those of 1, 5" in said
    status, _, said = run(capsys, *arguments, "--thresholds", 1, "--accumulate")
    assert status == 1
    assert "needs a nowcast with members" in said


@pytest.fixture(scope="module")
def remarks(tmp_path_factory):
    """What the CF checker has to say of each kind of file."""
    folder = tmp_path_factory.mktemp("cf")
    observed = observations()
    nowcast = open_nowcast(uncertain(folder, observed))
    points = folder / "points.csv"
    points.write_text("name,x,y\nA,-51000,86000\nB,-60000,90000\n")
    at_points = exports.extract([folder / "u.nc"], read_points(points, nowcast), observed=observed)
    area = folder / "areas.geojson"
    ring = [[4.1, 52.68], [4.38, 52.68], [4.38, 52.8], [4.1, 52.68]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    feature = {"type": "Feature", "id": 1, "properties": {}, "geometry": geometry}
    area.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    ensemble = issued(folder, observed, members=3)
    over_areas = exports.extract(
        [ensemble], read_areas(area, nowcast), accumulated=True, thresholds=(1.0,)
    )
    paths = [
        exports.write_values(values, folder / name)
        for name, values in {"points.nc": at_points, "areas.nc": over_areas}.items()
    ]
    script, report = Path(sys.executable).with_name("compliance-checker"), folder / "report.json"
    options = ["-O", "cf:enable_appendix_a_checks", "-f", "json_new", "-o", report]
    subprocess.run(
        [script, "-t", "cf:1.11", "-c", "strict", *options, *paths],
        check=False,
        capture_output=True,
        timeout=120,
    )
    content = json.loads(report.read_text())
    return {Path(path).stem: one["cf:1.11"] for path, one in content.items()}


@pytest.mark.parametrize("case", ["points", "areas"])
def test_the_netcdf_file_keeps_cf_without_a_single_remark(case, remarks):
    result = remarks[case]
    priorities = ("high_priorities", "medium_priorities", "low_priorities")
    told = [one["msgs"] for priority in priorities for one in result[priority] if one["msgs"]]
    assert told == []
    assert result["scored_points"] == result["possible_points"] > 30


def test_the_netcdf_file_is_what_was_extracted(tmp_path, points):
    observed = observations()
    path = issued(tmp_path, observed, members=2)
    places = read_points(points, open_nowcast(path))
    values = exports.extract([path], places, thresholds=(1.0,), observed=observed)
    exports.write_values(values, tmp_path / "out.nc")
    with xr.open_dataset(tmp_path / "out.nc", engine="netcdf4") as file:
        assert file["place_name"].values.tolist() == ["A", "B", "gone"]
        assert file["rain_rate"].dims == ("base_time", "member", "lead_time", "place")
        for name in ("rain_rate", "observed", "probability_of_exceedance", "valid_time", "lon"):
            np.testing.assert_array_equal(file[name].values, values[name].values)
        assert file["lead_time"].dtype.kind == "m"
        assert file.attrs["nowcaster"] == "drawn"
        assert file.attrs["title"] == "Nowcast of rain rate at 3 points"


def test_files_that_do_not_belong_together_are_refused(tmp_path, points):
    observed = observations()
    first = issued(tmp_path / "a", observed)
    places = read_points(points, observed)
    others = {
        "lead times": issued(tmp_path / "b", observed, base_times=TIMES[[5]], leads=LEADS[:2]),
        "nowcaster": issued(tmp_path / "c", observed, base_times=TIMES[[5]], nowcaster="other"),
        "members": issued(tmp_path / "d", observed, base_times=TIMES[[5]], members=2),
    }
    for what, other in others.items():
        with pytest.raises(ValueError, match=rf"{other.parent.name}/nowcast.*{what}.* apart"):
            exports.extract([first, other], places)
    with pytest.raises(ValueError, match="two of the files are nowcasts from 2024-06-01T00:20"):
        exports.extract([first, issued(tmp_path / "e", observed)], places)
    moved = observed.isel(x=slice(None, None, -1))
    with pytest.raises(ValueError, match="the places are on the grid"):
        exports.extract([issued(tmp_path / "f", moved)], places)
    alone = exports.extract([first], places)
    assert alone.attrs["input_frames"] == "2024-06-01 00:20:00"
    both = exports.extract([issued(tmp_path / "g", observed, base_times=TIMES[[3]]), first], places)
    assert "input_frames" not in both.attrs  # what is told of one is not told of both
    assert both.attrs["nowcaster"] == "drawn"
    xr.testing.assert_equal(both.isel(base_time=[1])["rain_rate"], alone["rain_rate"])


def test_observations_of_something_else_are_refused(tmp_path, points):
    observed = observations()
    path = issued(tmp_path, observed)
    places = read_points(points, observed)
    other = observed.rename(rain_rate="reflectivity")
    other["reflectivity"].attrs = REFLECTIVITY.attributes
    with pytest.raises(ValueError, match="rain_rate in mm h-1; the observations hold reflectivity"):
        exports.extract([path], places, observed=other)
    turned = observed.isel(y=slice(None, None, -1))
    with pytest.raises(ValueError, match="the places are on the grid"):
        exports.extract([path], places, observed=turned)


@pytest.mark.parametrize(
    ("arguments", "status", "complaint"),
    [
        (["--nowcast", "absent.nc", "--points", "points.csv", "--out", "a.csv"], 1, "absent.nc is"),
        (["--nowcast", "empty", "--points", "points.csv", "--out", "a.csv"], 1, "empty holds no"),
        (["--nowcast", "issued", "--points", "points.csv", "--out", "a.xls"], 1, ".csv or .nc"),
        (["--nowcast", "issued", "--points", "absent.csv", "--out", "a.csv"], 1, "absent.csv"),
        (["--nowcast", "issued", "--out", "a.csv"], 2, "none is given; give one"),
        (
            ["--nowcast", "issued", "--points", "points.csv", "--areas", "x", "--out", "a.csv"],
            2,
            "both are given; give one",
        ),
    ],
)
def test_what_cannot_be_extracted_is_told_in_one_line(
    capsys, tmp_path, monkeypatch, points, arguments, status, complaint
):
    monkeypatch.chdir(points.parent)
    issued(tmp_path / "issued", observations())
    (tmp_path / "empty").mkdir()
    found, _, said = run(capsys, "extract", *arguments)
    assert found == status
    assert said.startswith("nowcast: error: ")
    assert said.count("\n") == 1
    assert complaint in said
    assert not list(tmp_path.glob("a.*"))


@pytest.mark.parametrize("ways", [(-1, 1), (1, 1), (-1, -1), (1, -1)])
@pytest.mark.parametrize("mapping", MAPPINGS)
def test_a_geotiff_shows_each_pixel_in_its_place(tmp_path, mapping, ways):
    """Each pixel's longitude and latitude, sampled by rasterio through its own projection."""
    import rasterio
    from rasterio.warp import transform

    observed = observations(mapping, ways)
    path = issued(tmp_path, observed)
    nowcast = open_nowcast(path)
    rows, columns = np.divmod(np.arange(56), 7)
    lon, lat = lonlat(observed, rows, columns)
    [written] = exports.export_geotiff([path], tmp_path / "tif")
    with rasterio.open(written) as file:
        assert file.transform.e < 0 < file.transform.a  # north is up, east is right
        x, y = transform("OGC:CRS84", file.crs, lon, lat)
        found = np.array(list(file.sample(zip(x, y, strict=True))))
        assert file.count == 3
        assert np.isnan(file.nodata)
    expected = nowcast["rain_rate"].values[0].reshape(3, -1).T
    np.testing.assert_array_equal(found, expected)
    assert np.isnan(expected).sum() == 3
    assert [path.name for path in (tmp_path / "tif").iterdir()] == [written.name]


def test_a_geotiff_says_what_it_shows(capsys, tmp_path):
    import rasterio

    path = issued(tmp_path / "in", observations(), members=3, base_times=TIMES[[4, 6]])
    status, printed, _ = run(
        capsys, "export", "--nowcast", tmp_path / "in", "--out", tmp_path / "out"
    )
    assert status == 0
    files = [Path(line) for line in printed.splitlines()]
    assert [file.name for file in files] == [
        "nowcast-20240601T0020Z-20240601T0020Z.tif",
        "nowcast-20240601T0020Z-20240601T0030Z.tif",
    ]
    with rasterio.open(files[1]) as file:
        assert file.descriptions[1] == "+10 min 2024-06-01T00:40:00Z"
        assert file.units == ("mm h-1",) * 3
        assert file.tags()["nowcaster"] == "drawn"
        assert file.tags()["members"] == "mean of 3"
        assert file.tags()["base_time"] == "2024-06-01T00:30:00Z"
        assert file.tags(3)["valid_time"] == "2024-06-01T00:45:00Z"
        assert (file.profile["dtype"], file.profile["compress"]) == ("float32", "deflate")
        mean = open_nowcast(path)["rain_rate"].mean("member").values[1]
        np.testing.assert_allclose(file.read(), mean, rtol=1e-6)


def test_a_grid_of_longitudes_up_to_360_is_shown_west_of_greenwich(tmp_path):
    import rasterio

    observed = observations("degrees")
    far = observed.assign_coords(x=("x", observed["x"].values + 236.0, observed["x"].attrs))
    [path] = exports.export_geotiff([issued(tmp_path, far)], tmp_path)
    with rasterio.open(path) as file:
        assert file.bounds.left == pytest.approx(4.0 + 236.0 - 360.0 - 0.1)


def test_a_projection_that_geotiff_cannot_tell_is_refused_and_nothing_left(tmp_path):
    observed = observations()
    rotated = {
        "grid_mapping_name": "rotated_latitude_longitude",
        "grid_north_pole_latitude": 39.25,
        "grid_north_pole_longitude": -162.0,
    }
    observed["crs"].attrs = rotated
    degrees = {axis: {"units": "degrees"} for axis in ("y", "x")}
    coordinates = {
        axis: (axis, 0.05 * np.arange(observed.sizes[axis]), attributes)
        for axis, attributes in degrees.items()
    }
    path = issued(tmp_path, observed.assign_coords(coordinates))
    with pytest.raises(ValueError, match="GeoTIFF has no words for the projection"):
        exports.export_geotiff([path], tmp_path / "tif")
    assert list((tmp_path / "tif").iterdir()) == []


def test_two_files_of_one_name_are_refused_before_anything_is_written(tmp_path):
    observed = observations()
    files = [issued(tmp_path / folder, observed) for folder in ("a", "b")]
    with pytest.raises(ValueError, match=r"two files are called nowcast-20240601T0020Z\.nc"):
        exports.export_geotiff(files, tmp_path / "tif")
    assert not (tmp_path / "tif").exists()


def test_a_nowcast_of_knmis_radar_is_exported_to_its_place(shared_data, tmp_path):
    import rasterio
    from rasterio.warp import transform

    from nowcast.data.observations import open_observations

    files = sorted((shared_data / "radar" / "knmi_hdf5").glob("*.h5"))[:1]
    observed = open_observations([str(file) for file in files])
    base_times = observed["time"].to_index()
    nowcast = open_nowcaster("persistence").nowcast(
        observed, base_times=base_times, lead_times=LEADS[:1]
    )
    path = exports.write_geotiff(nowcast.isel(base_time=0), tmp_path / "knmi.tif")
    points = tmp_path / "points.csv"
    points.write_text("name,lon,lat\nDe Bilt,5.18,52.10\nDen Helder,4.79,52.92\nEelde,6.58,53.12\n")
    places = read_points(points, observed)
    with rasterio.open(path) as file:
        x, y = transform("OGC:CRS84", file.crs, places.lon, places.lat)
        sampled = [value[0] for value in file.sample(zip(x, y, strict=True))]
    assert places.of(nowcast["rain_rate"]).values.ravel().tolist() == sampled
    assert np.isfinite(sampled).all()
