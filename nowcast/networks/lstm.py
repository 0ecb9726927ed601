"""An LSTM whose gates see the cell.

References
----------
Graves (2013), Generating Sequences With Recurrent Neural Networks, arXiv:1308.0850, equations 7
to 11: peepholes that are one number per unit
"""

from typing import Any

import keras
from keras import ops


@keras.saving.register_keras_serializable("nowcast")
class PeepholeLSTM(keras.layers.Layer):  # type: ignore[misc]
    """A fully connected LSTM with peepholes, which Keras's has not.

    The input and the forget gate see the cell of the step before, the output gate that of the
    step. The inputs of all frames are multiplied at once, before the loop over time. With peepholes
    of zero it is Keras's ``LSTM``, whose first three weights fit it.

    Parameters
    ----------
    units
        Of the state.
    steps
        If not 0, the layer has no input: called on its initial states alone, ``layer([h, c])``, it
        gives as many frames as this.

    Examples
    --------
    >>> hidden, *states = PeepholeLSTM(8)(ops.ones((2, 5, 3)))
    >>> tuple(PeepholeLSTM(8, steps=4)(states)[0].shape)
    (2, 4, 8)
    """

    def __init__(self, units: int, *, steps: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.units, self.steps = units, steps

    def build(self, sequences_shape: Any, initial_state_shape: Any = None) -> None:  # noqa: ARG002
        """Make the weights: for input gate, forget gate, candidate and output gate."""
        gates = 4 * self.units
        if not self.steps:
            self.kernel = self.add_weight(name="kernel", shape=(sequences_shape[-1], gates))
        self.recurrent_kernel = self.add_weight(
            name="recurrent_kernel", shape=(self.units, gates), initializer="orthogonal"
        )
        self.bias = self.add_weight(name="bias", shape=(gates,), initializer=self._first_bias)
        self.peepholes = self.add_weight(
            name="peepholes", shape=(3, self.units), initializer="zeros"
        )

    def compute_output_shape(self, sequences_shape: Any, initial_state_shape: Any = None) -> Any:  # noqa: ARG002
        """Give the shapes of the frames and of the last states."""
        batch = sequences_shape[0][0] if self.steps else sequences_shape[0]
        state = (batch, self.units)
        return (batch, self.steps or sequences_shape[1], self.units), state, state

    def call(self, sequences: Any, initial_state: Any = None) -> Any:
        """Go through the frames.

        Parameters
        ----------
        sequences : (batch, frame, feature)
            With `steps`, the initial states in their place.
        initial_state
            Hidden state and cell; zeros by default.

        Returns
        -------
        frames, hidden, cell
            The hidden state at each frame, and the last states.
        """
        if self.steps:
            hidden, cell = sequences
            parts = [self.bias] * self.steps
        else:
            parts = ops.unstack(ops.matmul(sequences, self.kernel) + self.bias, axis=1)
            hidden, cell = initial_state or [ops.zeros_like(parts[0][:, : self.units])] * 2
        seen_by_input, seen_by_forget, seen_by_output = (self.peepholes[gate] for gate in range(3))
        frames = []
        for part in parts:
            gates = part + ops.matmul(hidden, self.recurrent_kernel)
            i, f, c, o = ops.split(gates, 4, axis=-1)
            i, f = ops.sigmoid(i + seen_by_input * cell), ops.sigmoid(f + seen_by_forget * cell)
            cell = f * cell + i * ops.tanh(c)
            hidden = ops.sigmoid(o + seen_by_output * cell) * ops.tanh(cell)
            frames.append(hidden)
        return ops.stack(frames, axis=1), hidden, cell

    def get_config(self) -> dict[str, Any]:
        """Give what makes the same layer again."""
        return {**super().get_config(), "units": self.units, "steps": self.steps}

    def _first_bias(self, shape: Any, dtype: Any = None) -> Any:
        """Give zeros, and ones for the forget gate, so that cells are kept at first."""
        forget, others = ops.ones((self.units,), dtype), ops.zeros((self.units,), dtype)
        return ops.reshape(ops.concatenate([others, forget, others, others]), shape)
