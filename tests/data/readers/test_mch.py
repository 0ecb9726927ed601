import mch_sample
import numpy as np
import pytest
from pyproj import CRS, Transformer

from nowcast.conventions import check_values, grid_id
from nowcast.data.readers import read
from nowcast.data.readers.mch import rain_rates

CITIES = {"Bern": (7.4386, 46.951), "Geneva": (6.14, 46.2), "Milan": (9.19, 45.46)}


def codes(seed=0):
    return np.random.default_rng(seed).integers(0, 160, mch_sample.SHAPE).astype(np.uint8)


@pytest.fixture
def frame():
    """Dry but for a few pixels, so that each is found again in its place."""
    field = np.zeros(mch_sample.SHAPE, np.uint8)
    field[0, :5] = 1, 2, 100, 255, 250
    field[-1, -1] = 121
    return field


@pytest.fixture(scope="session")
def mch_files(shared_data):
    return sorted((shared_data / "radar/mch_gif").glob("*.gif"))


def test_codes_are_half_decibels_of_rain():
    """By Z = 316 R^1.5, R in mm per five minutes: Z of 316 is 12 mm/h, at 71.5 + 20 log10 316."""
    table = rain_rates()
    np.testing.assert_array_equal(table[:2], 0)
    assert table[121] < 12 < table[122]
    # Thirty codes are fifteen decibels, which are ten decibels of rain.
    np.testing.assert_allclose(table[32:221] / table[2:191], 10, rtol=1e-5)
    assert np.isnan(table[251:]).all()


def test_dry_stays_dry_and_missing_stays_missing(tmp_path, frame):
    frame[0, 4] = 251
    path = mch_sample.write_mch(tmp_path / "AQC151351545F_00005.801.gif", frame)
    rain_rate = read(path, reader="mch")["rain_rate"]
    values = rain_rate.values[0]
    np.testing.assert_array_equal(np.isnan(values[0, :6]), [0, 0, 0, 1, 1, 0])
    assert np.isnan(values).sum() == 2
    assert (values > 0).sum() == 3
    assert values[0, 2] == pytest.approx(2.305, abs=5e-4)
    assert values[-1, -1] == rain_rates()[121]
    assert (rain_rate.attrs["units"], rain_rate.attrs["out_of_range"]) == ("mm h-1", 0)


def test_a_stray_absurd_pixel_is_missing_and_counted(tmp_path, frame):
    path = mch_sample.write_mch(tmp_path / "stray.gif", frame)
    rain_rate = read(path, reader="mch")["rain_rate"]
    assert rain_rate.attrs["out_of_range"] == 1
    assert np.isnan(rain_rate.values[0, 0, 4])


def test_many_absurd_pixels_refuse_the_file(tmp_path, frame):
    frame[:2] = 200
    path = mch_sample.write_mch(tmp_path / "absurd.gif", frame)
    with pytest.raises(ValueError, match="1,420 of 454,400 observed pixels"):
        read(path, reader="mch")


def test_time_is_the_end_of_five_minutes(tmp_path, frame):
    path = mch_sample.write_mch(tmp_path / "frame.gif", frame, product="AQC163662355")
    observed = read(path, reader="mch")
    expected = np.array([["2016-12-31T23:50", "2016-12-31T23:55"]], "M8[ns]")
    np.testing.assert_array_equal(observed["time_bnds"], expected)
    np.testing.assert_array_equal(observed["time"], expected[:, 1])


def test_two_dry_frames_of_two_times_differ_whatever_their_names(tmp_path):
    dry = np.zeros(mch_sample.SHAPE, np.uint8)
    one, two = (
        read(mch_sample.write_mch(tmp_path / f"{name}.gif", dry, product=name), reader="mch")
        for name in ("AQC151351545", "AQC151351550")
    )
    assert one.attrs["input_sha256"] != two.attrs["input_sha256"]
    assert one["time"].item() != two["time"].item()


@pytest.mark.parametrize(
    "name", ["AQC151351545F_00005.801.gif", "AQC151351545V_00005.801.gif", "x"]
)
def test_the_letter_of_the_name_does_not_matter(tmp_path, frame, name):
    path = mch_sample.write_mch(tmp_path / name, frame)
    assert read(path, reader="mch").attrs["product"] == "AQC"


def test_a_name_of_another_time_is_refused(tmp_path, frame):
    path = mch_sample.write_mch(tmp_path / "AQC151351550F_00005.801.gif", frame)
    with pytest.raises(ValueError, match="its name says AQC151351550"):
        read(path, reader="mch")


def test_cities_lie_where_the_swiss_coordinates_have_them(tmp_path, frame):
    observed = read(mch_sample.write_mch(tmp_path / "frame.gif", frame), reader="mch")
    crs = CRS.from_cf(observed["crs"].attrs)
    here = Transformer.from_crs("EPSG:4326", crs, always_xy=True)
    there = Transformer.from_crs("EPSG:4326", "EPSG:21781", always_xy=True)
    for city in CITIES.values():
        np.testing.assert_allclose(here.transform(*city), there.transform(*city), atol=1)
    x, y = here.transform(*CITIES["Bern"])
    assert (x, y) == (pytest.approx(600_000, abs=100), pytest.approx(200_000, abs=100))
    np.testing.assert_array_equal(observed["x"][[0, -1]], [255_500, 964_500])
    np.testing.assert_array_equal(observed["y"][[0, -1]], [479_500, -159_500])


def test_the_projection_survives_a_netcdf_file(tmp_path, frame):
    import xarray as xr

    observed = read(mch_sample.write_mch(tmp_path / "frame.gif", frame), reader="mch")
    observed["time"].encoding["units"] = "seconds since 1970-01-01"
    observed.to_netcdf(tmp_path / "frame.nc")
    with xr.open_dataset(tmp_path / "frame.nc") as stored:
        assert grid_id(stored) == grid_id(observed)
        assert CRS.from_cf(stored["crs"].attrs) == CRS.from_cf(observed["crs"].attrs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"product": "CPC151351545"}, "one looks like 'AQC151351545'"),
        ({"product": "AQC153661545"}, "one looks like"),
        ({"product": "AQC150001545"}, "one looks like"),
        ({"product": "AQC151352445"}, "one looks like"),
        ({"product": "AQC15135"}, "one looks like"),
        ({"scale": "dBZ"}, "'SCALE': 'dBZ'"),
        ({"color": "bluish"}, "'COLOR': 'bluish'"),
        ({"minutes": "000060"}, "'ACCUm': '000060'"),
        ({"palette": bytes(3) + mch_sample.PALETTE[3:]}, "its palette"),
        ({"comments": 0}, "0 comments"),
        ({"comments": 2}, "2 comments"),
        ({"images": 2}, "2 images"),
        ({"images": 0}, "0 images"),
        ({"interlace": 1}, "fills the grid"),
        ({"more": b"\0"}, "1 bytes follow"),
    ],
)
def test_what_disagrees_with_what_is_known_is_refused(tmp_path, frame, settings, message):
    path = mch_sample.write_mch(tmp_path / "odd.gif", frame, **settings)
    with pytest.raises(ValueError, match=message):
        read(path, reader="mch")


def test_another_grid_is_refused(tmp_path):
    path = mch_sample.write_mch(tmp_path / "small.gif", np.zeros((64, 71), np.uint8))
    with pytest.raises(ValueError, match="no GIF of 710 by 640"):
        read(path, reader="mch")


def test_pixels_that_are_not_there_are_not_dry(tmp_path):
    """The image declares 640 rows, but the codes end after a hundred."""
    full = mch_sample.write_mch(tmp_path / "full.gif", codes()).read_bytes()
    part = mch_sample.write_mch(tmp_path / "part.gif", codes()[:100]).read_bytes()
    mark = b",\0\0\0\0\xc6\x02"
    start, end = full.index(mark) + 10, part.index(mark) + 10
    path = tmp_path / "short.gif"
    path.write_bytes(full[:start] + part[end:])
    with pytest.raises(ValueError, match="damaged"):
        read(path, reader="mch")


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    path = mch_sample.write_mch(tmp_path / "frame.gif", codes())
    raw = path.read_bytes()
    accepted = []
    for place in [*np.linspace(0, len(raw) - 1, 200).astype(int), len(raw) - 2]:
        path.write_bytes(raw[:place])
        try:
            accepted.append((place, read(path, reader="mch")))
        except ValueError:
            continue
    assert accepted == []


def test_damage_that_changes_how_many_pixels_there_are_is_refused(tmp_path):
    smooth = np.add.outer(np.arange(640), np.arange(710)) // 30 % 160
    path = mch_sample.write_mch(tmp_path / "a.gif", smooth)
    whole, before = path.read_bytes(), read(path)["rain_rate"].values
    refused = 0
    for at in np.random.default_rng(5).integers(len(whole) // 4, len(whole) - 9, 40):
        changed = bytearray(whole)
        changed[at] ^= 0x10
        path.write_bytes(changed)
        try:
            values = read(path)["rain_rate"].values
        except ValueError:
            refused += 1
        else:  # one string for another of the same length
            assert (values != before).mean() < 0.01
    assert refused >= 20


def test_real_frames_are_what_pysteps_reads(mch_files):
    from pysteps.io.importers import import_mch_gif

    for path in mch_files[::9]:
        expected, _, metadata = import_mch_gif(str(path), "AQC", "mm", 5.0)
        observed = check_values(read(path, reader="mch"))
        np.testing.assert_allclose(observed["rain_rate"].values[0], expected * 12, rtol=1e-6)
        assert metadata["x1"] == float(observed["x"][0]) - 500
        assert metadata["y1"] == float(observed["y"][-1]) - 500
        assert metadata["y2"] == float(observed["y"][0]) + 500
        assert metadata["yorigin"] == "upper"


def test_real_times_follow_the_names_whatever_their_letter(mch_files):
    frames = [read(path, reader="mch") for path in mch_files]
    times = [frame["time"].to_index()[0].strftime("AQC%y%j%H%M") for frame in frames]
    assert times == [path.name[:12] for path in mch_files]
    assert {path.name[12] for path in mch_files} == {"F", "V"}
    assert len({grid_id(frame) for frame in frames}) == 1
    assert len({frame.attrs["input_sha256"] for frame in frames}) == len(frames)
