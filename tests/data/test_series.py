import numpy as np
import pytest

from nowcast.data.series import names_of, pixels_of, series_of
from nowcast.data.synthetic import synthesise


@pytest.fixture
def rain_rate():
    return synthesise(hours=0, size=8)["rain_rate"].load()  # x and y from -7 to 7 km


def test_an_areal_mean_is_that_of_the_observed_pixels(rain_rate):
    rain_rate[0] = 4.0
    rain_rate[0, :, :4] = np.nan
    rain_rate[0, 0, 4] = 8.0
    assert series_of(rain_rate).values.tolist() == [[4.0 + 4.0 / 32]]


def test_an_areal_mean_of_less_than_half_the_area_is_missing(rain_rate):
    rain_rate[0, :, :4] = np.nan
    rain_rate[0, 0, 4] = np.nan
    assert np.isnan(series_of(rain_rate).values).tolist() == [[True]]


def test_points_take_the_nearest_pixel_in_the_order_given(rain_rate):
    points = [(6900.0, -7999.0), (-7100.0, 1200.0)]
    found = series_of(rain_rate, points)
    assert found.values.tolist() == [[rain_rate.values[0, 0, 0], rain_rate.values[0, 7, 4]]]
    assert found["y"].values.tolist() == [7000.0, -7000.0]
    assert found["point"].values.tolist() == ["y=6900 x=-7999", "y=-7100 x=1200"]


def test_a_missing_pixel_is_missing_in_the_series_and_a_dry_one_is_dry(rain_rate):
    rain_rate[0, 0, :2] = [np.nan, 0.0]
    found = series_of(rain_rate, [(7000.0, -7000.0), (7000.0, -5000.0)]).values[0]
    np.testing.assert_array_equal(found, [np.nan, 0.0])


@pytest.mark.parametrize("point", [(8100.0, 0.0), (0.0, -8100.0), (0.0, 1e9)])
def test_a_point_outside_of_the_grid_is_named_with_what_the_grid_reaches(rain_rate, point):
    with pytest.raises(ValueError, match=rf"\({point[0]}, {point[1]}\).*from y -8000 to 8000"):
        series_of(rain_rate, [(0.0, 0.0), point])


def test_a_grid_of_one_row_has_pixels_as_tall_as_they_are_wide():
    x = 1000.0 * np.arange(4)
    rows, columns = pixels_of([(40.0, 2900.0)], y=np.array([0.0]), x=x)
    assert (rows.tolist(), columns.tolist()) == ([0], [3])
    with pytest.raises(ValueError, match="outside of the grid"):
        pixels_of([(600.0, 0.0)], y=np.array([0.0]), x=x)


def test_lazy_fields_stay_lazy(rain_rate):
    assert series_of(rain_rate.chunk(x=3)).chunks is not None


def test_points_have_names_and_the_area_has_one():
    assert names_of([(1.5, -2.0)]) == ("y=1.5 x=-2",)
    assert names_of([]) == ("area",)
