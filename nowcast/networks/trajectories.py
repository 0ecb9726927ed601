"""A recurrent layer whose links follow the motion: each pixel sees where its air came from.

References
----------
Shi et al. (2017), Deep Learning for Precipitation Nowcasting, arXiv:1706.03458, section 3.3
"""

from typing import Any

import keras
from keras import ops

from nowcast.networks.convolution import repeated

SLOPE = 0.2  # of the leaky rectifier, for values below 0; Shi et al. (2017)
FLOW_FEATURES = 32  # of the hidden layer that gives the flows; Shi et al. (2017)


@keras.saving.register_keras_serializable("nowcast")
class TrajGRU2D(keras.layers.Layer):  # type: ignore[misc]
    """A GRU whose state is gathered along flows that it finds itself, at each pixel and step.

    Two convolutions on the inputs and the state give `links` flows for each pixel. The state is
    warped by each; the gates and the candidate see all the warped states of their own pixel. The
    rest is as in `nowcast.networks.layers.ConvGRU2D` with ``reset_after=True``.

    Parameters
    ----------
    filters
        Of the state.
    kernel_size
        Side of the kernels from the inputs to the gates.
    links
        Flows.
    flow_kernel_size
        Side of the kernels from the inputs and the state to the flows.
    steps
        If not 0, the layer has no input: called on its initial state alone, ``layer([h])``, it
        gives as many frames as this.

    Examples
    --------
    >>> hidden, state = TrajGRU2D(8, 3, links=5)(ops.ones((2, 5, 6, 7, 1)))
    >>> tuple(TrajGRU2D(8, 3, links=5, steps=4)([state])[0].shape)
    (2, 4, 6, 7, 8)
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        *,
        links: int,
        flow_kernel_size: int = 5,
        steps: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.filters, self.kernel_size, self.links = filters, kernel_size, links
        self.flow_kernel_size, self.steps = flow_kernel_size, steps

    def build(self, sequences_shape: Any, initial_state_shape: Any = None) -> None:  # noqa: ARG002
        """Make the weights; without input, there are none for the inputs."""
        side, gates = self.flow_kernel_size, 3 * self.filters
        if not self.steps:
            channels = sequences_shape[-1]
            self.kernel = self._add("kernel", (*[self.kernel_size] * 2, channels, gates))
            self.flow_kernel = self._add("flow_kernel", (side, side, channels, FLOW_FEATURES))
        self.recurrent_kernel = self._add(
            "recurrent_kernel", (self.links * self.filters, gates), "orthogonal"
        )
        self.bias = self._add("bias", (gates,), "zeros")
        self.flow_recurrent_kernel = self._add(
            "flow_recurrent_kernel", (side, side, self.filters, FLOW_FEATURES)
        )
        self.flow_bias = self._add("flow_bias", (FLOW_FEATURES,), "zeros")
        self.flow_output_kernel = self._add(
            "flow_output_kernel", (side, side, FLOW_FEATURES, 2 * self.links)
        )
        self.flow_output_bias = self._add("flow_output_bias", (2 * self.links,), "zeros")

    def compute_output_shape(self, sequences_shape: Any, initial_state_shape: Any = None) -> Any:  # noqa: ARG002
        """Give the shapes of the frames and of the last state."""
        if self.steps:
            (state,), frames = sequences_shape, self.steps
        else:
            batch, frames, *field, _ = sequences_shape
            state = (batch, *field, self.filters)
        return (state[0], frames, *state[1:]), state

    def call(self, sequences: Any, initial_state: Any = None) -> Any:
        """Go through the frames.

        Parameters
        ----------
        sequences : (batch, frame, y, x, channel)
            With `steps`, the initial state in their place.
        initial_state
            Zeros by default.

        Returns
        -------
        frames, state
            The state at each frame, and the last.
        """
        if self.steps:
            (state,) = sequences
            parts = [(self.bias, self.flow_bias)] * self.steps
        else:
            parts = self._inputs(sequences)
            state = initial_state
            if state is None:
                state = ops.zeros_like(parts[0][0][..., : self.filters])
            elif isinstance(state, (list, tuple)):
                (state,) = state
        convolve = repeated(self.flow_recurrent_kernel), repeated(self.flow_output_kernel)
        frames = []
        for gates, flow in parts:
            features = ops.leaky_relu(flow + convolve[0](state), SLOPE)
            flows = convolve[1](features) + self.flow_output_bias
            state = self._step(gates, state, flows)
            frames.append(state)
        return ops.stack(frames, axis=1), state

    def get_config(self) -> dict[str, Any]:
        """Give what makes the same layer again."""
        names = ("filters", "kernel_size", "links", "flow_kernel_size", "steps")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    def _add(self, name: str, shape: tuple[int, ...], initializer: str = "glorot_uniform") -> Any:
        return self.add_weight(name=name, shape=shape, initializer=initializer)

    def _inputs(self, sequences: Any) -> list[tuple[Any, Any]]:
        """Give what the inputs of each frame add to the gates and to the flows' hidden layer."""
        frames, field = sequences.shape[1], sequences.shape[2:]
        fields = ops.reshape(sequences, (-1, *field))
        parts = []
        for kernel, bias in ((self.kernel, self.bias), (self.flow_kernel, self.flow_bias)):
            added = ops.conv(fields, kernel, padding="same") + bias
            parts.append(ops.unstack(ops.reshape(added, (-1, frames, *added.shape[1:])), axis=1))
        return list(zip(*parts, strict=True))

    def _step(self, gates: Any, state: Any, flows: Any) -> Any:
        height, width, channels = state.shape[1:]
        gathered = warp(state, ops.reshape(flows, (-1, height, width, self.links, 2)))
        gathered = ops.reshape(gathered, (-1, height, width, self.links * channels))
        seen = ops.matmul(gathered, self.recurrent_kernel)
        z, r, candidate = ops.split(gates, 3, axis=-1)
        seen_by_z, seen_by_r, seen_by_candidate = ops.split(seen, 3, axis=-1)
        z, r = ops.sigmoid(z + seen_by_z), ops.sigmoid(r + seen_by_r)
        return z * state + (1.0 - z) * ops.leaky_relu(candidate + r * seen_by_candidate, SLOPE)


def warp(fields: Any, flows: Any) -> Any:
    """Give fields as they are where flows point, between pixels by bilinear interpolation.

    Parameters
    ----------
    fields : (batch, y, x, channel)
    flows : (batch, y, x, link, 2)
        Pixels along y and along x, from each pixel to where it looks; in 32 bits or more, as
        half a pixel is lost beyond 128 of them in bfloat16.

    Returns
    -------
    warped : (batch, y, x, link, channel)
        Zero from beyond the grid.

    Examples
    --------
    >>> fields = ops.reshape(ops.arange(4.0), (1, 1, 4, 1))
    >>> flows = ops.ones((1, 1, 4, 1, 2)) * ops.array([0.0, 0.5])
    >>> [float(value) for value in ops.reshape(warp(fields, flows), -1)]
    [0.5, 1.5, 2.5, 1.5]
    """
    height, width, channels = fields.shape[1:]
    flows = ops.cast(flows, "float32")
    rows, by_row = _neighbours(flows[..., 0] + _along((height, 1, 1)), height)
    columns, by_column = _neighbours(flows[..., 1] + _along((width, 1)), width)
    weights = ops.cast(by_row[..., :, None] * by_column[..., None, :], fields.dtype)
    # Fields lie in one list of pixels, so that one index finds a pixel of a field of the batch.
    pixels = ops.reshape(fields, (-1, channels))
    first = ops.arange(ops.shape(fields)[0], dtype="int32") * (height * width)
    places = ops.cast(rows[..., :, None] * width + columns[..., None, :], "int32")
    found = ops.take(pixels, ops.reshape(first, (-1, 1, 1, 1, 1, 1)) + places, axis=0)
    return ops.sum(found * weights[..., None], axis=(-3, -2))


def _along(shape: tuple[int, ...]) -> Any:
    return ops.reshape(ops.arange(shape[0], dtype="float32"), shape)


def _neighbours(places: Any, size: int) -> tuple[Any, Any]:
    """Give the two pixels beside each place along an axis, and their weights, 0 beyond the grid."""
    # Whatever is further out sees nothing either, and its index must be finite.
    places = ops.clip(places, -1.0, size)
    first = ops.floor(places)
    beyond = places - first
    pixels = ops.stack([first, first + 1.0], axis=-1)
    weights = ops.stack([1.0 - beyond, beyond], axis=-1)
    weights = ops.where((pixels >= 0) & (pixels < size), weights, 0.0)
    return ops.clip(pixels, 0, size - 1), weights
