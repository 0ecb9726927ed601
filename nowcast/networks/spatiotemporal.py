"""A convolutional LSTM with a second memory, which goes through the layers.

References
----------
Wang et al. (2022), PredRNN: A Recurrent Neural Network for Spatiotemporal Predictive Learning,
arXiv:2103.09504, doi:10.1109/TPAMI.2022.3165153, section 3.2
"""

from typing import Any

import keras
from keras import ops

from nowcast.networks.convolution import repeated


@keras.saving.register_keras_serializable("nowcast")
class SpatiotemporalLSTM2D(keras.layers.Layer):  # type: ignore[misc]
    """One step of an ST-LSTM: a cell that stays in its layer, and a memory that passes through.

    Parameters
    ----------
    filters
        Of the hidden state, the cell and the memory.
    kernel_size
        Side of the kernels.

    Examples
    --------
    >>> step = SpatiotemporalLSTM2D(8, 3)
    >>> hidden, cell, memory = step(ops.ones((2, 6, 7, 4)))
    >>> hidden, cell, memory = step(ops.ones((2, 6, 7, 4)), hidden, cell, memory)
    >>> tuple(hidden.shape)
    (2, 6, 7, 8)
    """

    def __init__(self, filters: int, kernel_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters, self.kernel_size = filters, kernel_size

    def build(
        self,
        inputs_shape: Any,
        hidden_shape: Any = None,  # noqa: ARG002
        cell_shape: Any = None,  # noqa: ARG002
        memory_shape: Any = None,  # noqa: ARG002
    ) -> None:
        """Make the weights, each for as many gates as see what it is multiplied with."""
        filters = self.filters
        self.kernel = self._add("kernel", self.kernel_size, inputs_shape[-1], 7 * filters)
        self.recurrent_kernel = self._add(
            "recurrent_kernel", self.kernel_size, filters, 4 * filters
        )
        self.memory_kernel = self._add("memory_kernel", self.kernel_size, filters, 3 * filters)
        self.output_kernel = self._add("output_kernel", self.kernel_size, 2 * filters, filters)
        self.merging_kernel = self._add("merging_kernel", 1, 2 * filters, filters)
        self.bias = self.add_weight(name="bias", shape=(7 * filters,), initializer=self._first_bias)

    def compute_output_shape(
        self,
        inputs_shape: Any,
        hidden_shape: Any = None,  # noqa: ARG002
        cell_shape: Any = None,  # noqa: ARG002
        memory_shape: Any = None,  # noqa: ARG002
    ) -> Any:
        """Give the shapes of the hidden state, the cell and the memory."""
        return ((*inputs_shape[:-1], self.filters),) * 3

    def call(self, inputs: Any, hidden: Any = None, cell: Any = None, memory: Any = None) -> Any:
        """Go one step further.

        Parameters
        ----------
        inputs : (batch, y, x, channel)
            The frame, or the hidden state of the layer below.
        hidden, cell : (batch, y, x, filter)
            Of this layer, of the step before; none at the first step.
        memory : (batch, y, x, filter)
            Of the layer below, or of the uppermost layer of the step before; none at first.

        Returns
        -------
        hidden, cell, memory
        """
        parts = ops.split(repeated(self.kernel)(inputs) + self.bias, 7, axis=-1)
        (i, f, g, o), (memory_i, memory_f, memory_g) = parts[:4], parts[4:]
        if hidden is not None:
            seen = ops.split(repeated(self.recurrent_kernel)(hidden), 4, axis=-1)
            i, f, g, o = i + seen[0], f + seen[1], g + seen[2], o + seen[3]
        if memory is not None:
            seen = ops.split(repeated(self.memory_kernel)(memory), 3, axis=-1)
            memory_i, memory_f, memory_g = (
                memory_i + seen[0],
                memory_f + seen[1],
                memory_g + seen[2],
            )
        cell = _renewed(cell, i, f, g)
        memory = _renewed(memory, memory_i, memory_f, memory_g)
        both = ops.concatenate([cell, memory], axis=-1)
        opened = ops.sigmoid(o + repeated(self.output_kernel)(both))
        return opened * ops.tanh(repeated(self.merging_kernel)(both)), cell, memory

    def get_config(self) -> dict[str, Any]:
        """Give what makes the same layer again."""
        return {**super().get_config(), "filters": self.filters, "kernel_size": self.kernel_size}

    def _add(self, name: str, side: int, channels: int, outputs: int) -> Any:
        return self.add_weight(name=name, shape=(side, side, channels, outputs))

    def _first_bias(self, shape: Any, dtype: Any = None) -> Any:
        """Give zeros, and ones for the two forget gates, so that memories are kept at first."""
        gates = [0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        return ops.reshape(ops.repeat(ops.cast(gates, dtype), self.filters), shape)


def _renewed(kept: Any, i: Any, f: Any, g: Any) -> Any:
    """Give a cell or a memory, none at first, after its input and forget gate and candidate."""
    new = ops.sigmoid(i) * ops.tanh(g)
    return new if kept is None else ops.sigmoid(f) * kept + new
