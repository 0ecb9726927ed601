import knmi_sample
import numpy as np
import pytest
import xarray as xr

from nowcast import rainrate
from nowcast.conventions import RAIN_RATE, REFLECTIVITY, Variable, select
from nowcast.data.archive import ingest
from nowcast.data.observations import fingerprint, open_by_grid, open_observations
from nowcast.data.readers import read

TEMPERATURE = Variable("t2m", "K", "2 metre temperature", "air_temperature", 180.0, 340.0)


@pytest.fixture
def files(tmp_path):
    return knmi_sample.write_series(tmp_path / "radar", 4)


@pytest.fixture
def observed(files):
    return open_observations(files)


def cf_file(path, *variables):
    """Write a CF file that holds these (name, units, standard_name) on one grid."""
    values = np.array([[[np.nan, 0.0], [10.0, 30.0]]] * 2, "f4")
    times = np.array(["2020-01-01T00:00", "2020-01-01T00:05"], "datetime64[ns]")
    axes = {"y": ("y", [1.0, 0.0], {"units": "m"}), "x": ("x", [0.0, 1.0], {"units": "m"})}
    dataset = xr.Dataset(coords={"time": times, **axes})
    for name, units, standard_name in variables:
        attributes = {"units": units, "standard_name": standard_name, "grid_mapping": "crs"}
        dataset[name] = (("time", "y", "x"), values, attributes)
    dataset["crs"] = ((), 0, {"grid_mapping_name": "stereographic"})
    dataset.to_netcdf(path)
    return path


DBZ = ("dbz", "dBZ", "equivalent_reflectivity_factor")
RAIN = ("rain", "mm/h", "rainfall_rate")
KELVIN = ("t2m", "K", "air_temperature")


def test_raw_files_are_put_in_the_order_of_time(files):
    observed = open_observations(files[::-1])
    expected = np.stack([read(file)["rain_rate"].values[0] for file in files])
    np.testing.assert_array_equal(observed["rain_rate"], expected)
    np.testing.assert_array_equal(observed["time"], observed["time_bnds"][:, 1])


def test_a_pattern_names_the_same_files(files, observed):
    xr.testing.assert_identical(open_observations(f"{files[0].parent}/*.h5"), observed)


def test_one_raw_file_opens(files):
    assert open_observations(str(files[1])).sizes["time"] == 1


def test_an_archive_opens_to_the_same_observations(files, observed, tmp_path):
    ingest(files, tmp_path / "archive")
    assert fingerprint(open_observations(tmp_path / "archive")) == fingerprint(observed)


def test_opening_computes_nothing(files, tmp_path, computing_fails):
    path = cf_file(tmp_path / "z.nc", DBZ)
    with computing_fails():
        open_observations(files)
        open_observations(path, variable=RAIN_RATE)


def test_two_frames_of_one_time_are_refused_naming_both(files, tmp_path):
    again = knmi_sample.write_knmi(tmp_path / "again.h5", knmi_sample.rain(9), "2010-08-26T00:05")
    with pytest.raises(ValueError, match="two frames are of 2010-08-26T00:05:00Z") as caught:
        open_observations([*files, again])
    assert str(again) in str(caught.value)
    assert str(files[1]) in str(caught.value)


def test_frames_on_different_grids_are_refused(files, tmp_path):
    other = knmi_sample.write_knmi(
        tmp_path / "other.h5", knmi_sample.rain(9), "2010-08-26T01:00", row_offset=3651.0
    )
    with pytest.raises(ValueError, match="different grids") as caught:
        open_observations([*files, other])
    assert str(other) in str(caught.value)


def test_frames_on_different_grids_can_be_opened_grid_by_grid(files, tmp_path, computing_fails):
    other = knmi_sample.write_knmi(
        tmp_path / "other.h5", knmi_sample.rain(9), "2010-08-26T01:00", row_offset=3651.0
    )
    with computing_fails():
        parts = open_by_grid([files[1], other, files[0]])
    xr.testing.assert_identical(parts[0], open_observations(files[:2]))
    xr.testing.assert_identical(parts[1], open_observations(other))


def test_different_quantities_are_not_put_together(files, tmp_path):
    with pytest.raises(ValueError, match=r"holds rain_rate, but .* holds reflectivity"):
        open_observations([files[0], cf_file(tmp_path / "z.nc", DBZ)])


def test_reflectivity_is_turned_into_rain_rate(tmp_path):
    path = cf_file(tmp_path / "z.nc", DBZ)
    rain_rate = open_observations(path, variable=RAIN_RATE)["rain_rate"]
    expected = rainrate.to_rain_rate(np.array([[np.nan, 0.0], [10.0, 30.0]]))
    np.testing.assert_allclose(rain_rate[0], expected, rtol=1e-5)
    assert rain_rate.attrs["units"] == "mm h-1"
    assert rain_rate.attrs["comment"] == "from reflectivity by Z = 200 R^1.6"
    assert rain_rate.dtype == np.float32


def test_rain_rate_is_turned_into_reflectivity(tmp_path):
    path = cf_file(tmp_path / "r.nc", RAIN)
    values = open_observations(path, variable=REFLECTIVITY)["reflectivity"].values[0]
    assert np.isnan(values[0, 0])
    assert values[0, 1] == pytest.approx(0.0, abs=1e-5)
    assert values[1, 0] == pytest.approx(39.01, abs=0.01)


def test_of_several_variables_the_wanted_one_is_chosen(tmp_path):
    path = cf_file(tmp_path / "both.nc", DBZ, KELVIN)
    assert list(open_observations(path, variable=TEMPERATURE)) == ["t2m"]
    assert list(open_observations(path, variable=REFLECTIVITY)) == ["reflectivity"]


def test_of_several_variables_one_must_be_named(tmp_path):
    path = cf_file(tmp_path / "both.nc", DBZ, KELVIN)
    with pytest.raises(ValueError, match="reflectivity, t2m; say which variable"):
        open_observations(path)


def test_a_variable_that_cannot_be_made_is_refused(tmp_path):
    path = cf_file(tmp_path / "t.nc", KELVIN)
    with pytest.raises(ValueError, match="holds t2m, from which rain_rate cannot be made"):
        open_observations(path, variable=RAIN_RATE)


def test_observations_can_be_written_and_read_again(files, tmp_path, recwarn):
    observed = open_observations(files)
    observed.to_netcdf(tmp_path / "copy.nc")
    again = open_observations(tmp_path / "copy.nc")
    assert fingerprint(again) == fingerprint(observed)
    np.testing.assert_array_equal(again["time_bnds"], observed["time_bnds"])
    assert not [warning for warning in recwarn if "encoding" in str(warning.message)]


def test_selecting_a_variable_keeps_the_bounds(observed):
    twice = observed.assign(other=observed["rain_rate"])
    assert list(select(twice, "rain_rate")) == ["rain_rate"]
    assert "time_bnds" in select(twice, "rain_rate").coords


@pytest.mark.parametrize("path", ["nowhere", "nowhere/*.h5"])
def test_a_path_that_names_nothing_is_not_found(tmp_path, path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_observations(tmp_path / path)


def test_no_file_at_all_is_not_found():
    with pytest.raises(FileNotFoundError, match="no file was named"):
        open_observations([])


def test_a_folder_of_raw_files_asks_for_a_pattern(files):
    with pytest.raises(ValueError, match=r"neither an archive nor a Zarr store; .*radar/\*"):
        open_observations(files[0].parent)


def test_the_fingerprint_does_not_depend_on_chunks(observed):
    expected = fingerprint(observed.compute())
    assert len(expected) == 16
    for chunks in ({"time": 1}, {"time": 3, "y": 5, "x": 4}, {"time": -1}):
        assert fingerprint(observed.chunk(chunks)) == expected


@pytest.mark.parametrize("change", ["pixel", "missing", "time", "grid", "order"])
def test_any_change_changes_the_fingerprint(observed, change):
    other = observed.compute().copy(deep=True)
    dry = tuple(np.argwhere(other["rain_rate"].values == 0)[0])
    if change == "pixel":
        other["rain_rate"].values[dry] = 0.12
    if change == "missing":
        other["rain_rate"].values[dry] = np.nan
    if change == "time":
        other = other.assign_coords(time=other["time"] + np.timedelta64(1, "s"))
    if change == "grid":
        other = other.isel(y=slice(None, None, -1))
    if change == "order":
        other["rain_rate"].values[[0, 1]] = other["rain_rate"].values[[1, 0]]
    assert fingerprint(other) != fingerprint(observed)


def test_the_sign_of_zero_and_the_kind_of_nan_do_not_matter(observed):
    other = observed.compute().copy(deep=True)
    values = other["rain_rate"].values
    values[values == 0] = -0.0
    values[np.isnan(values)] = -np.nan
    assert fingerprint(other) == fingerprint(observed)
