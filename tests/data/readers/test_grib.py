import gzip
import subprocess
import sys

import grib_sample
import numpy as np
import pytest
from pyproj import CRS, Transformer

from nowcast.conventions import check_values, grid_id
from nowcast.data.readers import read
from nowcast.data.readers.grib import HRAP_MESH_M, HRAP_PROJECTION

# No coverage, no data, dry; 0.1, 10 and 150 mm/h.
COUNTS = [[0, 20, 30], [31, 130, 1530]]
RATES = [[np.nan, np.nan, 0.0], [0.1, 10.0, 150.0]]
# Of the national Stage IV grid, as its makers publish them: indices, longitude, latitude.
HRAP_CORNERS = {
    (0, 0): (-119.023, 23.117),
    (1120, 0): (-80.750, 19.805),
    (1120, 880): (-59.959, 45.619),
    (0, 880): (-134.039, 53.509),
}


def fields(seed=0, shape=(40, 50)):
    return np.random.default_rng(seed).integers(30, 300, shape)


def amounts(seed=0, shape=(21, 30)):
    """Hundredths of a millimetre, of which some are missing."""
    generator = np.random.default_rng(seed)
    return np.where(generator.random(shape) < 0.3, -1, generator.integers(0, 4000, shape))


@pytest.fixture(scope="session")
def mrms_files(shared_data):
    return sorted((shared_data / "radar/mrms_grib2").glob("*.grib2"))


def _refused(path, reader, places):
    """Give the places where the file, cut there, is accepted."""
    raw = path.read_bytes()
    accepted = []
    for place in places(len(raw)):
        path.write_bytes(raw[:place])
        try:
            read(path, reader=reader)
        except ValueError:
            continue
        accepted.append(place)
    return accepted


def _everywhere(length):
    return np.unique([*np.linspace(0, length - 1, 200).astype(int), length - 1])


def test_mrms_counts_become_rain_rate_and_missing_is_not_dry(tmp_path):
    rain_rate = read(grib_sample.write_mrms(tmp_path / "f.grib2", COUNTS), reader="mrms")[
        "rain_rate"
    ]
    assert (rain_rate.attrs["units"], rain_rate.dtype) == ("mm h-1", np.float32)
    np.testing.assert_array_equal(rain_rate.values, np.array([RATES], np.float32))
    assert rain_rate.attrs["out_of_range"] == 0


@pytest.mark.parametrize(
    ("settings", "least", "step"),
    [
        ({"bits": 8}, -3.0, 0.1),
        ({"decimal": 2, "reference": 0.0, "binary": 1}, 0.0, 0.02),
        ({"decimal": 0, "reference": 1.0, "binary": -3}, 1.0, 0.125),
    ],
)
def test_mrms_packing_is_undone(tmp_path, settings, least, step):
    counts = fields() % 226 + 30
    path = grib_sample.write_mrms(tmp_path / "frame.grib2", counts, **settings)
    values = read(path, reader="mrms")["rain_rate"].values[0]
    np.testing.assert_allclose(values, least + counts * step, atol=1e-5)


def test_mrms_time_is_that_of_the_header_and_there_is_no_interval(tmp_path):
    observed = read(grib_sample.write_mrms(tmp_path / "f.grib2", COUNTS), reader="mrms")
    np.testing.assert_array_equal(observed["time"], np.array(["2019-06-10T00:02"], "M8[ns]"))
    assert "time_bnds" not in observed
    assert (observed.attrs["source"], observed.attrs["product"]) == ("NOAA", "PrecipRate")


def test_mrms_pixels_go_from_the_north_west_in_hundredths_of_a_degree(tmp_path):
    observed = read(grib_sample.write_mrms(tmp_path / "f.grib2", COUNTS), reader="mrms")
    np.testing.assert_allclose(observed["y"], [54.995, 54.985], atol=1e-9)
    np.testing.assert_allclose(observed["x"], [-129.995, -129.985, -129.975], atol=1e-9)
    assert observed["y"].attrs["units"] == "degrees_north"
    assert CRS.from_cf(observed["crs"].attrs).is_geographic


def test_mrms_gzipped_is_the_same(tmp_path):
    path = grib_sample.write_mrms(tmp_path / "frame.grib2", COUNTS)
    packed = tmp_path / "frame.grib2.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    one, other = (read(each, reader="mrms")["rain_rate"].values for each in (path, packed))
    np.testing.assert_array_equal(one, other)


def test_mrms_other_negative_rates_are_missing_and_counted(tmp_path):
    counts = fields()
    counts[0, 0] = 10  # -2 mm/h, which stands for nothing
    path = grib_sample.write_mrms(tmp_path / "frame.grib2", counts)
    rain_rate = read(path, reader="mrms")["rain_rate"]
    assert rain_rate.attrs["out_of_range"] == 1
    assert np.isnan(rain_rate.values[0]).sum() == 1
    counts[:2] = 10
    grib_sample.write_mrms(path, counts)
    with pytest.raises(ValueError, match="100 of 2,000 observed pixels"):
        read(path, reader="mrms")


def test_mrms_is_what_rasterio_reads(tmp_path):
    rasterio = pytest.importorskip("rasterio")
    counts = fields()
    path = grib_sample.write_mrms(tmp_path / "frame.grib2", counts)
    observed = read(path, reader="mrms")
    with rasterio.open(path) as stored:
        np.testing.assert_allclose(observed["rain_rate"].values[0], stored.read(1), atol=1e-5)
        x, y = zip(*(stored.xy(i, i) for i in range(40)), strict=True)
    np.testing.assert_allclose(observed["x"].values[:40], x, atol=1e-6)
    np.testing.assert_allclose(observed["y"].values, y, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parameter": (6, 2)}, "MRMS PrecipRate is"),
        ({"parameter": (9, 1)}, "MRMS PrecipRate is"),
        ({"discipline": 0}, "MRMS PrecipRate is"),
        ({"centre": 7}, "MRMS PrecipRate is"),
        ({"significance": 1}, "not one of an observation"),
        ({"forecast": 60}, "not one of an observation"),
        ({"date": (2019, 13, 10, 0, 2, 0)}, "which is none"),
        ({"date": (2019, 2, 30, 0, 2, 0)}, "which is none"),
        ({"template": 40}, "packing 40"),
        ({"bitmap": 0}, "bitmap 0"),
        ({"bits": 12}, "12 bits"),
        ({"scan": 64}, "scan 64"),
        ({"earth": 1}, "shape of the Earth 1"),
        ({"angle": (0, 0)}, "angle"),
        ({"last": (54_000_000, 230_025_000)}, "y reaches over"),
        ({"last": (54_985_000, 231_025_000)}, "x reaches over"),
        ({"spacing": 0}, "reaches over 0.0"),
        ({"size": (60_000, 60_000)}, "claims 60000 by 60000"),
        ({"size": (3, 2)}, "the image is"),
        ({"reference": float("nan")}, "do not fill a grid"),
        ({"reference": -3000.0}, "observed pixels lie outside"),
        ({"decimal": -2}, "observed pixels lie outside"),
        ({"decimal": 400}, "exponent 400"),
        ({"binary": -30_000}, "exponent -30000"),
        ({"repeated": True}, "is one too many"),
    ],
)
def test_mrms_that_disagrees_with_what_is_known_is_refused(tmp_path, settings, message):
    counts = np.full((2, 3), 1530)
    path = grib_sample.write_mrms(tmp_path / "odd.grib2", counts, **settings)
    with pytest.raises(ValueError, match=message):
        read(path, reader="mrms")


def test_mrms_of_two_messages_is_refused(tmp_path):
    path = grib_sample.write_mrms(tmp_path / "frame.grib2", COUNTS)
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(ValueError, match="followed by more"):
        read(path, reader="mrms")


def test_mrms_cut_short_anywhere_is_refused(tmp_path):
    path = grib_sample.write_mrms(tmp_path / "frame.grib2", fields())
    assert _refused(path, "mrms", _everywhere) == []


def test_mrms_with_any_byte_of_its_image_changed_is_refused(tmp_path):
    path = grib_sample.write_mrms(tmp_path / "frame.grib2", fields(shape=(12, 15)))
    raw = path.read_bytes()
    start = raw.index(b"\x89PNG")
    accepted = []
    for place in range(start, len(raw) - 4):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            read(path, reader="mrms")
        except ValueError:
            continue
        accepted.append(place)
    assert accepted == []


def test_real_mrms_is_what_rasterio_reads(mrms_files):
    rasterio = pytest.importorskip("rasterio")
    path = mrms_files[-1]
    observed = check_values(read(path, reader="mrms"))
    with rasterio.open(path) as stored:
        expected = stored.read(1).astype(np.float32)
        bounds, tags = stored.bounds, stored.tags(1)
    expected[expected == -3] = np.nan
    values = observed["rain_rate"].values[0]
    assert np.array_equal(np.isnan(values), np.isnan(expected))
    assert np.nanmax(np.abs(values - expected)) < 5e-5  # 32 bits of a driver, at 150 mm/h
    assert tags["GRIB_UNIT"] == "[mm/hr]"
    seconds = observed["time"].values[0].astype("M8[s]").astype(int)
    assert int(tags["GRIB_VALID_TIME"]) == seconds
    edges = (observed["x"].min() - 0.005, observed["y"].max() + 0.005)
    np.testing.assert_allclose(edges, (bounds.left, bounds.top), atol=1e-5)


def test_real_mrms_keeps_its_grid_and_a_third_of_it_is_not_covered(mrms_files):
    frames = [read(path, reader="mrms") for path in mrms_files]
    assert len({grid_id(frame) for frame in frames}) == 1
    assert frames[0]["rain_rate"].shape == (1, 3500, 7000)
    assert float(frames[0]["rain_rate"].isnull().mean()) == pytest.approx(0.358, abs=1e-3)
    assert [frame["rain_rate"].attrs["out_of_range"] for frame in frames] == [0, 0, 0]


def test_real_mrms_is_read_within_two_gigabytes(mrms_files):
    code = (
        "import resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from nowcast.data.readers import read\n"
        "print(float(read(sys.argv[1], reader='mrms')['rain_rate'].max()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(mrms_files[0])], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == pytest.approx(148.8)


@pytest.mark.parametrize("hours", [1, 6, 24])
def test_stage4_amounts_become_rates_by_the_hours_of_the_header(tmp_path, hours):
    counts = [[0, 240, -1], [4095, 24, 1]]
    path = grib_sample.write_stage4(tmp_path / "frame.grb", counts, hours=hours)
    observed = read(path, reader="stage4")
    expected = np.array([[0, 2.4, np.nan], [40.95, 0.24, 0.01]]) / hours
    np.testing.assert_allclose(observed["rain_rate"].values[0], expected, rtol=1e-6)
    start = np.datetime64("2005-01-01T11", "ns")
    end = start + np.timedelta64(hours, "h")
    np.testing.assert_array_equal(observed["time_bnds"], [[start, end]])
    np.testing.assert_array_equal(observed["time"], [end])
    assert observed.attrs["product"] == f"StageIV {hours:02} h"


@pytest.mark.parametrize("settings", [{}, {"bits": 13, "decimal": 1, "binary": -2}, {"bits": 17}])
def test_stage4_is_what_rasterio_reads(tmp_path, settings):
    rasterio = pytest.importorskip("rasterio")
    counts = amounts()
    path = grib_sample.write_stage4(tmp_path / "frame.grb", counts, **settings)
    values = read(path, reader="stage4")["rain_rate"].values[0]
    with rasterio.open(path) as stored:
        expected = stored.read(1, masked=True).filled(np.nan)[::-1]
        tags = stored.tags(1)
    assert tags["GRIB_UNIT"] == "[kg/m^2]"
    assert np.isnan(values).sum() == (counts < 0).sum()
    np.testing.assert_allclose(values, expected, rtol=1e-5)


def test_stage4_dry_everywhere_needs_no_bits(tmp_path):
    field = np.array([[0, 0, -1], [0, -1, 0]])
    path = grib_sample.write_stage4(tmp_path / "dry.grb", field, bits=0)
    values = read(path, reader="stage4")["rain_rate"].values[0]
    np.testing.assert_array_equal(values, np.where(field < 0, np.nan, 0))


def test_stage4_times_of_two_centuries_are_told_apart(tmp_path):
    for year in (2000, 2001):
        path = grib_sample.write_stage4(
            tmp_path / "frame.grb", amounts(), date=(year, 12, 31, 23, 0)
        )
        end = read(path, reader="stage4")["time"].to_index()[0]
        assert end.isoformat() == f"{year + 1}-01-01T00:00:00"


def test_stage4_national_grid_has_its_published_corners(tmp_path):
    field = np.zeros((881, 1121), int)
    observed = read(grib_sample.write_stage4(tmp_path / "frame.grb", field), reader="stage4")
    crs = CRS.from_cf(observed["crs"].attrs)
    to_degrees = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    for (column, row), expected in HRAP_CORNERS.items():
        x, y = float(observed["x"][column]), float(observed["y"][row])
        np.testing.assert_allclose(to_degrees.transform(x, y), expected, atol=3e-3)


def test_stage4_pixels_are_on_the_exact_mesh_also_before_the_header_was_corrected(tmp_path):
    old = grib_sample.write_stage4(tmp_path / "old.grb", amounts(), first=(23_117, -119_017))
    new = grib_sample.write_stage4(tmp_path / "new.grb", amounts(), spacing=4762)
    one, other = read(old, reader="stage4"), read(new, reader="stage4")
    assert grid_id(one) == grid_id(other)
    np.testing.assert_array_equal(one["x"][[0, -1]] / HRAP_MESH_M, [-399.5, -370.5])
    np.testing.assert_array_equal(one["y"][[0, -1]] / HRAP_MESH_M, [-1599.5, -1579.5])


def test_stage4_part_of_the_grid_fits_into_the_whole(tmp_path):
    whole = read(grib_sample.write_stage4(tmp_path / "whole.grb", amounts()), reader="stage4")
    projection = CRS.from_user_input(HRAP_PROJECTION)
    to_degrees = Transformer.from_crs(projection, projection.geodetic_crs, always_xy=True)
    longitude, latitude = to_degrees.transform(float(whole["x"][7]), float(whole["y"][5]))
    first = (round(latitude * 1000), round(longitude * 1000))
    path = grib_sample.write_stage4(tmp_path / "part.grb", amounts(shape=(4, 5)), first=first)
    part = read(path, reader="stage4")
    np.testing.assert_array_equal(part["x"], whole["x"][7:12])
    np.testing.assert_array_equal(part["y"], whole["y"][5:9])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"parameter": 59}, "total precipitation in kg m-2"),
        ({"centre": 98}, "total precipitation in kg m-2"),
        ({"table": 128}, "total precipitation in kg m-2"),
        ({"hours": 3}, "hours"),
        ({"hours": 0}, "hours"),
        ({"first_hour": 1}, "from 1 to 1"),
        ({"unit": 0}, "in units 0"),
        ({"kind": 3}, "of kind 3"),
        ({"date": (2005, 2, 30, 0, 0)}, "which is none"),
        ({"orientation": -100_000}, "about 260.0 E"),
        ({"spacing": 2381}, "2381 by 2381"),
        ({"pole": 128}, "is unknown"),
        ({"projection": 0}, "not polar stereographic"),
        ({"scan": 0}, "scanning mode is 0"),
        ({"first": (23_140, -119_023)}, "not on HRAP"),
        ({"with_grid": False}, "not polar stereographic"),
        ({"flags": 4}, "packing 4"),
        ({"binary": 1000}, "exponent 1000"),
        ({"decimal": -2}, "observed pixels lie outside"),
    ],
)
def test_stage4_that_disagrees_with_what_is_known_is_refused(tmp_path, settings, message):
    path = grib_sample.write_stage4(tmp_path / "odd.grb", amounts(), **settings)
    with pytest.raises(ValueError, match=message):
        read(path, reader="stage4")


def test_stage4_cut_short_anywhere_is_refused(tmp_path):
    path = grib_sample.write_stage4(tmp_path / "frame.grb", amounts())
    assert _refused(path, "stage4", _everywhere) == []


def test_the_two_editions_are_not_taken_for_each_other(tmp_path):
    mrms = grib_sample.write_mrms(tmp_path / "frame.grib2", COUNTS)
    stage4 = grib_sample.write_stage4(tmp_path / "frame.grb", amounts())
    for path, reader, message in ((mrms, "stage4", "GRIB1"), (stage4, "mrms", "GRIB2")):
        with pytest.raises(ValueError, match=f"is no {message} file"):
            read(path, reader=reader)
