import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from nowcast.config import HeadKind, LossKind
from nowcast.conventions import RAIN_RATE, REFLECTIVITY, Variable
from nowcast.networks.heads import Head
from nowcast.networks.losses import LOSSES, cross_entropy_per_sequence, loss_of
from nowcast.rainrate import Transform, to_reflectivity

LOG = Transform("log", reference=5.0, top=3.0)
SAME = Transform("linear", top=1.0)  # physical values are the network's
TEMPERATURE = Variable("t2m", "K", "temperature", "air_temperature", 150.0, 350.0)
HEADS = {
    "field": Head(),
    "fraction": Head("fraction"),
    "exceedance": Head("exceedance", (0.3, 0.5, 0.8)),
    "quantiles": Head("quantiles", (0.1, 0.5, 0.9)),
    "series": Head("series"),
    "classes": Head("classes", labels=("growing", "decaying", "advective")),
}
PAIRS = [(head, kind) for head, kinds in LOSSES.items() for kind in kinds]
every_pair = pytest.mark.parametrize(("head", "kind"), PAIRS)


def _tensor(values):
    from keras import ops

    return ops.convert_to_tensor(np.asarray(values, np.float32))


def _of(kind, targets, raw, *, head=HEADS["field"], variable=RAIN_RATE, transform=SAME):
    """The loss of pixels in a row: targets of the pixels, raw outputs of each."""
    loss = loss_of(kind, head=head, variable=variable, transform=transform)
    if head.kind != "classes":
        targets = np.reshape(targets, (1, 1, 1, -1, 1))
    shape = (len(raw), -1) if head.kind == "classes" else (1, 1, 1, len(raw), -1)
    return float(loss(_tensor(targets), _tensor(np.reshape(raw, shape))))


def _gradient(loss, raw):
    """The gradient of a loss of raw outputs alone, by whichever backend runs."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return np.asarray(jax.grad(loss)(_tensor(raw)))
    if keras.backend.backend() == "torch":
        leaf = _tensor(raw).requires_grad_(True)
        loss(leaf).backward()
        return leaf.grad.numpy()
    import tensorflow as tf

    leaf = tf.Variable(_tensor(raw))
    with tf.GradientTape() as tape:
        value = loss(leaf)
    return tape.gradient(value, leaf).numpy()


def _logit(probability):
    probability = np.clip(probability, 1e-15, 1.0 - 1e-15)
    return np.log(probability / (1.0 - probability))


def test_each_loss_is_for_some_head_and_each_head_has_one():
    assert set(LOSSES) == set(get_args(HeadKind))
    assert {kind for kinds in LOSSES.values() for kind in kinds} == set(get_args(LossKind))


@every_pair
def test_a_missing_target_weighs_nothing(head, kind):
    outputs = HEADS[head].outputs
    raw = np.random.default_rng(0).normal(size=(3, outputs))
    targets = [1.0, np.nan, 0.0] if head == "classes" else [0.4, np.nan, 0.9]
    with_missing = _of(kind, targets, raw, head=HEADS[head])
    alone = _of(kind, [targets[0], targets[2]], raw[[0, 2]], head=HEADS[head])
    assert with_missing == pytest.approx(alone, rel=1e-6)
    assert alone > 0.0
    assert _of(kind, [np.nan] * 3, raw, head=HEADS[head]) == 0.0


@every_pair
def test_a_missing_target_has_no_gradient(head, kind):
    outputs = HEADS[head].outputs
    targets = np.array([2.0, np.nan, 0.0] if head == "classes" else [0.4, np.nan, 0.9])
    if head != "classes":
        targets = targets.reshape(3, 1)
    loss = loss_of(kind, head=HEADS[head], variable=RAIN_RATE, transform=SAME)
    raw = np.random.default_rng(0).normal(size=(3, outputs)).astype(np.float32)
    gradient = _gradient(lambda outputs: loss(_tensor(targets), outputs), raw)
    assert (gradient[1] == 0.0).all()
    assert np.isfinite(gradient).all()
    assert (np.abs(gradient[[0, 2]]).max(axis=-1) > 0).all()


@every_pair
def test_the_wildest_outputs_have_a_finite_loss_and_gradient(head, kind):
    outputs = HEADS[head].outputs
    targets = np.array([1.0, 0.0] if head == "classes" else [0.0, 1.0])
    if head != "classes":
        targets = targets.reshape(2, 1)
    loss = loss_of(kind, head=HEADS[head], variable=RAIN_RATE, transform=SAME)
    raw = np.array([1e3, -1e3, 1e3][:outputs] * 2, np.float32).reshape(2, outputs)
    for sign in (1.0, -1.0):
        gradient = _gradient(lambda outputs: loss(_tensor(targets), outputs), sign * raw)
        assert np.isfinite(gradient).all()
        assert np.isfinite(float(loss(_tensor(targets), _tensor(sign * raw))))


@pytest.mark.parametrize(
    ("head", "kind"),
    [(head, kind) for head in LOSSES for kind in get_args(LossKind) if kind not in LOSSES[head]],
)
def test_a_loss_that_does_not_fit_the_head_is_refused_with_those_that_do(head, kind):
    with pytest.raises(ValueError, match=f"{kind!r} does not fit the head {head!r}") as caught:
        loss_of(kind, head=HEADS[head], variable=RAIN_RATE, transform=SAME)
    assert f"takes {', '.join(LOSSES[head])}; set training.loss" in str(caught.value)


@pytest.mark.parametrize("kind", ["balanced", "b_mse", "b_mae", "ordinal_heavy"])
def test_weights_by_rain_rate_are_for_rain_only(kind):
    head = Head("exceedance", (270.0,)) if kind == "ordinal_heavy" else Head()
    with pytest.raises(ValueError, match=f"{kind!r} is for rain, not 't2m'"):
        loss_of(kind, head=head, variable=TEMPERATURE, transform=LOG)


def test_what_weighs_all_alike_is_for_any_quantity():
    """Chances 0.8, and 0.5 of these, of 270 and 280 K; 275 K reaches the first alone."""
    scale = Transform("linear", offset=200.0, top=300.0)
    found = _of(
        "ordinal",
        scale.forward(np.array([275.0])),
        [[_logit(0.8), _logit(0.5)]],
        head=Head("exceedance", (270.0, 280.0)),
        variable=TEMPERATURE,
        transform=scale,
    )
    assert found == pytest.approx(-np.log(0.8 * 0.5), rel=1e-5)


def test_squared_and_absolute_error_by_hand():
    assert _of("mse", [0.5, 1.0], [0.1, 1.2]) == pytest.approx((0.16 + 0.04) / 2, rel=1e-5)
    assert _of("mae", [0.5, 1.0], [0.1, 1.2]) == pytest.approx((0.4 + 0.2) / 2, rel=1e-5)


def test_a_fraction_is_compared_as_such():
    assert _of("mse", [0.5], [_logit(0.9)], head=Head("fraction")) == pytest.approx(0.16, rel=1e-5)


def _weight(kind, observed, variable=RAIN_RATE, transform=LOG):
    """How much more an error counts there than by mse or mae."""
    plain = "mae" if kind == "b_mae" else "mse"
    target = transform.forward(np.array([observed]))
    both = [
        _of(one, target, [0.0], variable=variable, transform=transform) for one in (kind, plain)
    ]
    return both[0] / both[1]


def test_heavier_rain_weighs_more_in_the_balanced_loss():
    found = [_weight("balanced", rain_rate) for rain_rate in (1.0, 20.0, 200.0)]
    np.testing.assert_allclose(found, [2.0, 21.0, 24.0], rtol=1e-4)


@pytest.mark.parametrize("kind", ["b_mse", "b_mae"])
def test_heavier_rain_weighs_more_by_the_classes_of_hko_7(kind):
    rain_rates = [0.1, 1.99, 2.0, 4.99, 5.0, 9.99, 10.0, 29.9, 30.0, 300.0]
    found = [_weight(kind, rain_rate) for rain_rate in rain_rates]
    np.testing.assert_allclose(found, [1, 1, 2, 2, 5, 5, 10, 10, 30, 30], rtol=1e-5)


@pytest.mark.parametrize(("kind", "weight"), [("balanced", 21.0), ("b_mse", 10.0)])
def test_the_weight_is_by_rain_rate_for_reflectivity_too(kind, weight):
    dbz = float(to_reflectivity(np.array([20.0]))[0])
    found = _weight(kind, dbz, REFLECTIVITY, Transform("linear", top=60.0))
    assert found == pytest.approx(weight, rel=1e-4)


def test_cross_entropy_of_fractions_by_hand():
    found = _of("cross_entropy", [0.25, 1.0], [_logit(0.5), _logit(0.8)], head=Head("fraction"))
    assert found == pytest.approx((np.log(2.0) - np.log(0.8)) / 2, rel=1e-5)


def test_cross_entropy_is_lowest_at_the_fraction_itself():
    forecasts = np.linspace(0.05, 0.95, 19)
    found = [_of("cross_entropy", [0.3], [_logit(one)], head=Head("fraction")) for one in forecasts]
    assert forecasts[int(np.argmin(found))] == pytest.approx(0.3)


def test_what_lies_beyond_the_scale_counts_as_its_end():
    losses = [
        _of("cross_entropy", [target], [_logit(0.8)], head=Head("fraction"))
        for target in (1.0, 1.5, 0.0, -0.5)
    ]
    assert losses[0] == losses[1] == pytest.approx(-np.log(0.8), rel=1e-5)
    assert losses[2] == losses[3] == pytest.approx(-np.log(0.2), rel=1e-5)


def test_cross_entropy_of_every_threshold_by_hand():
    """Chances 0.8 and 0.8 * 0.5 of reaching 1 and 5 mm/h; 3 mm/h reaches the first alone."""
    head = Head("exceedance", (1.0, 5.0))
    found = _of(
        "cross_entropy",
        LOG.forward(np.array([3.0])),
        [[_logit(0.8), _logit(0.5)]],
        head=head,
        transform=LOG,
    )
    assert found == pytest.approx(-(np.log(0.8) + np.log(1 - 0.4)) / 2, rel=1e-5)


@pytest.mark.parametrize("transform", [LOG, Transform(), Transform("linear", top=60.0)])
@pytest.mark.parametrize("level", [0.1, 0.7, 1.0, 12.34, 30.0])
def test_a_value_equal_to_the_threshold_reaches_it(transform, level):
    """Certain that it does: no loss; and a value a step of the cache below does not."""
    head = Head("exceedance", (level,))
    at, below = (
        _of("crps", transform.forward(np.array([value])), [[50.0]], head=head, transform=transform)
        for value in (level, level - 0.02)
    )
    assert at == pytest.approx(0.0, abs=1e-6)
    assert below == pytest.approx(1.0, rel=1e-6)


def test_ordinal_is_the_logarithm_of_the_chance_of_the_interval_by_hand():
    """Chances 0.8, 0.4 and 0.1 of reaching 1, 5 and 20 mm/h."""
    levels, raw = (1.0, 5.0, 20.0), [_raw_of([0.8, 0.4, 0.1])]
    intervals = {0.3: 0.2, 1.0: 0.4, 3.0: 0.4, 5.0: 0.3, 12.0: 0.3, 20.0: 0.1, 60.0: 0.1}
    for rain_rate, chance in intervals.items():
        target = LOG.forward(np.array([rain_rate]))
        found = _of("ordinal", target, raw, head=Head("exceedance", levels), transform=LOG)
        assert found == pytest.approx(-np.log(chance), rel=1e-4)


def test_ordinal_is_that_logarithm_whatever_the_network_gives():
    """By NumPy from the probabilities that the head makes of the outputs, mean over pixels."""
    random, levels = np.random.default_rng(0), (0.3, 0.5, 0.8, 1.2)
    head = Head("exceedance", levels)
    raw, targets = random.normal(0.0, 2.0, (200, 4)), random.uniform(0.0, 1.5, 200)
    targets[::7] = np.nan
    probabilities = np.asarray(head.values(_tensor(raw)), float)
    whole = np.concatenate([np.ones((200, 1)), probabilities, np.zeros((200, 1))], axis=1)
    seen = np.isfinite(targets)
    place = np.searchsorted(levels, targets[seen], side="right")
    of_interval = -np.diff(whole, axis=1)[seen, place]
    assert set(place) == {0, 1, 2, 3, 4}
    found = _of("ordinal", targets, raw, head=head)
    assert found == pytest.approx(-np.log(of_interval).mean(), rel=1e-4)


def test_ordinal_teaches_nothing_of_levels_above_the_one_that_was_missed():
    """Its gradient is p - 1 where a level was reached, p at the next, and nothing above."""
    head = Head("exceedance", (0.3, 0.5, 0.8))
    loss = loss_of("ordinal", head=head, variable=RAIN_RATE, transform=SAME)
    raw = np.array([[0.5, -1.0, 2.0]] * 3, np.float32)
    targets = np.array([[0.1], [0.6], [0.9]])
    found = _gradient(lambda outputs: loss(_tensor(targets), outputs), raw)
    p = 1.0 / (1.0 + np.exp(-raw[0]))
    expected = [[p[0], 0.0, 0.0], [p[0] - 1, p[1] - 1, p[2]], p - 1]
    np.testing.assert_allclose(found, np.array(expected) / 3, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("variable", "levels", "transform"),
    [
        (RAIN_RATE, (1.0, 10.0, 200.0), LOG),
        (
            REFLECTIVITY,
            tuple(float(dbz) for dbz in to_reflectivity(np.array([1.0, 10.0, 200.0]))),
            Transform("linear", top=60.0),
        ),
    ],
    ids=["rain rate", "reflectivity"],
)
def test_heavier_rain_weighs_more_in_the_heavy_ordinal_loss_by_hand(variable, levels, transform):
    """Weights of 1 + 1, 1 + 10 and 24 at most; each level reached has a chance of 1/2."""
    head = Head("exceedance", levels)
    found = [
        _of(
            "ordinal_heavy",
            transform.forward(np.array([value])),
            [[0.0, 0.0, 0.0]],
            head=head,
            variable=variable,
            transform=transform,
        )
        for value in (levels[0] - 0.1, *levels)
    ]
    weighted = np.log(2.0) * np.array([2.0, 2.0 + 11.0, 2.0 + 11.0 + 24.0, 2.0 + 11.0 + 24.0])
    np.testing.assert_allclose(found, weighted, rtol=1e-4)


def test_cross_entropy_of_classes_by_hand():
    raw = np.log([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    found = _of("cross_entropy", [1.0, 2.0], raw, head=HEADS["classes"])
    assert found == pytest.approx(-(np.log(0.5) + np.log(0.1)) / 2, rel=1e-5)


def test_cross_entropy_per_sequence_is_summed_over_frames_and_pixels():
    """Two sequences of three frames of 2x2 pixels, a coin's toss everywhere."""
    targets = np.random.default_rng(0).random((2, 3, 2, 2, 1))
    found = float(cross_entropy_per_sequence(_tensor(targets), _tensor(np.zeros_like(targets))))
    assert found == pytest.approx(12 * np.log(2.0), rel=1e-6)
    targets[0, 0] = np.nan
    found = float(cross_entropy_per_sequence(_tensor(targets), _tensor(np.zeros_like(targets))))
    assert found == pytest.approx((8 + 12) / 2 * np.log(2.0), rel=1e-6)


def test_training_minimises_the_cross_entropy_per_sequence_over_its_pixels():
    rng = np.random.default_rng(0)
    targets, raw = rng.random((2, 3, 4, 4, 1)), rng.normal(size=(2, 3, 4, 4, 1))
    loss = loss_of("cross_entropy", head=Head("fraction"), variable=RAIN_RATE, transform=SAME)
    per_sequence = float(cross_entropy_per_sequence(_tensor(targets), _tensor(raw)))
    assert per_sequence == pytest.approx(48 * float(loss(_tensor(targets), _tensor(raw))), rel=1e-5)


def _raw_of(probabilities):
    """Raw outputs of an exceedance head that has these probabilities."""
    probabilities = np.asarray(probabilities, float)
    return _logit(probabilities / np.concatenate([[1.0], probabilities[:-1]]))


def _gaussian(levels, mean, spread):
    from scipy.stats import norm

    return np.clip(norm.sf(levels, mean, spread), 1e-9, 1 - 1e-9)


def test_crps_of_probabilities_by_hand():
    """Levels 1, 2, 4 stand for widths of 1, 1.5 and 2; Brier scores .01, .36 and .01."""
    head = Head("exceedance", (1.0, 2.0, 4.0))
    found = _of("crps", [1.5], [_raw_of([0.9, 0.6, 0.1])], head=head)
    assert found == pytest.approx(1.0 * 0.01 + 1.5 * 0.36 + 2.0 * 0.01, rel=1e-4)


def test_crps_of_probabilities_is_the_integral_of_the_definition():
    """Of a Gaussian, by NumPy on a fine axis; the target lies halfway between two levels."""
    levels = np.linspace(0.05, 5.0, 100)
    head = Head("exceedance", tuple(levels))
    mean, spread, target = 2.3, 0.6, 3.025
    found = _of("crps", [target], [_raw_of(_gaussian(levels, mean, spread))], head=head)
    axis = np.linspace(-2.0, 8.0, 200_001)
    distance = (1.0 - _gaussian(axis, mean, spread) - (axis >= target)) ** 2
    assert found == pytest.approx(np.sum(distance) * (axis[1] - axis[0]), rel=1e-3)


@pytest.mark.parametrize("head", ["exceedance", "quantiles"])
def test_crps_equals_that_of_scores_for_the_same_distribution(head):
    """`scores` takes an ensemble; 2,000 members of a uniform distribution between 0 and 1."""
    import xarray as xr
    from scores.probability import crps_for_ensemble

    members = xr.DataArray((np.arange(2000) + 0.5) / 2000, dims="member")
    expected = float(crps_for_ensemble(members, xr.DataArray(0.3), "member", method="ecdf"))
    levels = tuple((np.arange(60) + 0.5) / 60)
    raw = _raw_of(1.0 - np.array(levels))
    if head == "quantiles":
        raw = np.array([levels[0], *np.log(np.expm1(np.diff(levels)))])
    found = _of("crps", [0.3], [raw], head=Head(head, levels))
    assert expected == pytest.approx(0.3**3 / 3 + 0.7**3 / 3, rel=1e-3)
    assert found == pytest.approx(expected, rel=1e-2)


def test_a_sharper_right_forecast_has_a_lower_crps_and_a_sharper_wrong_one_a_higher():
    levels = np.linspace(0.05, 5.0, 40)
    head = Head("exceedance", tuple(levels))
    right = [
        _of("crps", [2.5], [_raw_of(_gaussian(levels, 2.5, spread))], head=head)
        for spread in (0.2, 0.5, 1.0)
    ]
    wrong = [
        _of("crps", [4.0], [_raw_of(_gaussian(levels, 1.5, spread))], head=head)
        for spread in (0.2, 0.5, 1.0)
    ]
    assert right == sorted(right)
    assert wrong == sorted(wrong, reverse=True)


def test_thresholds_weigh_by_their_width_on_the_scale_of_the_network():
    """One miss of 10 mm/h costs half the logarithm's way from 1 to 10, and outwards as far."""
    head = Head("exceedance", (1.0, 10.0))
    found = _of(
        "crps",
        LOG.forward(np.array([50.0])),
        [[60.0, -60.0]],
        head=head,
        transform=LOG,
    )
    scaled = LOG.forward(np.array([1.0, 10.0]))
    assert found == pytest.approx(scaled[1] - scaled[0], rel=1e-5)


def test_pinball_loss_by_hand():
    """Quantiles 0.1, 0.5 and 0.9 at 1, 2 and 4; observed 3."""
    raw = [[1.0, np.log(np.expm1(1.0)), np.log(np.expm1(2.0))]]
    short = [0.1 * 2.0, 0.5 * 1.0, 0.1 * 1.0]
    head = HEADS["quantiles"]
    assert _of("quantile", [3.0], raw, head=head) == pytest.approx(sum(short) / 3, rel=1e-5)
    # As CRPS they stand for the probabilities up to 0.3, from there to 0.7, and beyond.
    weighted = 2 * (0.3 * 0.2 + 0.4 * 0.5 + 0.3 * 0.1)
    assert _of("crps", [3.0], raw, head=head) == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize("quantile", [0.1, 0.5, 0.9])
def test_the_true_quantile_minimises_the_pinball_loss(quantile):
    targets = np.random.default_rng(0).gamma(2.0, 1.0, 5000)
    candidates = np.linspace(0.0, 6.0, 121)
    losses = [
        _of("quantile", targets, np.full((5000, 1), one), head=Head("quantiles", (quantile,)))
        for one in candidates
    ]
    best = candidates[int(np.argmin(losses))]
    assert best == pytest.approx(np.quantile(targets, quantile), abs=0.05)


@pytest.mark.parametrize("kind", ["ordinal", "ordinal_heavy"])
def test_true_probabilities_of_all_levels_minimise_the_ordinal_losses(kind):
    """Of 100 pixels 60, 30 and 10 reach 0.3, 0.5 and 0.8: of one level's, half the next, a third.

    Proper also where heavier rain weighs more: no chance can be told apart from the others'.
    """
    head = HEADS["exceedance"]
    targets = np.array([0.1] * 40 + [0.4] * 30 + [0.6] * 20 + [0.9] * 10)

    def loss(chances):
        raw = np.tile([_logit(one) for one in chances], (100, 1))
        return _of(kind, targets, raw, head=head)

    true = np.array([0.6, 0.5, 1.0 / 3.0])
    best = loss(true)
    for level in range(3):
        for off in (-0.1, -0.03, 0.03, 0.1):
            other = true.copy()
            other[level] += off
            assert loss(other) > best + 1e-4


@pytest.mark.parametrize("kind", LOSSES["exceedance"])
def test_the_true_probability_minimises_what_exceedance_is_fitted_by(kind):
    """Of 100 pixels 30 reach the threshold."""
    targets = np.array([1.0] * 30 + [0.0] * 70)
    candidates = np.linspace(0.05, 0.95, 19)
    losses = [
        _of(kind, targets, np.full((100, 1), _logit(one)), head=Head("exceedance", (0.5,)))
        for one in candidates
    ]
    assert candidates[int(np.argmin(losses))] == pytest.approx(0.3)


@pytest.mark.proof
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_heads_and_losses_are_the_same_under_every_backend(backend):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed: pip install 'nowcast[backends]'")
    here = Path(__file__)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", here.with_name("test_heads.py"), here, "-q"],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
