import h5py
import knmi_sample
import numpy as np
import pytest
import xarray as xr
from pyproj import CRS, Transformer

from nowcast.conventions import check_observations, grid_id
from nowcast.data.readers import read
from nowcast.data.readers.hdf5 import MOST_PIXELS
from nowcast.data.readers.knmi import parse_calibration, parse_projection, parse_time

END = "2010-08-26T00:05"


@pytest.fixture
def knmi_file(tmp_path):
    rain_mm = np.array([[0.0, 0.1, np.nan], [1.0, np.inf, 0.01]])
    return knmi_sample.write_knmi(tmp_path / "frame.h5", rain_mm, END)


def grid_file(
    path,
    *,
    name="rain",
    units="mm h-1",
    axes=("y", "x"),
    axis_units="m",
    lowered_by=0,
    **attributes,
):
    """Write a small CF file of three frames whose first pixel is missing and second dry."""
    values = np.arange(3 * 2 * 4, dtype="f4").reshape(3, 2, 4) / 10
    values[:, 0, 0], values[:, 0, 1] = np.nan, 0.0
    kinds = {"m": ("projection_y_coordinate", "projection_x_coordinate")}
    kinds["km"] = kinds["m"]
    standard = kinds.get(axis_units, ("latitude", "longitude"))
    coords = {
        axes[0]: (axes[0], [50.0, 51.0], {"standard_name": standard[0], "units": axis_units}),
        axes[1]: (axes[1], [1.0, 2, 3, 4], {"standard_name": standard[1], "units": axis_units}),
        "time": np.array([f"2020-01-01T00:{m:02}" for m in (0, 5, 10)], "datetime64[ns]"),
    }
    dataset = xr.Dataset({name: (("time", *axes), values - lowered_by)}, coords)
    dataset[name].attrs = {"units": units, **attributes}
    if axis_units in kinds:
        dataset[name].attrs["grid_mapping"] = "projection"
        dataset["projection"] = ((), 0, {"grid_mapping_name": "stereographic"})
    if path.suffix == ".zarr":
        dataset.to_zarr(path, consolidated=False)
    else:
        kind = "NETCDF3_CLASSIC" if path.suffix == ".nc3" else "NETCDF4"
        dataset.to_netcdf(path, format=kind)
    return path


def test_knmi_accumulation_becomes_rain_rate(knmi_file):
    rain_rate = read(knmi_file)["rain_rate"]
    assert rain_rate.attrs["units"] == "mm h-1"
    assert rain_rate.dtype == np.float32
    expected = [[0.0, 1.2, np.nan], [12.0, np.nan, 0.12]]
    np.testing.assert_allclose(rain_rate.values[0], expected, rtol=1e-6)


def test_knmi_missing_stays_missing_and_dry_stays_dry(knmi_file):
    values = read(knmi_file)["rain_rate"].values[0]
    np.testing.assert_array_equal(np.isnan(values), [[0, 0, 1], [0, 1, 0]])
    np.testing.assert_array_equal(values == 0, [[1, 0, 0], [0, 0, 0]])


def test_knmi_time_is_the_end_of_the_interval(knmi_file):
    observed = read(knmi_file)
    assert observed["time"].values[0] == np.datetime64(END)
    expected = np.array([["2010-08-26T00:00", END]], "datetime64[ns]")
    np.testing.assert_array_equal(observed["time_bnds"].values, expected)


def test_knmi_provenance_names_source_product_and_hash(knmi_file):
    attributes = read(knmi_file).attrs
    assert attributes["source"] == "KNMI"
    assert attributes["product"] == "RAD_TEST_5min"
    assert len(attributes["input_sha256"]) == 64


def test_knmi_is_read_lazily(knmi_file, computing_fails):
    with computing_fails():
        read(knmi_file)


def test_knmi_real_corners_lie_where_the_file_says(knmi_files):
    observed = read(knmi_files[0])
    crs = CRS.from_cf(observed["crs"].attrs)
    to_grid = Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True)
    with h5py.File(knmi_files[0]) as file:
        corners = file["geographic"].attrs["geo_product_corners"].reshape(4, 2).astype(float)
    x, y = to_grid.transform(*corners.T)
    left, right = observed["x"].values[0] - 500, observed["x"].values[-1] + 500
    top, bottom = observed["y"].values[0] + 500, observed["y"].values[-1] - 500
    np.testing.assert_allclose(x, [left, left, right, right], atol=1000)
    np.testing.assert_allclose(y, [bottom, top, top, bottom], atol=1000)


def test_knmi_real_frame_keeps_the_convention(knmi_files):
    observed = check_observations(read(knmi_files[40]))
    values = observed["rain_rate"].values
    assert values.shape == (1, 765, 700)
    assert 0.73 < np.isnan(values).mean() < 0.75
    assert np.nanmax(values) == pytest.approx(9.96)


def test_knmi_grid_is_the_same_for_all_real_frames(knmi_files):
    assert len({grid_id(read(file)) for file in knmi_files[::30]}) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"minutes": 60}, "covers 60 minutes"),
        ({"quantity": "REFLECTIVITY_[DBZ]"}, "REFLECTIVITY"),
        ({"formula": "GEO=0.1*PV+0.0"}, "0.1 mm per count"),
        ({"formula": "GEO=0.01*PV+-32.0"}, "-32.0 mm"),
        ({"formula": "__import__('os').getpid()"}, "no calibration"),
        ({"projection": "+proj=merc +lat_0=0"}, "not KNMI's stereographic"),
        ({"projection": "+proj=stere +lat_0=90 +nadgrids=/etc/passwd"}, "not KNMI's"),
        ({"projection": "+proj=stere +lat_0=90 +lon_0=0"}, "lacks a, b, lat_ts"),
    ],
)
def test_knmi_that_disagrees_with_what_is_known_is_refused(tmp_path, settings, message):
    path = knmi_sample.write_knmi(tmp_path / "odd.h5", np.zeros((3, 3)), END, **settings)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_knmi_frame_that_claims_too_many_pixels_is_refused_before_it_is_read(knmi_file):
    rows = MOST_PIXELS // 100
    with h5py.File(knmi_file, "a") as file:
        del file["image1/image_data"]
        file["image1"].create_dataset("image_data", (rows, 1000), "<u2", chunks=(100, 100))
        file["geographic"].attrs["geo_number_rows"] = [rows]
        file["geographic"].attrs["geo_number_columns"] = [1000]
    with pytest.raises(ValueError, match="50,000,000 is the limit"):
        read(knmi_file)


def test_knmi_counts_that_were_never_written_are_not_dry(knmi_file):
    with h5py.File(knmi_file, "a") as file:
        del file["image1/image_data"]
        file["image1"].create_dataset("image_data", (2, 3), "<u2", chunks=(1, 3))[0] = 1
    with pytest.raises(ValueError, match="incomplete"):
        read(knmi_file)


def test_knmi_counts_in_another_file_are_not_followed(knmi_file, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as other:
        other["image_data"] = np.zeros((2, 3), "<u2")
    with h5py.File(knmi_file, "a") as file:
        del file["image1/image_data"]
        file["image1/image_data"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "image_data")
    with pytest.raises(ValueError, match="another file"):
        read(knmi_file)


@pytest.mark.parametrize(("month", "name"), list(enumerate(knmi_sample.MONTHS, start=1)))
def test_every_month_is_understood(month, name):
    assert parse_time(f"01-{name}-2024;06:00:00.000").month == month


@pytest.mark.parametrize("text", ["", "26-AOU-2010;00:05:00.000", "2010-08-26T00:05:00"])
def test_other_times_are_refused(text):
    with pytest.raises(ValueError, match="no KNMI time"):
        parse_time(text)


def test_calibration_is_parsed():
    assert parse_calibration("GEO = 0.5 * PV + -32.0") == (0.5, -32.0)


def test_radii_in_kilometres_become_metres():
    projection = parse_projection(knmi_sample.PROJECTION)
    assert projection["a"] == pytest.approx(6378137.0)
    assert projection["b"] == pytest.approx(6356752.0)


def test_a_text_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("it rained")
    with pytest.raises(ValueError, match="is not a radar file nowcast knows") as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    assert "it starts with b'it raine'" in message
    assert "known readers: bom, cf, fmi_geotiff" in message
    assert "--reader" in message
    assert "\n" not in message


def test_an_empty_file_is_refused(tmp_path):
    path = tmp_path / "empty.h5"
    path.touch()
    with pytest.raises(ValueError, match="it is empty"):
        read(path)


def test_another_hdf5_file_is_refused(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["numbers"] = [1, 2]
    with pytest.raises(ValueError, match="is not a radar file"):
        read(tmp_path / "other.h5")


def test_a_text_file_named_knmi_is_refused(tmp_path):
    path = tmp_path / "notes.h5"
    path.write_text("it rained")
    with pytest.raises(ValueError, match=r"notes\.h5: damaged or cut short"):
        read(path, reader="knmi")


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no file .*gone\.h5"):
        read(tmp_path / "gone.h5")


@pytest.mark.parametrize("part", [0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 0.9999])
@pytest.mark.parametrize("kind", ["h5", "nc", "nc3"])
def test_a_truncated_file_is_refused_by_name(tmp_path, kind, part):
    path = tmp_path / f"frame.{kind}"
    if kind == "h5":
        knmi_sample.write_knmi(path, knmi_sample.rain(0, (60, 60)), END)
    else:
        grid_file(path, standard_name="rainfall_rate")
    content = path.read_bytes()
    path.write_bytes(content[: min(int(len(content) * part), len(content) - 1)])
    with pytest.raises(ValueError, match=rf"frame\.{kind}"):
        read(path)


@pytest.mark.parametrize("suffix", ["nc", "nc3", "zarr"])
def test_cf_rain_rate_is_named_and_lazy(tmp_path, suffix, computing_fails):
    path = grid_file(tmp_path / f"rain.{suffix}", units="mm/h", standard_name="rainfall_rate")
    with computing_fails():
        observed = read(path)
    assert observed["rain_rate"].attrs["units"] == "mm h-1"
    values = observed["rain_rate"].values
    assert values[2, 1, 3] == pytest.approx(2.3)
    assert np.isnan(values[:, 0, 0]).all()
    assert (values[:, 0, 1] == 0).all()


def test_cf_flux_is_turned_into_mm_per_hour(tmp_path):
    path = grid_file(tmp_path / "flux.nc", units="kg m-2 s-1", standard_name="rainfall_flux")
    assert read(path)["rain_rate"].values[0, 0, 2] == pytest.approx(0.2 * 3600)


@pytest.mark.parametrize("units", ["mm", "in/h", "", "dBZ"])
def test_cf_units_are_never_guessed(tmp_path, units):
    path = grid_file(tmp_path / "rain.nc", units=units, standard_name="rainfall_rate")
    with pytest.raises(ValueError, match=f"its units '{units}' are unknown; known are mm h-1"):
        read(path)


def test_cf_weaker_than_0_dbz_is_dry(tmp_path):
    name = "equivalent_reflectivity_factor"
    path = grid_file(tmp_path / "z.nc", units="dBZ", standard_name=name, lowered_by=1.0)
    values = read(path)["reflectivity"].values
    assert np.isnan(values[:, 0, 0]).all()
    assert (values[:, 0, 1] == 0).all()
    assert values[2, 1, 3] == pytest.approx(1.3)


def test_cf_latitude_and_longitude_get_a_grid_mapping(tmp_path):
    path = grid_file(
        tmp_path / "t.nc", name="t2m", units="K", axes=("lat", "lon"), axis_units="degrees"
    )
    observed = check_observations(read(path))
    assert observed["crs"].attrs == {"grid_mapping_name": "latitude_longitude"}
    assert observed["t2m"].dims == ("time", "y", "x")
    assert observed["t2m"].attrs["units"] == "K"


def test_cf_kilometres_become_metres(tmp_path):
    path = grid_file(tmp_path / "r.nc", axis_units="km", standard_name="rainfall_rate")
    observed = read(path)
    assert observed["x"].attrs["units"] == "m"
    np.testing.assert_array_equal(observed["x"], [1000, 2000, 3000, 4000])


def test_cf_projection_without_grid_mapping_is_refused(tmp_path):
    path = grid_file(tmp_path / "r.nc", standard_name="rainfall_rate")
    with xr.open_dataset(path) as stored:
        bare = stored.load().drop_vars("projection")
    bare.to_netcdf(tmp_path / "bare.nc")
    with pytest.raises(ValueError, match="names no grid mapping that the file holds"):
        read(tmp_path / "bare.nc")


def test_cf_file_without_a_gridded_variable_is_refused(tmp_path):
    xr.Dataset({"station": ("time", [1.0])}, {"time": [0]}).to_netcdf(tmp_path / "s.nc")
    with pytest.raises(ValueError, match=r"no variable has time, y and x; it holds station"):
        read(tmp_path / "s.nc")


def test_cf_bounds_of_time_are_kept(tmp_path):
    path = grid_file(tmp_path / "r.nc", standard_name="rainfall_rate")
    with xr.open_dataset(path) as stored:
        dataset = stored.load()
    ends = dataset["time"].values
    dataset["bounds"] = (("time", "two"), np.stack([ends - np.timedelta64(5, "m"), ends], axis=1))
    dataset["time"].attrs["bounds"] = "bounds"
    dataset["time"].encoding = {"units": "seconds since 1970-01-01"}
    dataset.to_netcdf(tmp_path / "b.nc")
    observed = check_observations(read(tmp_path / "b.nc"))
    np.testing.assert_array_equal(observed["time_bnds"][:, 1], ends)


def test_era5_temperature_opens_lazily(shared_data, computing_fails):
    with computing_fails():
        observed = read(shared_data / "era5" / "t2m_uk_2019-03.nc")
    check_observations(observed)
    assert observed["t2m"].shape == (744, 33, 49)
    assert 260 < float(observed["t2m"][0].min()) < 300


def test_taasrad19_reflectivity_opens_lazily(shared_data, computing_fails):
    with computing_fails():
        observed = read(shared_data / "taasrad19" / "validation.nc")
    check_observations(observed)
    assert observed["reflectivity"].chunks[0][0] == 64
    assert 0 <= float(observed["reflectivity"][:64].max()) <= 53


def test_a_reader_can_be_named(knmi_file):
    assert "rain_rate" in read(knmi_file, reader="knmi")
