import bom_sample
import h5py
import numpy as np
import pytest
from pyproj import CRS, Transformer

from nowcast.conventions import check_values, grid_id
from nowcast.data.readers import read


def counts(seed=0, shape=(60, 50)):
    return np.random.default_rng(seed).integers(0, 100, shape)


@pytest.fixture(scope="session")
def bom_files(shared_data):
    return sorted((shared_data / "radar/bom_netcdf").glob("*.nc"))


def test_an_amount_becomes_a_rate_by_its_own_interval(tmp_path):
    path = bom_sample.write_bom(tmp_path / "six.nc", [[0, 1], [20, bom_sample.FILL]])
    rain_rate = read(path, reader="bom")["rain_rate"]
    np.testing.assert_allclose(rain_rate.values, [[[0, 0.5], [10, np.nan]]], rtol=1e-6)
    assert (rain_rate.attrs["units"], rain_rate.dtype) == ("mm h-1", np.float32)
    hour = bom_sample.write_bom(tmp_path / "hour.nc", [[0, 1], [20, 40]], end=1529142840 + 3600)
    observed = read(hour, reader="bom")
    np.testing.assert_allclose(observed["rain_rate"].values, [[[0, 0.05], [1, 2]]], rtol=1e-6)


def test_time_is_the_end_of_the_interval(tmp_path):
    observed = read(bom_sample.write_bom(tmp_path / "six.nc", counts()), reader="bom")
    expected = np.array([["2018-06-16T09:54", "2018-06-16T10:00"]], "M8[ns]")
    np.testing.assert_array_equal(observed["time_bnds"], expected)
    np.testing.assert_array_equal(observed["time"], expected[:, 1])


def test_product_names_station_kind_and_minutes(tmp_path):
    six = bom_sample.write_bom(tmp_path / "six.nc", counts())
    assert read(six, reader="bom").attrs["product"] == "2 Bias Corrected Radar Accumulation 6 min"
    settings = {"end": 1529142840 + 3600, "heading": {"station_id": np.uint32(71)}}
    hour = bom_sample.write_bom(tmp_path / "hour.nc", counts(), **settings)
    product = read(hour, reader="bom").attrs["product"]
    assert product == "71 Bias Corrected Radar Accumulation 60 min"


def test_negative_amounts_beside_the_fill_value_are_missing_and_counted(tmp_path):
    field = counts()
    field[0, :3] = -32767, -1, bom_sample.FILL
    rain_rate = read(bom_sample.write_bom(tmp_path / "f.nc", field), reader="bom")["rain_rate"]
    np.testing.assert_array_equal(np.isnan(rain_rate.values[0, 0, :4]), [1, 1, 1, 0])
    assert rain_rate.attrs["out_of_range"] == 2


def test_many_negative_amounts_refuse_the_file(tmp_path):
    field = counts()
    field[0, :4] = -32767
    path = bom_sample.write_bom(tmp_path / "frame.nc", field)
    with pytest.raises(ValueError, match="4 of 3,000 observed pixels"):
        read(path, reader="bom")


def test_kilometres_become_metres_on_the_albers_grid(tmp_path):
    path = bom_sample.write_bom(tmp_path / "frame.nc", counts(shape=(4, 6)))
    observed = read(path, reader="bom")
    np.testing.assert_array_equal(observed["y"], [1000, 500, 0, -500])
    np.testing.assert_array_equal(observed["x"], [-1500, -1000, -500, 0, 500, 1000])
    _check_melbourne(observed)


def _check_melbourne(observed):
    """The origin of the grid is the radar; Melbourne lies to the north east of it."""
    crs = CRS.from_cf(observed["crs"].attrs)
    to_grid = Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True)
    np.testing.assert_allclose(to_grid.transform(144.752, -37.852), 0, atol=1)
    x, y = to_grid.transform(144.963, -37.814)
    assert (x, y) == (pytest.approx(18_600, abs=400), pytest.approx(4_400, abs=400))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"amount": {"units": "mm h-1"}}, "'mm h-1'"),
        ({"amount": {"units": None}}, "lacks the text 'units'"),
        ({"amount": {"standard_name": "rainfall_rate"}}, "'rainfall_rate'"),
        ({"amount": {"scale_factor": -0.05}}, "give no amount"),
        ({"amount": {"scale_factor": None}}, "lacks the number 'scale_factor'"),
        ({"amount": {"scale_factor": float("nan")}}, "scale_factor"),
        ({"amount": {"add_offset": -32.0}}, "dry is 0"),
        ({"amount": {"grid_mapping": "precipitation"}}, "grid_mapping_name"),
        ({"projection": {"grid_mapping_name": "lambert_conformal_conic"}}, "'lambert_con"),
        ({"projection": {"standard_parallel": -18.0}}, "two standard parallels"),
        ({"projection": {"inverse_flattening": None}}, "inverse_flattening"),
        ({"axes": {"units": "degrees"}}, "'degrees'"),
        ({"axes": {"valid_max": 12.0}}, "and says"),
        ({"axes": {"standard_name": "latitude"}}, "'latitude'"),
        ({"times": {"units": "minutes since 1970-01-01 00:00:00 UTC"}}, "'minutes since"),
        ({"end": 1529142840}, "at most a day"),
        ({"end": 1529142840 - 360}, "at most a day"),
        ({"end": 1529142840 + 90_000}, "at most a day"),
        ({"heading": {"station_id": None}}, "station_id"),
        ({"heading": {"title": None}}, "title"),
    ],
)
def test_what_disagrees_with_what_is_known_is_refused(tmp_path, settings, message):
    path = bom_sample.write_bom(tmp_path / "odd.nc", counts(), **settings)
    with pytest.raises(ValueError, match=message):
        read(path, reader="bom")


def test_an_amount_in_place_of_a_rate_is_refused_when_it_is_absurd(tmp_path):
    """A scale of millimetres taken for metres, say, gives rain that cannot be."""
    path = bom_sample.write_bom(tmp_path / "odd.nc", counts(), amount={"scale_factor": 50.0})
    with pytest.raises(ValueError, match="observed pixels lie outside"):
        read(path, reader="bom")


def test_parts_that_were_never_written_are_not_dry(tmp_path):
    path = bom_sample.write_bom(tmp_path / "frame.nc", counts())
    with h5py.File(path, "a") as file:
        attributes = dict(file["precipitation"].attrs)
        del file["precipitation"]
        part = file.create_dataset("precipitation", (60, 50), "<i2", chunks=(30, 50))
        part[:30] = 1
        kept = {
            "units",
            "standard_name",
            "scale_factor",
            "add_offset",
            "_FillValue",
            "grid_mapping",
        }
        part.attrs.update({name: attributes[name] for name in kept})
    with pytest.raises(ValueError, match="never written"):
        read(path, reader="bom")


def test_amounts_in_another_file_are_not_followed(tmp_path):
    path = bom_sample.write_bom(tmp_path / "frame.nc", counts())
    bom_sample.write_bom(tmp_path / "other.nc", counts())
    with h5py.File(path, "a") as file:
        del file["precipitation"]
        file["precipitation"] = h5py.ExternalLink(str(tmp_path / "other.nc"), "precipitation")
    with pytest.raises(ValueError, match="none is followed"):
        read(path, reader="bom")


def test_a_file_cut_short_anywhere_is_refused(tmp_path):
    path = bom_sample.write_bom(tmp_path / "frame.nc", counts())
    raw = path.read_bytes()
    accepted = []
    for place in np.linspace(0, len(raw) - 1, 200).astype(int):
        path.write_bytes(raw[:place])
        try:
            accepted.append((place, read(path, reader="bom")))
        except ValueError:
            continue
    assert accepted == []


def test_real_amounts_are_what_netcdf_and_pysteps_read(bom_files):
    from netCDF4 import Dataset
    from pysteps.io.importers import import_bom_rf3

    for path in bom_files[::10]:
        observed = check_values(read(path, reader="bom"))
        with Dataset(path) as stored:
            expected = np.ma.filled(stored["precipitation"][:], np.nan) * 10
        values = observed["rain_rate"].values[0]
        np.testing.assert_allclose(values, expected, rtol=1e-6)
        amounts, _, metadata = import_bom_rf3(str(path))
        np.testing.assert_allclose(values / (60 / metadata["accutime"]), amounts, rtol=1e-6)
        assert metadata["x1"] == float(observed["x"][0])
        assert metadata["y2"] == float(observed["y"][0])


def test_real_times_follow_the_names_and_the_grid_is_one(bom_files):
    frames = [read(path, reader="bom") for path in bom_files]
    times = [frame["time"].to_index()[0].strftime("2_%Y%m%d_%H%M%S") for frame in frames]
    assert times == [path.name[:17] for path in bom_files]
    assert len({grid_id(frame) for frame in frames}) == 1
    assert {frame["rain_rate"].attrs["out_of_range"] for frame in frames} == {0}
    _check_melbourne(frames[0])
