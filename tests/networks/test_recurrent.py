import numpy as np
import pytest

from nowcast.networks import build, settings_of
from nowcast.networks.heads import Head

PAPER = {"patch": 4, "multi_scale": False, "peepholes": True}
SMALL = {
    "convgru": {"features": 3, "filters": [4, 3], "strides": [2, 2], "kernel": 3},
    "convlstm": {"filters": [4, 3], "peepholes": True},
    "fc_lstm": {"units": [6, 5]},
    "predrnn": {"patch": 2, "filters": 4, "layers": 2},
    "trajgru": {"features": 3, "filters": [4, 3], "strides": [2, 2], "links": 2, "flow_kernel": 3},
}


def _build(name, *, input_frames=3, lead_frames=2, grid=(8, 12), head=None, channels=2, **settings):
    return build(
        name,
        settings={**SMALL[name], **settings},
        input_frames=input_frames,
        lead_frames=lead_frames,
        grid=grid,
        head=head,
        channels=channels,
    )


def _frames(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _numpy(tensor):
    from keras import ops

    return ops.convert_to_numpy(tensor)


def _randomise(layer, seed=0):
    """Give all weights values, those too that are zero or one at first."""
    random = np.random.default_rng(seed)
    layer.set_weights([0.5 * random.normal(size=old.shape) for old in layer.get_weights()])


def _zero(*layers):
    for layer in layers:
        layer.set_weights([np.zeros_like(old) for old in layer.get_weights()])


def _layers(network, kind):
    return [layer for layer in network.layers if type(layer).__name__ == kind]


def _parameters(name, settings):
    """Count without making any: the largest network alone would take half a gigabyte."""
    import keras

    with keras.StatelessScope(initialize_variables=False):
        network = build(
            name,
            settings=settings,
            input_frames=10,
            lead_frames=10,
            grid=(64, 64),
            head=Head("fraction"),
            channels=1,
        )
    keras.utils.clear_session()  # which would make them later
    return network.count_params()


@pytest.mark.parametrize(
    ("name", "settings", "parameters"),
    [
        ("convlstm", {**PAPER, "filters": [256], "kernel": 5}, 13_524_496),
        ("convlstm", {**PAPER, "filters": [128, 128], "kernel": 5}, 10_042_896),
        ("convlstm", {**PAPER, "filters": [128, 64, 64], "kernel": 5}, 7_585_296),
        ("convlstm", {**PAPER, "filters": [128, 128], "kernel": 1, "input_kernel": 9}, 11_550_224),
        (
            "convlstm",
            {**PAPER, "filters": [128, 64, 64], "kernel": 1, "input_kernel": 9},
            8_830_480,
        ),
        ("fc_lstm", {"units": [2048, 2048]}, 142_667_776),
    ],
)
def test_the_networks_of_shi_2015_have_the_published_number_of_parameters(
    name, settings, parameters
):
    assert _parameters(name, settings) == parameters


def test_predrnn_has_the_published_weights_and_the_biases_of_its_equations():
    """The published code has 23.8 million weights and no bias."""
    settings = {"patch": 4, "filters": 128, "layers": 4, "kernel": 5}
    x, h, m, o, merging = 7 * 128, 25 * 128 * 4 * 128, 25 * 128 * 3 * 128, 25 * 256 * 128, 256 * 128
    weights = 25 * (16 + 3 * 128) * x + 4 * (h + m + o + merging) + 128 * 16
    assert weights == 23_838_720
    assert _parameters("predrnn", settings) == weights + 4 * 7 * 128 + 16


def _stock(settings, frames, lead_frames):
    """Compose the network of Keras's own layers, its forecaster fed with zeros."""
    import keras
    from keras import layers, ops

    from nowcast.networks.patches import from_patches, to_patches

    def recurrent(filters):
        return layers.ConvLSTM2D(
            filters, settings.kernel, padding="same", return_sequences=True, return_state=True
        )

    def scaled(kind, filters, kernel):
        return layers.TimeDistributed(
            kind(filters, kernel, strides=2, padding="same", activation="relu")
        )

    inputs = keras.Input(frames.shape[1:])
    hidden, states = to_patches(inputs, settings.patch), []
    for filters in settings.filters:
        if states and settings.multi_scale:
            hidden = scaled(layers.Conv2D, filters, 3)(hidden)
        hidden, *state = recurrent(filters)(hidden)
        states.append(state)
    hidden = ops.zeros_like(ops.repeat(states[-1][0][:, None, ..., :1], lead_frames, axis=1))
    seen = []
    for filters in reversed(settings.filters):
        if seen and settings.multi_scale:
            hidden = scaled(layers.Conv2DTranspose, filters, 4)(hidden)
        hidden, *_ = recurrent(filters)(hidden, initial_state=states.pop())
        seen.append(hidden)
    if not settings.multi_scale:
        hidden = ops.concatenate(seen, axis=-1)
    rain = layers.Dense(settings.patch**2)(hidden)
    return keras.Model(inputs, from_patches(rain, settings.patch))


@pytest.mark.parametrize("multi_scale", [False, True])
def test_convlstm_equals_the_same_composed_of_keras_layers(multi_scale):
    import keras

    given = {"filters": [5, 4, 3], "multi_scale": multi_scale, "peepholes": False}
    network = _build("convlstm", **given, grid=(16, 16))
    _randomise(network)
    frames = _frames(2, 3, 16, 16, 2)
    stock = _stock(settings_of("convlstm", given), frames, lead_frames=2)
    weights = network.get_weights()
    # The one weight that only the stock network has: of an input that is always zero.
    fed = [(3, 3, 1, 4 * 3)]
    stock.set_weights(
        [np.ones(old.shape) if old.shape in fed else weights.pop(0) for old in stock.get_weights()]
    )
    assert not weights
    np.testing.assert_allclose(_numpy(network(frames)), _numpy(stock(frames)), atol=1e-5)
    assert network.count_params() == stock.count_params() - 9 * 12
    assert keras.ops.max(keras.ops.abs(network(frames))) > 0.1


@pytest.mark.parametrize(
    ("name", "kind"),
    [("convlstm", "ConvLSTM2D"), ("fc_lstm", "PeepholeLSTM"), ("convgru", "ConvGRU2D"),
     ("trajgru", "TrajGRU2D")],
)  # fmt: skip
def test_the_forecaster_knows_the_frames_from_the_encoder_states_alone(name, kind):
    network = _build(name)
    _randomise(network)
    recurrent = _layers(network, kind)
    encoder, forecaster = recurrent[:2], recurrent[2:]
    sizes = [getattr(layer, "filters", None) or layer.units for layer in recurrent]
    assert sizes == [*sizes[:2], *sizes[1::-1]]
    assert [layer.steps for layer in recurrent] == [0, 0, 2, 0]
    first, second = _frames(2, 1, 3, 8, 12, 2)
    before = _numpy(network(first))
    # A zero in place of each state: then nothing that the forecaster sees depends on the frames.
    _zero(*encoder)
    after = _numpy(network(first))
    assert np.abs(after - before).max() > 1e-4
    np.testing.assert_array_equal(after, _numpy(network(second)))
    assert len(forecaster) == 2


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_longer_forecast_begins_with_the_shorter_one(name):
    shorter, longer = _build(name, lead_frames=2), _build(name, lead_frames=4)
    _randomise(shorter)
    longer.set_weights(shorter.get_weights())
    frames = _frames(2, 3, 8, 12, 2)
    outputs = _numpy(longer(frames))
    np.testing.assert_allclose(outputs[:, :2], _numpy(shorter(frames)), atol=1e-5)
    assert np.abs(outputs[:, 3] - outputs[:, 1]).max() > 1e-4


@pytest.mark.parametrize(
    ("name", "kind"), [("convlstm", "ConvLSTM2D"), ("fc_lstm", "PeepholeLSTM")]
)
def test_peepholes_of_each_layer_change_the_forecast(name, kind):
    network = _build(name)
    _randomise(network)
    frames = _frames(1, 3, 8, 12, 2)
    before = _numpy(network(frames))
    for layer in _layers(network, kind):
        weights = layer.get_weights()
        assert weights[-1].shape[0] == 3
        layer.set_weights([*weights[:-1], weights[-1] + 1.0])
        assert np.abs(_numpy(network(frames)) - before).max() > 1e-4
        layer.set_weights(weights)


def test_an_lstm_without_peepholes_is_that_of_keras():
    import keras

    from nowcast.networks.lstm import PeepholeLSTM

    sequences, states = _frames(2, 4, 3), list(_frames(2, 2, 5, seed=1))
    ours, stock = PeepholeLSTM(5), keras.layers.LSTM(5, return_sequences=True, return_state=True)
    stock(sequences)
    ours(sequences)
    _randomise(stock)
    ours.set_weights([*stock.get_weights(), np.zeros((3, 5))])
    for ours_gives, stock_gives in zip(
        ours(sequences, initial_state=states), stock(sequences, initial_state=states), strict=True
    ):
        np.testing.assert_allclose(_numpy(ours_gives), _numpy(stock_gives), atol=1e-6)


def test_peepholes_show_the_old_cell_to_input_and_forget_gate_and_the_new_one_to_the_output_gate():
    from nowcast.networks.lstm import PeepholeLSTM

    layer = PeepholeLSTM(1, steps=1)
    hidden, cell = np.zeros((1, 1), np.float32), np.full((1, 1), 2.0, np.float32)
    layer([hidden, cell])
    _set(layer, bias=[0.0, 0.0, 1.0, 0.0], peepholes=[[0.1], [0.2], [0.3]])

    def sigmoid(value):
        return 1.0 / (1.0 + np.exp(-value))

    new = sigmoid(0.2 * 2.0) * 2.0 + sigmoid(0.1 * 2.0) * np.tanh(1.0)
    _, *states = layer([hidden, cell])
    assert float(_numpy(states[1])[0, 0]) == pytest.approx(new, abs=1e-6)
    expected = sigmoid(0.3 * new) * np.tanh(new)
    assert float(_numpy(states[0])[0, 0]) == pytest.approx(expected, abs=1e-6)


def test_a_new_lstm_forgets_little():
    from nowcast.networks.lstm import PeepholeLSTM

    layer = PeepholeLSTM(2)
    layer.build((None, 3, 4))
    np.testing.assert_array_equal(_numpy(layer.bias), [0, 0, 1, 1, 0, 0, 0, 0])


def _warp(fields, y, x):
    from nowcast.networks.trajectories import warp

    flows = np.broadcast_to(np.float32([y, x]), (*fields.shape[:3], 1, 2))
    return _numpy(warp(fields, flows))[:, :, :, 0]


def test_a_flow_of_whole_pixels_shifts_the_field_and_dry_comes_in():
    fields = _frames(2, 5, 6, 3)
    shifted = _warp(fields, 1.0, -2.0)
    np.testing.assert_array_equal(shifted[:, :-1, 2:], fields[:, 1:, :-2])
    assert not shifted[:, -1].any()
    assert not shifted[:, :, :2].any()


def test_a_flow_of_parts_of_pixels_interpolates():
    fields = _frames(1, 4, 4, 2)
    quarter = 0.75 * fields[:, :-1] + 0.25 * fields[:, 1:]
    expected = 0.5 * quarter[:, :, :-1] + 0.5 * quarter[:, :, 1:]
    warped = _warp(fields, 0.25, 0.5)
    np.testing.assert_allclose(warped[:, :-1, :-1], expected, atol=1e-6)
    # At the rim, the pixels beyond it count as zero.
    np.testing.assert_allclose(warped[:, -1, :-1], 0.75 * 0.5 * (
        fields[:, -1, :-1] + fields[:, -1, 1:]
    ), atol=1e-6)  # fmt: skip


def test_each_link_and_each_pixel_has_its_own_flow():
    from nowcast.networks.trajectories import warp

    fields = np.arange(8, dtype=np.float32).reshape(2, 1, 4, 1)
    flows = np.zeros((2, 1, 4, 2, 2), np.float32)
    flows[0, 0, :, 0, 1] = [3, 1, -1, -3]
    flows[1, 0, 2, 1, 1] = 1
    warped = _numpy(warp(fields, flows))[:, 0, :, :, 0]
    np.testing.assert_array_equal(warped[0, :, 0], [3, 2, 1, 0])
    np.testing.assert_array_equal(warped[0, :, 1], [0, 1, 2, 3])
    np.testing.assert_array_equal(warped[1, :, 0], [4, 5, 6, 7])
    np.testing.assert_array_equal(warped[1, :, 1], [4, 5, 7, 7])


@pytest.mark.parametrize("far", [-7.0, -1.0, 6.0, 1e30, -1e30])
def test_flows_from_far_beyond_the_grid_bring_nothing(far):
    assert not _warp(_frames(1, 1, 6, 1)[:, :, :1], 0.0, far).any()


def _set(layer, **values):
    """Set weights by name, and all others to zero."""
    for weight in layer.weights:
        weight.assign(np.broadcast_to(np.float32(values.get(weight.name, 0.0)), weight.shape))


@pytest.mark.parametrize("steps", [0, 3])
def test_a_trajgru_without_flows_is_a_convgru_with_a_kernel_of_one_pixel(steps):
    from nowcast.networks.layers import ConvGRU2D
    from nowcast.networks.trajectories import TrajGRU2D

    given = [_frames(2, 5, 6, 4)] if steps else _frames(2, 3, 5, 6, 2)
    traj = TrajGRU2D(4, 3, links=3, steps=steps)
    traj(given)
    _randomise(traj)
    weights = {weight.name: _numpy(weight) for weight in traj.weights}
    traj.flow_output_kernel.assign(np.zeros(traj.flow_output_kernel.shape))
    traj.flow_output_bias.assign(np.zeros(traj.flow_output_bias.shape))
    conv = ConvGRU2D(
        4,
        3,
        recurrent_kernel_size=1,
        reset_after=True,
        activation="leaky_relu",
        recurrent_activation="sigmoid",
        steps=steps,
        padding="same",
        return_sequences=True,
    )
    conv(given)
    summed = weights["recurrent_kernel"].reshape(3, 4, 12).sum(axis=0)
    kernels = [] if steps else [weights["kernel"]]
    conv.set_weights([*kernels, summed[None, None], weights["bias"]])
    np.testing.assert_allclose(_numpy(traj(given)[0]), _numpy(conv(given)), atol=1e-5)


def test_a_trajgru_carries_its_state_along_its_flow():
    from nowcast.networks.trajectories import TrajGRU2D

    state = np.zeros((1, 4, 8, 1), np.float32)
    state[0, 2, 1] = 5.0
    layer = TrajGRU2D(1, 3, links=1, steps=3)
    layer([state])
    # The update gate is shut and the reset gate open, so the state is what the flow brings.
    _set(
        layer,
        bias=[-50.0, 50.0, 0.0],
        recurrent_kernel=[0.0, 0.0, 1.0],
        flow_output_bias=[0.0, -2.0],
    )
    frames, last = (_numpy(given) for given in layer([state]))
    expected = np.zeros((3, 4, 8), np.float32)
    expected[[0, 1, 2], 2, [3, 5, 7]] = 5.0
    np.testing.assert_allclose(frames[0, ..., 0], expected, atol=1e-6)
    np.testing.assert_array_equal(last, frames[:, -1])


def test_flows_are_learnt():
    """The gradient along a slope is the slope."""
    import keras
    from keras import ops

    from nowcast.networks.trajectories import warp

    class Flow(keras.layers.Layer):
        def build(self, _):
            self.flow = self.add_weight(shape=(2,), initializer="zeros")

        def call(self, fields):
            flows = ops.broadcast_to(self.flow, (*fields.shape[:3], 1, 2))
            return warp(fields, flows)[:, :, :, 0]

    slope = np.tile(np.arange(6, dtype=np.float32), (1, 6, 1))[..., None]  # rises along x
    moved = np.clip(slope + 1.0, 0, 5)  # as if it had come from one pixel further along x
    network = keras.Sequential([keras.Input(batch_shape=slope.shape), Flow()])
    network.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False, run_eagerly=True)
    for _ in range(30):
        network.train_on_batch(slope, moved, sample_weight=(slope < 4).astype(np.float32)[..., 0])
    np.testing.assert_allclose(_numpy(network.layers[0].flow)[1], 1.0, atol=0.05)


def test_one_step_of_an_st_lstm_is_that_of_the_paper():
    from nowcast.networks.spatiotemporal import SpatiotemporalLSTM2D

    step = SpatiotemporalLSTM2D(2, 1)
    x, h, c, m = _frames(4, 1, 1, 1, 2)
    step(x, h, c, m)
    _randomise(step)
    weights = {weight.name: _numpy(weight) for weight in step.weights}
    by_x, by_h, by_m, by_o, by_both = (
        weights[f"{name}kernel"][0, 0]
        for name in ("", "recurrent_", "memory_", "output_", "merging_")
    )

    def sigmoid(value):
        return 1.0 / (1.0 + np.exp(-value))

    x, h, c, m = (field.reshape(2) for field in (x, h, c, m))
    i, f, g, o, i2, f2, g2 = np.split(x @ by_x + weights["bias"], 7)
    hi, hf, hg, ho = np.split(h @ by_h, 4)
    mi, mf, mg = np.split(m @ by_m, 3)
    new_c = sigmoid(f + hf) * c + sigmoid(i + hi) * np.tanh(g + hg)
    new_m = sigmoid(f2 + mf) * m + sigmoid(i2 + mi) * np.tanh(g2 + mg)
    both = np.concatenate([new_c, new_m])
    new_h = sigmoid(o + ho + both @ by_o) * np.tanh(both @ by_both)
    given = [field.reshape(1, 1, 1, 2) for field in (x, h, c, m)]
    for expected, received in zip((new_h, new_c, new_m), step(*given), strict=True):
        np.testing.assert_allclose(_numpy(received).reshape(2), expected, atol=1e-5)
    # States that are not there yet count as zero.
    for absent, zero in zip(step(given[0]), step(given[0], *3 * [0 * given[0]]), strict=True):
        np.testing.assert_allclose(_numpy(absent), _numpy(zero), atol=1e-6)


def test_the_memory_of_predrnn_goes_from_the_uppermost_layer_to_the_lowest_of_the_next_step():
    network = _build("predrnn", lead_frames=1)
    _randomise(network)
    cells = _layers(network, "SpatiotemporalLSTM2D")
    for cell in cells:
        # No hidden state, and cells that keep nothing: what is left is the memory.
        cell.recurrent_kernel.assign(np.zeros(cell.recurrent_kernel.shape))
        bias = _numpy(cell.bias).copy()
        bias[4:8] = -1e4  # forget gate
        cell.bias.assign(bias)
    frames = _frames(1, 3, 8, 12, 2)
    changed = np.concatenate([frames[:, :1] + 1.0, frames[:, 1:]], axis=1)

    def effect():
        return np.abs(_numpy(network(frames)) - _numpy(network(changed))).max()

    assert effect() > 1e-3
    bottom = cells[0]  # cut the way from the uppermost layer into the lowest
    bottom.memory_kernel.assign(np.zeros(bottom.memory_kernel.shape))
    bias = _numpy(bottom.bias).copy()
    bias[20:24] = -1e4  # the memory's forget gate
    bottom.bias.assign(bias)
    assert effect() == 0.0


@pytest.mark.parametrize("kind", ["field", "fraction"])
def test_predrnn_sees_its_own_forecast_as_the_next_frame(kind):
    head = Head(kind)
    whole = _build("predrnn", head=head)
    _randomise(whole)
    frames = _frames(1, 3, 8, 12, 2)
    outputs = whole(frames)
    forecast = _numpy(head.values(outputs))[:, :1]
    seen = np.concatenate([forecast, np.ones_like(forecast)], axis=-1)
    further = _build("predrnn", head=head, input_frames=4, lead_frames=1)
    further.set_weights(whole.get_weights())
    after = further(np.concatenate([frames, seen], axis=1))
    np.testing.assert_allclose(_numpy(after)[:, 0], _numpy(outputs)[:, 1], atol=1e-5)


def test_predrnn_makes_one_value_of_many_outputs():
    one = _build("predrnn").count_params()
    three = _build("predrnn", head=Head("quantiles", levels=(0.1, 0.5, 0.9))).count_params()
    assert three - one == 2 * 2**2 * (4 + 1) + 3 + 1  # more outputs; their weights and bias


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("convlstm", {"patch": 0}, "patch must be a whole number above 0; received 0"),
        ("convlstm", {"filters": []}, r"filters must list .* for each layer; received \(\)"),
        ("convlstm", {"filters": 16}, "filters must list .* received 16"),
        ("convlstm", {"filters": [8, -4]}, r"filters must list .* received \(8, -4\)"),
        ("convlstm", {"filters": [8, 8], "kernel": [5, 3, 3]}, "kernel has 3 numbers for 2 layers"),
        ("convlstm", {"kernel": 4}, "kernel must be odd.* received 4; try 3 or 5"),
        ("convlstm", {"kernel": 2.5}, r"kernel must list .* received \(2.5,"),
        ("convlstm", {"input_kernel": 2}, "input_kernel must be odd.* received 2"),
        ("convlstm", {"input_kernel": -1}, "input_kernel must be a whole .* received -1"),
        ("fc_lstm", {"units": [True]}, r"units must list .* received \(True,\)"),
        ("convgru", {"strides": [2, 2]}, "strides has 2 numbers for 3 layers"),
        ("convgru", {"features": "8"}, "features must be .* received '8'"),
        ("convgru", {"input_kernel": 0}, "input_kernel must be .* received 0"),
        ("trajgru", {"links": [5]}, "links has 1 numbers for 3 layers; give one for each, or one"),
        ("trajgru", {"flow_kernel": 6}, "flow_kernel must be odd.* try 5 or 7"),
        ("predrnn", {"layers": 0}, "layers must be a whole number above 0; received 0"),
        ("predrnn", {"kernel": 4}, "kernel must be odd"),
    ],
)
def test_settings_of_which_no_network_can_be_made_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        settings_of(name, settings)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("convlstm", {"kernel": 5}, "kernel of 5 cannot fit a layer's grid of 2 x 3; at most 3"),
        ("convlstm", {"input_kernel": 9}, "input_kernel of 9 cannot fit a layer's grid of 4 x 6"),
        ("convgru", {"kernel": [3, 5]}, "kernel of 5 cannot fit a layer's grid of 2 x 3"),
        ("trajgru", {"flow_kernel": 5}, "flow_kernel of 5 cannot fit a layer's grid of 2 x 3"),
        ("predrnn", {"patch": 4, "kernel": 5}, "kernel of 5 cannot fit a layer's grid of 2 x 3"),
        ("convlstm", {"patch": 3}, r"multiples of 6 pixels; received \(8, 12\)"),
        (
            "convlstm",
            {"patch": 5, "multi_scale": False},
            r"multiples of 5 pixels; received \(8, 12",
        ),
        ("convgru", {"strides": [5, 2]}, "multiples of 10 pixels"),
        ("predrnn", {"patch": 3}, "multiples of 3 pixels"),
    ],
)
def test_settings_that_do_not_fit_the_grid_are_refused(name, settings, message):
    with pytest.raises(ValueError, match=message):
        _build(name, **settings)
