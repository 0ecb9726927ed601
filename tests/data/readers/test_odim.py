import h5py
import numpy as np
import pandas as pd
import pytest
from odim_sample import OPERA, UNDETECTED, write_odim, write_quality
from pyproj import CRS, Transformer

from nowcast.conventions import check_observations, check_values, grid_id
from nowcast.data.readers import READERS, sniff
from nowcast.data.readers.hdf5 import MOST_PIXELS
from nowcast.data.readers.odim import read_odim
from nowcast.data.readers.projections import parse_projection

NAN = np.nan
VALUES = [[NAN, UNDETECTED, 0.5], [0.0, 12.25, 1.0]]
RV = (
    "+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10 +a=6378137 +b=6356752.3142451802 +no_defs "
    "+x_0=543196.83521776402 +y_0=3622588.8619310018"
)
DANISH = "+proj=stere +lat_0=56 +lon_0=10.5666 +lat_ts=56 +ellps=WGS84"
SEVIR = "+proj=laea +lat_0=38 +lon_0=-98 +units=m +a=6370997.0 +ellps=sphere"
LCC = "+proj=lcc +lat_1=49.83 +lat_2=51.17 +lat_0=50.8 +lon_0=4.36 +x_0=649328 +ellps=GRS80"
RATE_RANGE = "outside 0 to 1000"


@pytest.fixture
def opera_files(shared_data):
    return sorted((shared_data / "radar" / "odim_hdf5").glob("*.hdf"))


@pytest.fixture
def opera_file(tmp_path):
    return write_odim(tmp_path / "opera.hdf", VALUES, quality=[[NAN, NAN, 0.5], [0.0, 0.9, 1.0]])


def stored(path):
    """Decode a real OPERA file by its attributes alone."""
    with h5py.File(path) as file:
        counts = file["dataset1/data1/data"][...]
        what = dict(file["dataset1/what"].attrs)
        quality = file["dataset2/data1/data"][...]
        where = dict(file["where"].attrs)
    values = counts * what["gain"] + what["offset"]
    values[counts == what["undetect"]] = 0.0
    values[counts == what["nodata"]] = NAN
    quality[quality == what["nodata"]] = NAN
    return values, quality, where


def test_real_values_are_those_of_the_file(opera_files):
    for path in opera_files:
        values, quality, _ = stored(path)
        observed = check_values(check_observations(read_odim(path)))
        absurd = values > 1000.0
        assert observed["rain_rate"].attrs["out_of_range"] == absurd.sum()
        values[absurd] = NAN
        np.testing.assert_array_equal(observed["rain_rate"][0], values.astype("f4"))
        np.testing.assert_array_equal(observed["quality"][0], quality.astype("f4"))


def test_one_real_pixel_is_absurd_and_missing(opera_files):
    absurd = [read_odim(path)["rain_rate"].attrs["out_of_range"] for path in opera_files]
    assert absurd == [1, 0, 0]


def test_real_values_are_those_that_pysteps_reads(opera_files):
    importers = pytest.importorskip("pysteps.io.importers")
    theirs, quality, metadata = importers.import_opera_hdf5(str(opera_files[1]), qty="RATE")
    observed = read_odim(opera_files[1])
    np.testing.assert_array_equal(observed["rain_rate"][0], theirs.astype("f4"))
    np.testing.assert_array_equal(observed["quality"][0], quality.astype("f4"))
    assert metadata["yorigin"] == "upper"
    assert observed["x"].values[0] == pytest.approx(metadata["x1"] + 1000.0, abs=0.01)
    assert observed["y"].values[0] == pytest.approx(metadata["y2"] - 1000.0, abs=0.01)


def test_real_nominal_time_and_interval_are_two_things(opera_files):
    observed = read_odim(opera_files[0])
    assert observed["time"].values[0] == np.datetime64("2018-08-24T18:00")
    expected = np.array(["2018-08-24T17:50", "2018-08-24T18:05"], "datetime64[ns]")
    np.testing.assert_array_equal(observed["time_bnds"].values[0], expected)


def test_real_corners_lie_where_the_file_says(opera_files):
    observed = read_odim(opera_files[0])
    where = stored(opera_files[0])[2]
    crs = CRS.from_cf(observed["crs"].attrs)
    project = Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform
    x, y = observed["x"].values, observed["y"].values
    ends = {"L": x[0] - 1000, "R": x[-1] + 1000}, {"U": y[0] + 1000, "L": y[-1] - 1000}
    for corner in ("LL", "LR", "UL", "UR"):
        found = project(where[f"{corner}_lon"], where[f"{corner}_lat"])
        assert found == pytest.approx((ends[0][corner[1]], ends[1][corner[0]]), abs=1.0)


def test_real_frames_lie_on_one_grid(opera_files):
    frames = [read_odim(path) for path in opera_files]
    assert len({grid_id(frame) for frame in frames}) == 1
    assert frames[0]["rain_rate"].shape == (1, 2200, 1900)


def test_real_frames_have_the_rain_and_the_gaps_that_were_measured(opera_files):
    rain_rate = read_odim(opera_files[0])["rain_rate"].values
    assert np.isnan(rain_rate).mean() == pytest.approx(0.49901, abs=1e-5)
    assert (rain_rate > 0).mean() == pytest.approx(0.11533, abs=1e-5)
    assert np.nanmax(rain_rate) == pytest.approx(421.07)


def test_its_files_are_told_by_content(opera_file):
    assert sniff(opera_file) == "odim"
    assert READERS["odim"].function.endswith("odim:read_odim")


def test_value_dry_and_missing_stay_apart(opera_file):
    observed = check_observations(read_odim(opera_file))
    np.testing.assert_array_equal(observed["rain_rate"][0], [[NAN, 0.0, 0.5], [0.0, 12.25, 1.0]])
    assert observed["rain_rate"].attrs["out_of_range"] == 0
    assert observed["rain_rate"].dtype == np.float32


def test_the_quality_index_describes_the_rain(opera_file):
    observed = read_odim(opera_file)
    assert observed["rain_rate"].attrs["ancillary_variables"] == "quality"
    expected = np.array([[NAN, NAN, 0.5], [0.0, 0.9, 1.0]], "f4")
    np.testing.assert_array_equal(observed["quality"][0], expected)


def test_a_rare_absurd_pixel_is_missing_and_counted(tmp_path):
    values = np.ones((40, 50))
    values[3, 4] = 1205.22
    rain_rate = read_odim(write_odim(tmp_path / "a.h5", values))["rain_rate"]
    assert rain_rate.attrs["out_of_range"] == 1
    assert np.argwhere(np.isnan(rain_rate.values[0])).tolist() == [[3, 4]]


@pytest.mark.parametrize("wrong", [1205.22, -0.5, np.inf])
def test_many_absurd_pixels_are_refused(tmp_path, wrong):
    values = np.full((10, 10), 1.0)
    values[0, :5] = wrong
    with pytest.raises(ValueError, match=RATE_RANGE):
        read_odim(write_odim(tmp_path / "a.h5", values))


@pytest.mark.parametrize("level", ["dataset1/data1", "dataset1", ""])
@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "<i4"])
def test_counts_are_scaled_wherever_their_scale_is_written(tmp_path, level, dtype):
    path = write_odim(
        tmp_path / "c.h5", VALUES, dtype=dtype, scale=(0.25, -0.5), codes=(99, 98), level=level
    )
    # 98 and 99 would be 24 mm/h and more, were they not looked at before they are scaled.
    np.testing.assert_array_equal(
        read_odim(path)["rain_rate"][0], [[NAN, 0.0, 0.5], [0.0, 12.25, 1.0]]
    )


def test_the_nearest_description_counts(tmp_path):
    path = write_odim(tmp_path / "c.h5", VALUES)
    with h5py.File(path, "a") as file:
        file["what"].attrs["gain"] = 7.0
        file.create_group("dataset1/data1/what").attrs["gain"] = 2.0
    np.testing.assert_array_equal(
        read_odim(path)["rain_rate"][0], [[NAN, 0.0, 1.0], [0.0, 24.5, 2.0]]
    )


def test_numbers_without_scale_and_codes_are_what_they_are(tmp_path):
    path = write_odim(tmp_path / "p.h5", [[NAN, 0.0], [2.5, 1.0]], scale=None, codes=None)
    np.testing.assert_array_equal(read_odim(path)["rain_rate"][0], [[NAN, 0.0], [2.5, 1.0]])


def test_whole_counts_that_do_not_say_what_is_missing_are_refused(tmp_path):
    path = write_odim(tmp_path / "p.h5", [[0.0, 1.0]], dtype="u1", codes=(None, 0))
    with pytest.raises(ValueError, match="'nodata' does not say which"):
        read_odim(path)


def test_missing_and_dry_with_the_same_code_are_refused(tmp_path):
    path = write_odim(tmp_path / "p.h5", [[0.0, 1.0]], dtype="u1", codes=(255, 255))
    with pytest.raises(ValueError, match="look alike"):
        read_odim(path)


@pytest.mark.parametrize(("minutes", "factor"), [(5, 12.0), (15, 4.0), (60, 1.0)])
def test_accumulated_rain_becomes_a_rate_by_its_interval(tmp_path, minutes, factor):
    end = pd.Timestamp("2018-08-24T18:00")
    interval = [(end - pd.Timedelta(minutes=minutes)).isoformat(), end.isoformat()]
    path = write_odim(tmp_path / "a.h5", VALUES, quantity="ACRR", interval=interval)
    observed = read_odim(path)
    expected = np.array([[NAN, 0.0, 0.5], [0.0, 12.25, 1.0]]) * factor
    np.testing.assert_allclose(observed["rain_rate"][0], expected, rtol=1e-6)
    assert observed["rain_rate"].attrs["cell_methods"] == "time: mean"
    assert observed.attrs["product"] == f"ACRR-{minutes}min"
    assert (np.diff(observed["time_bnds"].values) == np.timedelta64(minutes, "m")).all()


def test_reflectivity_below_0_dbz_is_dry_and_no_data_is_not(tmp_path):
    values = [[NAN, UNDETECTED, -12.0], [0.5, 45.0, 0.0]]
    path = write_odim(
        tmp_path / "z.h5", values, quantity="DBZH", dtype="u1", scale=(0.5, -32.0), codes=(255, 0)
    )
    observed = check_values(check_observations(read_odim(path)))
    np.testing.assert_array_equal(observed["reflectivity"][0], [[NAN, 0.0, 0.0], [0.5, 45.0, 0.0]])
    assert observed["reflectivity"].attrs["units"] == "dBZ"


def test_a_code_for_missing_that_is_not_declared_does_not_become_dry(tmp_path):
    values = np.full((10, 10), 20.0)
    values[0] = -9999.0
    path = write_odim(tmp_path / "z.h5", values, quantity="DBZH", codes=None)
    with pytest.raises(ValueError, match="10 of 100 observed pixels lie outside -100 to 95 dBZ"):
        read_odim(path)


@pytest.mark.parametrize("parent", ["dataset1/data1", "dataset1"])
@pytest.mark.parametrize("quantity", ["QIND", ""])
def test_a_quality_group_has_a_scale_of_its_own(tmp_path, parent, quantity):
    path = write_odim(tmp_path / "q.h5", VALUES)
    with h5py.File(path, "a") as file:
        write_quality(
            file[parent],
            [[NAN, 0.2, 1.0], [0.0, 0.4, 0.8]],
            scale=(0.2, 0.0),
            nodata=255,
            quantity=quantity,
        )
    expected = np.array([[NAN, 0.2, 1.0], [0.0, 0.4, 0.8]])
    np.testing.assert_allclose(read_odim(path)["quality"][0], expected, atol=1e-6)


def test_the_distance_to_the_radar_is_no_quality_index(tmp_path):
    path = write_odim(tmp_path / "q.h5", VALUES)
    with h5py.File(path, "a") as file:
        write_quality(file["dataset1"], np.full((2, 3), 84_000.0), scale=(2000.0, 0), quantity="")
    assert "quality" not in read_odim(path)


def test_a_quality_index_beyond_1_is_refused(tmp_path):
    with pytest.raises(ValueError, match="leaves 0 to 1"):
        read_odim(write_odim(tmp_path / "q.h5", VALUES, quality=np.full((2, 3), 1.5)))


def forecast_minutes(minutes):
    """Give nominal time and interval as DWD's RV of so many minutes' lead does."""
    nominal = pd.Timestamp("2025-10-23T05:00")
    end = nominal + pd.Timedelta(minutes=minutes)
    return {
        "nominal": nominal.isoformat(),
        "interval": [(end - pd.Timedelta(minutes=5)).isoformat(), end.isoformat()],
        "source": "ORG:78,CTY:616,CMT:Deutscher Wetterdienst",
    }


def test_the_analysis_of_dwds_rv_is_an_observation(tmp_path):
    path = write_odim(
        tmp_path / "rv.h5",
        VALUES,
        quantity="ACRR",
        dtype="u4",
        scale=(0.01, 0.0),
        codes=(2**32 - 1, 2**32 - 2),
        projdef=RV,
        corner=(-500.0, 500.0),  # the origin is the centre of the first pixel
        pixel=1000.0,
        product="RV",
        version="H5rad 2.3",
        **forecast_minutes(0),
    )
    observed = check_observations(read_odim(path))
    np.testing.assert_allclose(
        observed["rain_rate"][0], [[NAN, 0.0, 6.0], [0.0, 147.0, 12.0]], rtol=1e-6
    )
    assert (observed.attrs["source"], observed.attrs["product"]) == ("DWD", "RV-ACRR-5min")
    crs = CRS.from_cf(observed["crs"].attrs)
    project = Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform
    # 9 E, 51 N is 470 km from the western and 600 km from the southern edge of DWD's 1100 x 1200.
    east, north = project(9.0, 51.0)
    assert east - (observed["x"].values[0] - 500.0) == pytest.approx(470_000, abs=1.0)
    assert observed["y"].values[0] + 500.0 - north == pytest.approx(600_000, abs=1.0)


@pytest.mark.parametrize("quantity", ["ACRR", "RATE", "DBZH"])
@pytest.mark.parametrize("lead", [5, 10, 120])
def test_a_forecast_frame_is_refused(tmp_path, quantity, lead):
    path = write_odim(tmp_path / "rv.h5", VALUES, quantity=quantity, **forecast_minutes(lead))
    with pytest.raises(ValueError, match="is a forecast made at 2025-10-23 05:00"):
        read_odim(path)


def test_an_hour_that_is_partly_forecast_is_refused(tmp_path):
    interval = ("2018-08-24T17:05", "2018-08-24T18:05")
    path = write_odim(tmp_path / "rs.h5", VALUES, quantity="ACRR", interval=interval)
    with pytest.raises(ValueError, match="is a forecast"):
        read_odim(path)


@pytest.mark.parametrize("simulated", [np.bytes_("True"), np.bool_(True), 1])
def test_what_calls_itself_simulated_is_refused(opera_file, simulated):
    with h5py.File(opera_file, "a") as file:
        file.create_group("how").attrs["simulated"] = simulated
    with pytest.raises(ValueError, match="simulated"):
        read_odim(opera_file)


def test_a_file_of_many_lead_times_is_refused(opera_file):
    with h5py.File(opera_file, "a") as file:
        file.copy("dataset1", "dataset3")
    with pytest.raises(ValueError, match="2 fields of RATE, ACRR, DBZH are in the file"):
        read_odim(opera_file)


def test_a_scan_at_the_nominal_time_itself_is_an_observation(tmp_path):
    interval = ("2018-08-24T18:00", "2018-08-24T18:00")
    path = write_odim(tmp_path / "z.h5", VALUES, quantity="DBZH", interval=interval)
    assert (read_odim(path)["time_bnds"] == np.datetime64("2018-08-24T18:00")).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quantity": "TH"}, "0 fields of RATE, ACRR, DBZH are in the file.* it holds TH"),
        ({"quantity": "VIL"}, "it holds VIL"),
        ({"quantity": ""}, "it holds unnamed"),
        ({"kind": "PVOL"}, "the object is 'PVOL'"),
        ({"version": "H5rad 3.0"}, "the version is 'H5rad 3.0'"),
        ({"scale": (-1.0, 0.0)}, "the gain is -1.0"),
        ({"scale": (float("nan"), 0.0)}, "gain is nan"),
        ({"source": "CMT:someone"}, "the sender 'CMT:someone' is not told"),
        ({"interval": ("2018-08-24T18:00", "2018-08-24T17:00")}, "is none"),
        ({"interval": ("2018-08-20T18:00", "2018-08-24T18:00")}, "longer than a day"),
    ],
)
def test_what_disagrees_with_the_description_is_refused(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        read_odim(write_odim(tmp_path / "odd.h5", VALUES, **settings))


def test_an_accumulation_over_no_time_is_refused(tmp_path):
    interval = ("2018-08-24T18:00", "2018-08-24T18:00")
    with pytest.raises(ValueError, match="is none"):
        read_odim(write_odim(tmp_path / "a.h5", VALUES, quantity="ACRR", interval=interval))


@pytest.mark.parametrize("name", ["startdate", "starttime", "enddate", "endtime"])
@pytest.mark.parametrize("text", [None, "20180", "2018-8-4", "20189999"])
def test_an_interval_that_is_not_proven_is_refused(opera_file, name, text):
    with h5py.File(opera_file, "a") as file:
        attributes = file["dataset1/what"].attrs
        del attributes[name]
        if text:
            attributes[name] = np.bytes_(text)
    with pytest.raises(ValueError, match=r"no time of ODIM_H5|time data|hour|month|second|minute"):
        read_odim(opera_file)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("xscale", 1000.0, "the corner LR lies .* pixels from"),
        ("yscale", 2500.0, "the corner L[LR] lies .* pixels from"),
        ("xsize", 4, r"is \(2, 3\), but \(2, 4\) pixels are declared|the corner"),
        ("ysize", 2.5, "no grid"),
        ("xscale", -2000.0, "no grid"),
        ("UR_lon", -39.0, "the corner UR lies"),
        ("LL_lat", float("nan"), "LL_lat is nan"),
        ("LR_lat", 95.0, "the corner LR lies"),
        ("projdef", np.bytes_(OPERA + " +nadgrids=/etc/passwd"), "nadgrids.* is not known"),
        ("projdef", np.bytes_("EPSG:3035"), "'EPSG:3035', which is not known"),
        ("projdef", 3035.0, "which is not known"),
    ],
)
def test_a_grid_that_disagrees_with_itself_is_refused(opera_file, name, value, message):
    with h5py.File(opera_file, "a") as file:
        file["where"].attrs[name] = value
    with pytest.raises(ValueError, match=message):
        read_odim(opera_file)


@pytest.mark.parametrize(
    ("old", "new"),
    [("lon_0=10.0", "lon_0=11.0"), ("ellps=WGS84", "ellps=sphere")],
)
def test_a_projection_that_disagrees_with_the_corners_is_refused(tmp_path, old, new):
    path = write_odim(tmp_path / "p.h5", np.ones((44, 38)), pixel=100_000.0)
    with h5py.File(path, "a") as file:
        file["where"].attrs["projdef"] = np.bytes_(OPERA.replace(old, new))
    with pytest.raises(ValueError, match="pixels from where projection and pixel size put it"):
        read_odim(path)


def test_corners_that_are_the_centres_of_pixels_are_refused(tmp_path):
    # The distance between the centres of the outer pixels is one pixel less than the extent.
    path = write_odim(tmp_path / "a.h5", np.ones((5, 7)), pixel=2000.0)
    with h5py.File(path, "a") as file:
        crs = CRS.from_user_input(OPERA)
        locate = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform
        for corner, place in {"UR": (13000, -1000), "LL": (1000, -9000)}.items():
            file["where"].attrs[f"{corner}_lon"], file["where"].attrs[f"{corner}_lat"] = locate(
                *place
            )
    with pytest.raises(ValueError, match=r"the corner LL lies 0\.5 pixels"):
        read_odim(path)


@pytest.mark.parametrize("projdef", [OPERA, RV, LCC, DANISH, SEVIR])
@pytest.mark.parametrize("corner", [(0.0, 0.0), (-123_456.5, 234_567.0)])
def test_every_projection_puts_north_up(tmp_path, projdef, corner):
    path = write_odim(tmp_path / "p.h5", VALUES, projdef=projdef, corner=corner, pixel=500.0)
    observed = read_odim(path)
    np.testing.assert_allclose(observed["x"], corner[0] + np.array([250.0, 750.0, 1250.0]))
    np.testing.assert_allclose(observed["y"], corner[1] - np.array([250.0, 750.0]))
    with h5py.File(path) as file:
        where = dict(file["where"].attrs)
    crs = CRS.from_cf(observed["crs"].attrs)
    locate = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform
    assert locate(*corner) == pytest.approx((where["UL_lon"], where["UL_lat"]), abs=1e-6)


def test_another_grid_has_another_id(tmp_path):
    corners = [(0.0, 0.0), (2000.0, 0.0), (0.0, -2000.0)]
    files = [write_odim(tmp_path / f"{i}.h5", VALUES, corner=c) for i, c in enumerate(corners)]
    assert len({grid_id(read_odim(path)) for path in files}) == 3


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("OPERA", "RATE")),
        ({"quantity": "DBZH", "product": "MAX"}, ("OPERA", "MAX-DBZH")),
        ({"source": "ORG:82"}, ("SMHI", "RATE")),
        ({"source": "ORG:199,CMT:x"}, ("ORG-199", "RATE")),
        ({"source": "WMO:06410,NOD:bejab"}, ("NOD-bejab", "RATE")),
        ({"product": "../../etc"}, ("OPERA", ".._.._etc-RATE")),
    ],
)
def test_sender_and_product_are_named(tmp_path, settings, expected):
    attributes = read_odim(write_odim(tmp_path / "n.h5", VALUES, **settings)).attrs
    assert (attributes["source"], attributes["product"]) == expected
    assert len(attributes["input_sha256"]) == 64


def test_numbers_that_were_never_written_are_not_dry(opera_file):
    with h5py.File(opera_file, "a") as file:
        del file["dataset1/data1/data"]
        file["dataset1/data1"].create_dataset("data", (2, 3), "<f8", chunks=(1, 3))[0] = 1.0
    with pytest.raises(ValueError, match="incomplete"):
        read_odim(opera_file)


def test_a_frame_that_claims_too_much_is_refused_unread(tmp_path):
    path = write_odim(tmp_path / "a.h5", np.ones((4, 4)), pixel=2.0)
    side = 8000
    with h5py.File(path, "a") as file:
        del file["dataset1/data1/data"]
        huge = file["dataset1/data1"].create_dataset(
            "data", (side, side), "u1", chunks=(side, side)
        )
        assert huge.size > MOST_PIXELS
    with pytest.raises(ValueError, match="50,000,000 numbers is the limit"):
        read_odim(path)


@pytest.mark.parametrize("name", ["dataset1/data1/data", "dataset1", "what", "dataset1/what"])
@pytest.mark.parametrize("link", ["external", "soft"])
def test_no_link_is_followed(opera_file, tmp_path, name, link):
    other = tmp_path / "other.h5"
    other.write_bytes(opera_file.read_bytes())
    with h5py.File(opera_file, "a") as file:
        file.move(name, "elsewhere")
        linked = h5py.ExternalLink(str(other), name) if link == "external" else None
        file[name] = linked or h5py.SoftLink("/elsewhere")
    with pytest.raises(ValueError, match="none is followed"):
        read_odim(opera_file)


@pytest.mark.parametrize("value", [np.array([1.0, 2.0]), h5py.Empty("f8"), np.bytes_("much")])
def test_an_attribute_that_is_not_one_number_is_refused(opera_file, value):
    with h5py.File(opera_file, "a") as file:
        file["dataset1/what"].attrs["gain"] = value
    with pytest.raises(ValueError, match="gain"):
        read_odim(opera_file)


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    values = np.random.default_rng(1).gamma(1.0, 2.0, (60, 50)).round(2)
    whole = write_odim(tmp_path / "whole.h5", values, quality=np.full(values.shape, 0.5))
    content = whole.read_bytes()
    cut = tmp_path / "cut.h5"
    for size in {*np.linspace(0, len(content) - 1, 200).astype(int), len(content) - 1}:
        cut.write_bytes(content[:size])
        with pytest.raises((ValueError, OSError, RuntimeError, KeyError)):
            read_odim(cut)


@pytest.mark.parametrize(
    "projdef",
    [
        "",
        "+lat_0=55 +ellps=WGS84",
        "+proj=laea +lat_0=55",
        "+proj=laea +lat_0=55 +lat_0=56 +ellps=WGS84",
        "+proj=laea +lat_0=55e +ellps=WGS84",
        "+proj=laea +lat_0=__import__('os') +ellps=WGS84",
        "+proj=pipeline +step +ellps=WGS84",
        "+proj=laea +ellps=mars",
        "+proj=laea +a=6378.137 +b=6356.752",
        "+proj=laea +init=epsg:3035",
        "+proj=laea +units=us-ft +ellps=WGS84",
    ],
)
def test_a_projection_with_what_is_not_known_is_refused(projdef):
    with pytest.raises(ValueError, match="the projection"):
        parse_projection(projdef)
