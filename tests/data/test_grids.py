import knmi_sample
import numpy as np
import pytest
import xarray as xr

from nowcast.conventions import check_observations
from nowcast.data.grids import coarsen
from nowcast.data.observations import open_observations


@pytest.fixture
def observed(tmp_path):
    rain_mm = np.array(
        [
            [0.0, 0.1, np.nan, np.nan, 1.0],
            [0.2, 0.1, 0.3, np.nan, 1.0],
            [np.nan, np.nan, 0.0, 0.0, 1.0],
            [np.nan, np.nan, 0.0, np.nan, 1.0],
        ]
    )
    path = knmi_sample.write_knmi(tmp_path / "a.h5", rain_mm, "2024-06-01T12:00")
    return open_observations(path)


def test_a_coarse_pixel_is_the_mean_of_what_was_observed(observed):
    coarse = coarsen(observed, 2)
    expected = [[[1.2, np.nan], [np.nan, 0.0]]]
    np.testing.assert_allclose(coarse["rain_rate"], expected, rtol=1e-6)


def test_half_of_the_pixels_suffice(observed):
    half = observed.copy()
    half["rain_rate"] = half["rain_rate"].fillna(0.0).where(half["x"] > 1000.0)
    assert np.isfinite(coarsen(half, 2)["rain_rate"].values).all()


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_missing_never_becomes_dry(factor):
    generator = np.random.default_rng(1)
    values = generator.random((3, 24, 24)).astype("f4")
    values[generator.random(values.shape) < 0.5] = np.nan
    coords = {"y": np.arange(24.0), "x": np.arange(24.0)}
    fields = xr.Dataset({"rain_rate": (("time", "y", "x"), values)}, coords)
    coarse = coarsen(fields, factor)["rain_rate"].values
    blocks = values.reshape(3, 24 // factor, factor, 24 // factor, factor)
    observed_part = np.isfinite(blocks).mean(axis=(2, 4))
    np.testing.assert_array_equal(np.isnan(coarse), observed_part < 0.5)
    assert not (coarse == 0).any()


def test_coordinates_are_averaged_and_the_rest_is_kept(observed):
    coarse = check_observations(coarsen(observed, 2))
    np.testing.assert_allclose(coarse["x"], [1000.0, 3000.0])
    np.testing.assert_allclose(coarse["y"], [-3651000.0, -3653000.0])
    assert coarse["x"].attrs == observed["x"].attrs
    assert coarse["rain_rate"].attrs == observed["rain_rate"].attrs
    assert coarse["rain_rate"].dtype == np.float32
    assert coarse.attrs == observed.attrs
    xr.testing.assert_identical(coarse["time_bnds"], observed["time_bnds"])
    assert coarse["crs"].attrs == observed["crs"].attrs


def test_dask_and_numpy_give_the_same(observed, computing_fails):
    expected = coarsen(observed.compute(), 2)
    with computing_fails():
        lazy = coarsen(observed.chunk(y=3, x=2), 2)
    xr.testing.assert_allclose(lazy.compute(), expected)


def test_the_factor_1_gives_the_same(observed):
    assert coarsen(observed, 1) is observed


@pytest.mark.parametrize("factor", [0, -2, 5])
def test_an_unfit_factor_is_refused(observed, factor):
    with pytest.raises(ValueError, match=f"coarsened by {factor}; give 1 to 4 pixels"):
        coarsen(observed, factor)
