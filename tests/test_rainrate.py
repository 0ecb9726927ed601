import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nowcast.rainrate import Transform, to_rain_rate, to_reflectivity

RAIN = st.floats(0.04, 300.0)


@given(RAIN)
def test_rain_rate_survives_the_way_to_reflectivity_and_back(rain_rate):
    there = to_reflectivity(np.array([rain_rate]))
    assert to_rain_rate(there)[0] == pytest.approx(rain_rate, rel=1e-9)


def test_marshall_and_palmer_by_hand():
    # 200 * 1**1.6 = 200, 10 log10(200) = 23.01
    assert to_reflectivity(np.array([1.0]))[0] == pytest.approx(23.0103, abs=1e-4)


def test_missing_is_never_dry():
    assert np.isnan(to_rain_rate(np.array([np.nan])))[0]
    assert np.isnan(to_reflectivity(np.array([np.nan])))[0]
    assert np.isnan(Transform().forward(np.array([np.nan])))[0]
    assert np.isnan(Transform().inverse(np.array([np.nan])))[0]


def test_no_echo_is_exactly_dry():
    assert (to_rain_rate(np.array([0.0, -32.0, -np.inf])) == 0).all()
    assert to_reflectivity(np.array([0.0]))[0] == 0


@given(st.sampled_from(["log", "linear"]), st.floats(0.0, 200.0))
def test_a_transform_can_be_undone(name, value):
    scale = Transform(name, reference=2.0, top=30.0)
    assert scale.inverse(scale.forward(value)) == pytest.approx(value, rel=1e-6, abs=1e-6)


def test_heavier_rain_stands_higher_on_the_scale():
    scaled = Transform().forward(np.array([0.0, 0.1, 1.0, 10.0, 100.0]))
    assert (np.diff(scaled) > 0).all()
    assert scaled[0] == 0
