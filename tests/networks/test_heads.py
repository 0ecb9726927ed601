import numpy as np
import pytest

from nowcast.networks.heads import FRAME_HEADS, SEQUENCE_HEADS, Head
from nowcast.rainrate import Transform

LEVELS = (0.5, 1.0, 5.0, 10.0)
THREE = Head("exceedance", (0.5, 1.0, 5.0))


def _raw(*outputs):
    from keras import ops

    return ops.convert_to_tensor(np.array(outputs, np.float32))


def _array(tensor):
    from keras import ops

    return ops.convert_to_numpy(tensor)


def _values(head, *outputs):
    return _array(head.values(_raw(*outputs)))


@pytest.mark.parametrize("kind", ["field", "series"])
def test_a_field_and_a_series_are_what_the_network_gives(kind):
    np.testing.assert_array_equal(_values(Head(kind), -3.0, 0.0, 7.5), [-3.0, 0.0, 7.5])


def test_a_fraction_stays_between_0_and_1():
    found = _values(Head("fraction"), -200.0, -np.log(3.0), 0.0, 200.0)
    np.testing.assert_allclose(found, [0.0, 0.25, 0.5, 1.0], atol=1e-7)


def test_each_threshold_is_reached_only_where_the_one_below_is():
    """Chances of 1/2, 3/4 and 1/4 of going on, multiplied by hand."""
    found = _values(THREE, 0.0, np.log(3.0), -np.log(3.0))
    np.testing.assert_allclose(found, [1 / 2, 3 / 8, 3 / 32], rtol=1e-6)


def test_probabilities_fall_whatever_the_network_gives():
    raw = np.random.default_rng(0).normal(0, 30, (500, 4)).astype(np.float32)
    found = _values(Head("exceedance", LEVELS), *raw)
    assert (np.diff(found, axis=-1) <= 0).all()
    assert found.min() >= 0.0
    assert found.max() <= 1.0


def test_quantiles_rise_whatever_the_network_gives():
    raw = np.random.default_rng(0).normal(0, 30, (500, 3)).astype(np.float32)
    found = _values(Head("quantiles", (0.1, 0.5, 0.9)), *raw)
    assert (np.diff(found, axis=-1) >= 0).all()
    np.testing.assert_array_equal(found[:, 0], raw[:, 0])
    by_hand = _values(Head("quantiles", (0.1, 0.5, 0.9)), 0.2, np.log(np.e - 1.0), -200.0)
    np.testing.assert_allclose(by_hand, [0.2, 1.2, 1.2], rtol=1e-6)


def test_the_probabilities_of_classes_add_up_to_one():
    head = Head("classes", labels=("growing", "decaying", "advective"))
    found = _values(head, 500.0, 500.0 + np.log(2.0), 500.0)
    np.testing.assert_allclose(found, [0.25, 0.5, 0.25], rtol=1e-4)


@pytest.mark.parametrize("head", [Head("fraction"), THREE], ids=lambda head: head.kind)
def test_logarithms_are_those_of_the_probabilities(head):
    raw = np.random.default_rng(0).normal(0, 3, (50, head.outputs)).astype(np.float32)
    probabilities = _values(head, *raw).astype(float)
    reached, missed = (_array(one) for one in head.log_probabilities(_raw(*raw)))
    np.testing.assert_allclose(np.exp(reached), probabilities, rtol=1e-5)
    np.testing.assert_allclose(np.exp(missed), 1.0 - probabilities, atol=1e-6)


def test_the_logarithm_of_a_tiny_chance_is_not_lost_beside_certainty():
    """1 - p is 3e-22 here, far below what a 32-bit p close to 1 can tell from 1."""
    raw = (50.0, 60.0, 49.0)
    reached, missed = (_array(one) for one in THREE.log_probabilities(_raw(*raw)))
    exact = np.log(np.cumsum(np.exp([-50.0, -60.0, -49.0])))
    np.testing.assert_allclose(missed, exact, rtol=1e-6)
    np.testing.assert_allclose(reached, 0.0, atol=1e-20)


def test_logarithms_are_finite_for_the_wildest_outputs():
    for raw in ((1e4, -1e4, 1e4), (-1e4, 1e4, 0.0), (1e4, 1e4, 1e4)):
        assert all(np.isfinite(_array(one)).all() for one in THREE.log_probabilities(_raw(*raw)))


def test_a_field_has_no_probabilities_of_events():
    with pytest.raises(ValueError, match="'field' gives no probabilities"):
        Head().log_probabilities(np.zeros(1, np.float32))


def test_thresholds_are_taken_to_the_scale_of_the_network():
    scale = Transform("linear", top=20.0)
    np.testing.assert_allclose(THREE.levels_on(scale), [0.025, 0.05, 0.25])


def test_the_network_gives_an_output_per_level_or_label():
    assert Head().outputs == Head("fraction").outputs == Head("series").outputs == 1
    assert THREE.outputs == 3
    assert Head("series", labels=("A", "B")).outputs == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "rain"}, "unknown head 'rain'; known are field, fraction"),
        ({"kind": "exceedance"}, r"needs network.levels, rising thresholds .* received \(\)"),
        ({"kind": "exceedance", "levels": (5.0, 1.0)}, r"rising .* received \(5.0, 1.0\)"),
        ({"kind": "exceedance", "levels": (1.0, 1.0)}, "rising"),
        ({"kind": "quantiles"}, "needs network.levels, rising quantiles between 0 and 1"),
        ({"kind": "quantiles", "levels": (0.5, 1.0)}, r"such as 0.1, 0.5, 0.9; received"),
        ({"kind": "quantiles", "levels": (0.0, 0.5)}, "between 0 and 1"),
        ({"kind": "field", "levels": (1.0,)}, r"has no levels; received \(1.0,\); leave them out"),
        ({"kind": "classes", "levels": (1.0,), "labels": ("a", "b")}, "has no levels"),
        ({"kind": "field", "labels": ("a",)}, r"has no labels; received \('a',\)"),
        ({"kind": "classes", "labels": ("a",)}, "needs two labels or more"),
        ({"kind": "series", "labels": ("a", "a")}, "must differ"),
    ],
)
def test_levels_and_labels_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Head(**arguments)


def test_the_settings_know_every_head():
    from typing import get_args

    from nowcast.config import HeadKind

    assert get_args(HeadKind) == (*FRAME_HEADS, *SEQUENCE_HEADS)
