import gzip

import numpy as np
import pytest
from pyproj import CRS, Transformer
from radolan_sample import write_radolan

from nowcast.conventions import check_observations, check_values, grid_id, variable_of
from nowcast.data.readers import sniff
from nowcast.data.readers.radolan import parse_header, read_radolan

SHAPE = (900, 900)
NAN = np.nan
RY = {"product": "RY", "precision": " E-02", "interval": 5}
RX = {"product": "RX", "precision": " E+00", "interval": 5}
MISSING, NEGATIVE, CLUTTER, SECONDARY = 0x2000, 0x4000, 0x8000, 0x1000


@pytest.fixture
def radolan_files(shared_data):
    return sorted((shared_data / "radar" / "radolan").glob("*.gz"))


def counts(*first, fill=0):
    """Give counts of a whole composite of which only the first are of interest."""
    found = np.full(SHAPE, fill)
    found.flat[: len(first)] = first
    return found


def first_values(path, number):
    observed = read_radolan(path)
    return observed[variable_of(observed)].values.ravel()[:number]


def decoded(path):
    """Decode a real file with NumPy alone, by the description of the format."""
    content = gzip.decompress(path.read_bytes())
    start = content.index(b"\x03") + 1
    product = content[:2].decode()
    if product == "RX":
        raw = np.frombuffer(content, "u1", offset=start).reshape(SHAPE)
        return np.where(raw == 250, NAN, np.maximum(raw / 2 - 32.5, 0.0))
    raw = np.frombuffer(content, "<u2", offset=start).reshape(SHAPE)
    per_hour = {"RW": 0.1, "RY": 0.01 * 12}[product]
    return np.where(raw & 0x2000, NAN, (raw & 0x0FFF) * per_hour)


def test_real_values_are_those_of_the_files(radolan_files):
    for path in radolan_files:
        observed = check_values(check_observations(read_radolan(path)))
        values = observed[variable_of(observed)]
        assert values.attrs["out_of_range"] == 0
        np.testing.assert_allclose(values[0], decoded(path), rtol=1e-6)


def test_real_values_are_those_that_wradlib_reads(radolan_files):
    radolan = pytest.importorskip("wradlib.io.radolan")
    factors = {"RW": 1.0, "RY": 12.0}
    for path in radolan_files[::5] + [p for p in radolan_files if "rx_" in p.name]:
        theirs, attributes = radolan.read_radolan_composite(str(path))
        product = attributes["producttype"]
        missing = theirs == attributes["nodataflag"]
        if product == "RX":
            theirs = np.maximum(theirs / 2 - 32.5, 0.0)
        expected = np.where(missing, NAN, theirs * factors.get(product, 1.0))
        observed = read_radolan(path)
        np.testing.assert_allclose(observed[variable_of(observed)][0], expected, rtol=1e-6)
        time = np.datetime64(attributes["datetime"].replace(tzinfo=None))
        assert observed["time"].values[0] == time


def test_real_frames_are_what_was_measured(radolan_files):
    observed = read_radolan(radolan_files[0])
    values = observed["rain_rate"].values
    assert np.nanmax(values) == pytest.approx(3.0)
    assert np.isnan(values).mean() == pytest.approx(0.180, abs=1e-3)
    reflectivity = next(read_radolan(p) for p in radolan_files if "rx_" in p.name)["reflectivity"]
    assert float(reflectivity.max()) == 56.5
    assert float((reflectivity > 0).mean()) == pytest.approx(0.2089, abs=1e-4)


def test_the_name_of_a_real_file_holds_the_nominal_time(radolan_files):
    for path in radolan_files:
        name = path.name.split("-")[2]
        expected = np.datetime64(f"20{name[:2]}-{name[2:4]}-{name[4:6]}T{name[6:8]}:{name[8:10]}")
        assert read_radolan(path)["time"].values[0] == expected


def test_real_frames_of_all_products_lie_on_one_grid(radolan_files):
    assert len({grid_id(read_radolan(path)) for path in radolan_files[::6]}) == 1


def test_real_products_are_told_apart(radolan_files):
    assert {read_radolan(path).attrs["product"] for path in radolan_files} == {"RW", "RY", "RX"}


def test_its_files_are_told_by_content(tmp_path):
    for name in ("rw.gz", "rw.bin"):
        assert sniff(write_radolan(tmp_path / name, counts())) == "radolan"


@pytest.mark.parametrize("name", ["rw.gz", "rw.bin"])
def test_rain_is_value_dry_or_missing(tmp_path, name):
    path = write_radolan(tmp_path / name, counts(0, 1, 25, MISSING | 2500, SECONDARY | 3))
    np.testing.assert_allclose(first_values(path, 5), [0.0, 0.1, 2.5, NAN, 0.3], rtol=1e-6)


def test_five_minutes_of_rain_become_a_rate(tmp_path):
    path = write_radolan(tmp_path / "ry", counts(0, 1, 4095, MISSING), **RY)
    np.testing.assert_allclose(first_values(path, 4), [0.0, 0.12, 491.4, NAN], rtol=1e-6)


def test_clutter_is_not_observed(tmp_path):
    path = write_radolan(tmp_path / "rw", counts(CLUTTER, CLUTTER | 700, CLUTTER | MISSING, 700))
    np.testing.assert_allclose(first_values(path, 4), [NAN, NAN, NAN, 70.0], rtol=1e-6)


def test_a_rare_negative_amount_is_missing_and_counted(tmp_path):
    observed = read_radolan(write_radolan(tmp_path / "rw", counts(NEGATIVE | 3, 5)))
    np.testing.assert_allclose(observed["rain_rate"].values.ravel()[:2], [NAN, 0.5], rtol=1e-6)
    assert observed["rain_rate"].attrs["out_of_range"] == 1


def test_many_negative_amounts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="outside 0 to 1000 mm h-1"):
        read_radolan(write_radolan(tmp_path / "rw", counts(fill=NEGATIVE | 3)))


def test_reflectivity_is_value_dry_or_missing(tmp_path):
    path = write_radolan(tmp_path / "rx", counts(0, 65, 66, 178, 249, 250), **RX)
    expected = [0.0, 0.0, 0.5, 56.5, NAN, NAN]
    np.testing.assert_array_equal(first_values(path, 6), expected)


def test_counts_of_reflectivity_that_mean_nothing_are_refused(tmp_path):
    with pytest.raises(ValueError, match="counts reach 255; 250, no data, is the greatest"):
        read_radolan(write_radolan(tmp_path / "rx", counts(255), **RX))


@pytest.mark.parametrize(
    ("settings", "start"),
    [({}, "2018-11-21T23:50"), (RY, "2018-11-22T00:45"), (RX, "2018-11-22T00:45")],
)
def test_the_time_in_the_header_ends_the_interval(tmp_path, settings, start):
    observed = read_radolan(write_radolan(tmp_path / "r", counts(), **settings))
    assert observed["time"].values[0] == np.datetime64("2018-11-22T00:50")
    expected = np.array([start, "2018-11-22T00:50"], "datetime64[ns]")
    np.testing.assert_array_equal(observed["time_bnds"].values[0], expected)


def test_the_corners_are_those_that_dwd_publishes(tmp_path):
    observed = read_radolan(write_radolan(tmp_path / "rw", counts()))
    x, y = observed["x"].values, observed["y"].values
    assert observed["crs"].attrs["latitude_of_projection_origin"] == 90.0  # which CF asks for
    crs = CRS.from_cf(observed["crs"].attrs)
    locate = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform
    corners = {
        (x[0] - 500, y[0] - 500): (3.5889, 46.9526),
        (x[-1] + 500, y[0] - 500): (14.6209, 47.0705),
        (x[-1] + 500, y[-1] + 500): (15.7208, 54.7405),
        (x[0] - 500, y[-1] + 500): (2.0715, 54.5877),
    }
    for place, expected in corners.items():
        assert locate(*place) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("shape", "version", "corner"),
    [
        ((900, 900), 3, (-523_462.2, -4_658_644.7)),
        ((1100, 900), 3, (-443_462.2, -4_758_644.7)),
        ((1500, 1400), 3, (-673_462.2, -5_008_644.7)),
        ((1200, 1100), 3, (-543_462.2, -4_808_644.7)),
        ((1200, 1100), 5, (-543_696.8, -4_822_088.9)),
    ],
)
def test_every_grid_is_where_dwd_and_wradlib_put_it(tmp_path, shape, version, corner):
    path = write_radolan(tmp_path / "rx", np.zeros(shape), version=version, **RX)
    observed = read_radolan(path)
    x, y = observed["x"].values, observed["y"].values
    assert observed["reflectivity"].shape == (1, *shape)
    assert (x[0] - 500, y[0] - 500) == pytest.approx(corner, abs=0.1)
    rect = pytest.importorskip("wradlib.georef.rect")
    projection = pytest.importorskip("wradlib.georef.projection")
    crs = projection.create_crs("dwd-radolan-wgs84" if version == 5 else "dwd-radolan-sphere")
    theirs = rect.get_radolan_coordinates(*shape, crs=crs, mode="center")
    np.testing.assert_allclose(x, theirs[0], atol=1e-6)
    np.testing.assert_allclose(y, theirs[1], atol=1e-6)


def test_the_first_row_is_the_southernmost(tmp_path):
    observed = read_radolan(write_radolan(tmp_path / "rw", counts(700)))
    assert np.argwhere(observed["rain_rate"].values[0] > 0).tolist() == [[0, 0]]
    assert observed["y"].values[0] < observed["y"].values[-1]


def test_the_climatology_is_another_product(tmp_path):
    tail = "U0GP{rows:4d}x{columns:4d}MF 00000001VR2017.002MS  5<asb>"
    path = write_radolan(
        tmp_path / "yw", np.zeros((1100, 900)), **{**RY, "product": "YW"}, tail=tail
    )
    attributes = read_radolan(path).attrs
    assert attributes["product"] == "RADKLIM-YW"
    assert attributes["product_version"] == "2017.002"


@pytest.mark.parametrize(
    ("product", "minutes"), [("SF", 1440), ("SH", 720), ("SQ", 360), ("RL", 60)]
)
def test_longer_sums_become_mean_rates(tmp_path, product, minutes):
    path = write_radolan(tmp_path / "s", counts(240), product=product, interval=minutes)
    observed = read_radolan(path)
    assert observed["rain_rate"].values.ravel()[0] == pytest.approx(24.0 * 60 / minutes)
    assert observed["rain_rate"].attrs["cell_methods"] == "time: mean"


def test_the_analysis_of_rv_is_an_observation(tmp_path):
    tail = "GP{rows:4d}x{columns:4d}VV 000MF 00000008MS  0"
    path = write_radolan(
        tmp_path / "rv", np.ones((1200, 1100)), **{**RY, "product": "RV"}, version=5, tail=tail
    )
    assert float(read_radolan(path)["rain_rate"].max()) == pytest.approx(0.12)


def test_a_forecast_is_refused(tmp_path):
    tail = "GP{rows:4d}x{columns:4d}VV 005MF 00000008MS  0"
    path = write_radolan(tmp_path / "rv", counts(), **{**RY, "product": "RV"}, tail=tail)
    with pytest.raises(ValueError, match="is a forecast for 5 minutes"):
        read_radolan(path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"precision": " E-02"},
            r"RW covers 60 minutes in steps of 0\.1; the header says 60 .* 0\.01",
        ),
        ({"interval": 5}, "the header says 5 minutes"),
        ({**RY, "precision": " E-01"}, r"RY covers 5 minutes in steps of 0\.01"),
        ({**RX, "precision": " E-01"}, "RX covers 5 minutes in steps of 1"),
        ({"product": "RQ"}, "the product is 'RQ'; known are EB"),
        ({"product": "RD"}, "the product is 'RD'"),
        ({"version": 7}, "version 7 of the format is not known"),
        ({"shape": (900, 901)}, r"a grid of \(900, 901\) pixels"),
        ({"shape": (1100, 900)}, "pixels need 1,980,000 bytes"),
        ({"shape": (9999, 9999)}, r"a grid of \(9999, 9999\) pixels"),
        ({"size": 1620143}, "declares 1,620,143 bytes"),
        ({"size": 9999999}, "damaged or cut short"),
        ({"date": "1318"}, "month"),
        ({"tail": "GP{rows:4d}x{columns:4d}MS 90<asb>"}, "not as long as it says"),
        ({"tail": "U1GP{rows:4d}x{columns:4d}MS  5<asb>"}, "says 86400 minutes"),
        ({"tail": "BG{rows:4d}x{columns:4d}MS  5<asb>"}, "is no header of a RADOLAN composite"),
    ],
)
def test_a_header_that_disagrees_with_what_is_known_is_refused(tmp_path, settings, message):
    path = write_radolan(tmp_path / "odd", counts(), **settings)
    with pytest.raises(ValueError, match=message):
        read_radolan(path)


def test_a_single_radar_is_no_composite():
    text = "RX102050104880814BY  80138VS 3SW   2.13.1PR E+00INT   5GP 200x 200MS  0"
    with pytest.raises(ValueError, match="the place is 10488; composites have 10000"):
        parse_header(text)


@pytest.mark.parametrize("name", ["rw.gz", "rw.bin"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path, name):
    whole = write_radolan(tmp_path / name, np.random.default_rng(1).integers(0, 40, SHAPE))
    content = whole.read_bytes()
    cut = tmp_path / f"cut-{name}"
    for size in {*np.linspace(0, len(content) - 1, 200).astype(int), len(content) - 1}:
        cut.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"cut short|header"):
            read_radolan(cut)


def test_a_file_with_more_than_it_declares_is_refused(tmp_path):
    path = write_radolan(tmp_path / "rw", counts())
    with path.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match="damaged or cut short"):
        read_radolan(path)


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path):
    path = tmp_path / "bomb.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(21):
            file.write(bytes(10_000_000))
    with pytest.raises(ValueError, match="larger than 200,000,000 bytes"):
        read_radolan(path)
