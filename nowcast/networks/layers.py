"""Recurrent convolutional layers, as Keras has them or would have them, and faster.

Keras's own ``ConvLSTM2D`` convolves every frame four times inside its loop over time, and the
state four times more. Here the inputs of all frames are convolved at once before the loop, for all
gates, and the state once per step. On large fields, where this is more than a processor's caches
hold, ``ConvLSTM2D`` goes gate by gate, as Keras does.
"""

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from nowcast.networks.convolution import Convolution, pays_apart, repeated

UNROLLED = 64  # frames; longer loops, and those of unknown length, stay loops
Step = Callable[[Any, list[Any]], list[Any]]  # of the inputs' part of the gates, and the states


class _ConvRecurrent2D(keras.layers.ConvLSTM2D):  # type: ignore[misc]
    """What convolutional recurrent layers share: arguments, inputs before the loop, the loop.

    The arguments and the names of the weights are those of Keras's layer, whose cell keeps the
    weights, so that files of its weights load; its computation is not used.
    """

    GATES: int
    STATES: int

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        *args: Any,
        recurrent_kernel_size: Any = None,
        steps: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(filters, kernel_size, *args, **kwargs)
        given = self.kernel_size if recurrent_kernel_size is None else recurrent_kernel_size
        self.recurrent_kernel_size = (given, given) if isinstance(given, int) else tuple(given)
        self.steps = steps
        self.cell.dropout_mask_count = self.GATES
        if steps:
            self.input_spec = None
        if steps and self.stateful:
            raise ValueError("a layer without input starts in the states it gets: not stateful")

    def build(self, sequences_shape: Any, initial_state_shape: Any = None) -> None:  # noqa: ARG002
        """Make the weights, and the states of a stateful layer."""
        if not self.cell.built:
            self._build_cell(sequences_shape)
            self.cell.built = True
        if self.stateful:
            self._build_states(sequences_shape)

    def _build_cell(self, sequences_shape: Any) -> None:
        """Make the weights, in the order of Keras's layer."""
        cell, outputs = self.cell, self.GATES * self.filters
        if not self.steps:
            channels = sequences_shape[self._channel_axis + 1]
            if channels is None:
                raise ValueError(f"the number of channels is unknown; received {sequences_shape}")
            field = list(sequences_shape[2:])
            del field[self._channel_axis - 1]
            cell.input_dim, cell.spatial_dims = channels, tuple(field)
            cell.kernel = self._add("kernel", (*self.kernel_size, channels, outputs))
        cell.recurrent_kernel = self._add(
            "recurrent_kernel", (*self.recurrent_kernel_size, self.filters, outputs)
        )
        cell.bias = self._add("bias", (outputs,)) if self.use_bias else None

    def compute_output_shape(self, sequences_shape: Any, initial_state_shape: Any = None) -> Any:  # noqa: ARG002
        """Give the shapes of the outputs and, with `return_state`, of the states."""
        if self.steps:
            state, frames = tuple(sequences_shape[0]), self.steps
        else:
            batch, frames, *field = sequences_shape
            state = tuple(self.cell.compute_output_shape((batch, *field))[0])
        output = (state[0], frames, *state[1:]) if self.return_sequences else state
        return (output, *[state] * self.STATES) if self.return_state else output

    def compute_mask(self, inputs: Any, mask: Any) -> Any:
        """Hand the mask of the frames on where frames go out."""
        if self.steps:
            return [None] * (1 + self.STATES) if self.return_state else None
        masks = super().compute_mask(inputs, mask)
        return masks[: 1 + self.STATES] if self.return_state else masks

    def call(
        self, sequences: Any, initial_state: Any = None, mask: Any = None, training: bool = False
    ) -> Any:
        """Go through the frames.

        Parameters
        ----------
        sequences : (batch, frame, y, x, channel)
            With `steps`, the initial states in their place.
        initial_state
            Zeros by default, or the last states if the layer is stateful.
        mask : (batch, frame)
            Frames that are passed over: the states stay as they are.
        training
            Whether to drop out.
        """
        if self.steps:
            sequences, initial_state, mask = None, sequences, None
        inputs = self._inputs(sequences, training)
        states = self._states(inputs, initial_state)
        masks = self.cell.get_recurrent_dropout_mask(states[0])
        step = self._step(states[0], masks if training else None)
        self.cell.reset_dropout_mask()
        self.cell.reset_recurrent_dropout_mask()
        if mask is not None:
            mask = ops.moveaxis(ops.cast(mask, "bool"), 1, 0)
        outputs, states = self._loop(step, inputs, states, mask)
        if self.stateful:
            for variable, state in zip(self.states, states, strict=True):
                variable.assign(state)
        return (outputs, *states) if self.return_state else outputs

    def get_config(self) -> dict[str, Any]:
        """Give what makes the same layer again."""
        return {
            **super().get_config(),
            "recurrent_kernel_size": self.recurrent_kernel_size,
            "steps": self.steps,
        }

    def _step(self, state: Any, masks: list[Any] | None) -> Step:
        """Give what a step does to states like `state`; `masks` say what each gate drops of it."""
        raise NotImplementedError

    def _recurrence(self, kernel: Any, state: Any, masks: list[Any] | None) -> Convolution:
        """Give the recurrent convolution, fused where no gate has a mask of its own."""
        if masks is None:
            return self._repeated(kernel, state)
        kernels = ops.split(kernel, len(masks), axis=-1)
        gates = [self._repeated(part, state) for part in kernels]
        return lambda state: ops.concatenate(
            [gate(state * mask) for gate, mask in zip(gates, masks, strict=True)],
            axis=self._channel_axis,
        )

    def _repeated(self, kernel: Any, fields: Any) -> Convolution:
        return repeated(
            ops.convert_to_tensor(kernel, self.compute_dtype),
            grid=tuple(fields.shape[1:3]) if self._channel_axis == 3 else None,
            data_format=self.data_format,
        )

    @property
    def _plain(self) -> bool:
        """Whether the input convolution leaves the grid as it is."""
        return self.padding == "same" and {*self.strides, *self.dilation_rate} == {1}

    @property
    def _channel_axis(self) -> int:
        """The channels' axis in a batch of fields."""
        return 1 if self.data_format == "channels_first" else 3

    def _add(self, name: str, shape: tuple[int, ...]) -> Any:
        cell, kind = self.cell, name.removesuffix("_kernel")
        initializer = getattr(cell, f"{kind}_initializer")
        return cell.add_weight(
            shape=shape,
            name=name,
            initializer=self._bias_initializer if kind == "bias" else initializer,
            regularizer=getattr(cell, f"{kind}_regularizer"),
            constraint=getattr(cell, f"{kind}_constraint"),
        )

    def _bias_initializer(self, shape: tuple[int, ...], **kwargs: Any) -> Any:
        return self.cell.bias_initializer(shape, **kwargs)

    def _build_states(self, sequences_shape: Any) -> None:
        if self.states is not None:
            self.reset_state()
            return
        if None in (sequences_shape[0], *self.cell.spatial_dims):
            raise ValueError(
                "a stateful layer needs a known batch size, height and width; "
                f"received {sequences_shape}"
            )
        self._create_state_variables(sequences_shape[0])

    def get_initial_state(self, batch_size: int) -> list[Any]:
        """Give states of zeros."""
        return list(self.cell.get_initial_state(batch_size=batch_size))[: self.STATES]

    def _spread(self, vector: Any) -> Any:
        """Give a vector over channels the axes of a batch of fields."""
        return ops.reshape(vector, (1, -1, 1, 1) if self._channel_axis == 1 else (1, 1, 1, -1))

    def _inputs(self, sequences: Any, training: bool) -> Any:
        """Give the inputs' part of the gates, (frame, batch, ...); in no-input mode one for all."""
        if self.steps:
            zeros = ops.zeros((self.GATES * self.filters,), self.compute_dtype)
            return self._spread(zeros if self.cell.bias is None else self.cell.bias)
        sequences = ops.moveaxis(ops.cast(sequences, self.compute_dtype), 1, 0)
        masks = self.cell.get_dropout_mask(sequences[0])
        if masks is None or not training:
            gates = self._convolve(sequences, self.cell.kernel)
        else:
            kernels = ops.split(self.cell.kernel, self.GATES, axis=-1)
            parts = [
                self._convolve(sequences * mask, kernel)
                for mask, kernel in zip(masks, kernels, strict=True)
            ]
            gates = ops.concatenate(parts, axis=self._channel_axis + 1)
        return gates if self.cell.bias is None else gates + self._spread(self.cell.bias)

    def _convolve(self, sequences: Any, kernel: Any) -> Any:
        frames, batch, *field = ops.shape(sequences)
        fields = ops.reshape(sequences, (-1, *field))
        if self._plain:
            fields = self._repeated(kernel, fields)(fields)
        else:
            fields = ops.conv(
                fields,
                kernel,
                strides=self.strides,
                padding=self.padding,
                data_format=self.data_format,
                dilation_rate=self.dilation_rate,
            )
        leading = (-1, batch) if isinstance(batch, int) else (frames, -1)
        return ops.reshape(fields, (*leading, *ops.shape(fields)[1:]))

    def _states(self, inputs: Any, initial_state: Any) -> list[Any]:
        if initial_state is None and self.stateful:
            initial_state = [ops.copy(state) for state in self.states]  # they are assigned to
        if initial_state is None:
            shape = list(ops.shape(inputs)[1:])
            shape[self._channel_axis] = self.filters
            return [ops.zeros(shape, dtype=self.compute_dtype)] * self.STATES
        given = initial_state if isinstance(initial_state, (list, tuple)) else [initial_state]
        if len(given) != self.STATES:
            raise ValueError(f"{self.name!r} has {self.STATES} states; received {len(given)}")
        return [ops.cast(state, self.compute_dtype) for state in given]

    def _loop(self, step: Step, inputs: Any, states: list[Any], mask: Any) -> Any:
        """Go through the frames, in a loop of Python where their number is known and small."""
        frames = self.steps or inputs.shape[0]
        if self.go_backwards and not self.steps:
            inputs = ops.flip(inputs, axis=0)
            mask = None if mask is None else ops.flip(mask, axis=0)

        def advance(carry: list[Any], part: Any, observed: Any) -> list[Any]:
            states = step(part, carry[1:])
            new = [states[0], *states]
            if observed is None:
                return new
            keep = ops.reshape(observed, (-1, 1, 1, 1))
            return [ops.where(keep, *pair) for pair in zip(new, carry, strict=True)]

        carry = [ops.zeros_like(states[0]), *states]
        if frames is None or frames > UNROLLED:
            carry, outputs = _scan(advance, carry, inputs, mask, self.steps)
            outputs = ops.moveaxis(outputs, 0, 1)
        else:
            sequence = []
            parts = [inputs] * frames if self.steps else ops.unstack(inputs, frames)
            masks = [None] * frames if mask is None else ops.unstack(mask, frames)
            for part, observed in zip(parts, masks, strict=True):
                carry = advance(carry, part, observed)
                sequence.append(carry[0])
            outputs = ops.stack(sequence, axis=1) if self.return_sequences else None
        return self._output(carry[0], outputs, mask), carry[1:]

    def _output(self, last: Any, outputs: Any, mask: Any) -> Any:
        if self.return_sequences:
            if mask is not None and self.zero_output_for_mask:
                observed = ops.transpose(mask)[..., None, None, None]
                outputs = ops.where(observed, outputs, 0.0)
            return outputs
        if mask is not None and self.zero_output_for_mask:
            last = ops.where(ops.reshape(mask[-1], (-1, 1, 1, 1)), last, 0.0)
        return last


@keras.saving.register_keras_serializable("nowcast")
class ConvLSTM2D(_ConvRecurrent2D):
    """A convolutional LSTM: Keras's layer with its weights and numbers, and more.

    It takes all arguments of ``keras.layers.ConvLSTM2D``, loads its weights and gives its numbers.
    Height and width may be unknown when it is built. `unroll` says nothing here: the loop is one of
    Python wherever it is known to have at most `UNROLLED` frames.

    Parameters
    ----------
    filters, kernel_size, ...
        As in Keras.
    recurrent_kernel_size
        Side of the kernel from state to state, where it is not that from input to state.
    peepholes
        Whether the gates see the cell, channel by channel: the input and forget gates the cell of
        the step before, the output gate that of the step. Three more vectors of weights, zero at
        first.
    steps
        If not 0, the layer has no input: called on its initial states alone, ``layer([h, c])``, it
        gives as many frames as this. The bias is all that is added to the recurrent convolution.

    References
    ----------
    Shi et al. (2015), Convolutional LSTM Network, arXiv:1506.04214, equation 3, with peepholes that
    are the same for all pixels.

    Examples
    --------
    >>> frames = ops.ones((2, 5, 6, 7, 1))
    >>> _, *states = ConvLSTM2D(8, 3, padding="same", return_state=True)(frames)
    >>> tuple(ConvLSTM2D(8, 3, steps=4, return_sequences=True)(states).shape)
    (2, 4, 6, 7, 8)
    """

    GATES, STATES = 4, 2

    def __init__(self, *args: Any, peepholes: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.peepholes = peepholes

    def _build_cell(self, sequences_shape: Any) -> None:
        super()._build_cell(sequences_shape)
        if self.peepholes:
            self.cell.peepholes = self.cell.add_weight(
                shape=(3, self.filters), name="peepholes", initializer="zeros"
            )

    def get_config(self) -> dict[str, Any]:
        """Give what makes the same layer again."""
        return {**super().get_config(), "peepholes": self.peepholes}

    def _bias_initializer(self, shape: tuple[int, ...], **kwargs: Any) -> Any:
        cell = self.cell
        if not cell.unit_forget_bias:
            return cell.bias_initializer(shape, **kwargs)
        parts = [cell.bias_initializer((size * self.filters,), **kwargs) for size in (1, 2)]
        return ops.concatenate([parts[0], ops.ones_like(parts[0]), parts[1]])

    def _inputs(self, sequences: Any, training: bool) -> Any:
        """Give the inputs' part of the gates, or the inputs as they are if gates go one by one."""
        if self.steps or not self._apart(self.cell.spatial_dims):
            return super()._inputs(sequences, training)
        return ops.moveaxis(ops.cast(sequences, self.compute_dtype), 1, 0)

    def _apart(self, grid: Any) -> bool:
        """Tell whether each gate is convolved by itself."""
        if self.dropout or self.recurrent_dropout or self._channel_axis == 1 or not self._plain:
            return False
        kernel = ops.convert_to_tensor(self.cell.recurrent_kernel, self.compute_dtype)
        return pays_apart(kernel, tuple(grid))

    def _gates(self, state: Any, masks: list[Any] | None) -> Callable[[Any, Any], list[Any]]:
        """Give what gives the gates, from the inputs' part of them and the state."""
        cell, axis = self.cell, self._channel_axis
        if not self._apart(state.shape[1:3] if self.steps else cell.spatial_dims):
            convolve = self._recurrence(cell.recurrent_kernel, state, masks)
            return lambda part, state: ops.split(part + convolve(state), 4, axis=axis)
        remember = self._each(cell.recurrent_kernel)
        see = None if self.steps else self._each(cell.kernel)
        bias = None if cell.bias is None else ops.split(self._spread(cell.bias), 4, axis=axis)

        def gates(part: Any, state: Any) -> list[Any]:
            parts = [see_one(part) for see_one in see] if see else ops.split(part, 4, axis=axis)
            if see and bias:
                parts = [one + shift for one, shift in zip(parts, bias, strict=True)]
            return [one + convolve(state) for one, convolve in zip(parts, remember, strict=True)]

        return gates

    def _each(self, kernel: Any) -> list[Convolution]:
        """Give the convolution of each gate."""
        kernels = ops.split(ops.convert_to_tensor(kernel, self.compute_dtype), 4, axis=-1)
        return [repeated(one) for one in kernels]

    def _step(self, state: Any, masks: list[Any] | None) -> Step:
        gates = self._gates(state, masks)
        seen_by_input = seen_by_forget = seen_by_output = None
        if self.peepholes:
            seen_by_input, seen_by_forget, seen_by_output = [
                self._spread(self.cell.peepholes[row]) for row in range(3)
            ]
        gate, activation = self.recurrent_activation, self.activation

        def step(part: Any, states: list[Any]) -> list[Any]:
            hidden, cell = states
            i, f, c, o = gates(part, hidden)
            if seen_by_input is not None:
                i, f = i + seen_by_input * cell, f + seen_by_forget * cell
            cell = gate(f) * cell + gate(i) * activation(c)
            if seen_by_output is not None:
                o = o + seen_by_output * cell
            return [gate(o) * activation(cell), cell]

        return step


@keras.saving.register_keras_serializable("nowcast")
class ConvGRU2D(_ConvRecurrent2D):
    """A convolutional GRU, with the arguments and extras of `ConvLSTM2D` that make sense for it.

    With update gate z and reset gate r, the state becomes ``z * h + (1 - z) * candidate``: z keeps
    the old state, as in Keras's GRU. The weights hold z, r and the candidate, in this order.

    Parameters
    ----------
    filters, kernel_size, ...
        As in Keras's ``ConvLSTM2D``, but without `unit_forget_bias`.
    recurrent_kernel_size, steps
        As in `ConvLSTM2D`; with `steps` it is called on ``[h]``.
    reset_after
        Whether the reset gate meets the state after the recurrent convolution, as in Shi et al.,
        which then is one for all gates, or before it, as in Ballas et al.

    References
    ----------
    Ballas et al. (2016), Delving Deeper into Convolutional Networks for Learning Video
    Representations, arXiv:1511.06432; Shi et al. (2017), Deep Learning for Precipitation
    Nowcasting, arXiv:1706.03458, equation 1 (with the leaky rectifier as activation).

    Examples
    --------
    >>> frames = ops.ones((2, 5, 6, 7, 1))
    >>> _, state = ConvGRU2D(8, 3, padding="same", return_state=True)(frames)
    >>> tuple(ConvGRU2D(8, 3, steps=4, return_sequences=True)([state]).shape)
    (2, 4, 6, 7, 8)
    """

    GATES, STATES = 3, 1

    def __init__(self, *args: Any, reset_after: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reset_after = reset_after

    def get_config(self) -> dict[str, Any]:
        """Give what makes the same layer again."""
        config = {**super().get_config(), "reset_after": self.reset_after}
        del config["unit_forget_bias"]
        return config

    def _step(self, state: Any, masks: list[Any] | None) -> Step:
        kernel, axis = self.cell.recurrent_kernel, self._channel_axis
        gate, activation, before = self.recurrent_activation, self.activation, 2 * self.filters
        if self.reset_after:
            convolve = self._recurrence(kernel, state, masks)
        else:
            convolve = self._recurrence(kernel[..., :before], state, masks and masks[:2])
            again = self._recurrence(kernel[..., before:], state, masks and masks[2:])

        def step(part: Any, states: list[Any]) -> list[Any]:
            (hidden,) = states
            seen = ops.split(part, 3, axis=axis)
            z, r, *after = ops.split(convolve(hidden), 3 if self.reset_after else 2, axis=axis)
            z, r = gate(seen[0] + z), gate(seen[1] + r)
            reset = r * after[0] if after else again(r * hidden)
            return [z * hidden + (1.0 - z) * activation(seen[2] + reset)]

        return step


def _scan(
    advance: Callable[..., list[Any]], carry: list[Any], inputs: Any, mask: Any, steps: int
) -> tuple[list[Any], Any]:
    """Go through frames in a loop of the backend; give what is carried last, and the outputs."""

    def body(carry: list[Any], frame: Any) -> tuple[list[Any], list[Any]]:
        part = inputs if steps else frame[0]
        carry = advance(carry, part, None if mask is None else frame[-1])
        return carry, carry

    frames = None if steps else [inputs] if mask is None else [inputs, mask]
    carry, carried = ops.scan(body, carry, frames, length=steps or None)
    return carry, carried[0]


@keras.saving.register_keras_serializable("nowcast")
class TimeDistributed(keras.layers.TimeDistributed):  # type: ignore[misc]
    """A layer or a whole network applied to every frame, with Keras's numbers, faster.

    Keras calls the layer once per frame. Here frames become samples of one larger batch and the
    layer is called once, wherever this cannot change a number: where no part of the layer keeps a
    state that the call reads and changes. Batch normalisation in training (Keras normalises each
    frame by itself), dropout in training (Keras draws for each frame), a stateful recurrent layer
    and any state that is not known go Keras's own way, frame by frame. Outside of training, and
    where it is frozen, batch normalisation changes nothing; nor does dropout outside of training.

    A layer that mixes the samples of a batch without keeping a state, as no layer of Keras does,
    would mix frames as well: use Keras's for it.

    Parameters
    ----------
    layer
        Of one frame, ``(batch, ...)``. One that is called once may give several outputs.
    **kwargs
        As Keras's. The ``dtype`` is by default the layer's own, so that one that computes in 32
        bits within a network of mixed precision does so here too.

    Examples
    --------
    >>> fields = TimeDistributed(keras.layers.Conv2D(4, 3, strides=2))(ops.ones((2, 5, 9, 7, 1)))
    >>> tuple(fields.shape)
    (2, 5, 4, 3, 4)
    """

    def __init__(self, layer: Any, **kwargs: Any) -> None:
        if isinstance(layer, keras.Layer):
            kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, **kwargs)

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Give the shape of the layer's outputs, with the frames after the batch."""
        of_frame = self.layer.compute_output_shape(self._get_child_input_shape(input_shape))
        return keras.tree.map_shape_structure(
            lambda shape: (shape[0], input_shape[1], *shape[1:]), of_frame
        )

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        """Give the layer's outputs for each frame.

        Parameters
        ----------
        inputs : (batch, frame, ...)
        training
            Passed on to the layer, if it takes it.
        mask : (batch, frame, ...)
            Likewise.
        """
        changes = any(_changes(part, training=training) for part in self.layer._flatten_layers())
        if changes or (mask is not None and mask.shape[:2] != inputs.shape[:2]):
            return super().call(inputs, training=training, mask=mask)  # which may refuse the mask
        arguments: dict[str, Any] = {}
        if self.layer._call_has_training_arg:
            arguments["training"] = training
        if self.layer._call_has_mask_arg and mask is not None:
            arguments["mask"] = _with_frames_as_samples(mask)
        outputs = self.layer.call(_with_frames_as_samples(inputs), **arguments)
        batch, frames = ops.shape(inputs)[:2]
        return keras.tree.map_structure(
            lambda output: ops.reshape(output, (batch, frames, *ops.shape(output)[1:])), outputs
        )


@keras.saving.register_keras_serializable("nowcast")
class Frozen(TimeDistributed):
    """A network applied to every frame as it is: not trained, and in inference in training too.

    Freezing alone would leave its dropout at work in training.
    """

    def __init__(self, layer: Any, **kwargs: Any) -> None:
        super().__init__(layer, **kwargs)
        self.layer.trainable = False

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:  # noqa: ARG002
        """Give the network's outputs for each frame, out of training."""
        return super().call(inputs, training=False, mask=mask)


def _with_frames_as_samples(sequence: Any) -> Any:
    return ops.reshape(sequence, (-1, *ops.shape(sequence)[2:]))


def _changes(part: Any, *, training: bool | None) -> bool:
    """Tell whether a call of a layer may change a state that the layer itself keeps."""
    if getattr(part, "stateful", False):
        return True
    if not (part._non_trainable_variables or part._seed_generators):
        return False
    if isinstance(part, keras.layers.Normalization):  # what `adapt` found
        return False
    if isinstance(part, keras.layers.BatchNormalization):
        return bool(training and part.trainable)
    if isinstance(part, _RANDOM_IN_TRAINING):
        return bool(training)
    return True


_RANDOM_IN_TRAINING = (
    keras.layers.AlphaDropout,
    keras.layers.Dropout,
    keras.layers.GaussianDropout,
    keras.layers.GaussianNoise,
    keras.layers.GRUCell,
    keras.layers.LSTMCell,
    keras.layers.SimpleRNNCell,
)
