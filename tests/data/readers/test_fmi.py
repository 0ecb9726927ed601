import fmi_sample
import numpy as np
import pytest
from pyproj import CRS, Transformer

from nowcast.conventions import RAIN_RATE, check_values, grid_id
from nowcast.data.observations import open_observations
from nowcast.data.readers import read

# 2 by 3 pixels: no echo, -31.5 dBZ, exactly 0 dBZ; 0.5 dBZ, 40 dBZ, no data.
COUNTS = [[0, 1, 64], [65, 144, 255]]
DBZ = [[0.0, 0.0, 0.0], [0.5, 40.0, np.nan]]


@pytest.fixture
def pgm(tmp_path):
    return fmi_sample.write_pgm(tmp_path / "frame.pgm", COUNTS)


@pytest.fixture
def geotiff(tmp_path):
    return fmi_sample.write_geotiff(tmp_path / "frame.tif", np.array(COUNTS, np.uint8))


@pytest.fixture(scope="session")
def fmi_files(shared_data):
    return sorted((shared_data / "radar/fmi_pgm").glob("*.pgm.gz"))


def test_pgm_counts_become_reflectivity_and_what_is_not_above_zero_is_dry(pgm):
    reflectivity = read(pgm, reader="fmi_pgm")["reflectivity"]
    assert (reflectivity.attrs["units"], reflectivity.dtype) == ("dBZ", np.float32)
    np.testing.assert_array_equal(reflectivity.values, [DBZ])


def test_pgm_reflectivity_opens_as_rain_rate(pgm):
    rain_rate = open_observations(pgm, variable=RAIN_RATE)["rain_rate"]
    assert rain_rate.chunks is not None
    # (Z / 200)^(1 / 1.6): 0.5 dBZ is Z = 1.122, 40 dBZ is Z = 10,000.
    np.testing.assert_allclose(rain_rate, [[[0, 0, 0], [0.03919, 11.5307, np.nan]]], rtol=1e-3)
    assert rain_rate.attrs["units"] == "mm h-1"
    assert rain_rate.attrs["comment"] == "from reflectivity by Z = 200 R^1.6"


def test_pgm_is_the_same_gzipped(pgm, tmp_path):
    packed = fmi_sample.write_pgm(tmp_path / "frame.pgm.gz", COUNTS)
    one, other = read(pgm, reader="fmi_pgm"), read(packed, reader="fmi_pgm")
    np.testing.assert_array_equal(one["reflectivity"], other["reflectivity"])
    assert grid_id(one) == grid_id(other)


def test_pgm_time_product_and_source_come_from_the_header(pgm):
    observed = read(pgm, reader="fmi_pgm")
    np.testing.assert_array_equal(observed["time"], np.array(["2016-09-28T14:45"], "M8[ns]"))
    assert "time_bnds" not in observed
    assert observed.attrs["source"] == "FMI"
    assert observed.attrs["product"] == "CAPPI LOWEST FIN SUOMI1"


def test_two_products_of_the_pgm_kind_have_two_names(tmp_path):
    other = fmi_sample.write_pgm(tmp_path / "other.pgm", COUNTS, productname="500m")
    assert read(other, reader="fmi_pgm").attrs["product"] == "CAPPI 500m FIN SUOMI1"


@pytest.mark.parametrize("shape", [(2, 3), (1226, 760)])
def test_pgm_corners_lie_where_the_header_says(tmp_path, shape):
    path = fmi_sample.write_pgm(tmp_path / "frame.pgm", np.zeros(shape))
    _check_corners(read(path, reader="fmi_pgm"))


def _check_corners(observed):
    crs = CRS.from_cf(observed["crs"].attrs)
    to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    x, y = observed["x"].values, observed["y"].values
    width, height = (x[1] - x[0]) / 2, (y[1] - y[0]) / 2
    corners = [(x[0] - width, y[-1] + height), (x[-1] + width, y[0] - height)]
    found = [to_degrees.transform(*corner) for corner in corners]
    np.testing.assert_allclose(found, [(18.6, 57.93), (34.903, 69.005)], atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"param": "RainRate"}, "quantity is 'RainRate'"),
        ({"metersperpixel_x": "500.0"}, "500.0 m is declared"),
        ({"metersperpixel_y": "-1"}, "-1.0 m is declared"),
        ({"topright": "34.904000 69.005000"}, "grid is not as it is said"),
        ({"bottomleft": "nan nan"}, "is not 2 numbers"),
        ({"centrallongitude": "24"}, "grid is not as it is said"),
        ({"truelatitude": "65"}, "grid is not as it is said"),
        ({"centrallatitude": "-90"}, "FMI's is polar"),
        ({"type": "mercator"}, "'mercator'"),
        ({"obstime": "yesterday"}, "no time of FMI"),
        ({"obstime": "201613281445"}, "no time of FMI"),
        ({"greatest": 65535}, "no FMI's"),
        ({"left_out": ["obstime"]}, "lacks 'obstime'"),
        ({"left_out": ["param"]}, "lacks 'param'"),
        ({"more": b"\0"}, "needs 6 bytes; there are 7"),
    ],
)
def test_pgm_that_disagrees_with_what_is_known_is_refused(tmp_path, settings, message):
    path = fmi_sample.write_pgm(tmp_path / "odd.pgm", COUNTS, **settings)
    with pytest.raises(ValueError, match=message):
        read(path, reader="fmi_pgm")


def test_pgm_that_claims_too_many_pixels_is_refused_before_they_are_looked_for(tmp_path):
    path = tmp_path / "huge.pgm"
    path.write_bytes(b"P5\n999999 999999\n255\n")
    with pytest.raises(ValueError, match="50,000,000 is most"):
        read(path, reader="fmi_pgm")


@pytest.mark.parametrize("name", ["frame.pgm", "frame.pgm.gz"])
def test_pgm_cut_short_anywhere_is_refused(tmp_path, name):
    path = fmi_sample.write_pgm(tmp_path / name, np.arange(300).reshape(20, 15) % 256)
    _check_truncation(path, "fmi_pgm")


def _check_truncation(path, reader):
    raw = path.read_bytes()
    places = np.unique(np.linspace(0, len(raw) - 1, 200).astype(int))
    accepted = []
    for place in [*places, len(raw) - 1]:
        path.write_bytes(raw[:place])
        try:
            accepted.append((place, read(path, reader=reader)))
        except ValueError:
            continue
    assert accepted == []


def test_real_pgm_is_what_pysteps_reads(fmi_files):
    from pysteps.io.importers import import_fmi_pgm

    for path in fmi_files[::13]:
        expected, _, metadata = import_fmi_pgm(str(path), gzipped=True)
        observed = check_values(read(path, reader="fmi_pgm"))
        np.testing.assert_array_equal(
            observed["reflectivity"].values[0], np.maximum(expected, 0).astype(np.float32)
        )
        width = float(observed["x"][1] - observed["x"][0])
        assert width == pytest.approx(metadata["xpixelsize"], abs=1e-4)
        # pysteps' coordinates have another origin.
        assert metadata["x2"] - metadata["x1"] == pytest.approx(760 * width, abs=1)


def test_real_pgm_times_follow_the_names_and_the_grid_is_one(fmi_files):
    frames = [read(path, reader="fmi_pgm") for path in fmi_files]
    names = [path.name[:12] for path in fmi_files]
    times = [frame["time"].to_index()[0].strftime("%Y%m%d%H%M") for frame in frames]
    assert times == names
    assert len({grid_id(frame) for frame in frames}) == 1
    assert frames[0]["reflectivity"].shape == (1, 1226, 760)
    _check_corners(frames[0])


def test_real_pgm_is_observed_around_the_radars_of_its_header(fmi_files):
    """North is up and east is right: each of ten radars sees what lies 5 km from it."""
    radars = {"KOR": (21.646, 60.128), "LUO": (26.9008, 67.1386), "KES": (29.7977, 61.907)}
    observed = read(fmi_files[0], reader="fmi_pgm")
    crs = CRS.from_cf(observed["crs"].attrs)
    to_grid = Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True)
    for longitude, latitude in radars.values():
        x, y = to_grid.transform(longitude, latitude)
        near = observed["reflectivity"].sel(x=x + 5000, y=y, method="nearest")
        assert bool(near.notnull().all())
    outside = observed["reflectivity"].isel(x=0, y=0)
    assert bool(outside.isnull().all())


def test_geotiff_counts_become_reflectivity(geotiff):
    observed = read(geotiff, reader="fmi_geotiff")
    np.testing.assert_array_equal(observed["reflectivity"].values, [DBZ])
    np.testing.assert_array_equal(observed["time"], np.array(["2021-04-09T10:15"], "M8[ns]"))
    assert observed.attrs["product"] == "Corrected reflectivity 1000 m"


def test_geotiff_counts_become_rain_rate(tmp_path):
    counts = np.array([[0, 1, 250], [65534, 65535, 7]], np.uint16)
    path = tmp_path / "rate.tif"
    fmi_sample.write_geotiff(path, counts, items=fmi_sample.RAIN_RATE_ITEMS)
    rain_rate = read(path, reader="fmi_geotiff")["rain_rate"]
    expected = np.array([[[0, 0.01, 2.5], [655.34, np.nan, 0.07]]], np.float32)
    np.testing.assert_array_equal(rain_rate.values, expected)


def test_geotiff_is_what_rasterio_reads(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    counts = np.random.default_rng(1).integers(0, 256, (40, 30)).astype(np.uint8)
    path = fmi_sample.write_geotiff(tmp_path / "frame.tif", counts)
    observed = read(path, reader="fmi_geotiff")
    with rasterio.open(path) as stored:
        np.testing.assert_array_equal(stored.read(1), counts)
        assert stored.crs.to_epsg() == 3067
        assert stored.tags()["Observation time"] == "202104091015"
        x, y = zip(*(stored.xy(i, i) for i in range(30)), strict=True)
    np.testing.assert_allclose(observed["x"].values, x)
    np.testing.assert_allclose(observed["y"].values[:30], y)
    expected = np.where(counts == 255, np.nan, np.maximum(counts / 2 - 32, 0))
    np.testing.assert_array_equal(observed["reflectivity"].values[0], expected.astype("f4"))


def test_geotiff_grid_is_that_of_the_finnish_one(geotiff):
    observed = read(geotiff, reader="fmi_geotiff")
    here = Transformer.from_crs("EPSG:4258", CRS.from_cf(observed["crs"].attrs), always_xy=True)
    there = Transformer.from_crs("EPSG:4258", "EPSG:3067", always_xy=True)
    for place in [(24.94, 60.17), (27.03, 69.91), (19.93, 60.1)]:
        np.testing.assert_allclose(here.transform(*place), there.transform(*place), atol=0.01)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"items": {"Quantity": ("unit", "mm", "Precipitation accumulation")}}, "unit is 'mm'"),
        ({"items": {"Quantity": ("unit", "mm/h", "Rain intensity")}}, "FMI's are"),
        ({"items": {"Quantity": ("", "", "Corrected reflectivity")}}, "unit is ''"),
        ({"items": {"Elevation angle": ("unit", "deg", "0.5")}}, "scan of one radar"),
        ({"items": {"Gain": ("", "", "1.0")}}, "FMI's are"),
        ({"items": {"Offset": ("", "", "0.0")}}, "FMI's are"),
        ({"items": {"Nodata": ("", "", "0")}}, "FMI's are"),
        ({"items": {"Undetect": ("", "", "255")}}, "FMI's are"),
        ({"items": {"Gain": ("", "", "__import__('os')")}}, "is not 1 number"),
        ({"items": {"Observation time": ("", "", "2021-04-09")}}, "no time of FMI"),
        ({"geokeys": (*fmi_sample.GEOKEYS[:-1], 3857)}, "EPSG:3067"),
        ({"geokeys": (*fmi_sample.GEOKEYS[:-5], 2, *fmi_sample.GEOKEYS[-4:])}, "EPSG:3067"),
        ({"scale": 0.0}, "give no grid"),
        ({"left_out": [42112]}, "lacks the tags"),
        ({"left_out": [33550]}, "lacks the tags"),
    ],
)
def test_geotiff_that_disagrees_with_what_is_known_is_refused(tmp_path, settings, message):
    path = tmp_path / "odd.tif"
    fmi_sample.write_geotiff(path, np.array(COUNTS, np.uint8), **settings)
    with pytest.raises(ValueError, match=message):
        read(path, reader="fmi_geotiff")


def test_geotiff_of_two_images_or_of_other_pixels_is_refused(tmp_path):
    from PIL import Image

    counts = np.array(COUNTS, np.uint8)
    path = tmp_path / "two.tif"
    fmi_sample.write_geotiff(path, counts, save_all=True, append_images=[Image.fromarray(counts)])
    with pytest.raises(ValueError, match="more than one image"):
        read(path, reader="fmi_geotiff")
    fmi_sample.write_geotiff(path, counts.astype(np.uint16))
    with pytest.raises(ValueError, match="pixels are uint16"):
        read(path, reader="fmi_geotiff")


def test_geotiff_parts_that_were_never_written_are_not_dry(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path / "sparse.tif"
    whole = fmi_sample.write_geotiff(tmp_path / "whole.tif", np.zeros((64, 64), np.uint8))
    with rasterio.open(whole) as stored:
        profile = {**stored.profile, "tiled": True, "blockxsize": 16, "blockysize": 16}
    with rasterio.open(path, "w", **profile, SPARSE_OK=True) as written:
        written.update_tags(**{name: text for name, (_, _, text) in fmi_sample.ITEMS.items()})
        written.write(np.ones((1, 16, 16), np.uint8), window=((0, 16), (0, 16)))
    with pytest.raises(ValueError, match="never written"):
        read(path, reader="fmi_geotiff")


def test_geotiff_cut_short_anywhere_is_refused(tmp_path):
    counts = np.random.default_rng(2).integers(0, 256, (40, 30)).astype(np.uint8)
    path = fmi_sample.write_geotiff(tmp_path / "frame.tif", counts)
    _check_truncation(path, "fmi_geotiff")
