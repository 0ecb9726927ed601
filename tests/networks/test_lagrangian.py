"""The correction of extrapolation; `test_networks` has the contract that it shares with others."""

import functools
import itertools

import numpy as np
import pytest

from nowcast.conventions import RAIN_RATE
from nowcast.networks import NETWORKS, build, check_head, for_leads, settings_of
from nowcast.networks.heads import FRAME_HEADS, SEQUENCE_HEADS, Head
from nowcast.networks.losses import loss_of
from nowcast.rainrate import Transform

LEVELS = (0.5, 1.0, 2.0)
HEAD = Head("exceedance", LEVELS)
SCALE = Transform("log", reference=0.5, top=3.0)
SCALED = HEAD.levels_on(SCALE).astype(np.float32)
INPUT_FRAMES, LEAD_FRAMES, GRID = 3, 4, (16, 24)
STILL = (0, 0)


def _build(*, lead_frames=LEAD_FRAMES, **settings):
    import keras

    keras.utils.set_random_seed(0)
    return build(
        "lagrangian",
        settings={"filters": [4, 8], **settings},
        input_frames=INPUT_FRAMES,
        lead_frames=lead_frames,
        grid=GRID,
        head=HEAD,
        transform=SCALE,
    )


@functools.cache
def _untrained():
    """Give a network whose weights no test changes."""
    return _build()


def _frames(samples=1):
    """On the network's scale, from dry to above the highest level, with what was observed."""
    random = np.random.default_rng(0)
    values = random.uniform(-0.2, 1.2, (samples, INPUT_FRAMES, *GRID)).clip(0.0)
    seen = random.random(values.shape) > 0.1
    return np.stack([values * seen, seen], axis=-1).astype(np.float32)


def _motion(way, samples=1):
    """The same everywhere, in pixels per step along y and along x."""
    field = np.array(way[::-1], np.float32)[None, :, None, None]
    return np.broadcast_to(field, (samples, 2, *GRID)).copy()


def _outputs(network, frames, motion):
    from keras import ops

    return ops.convert_to_numpy(network([frames, motion]))


def _shifted(field, way):
    """Give a field moved by whole pixels; nothing flows in."""
    moved = np.zeros_like(field)
    (y, x), (height, width) = way, field.shape[:2]
    moved[max(y, 0) : height + y, max(x, 0) : width + x] = field[
        max(-y, 0) : height - y, max(-x, 0) : width - x
    ]
    return moved


@pytest.mark.parametrize(("standing", "parameters"), [(True, 2116), (False, 2056)])
def test_it_has_the_parameters_that_its_layers_have_by_hand(standing, parameters):
    """3 x 3 kernels and biases; it sees two frames brought along, three as they are, and motion."""
    network = _build(standing=standing)
    seen, corrections = 2 + 3 * 2 + 2, LEAD_FRAMES * (1 + len(LEVELS) * (2 if standing else 1))
    convolutions = [(seen, 4), (4, 4), (4, 8), (8, 8), (8 + 4, 4), (4, 4)]
    by_hand = sum(9 * wide * deep + deep for wide, deep in convolutions) + 5 * corrections
    assert network.count_params() == by_hand == parameters
    assert network.output_shape == (None, LEAD_FRAMES, *GRID, len(LEVELS))


@pytest.mark.parametrize("way", [STILL, (1, -2), (-3, 0)])
def test_untrained_it_believes_extrapolation_of_the_last_frame_alone(way):
    """A level is likely, where the one below is reached, exactly where the moved value reaches it.

    The log-odds are 25 for each unit of the scale above the level, and less for each lead time.
    """
    frames = _frames()
    raw = _outputs(_untrained(), frames, _motion(way))
    for lead in range(LEAD_FRAMES):
        steps = lead + 1
        moved = _shifted(frames[0, -1, ..., 0], (steps * way[0], steps * way[1]))
        above = moved[..., None] - SCALED
        assert (np.abs(above) > 1e-5).all()
        np.testing.assert_array_equal(raw[0, lead] > 0.0, above > 0.0)
        assert 0.05 < (above > 0.0).mean() < 0.95
        np.testing.assert_allclose(raw[0, lead], max(25.0 / steps, 5.0) * above, atol=1e-3)


def test_untrained_its_median_is_the_class_of_the_advected_value_at_the_first_lead():
    from keras import ops

    frames = _frames()
    raw = _outputs(_untrained(), frames, _motion((1, 2)))[0, 0]
    probable = ops.convert_to_numpy(HEAD.values(raw)) >= 0.5
    reached = _shifted(frames[0, -1, ..., 0], (1, 2))[..., None] >= SCALED
    np.testing.assert_array_equal(probable[..., 0], reached[..., 0])
    # Of the higher ones the probability is a product, so that just above a level it is below 1/2.
    assert (probable <= reached).all()
    assert (probable == reached).mean() > 0.9


def test_corrections_that_stay_make_no_difference_before_they_are_learnt():
    frames, motion = _frames(2), _motion((1, 2), 2)
    with_, without = _build(standing=True), _build(standing=False)
    same = without.get_weights()
    with_.set_weights([*same, *with_.get_weights()[len(same) :]])
    np.testing.assert_array_equal(
        _outputs(with_, frames, motion), _outputs(without, frames, motion)
    )
    standing = with_.get_layer("standing")
    standing.set_weights([np.ones_like(one) for one in standing.get_weights()])
    assert np.abs(_outputs(with_, frames, motion) - _outputs(without, frames, motion)).min() > 0.5


def _sees_frames_as_they_are(network):
    """Take from the first convolution what depends on motion: the channels before and after."""
    first = next(layer for layer in network.layers if layer.name.startswith("conv2d"))
    kernel, bias = first.get_weights()
    kernel[:, :, : INPUT_FRAMES - 1] = kernel[:, :, -2:] = 0.0
    first.set_weights([kernel, bias])


@pytest.mark.parametrize("name", ["surer", "moving", "standing"])
def test_corrections_move_along_with_the_motion_or_stay_where_they_are(name):
    network, random = _build(), np.random.default_rng(0)
    _sees_frames_as_they_are(network)
    frames, way = _frames(), (1, -2)
    told = {}
    before = {of: _outputs(network, frames, _motion(of)) for of in (STILL, way)}
    layer = network.get_layer(name)
    layer.set_weights([random.normal(0, 0.3, one.shape) for one in layer.get_weights()])
    for of, plain in before.items():
        after = _outputs(network, frames, _motion(of))
        if name == "surer":  # a factor on the log-odds, the same for all levels
            told[of] = np.where(np.abs(plain) > 1e-3, after / plain, np.nan)
            assert np.nanmin(told[of]) > 0.0
        else:
            told[of] = after - plain
    assert np.nanstd(told[STILL]) > 0.05
    for lead in range(LEAD_FRAMES):
        steps = 0 if name == "standing" else lead + 1
        moved = (steps * way[0], steps * way[1])
        inside = _shifted(np.ones(GRID), moved) == 1.0
        expected = _shifted(told[STILL][0, lead], moved)[inside]
        found = told[way][0, lead][inside]
        both = np.isfinite(expected) & np.isfinite(found)
        assert both.mean() > 0.8
        np.testing.assert_allclose(found[both], expected[both], rtol=2e-3, atol=1e-3)
        assert not np.allclose(found[both], expected[both][::-1], rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize("standing", [True, pytest.param(False, marks=pytest.mark.proof)])
def test_for_more_lead_times_it_begins_with_what_it_knows_of_the_last(standing):
    """In still air what moves along stays in its place, and corrections can be told apart."""
    short, long = (_build(standing=standing, lead_frames=leads) for leads in (LEAD_FRAMES, 6))
    random = np.random.default_rng(3)
    for layer in short.layers:
        if layer.name != "surer":  # so that extrapolation is believed by lead time alone
            changed = [random.normal(0.0, 0.3, one.shape) for one in layer.get_weights()]
            layer.set_weights(changed)
    own = {"filters": [4, 8], "standing": standing}
    weights = for_leads("lagrangian", own, short.get_weights(), known=LEAD_FRAMES, wanted=6)
    long.set_weights(weights)
    back = for_leads("lagrangian", own, weights, known=6, wanted=LEAD_FRAMES)
    for one, other in zip(back, short.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    frames = _frames()
    known, more = (_outputs(network, frames, _motion(STILL))[0] for network in (short, long))
    np.testing.assert_allclose(more[:LEAD_FRAMES], known, rtol=1e-4, atol=1e-4)
    above = frames[0, -1, ..., :1] - SCALED
    corrected = [raw - max(25.0 / lead, 5.0) * above for lead, raw in enumerate(more, start=1)]
    assert np.std(corrected[3]) > 0.1
    assert not np.allclose(corrected[2], corrected[3], atol=1e-2)
    for later in corrected[4:]:
        np.testing.assert_allclose(later, corrected[3], rtol=1e-3, atol=1e-3)


def test_networks_of_as_many_lead_times_as_were_trained_on_say_which_are_not():
    with pytest.raises(ValueError, match=r"'unet' are for 2 lead frames, not for 3; .* lagrangian"):
        for_leads("unet", {}, [], known=2, wanted=3)


def test_it_sees_the_motion_and_what_was_not_observed():
    network, random = _build(), np.random.default_rng(0)
    network.set_weights([random.normal(0, 0.3, one.shape) for one in network.get_weights()])
    frames = _frames()
    before = _outputs(network, frames, _motion(STILL))
    assert np.abs(_outputs(network, frames, _motion((0, 1))) - before).max() > 0.1
    unseen = frames.copy()
    unseen[:, :, 4:8, 4:8, 1] = 1.0 - unseen[:, :, 4:8, 4:8, 1]  # the values are the same
    assert np.abs(_outputs(network, unseen, _motion(STILL)) - before).max() > 1e-3


def test_after_one_step_all_weights_learn():
    """The first step moves the corrections alone, which are nothing yet; the next one all."""
    import keras

    network = _build()
    loss = loss_of("ordinal", head=HEAD, variable=RAIN_RATE, transform=SCALE)
    network.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=keras.backend.backend() != "jax")
    random, frames = np.random.default_rng(1), _frames(2)
    targets = random.uniform(0.0, 1.2, (2, LEAD_FRAMES, *GRID, 1)).astype(np.float32)
    weights = [network.get_weights()]
    for _ in range(2):
        network.train_on_batch([frames, _motion((0, 1), 2)], targets)
        weights.append(network.get_weights())
    moved = [
        [bool(np.any(one != other)) for one, other in zip(*pair, strict=True)]
        for pair in itertools.pairwise(weights)
    ]
    assert moved == [[False] * 12 + [True] * 6, [True] * 18]


@pytest.mark.parametrize(
    "head",
    [kind for kind in (*FRAME_HEADS, *SEQUENCE_HEADS) if kind != "exceedance"],
)
def test_other_heads_are_refused_with_its_own(head):
    levels = (0.1, 0.9) if head == "quantiles" else ()
    wanted = Head(head, levels, ("a", "b") if head in SEQUENCE_HEADS else ())
    message = f"network 'lagrangian' has no head {head!r}; it has exceedance; set network.head"
    with pytest.raises(ValueError, match=message):
        check_head("lagrangian", wanted)
    with pytest.raises(ValueError, match=message):
        build("lagrangian", settings={}, input_frames=3, lead_frames=2, grid=(16, 16), head=wanted)


@pytest.mark.parametrize("kind", FRAME_HEADS)
def test_networks_that_say_nothing_of_heads_have_all_those_of_frames(kind):
    levels = {"exceedance": (0.5,), "quantiles": (0.5,)}.get(kind, ())
    for name in NETWORKS:
        if name not in ("lagrangian", "cnn_lstm"):
            check_head(name, Head(kind, levels))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filters": []}, r"filters must list .*received \(\)"),
        ({"filters": [8, 0]}, r"filters must list .*received \(8, 0\)"),
        ({"kernel": 4}, "kernel must be odd.*received 4.*try 3 or 5"),
        ({"dropout": 1.0}, "dropout is a part, from 0 to below 1; received 1.0"),
        ({"dropout": -0.1}, "dropout is a part, from 0 to below 1; received -0.1"),
        ({"levels": 3}, "has no setting levels; it has filters, kernel, dropout, standing"),
        ({"kernel": 9, "filters": [4, 4, 4]}, "kernel of 9 cannot fit .*4 x 6; at most 7 does"),
        ({"filters": [4] * 5}, r"multiples of 16 pixels; received \(16, 24\)"),
    ],
)
def test_wrong_settings_are_refused_with_the_value_and_the_remedy(settings, message):
    with pytest.raises(ValueError, match=message):
        _build(**settings)


@pytest.mark.parametrize(("filters", "multiple"), [([4], 1), ([4, 4], 2), ([4, 4, 4, 4], 8)])
def test_sides_of_the_grid_are_halved_as_often_as_there_are_scales(filters, multiple):
    settings = settings_of("lagrangian", {"filters": filters})
    assert (settings.grid_multiple, settings.any_grid, settings.sees_motion) == (
        multiple,
        True,
        True,
    )


def test_features_are_left_out_in_training_alone():
    from keras import ops

    network, random = _build(dropout=0.5), np.random.default_rng(0)
    network.set_weights([random.normal(0, 0.3, one.shape) for one in network.get_weights()])
    inputs = [_frames(), _motion(STILL)]
    as_issued = [_outputs(network, *inputs) for _ in range(2)]
    np.testing.assert_array_equal(*as_issued)
    in_training = [ops.convert_to_numpy(network(inputs, training=True)) for _ in range(2)]
    assert np.abs(in_training[0] - in_training[1]).max() > 0.01
