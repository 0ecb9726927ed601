import numpy as np
import pytest

from nowcast.conventions import RAIN_RATE, REFLECTIVITY
from nowcast.data.readers.building import grid_mapping, within_range


def field():
    """Two thousand observed pixels, and as many missing ones."""
    return np.repeat([1.0, np.nan], 2000)


def test_two_stray_pixels_in_two_thousand_become_missing_and_are_counted():
    values = field()
    values[:2] = -0.01, 1000.5
    checked, count = within_range(values, RAIN_RATE)
    assert count == 2
    assert np.isnan(checked[:2]).all()
    np.testing.assert_array_equal(checked[2:], field()[2:])


def test_three_stray_pixels_in_two_thousand_are_too_many():
    """Missing pixels do not count, or a mostly missing field would hide wrong units."""
    values = field()
    values[:3] = 1000.5
    with pytest.raises(ValueError, match="3 of 2,000 observed pixels lie outside 0 to 1000 mm h-1"):
        within_range(values, RAIN_RATE)


def test_the_ends_of_the_range_and_nothing_at_all_are_right():
    values = np.array([0.0, 95.0, np.nan])
    checked, count = within_range(values.copy(), REFLECTIVITY)
    np.testing.assert_array_equal(checked, values)
    assert (count, type(count)) == (0, int)
    assert within_range(np.full(3, np.nan), RAIN_RATE)[1] == 0


def test_infinity_is_out_of_range():
    values = field()
    values[0] = np.inf
    assert within_range(values, RAIN_RATE)[1] == 1


def test_a_projection_says_nothing_that_changes_with_the_version_of_proj():
    mapping = grid_mapping("+proj=stere +lat_0=90 +lat_ts=60 +lon_0=25 +R=6371288")
    assert mapping["latitude_of_projection_origin"] == 90
    assert "crs_wkt" not in mapping
    assert not [value for value in mapping.values() if "unknown" in str(value).lower()]
