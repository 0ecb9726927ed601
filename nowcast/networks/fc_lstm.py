"""FC-LSTM: an encoder-forecaster that sees a whole frame as one vector; a baseline.

References
----------
Shi et al. (2015), Convolutional LSTM Network, arXiv:1506.04214, section 4.1: the network, with
``units=(2048, 2048)``;
Srivastava et al. (2015), Unsupervised Learning of Video Representations, arXiv:1502.04681
"""

import math
from dataclasses import dataclass
from typing import Any

from nowcast.networks.sizes import check_layers
from nowcast.networks.tasks import Task

VERSION = 1  # raised whenever weights of the network before would no longer fit or mean the same


@dataclass(frozen=True)
class Settings:
    """What an FC-LSTM is made of.

    Parameters
    ----------
    units
        Of each encoder layer, from the input up; the forecaster mirrors them.
    """

    units: tuple[int, ...] = (256, 256)

    def __post_init__(self) -> None:
        """Refuse what no network can be made of."""
        check_layers(units=self.units)

    @property
    def grid_multiple(self) -> int:
        """Both sides of the grid must be a multiple of this many pixels."""
        return 1

    @property
    def any_grid(self) -> bool:
        """Whether weights fitted on one grid can be used on another: each pixel has its own."""
        return False


def build(settings: Settings, task: Task) -> Any:
    """Build the network: the forecaster's layers mirror the encoder's and start in their states.

    The forecaster's first layer gets no input, each further one the states of the layer above it;
    a dense layer on the last one's hidden state gives a lead frame.

    Parameters
    ----------
    settings
        See `Settings`.
    task
        What it is built for.
    """
    import keras
    from keras import ops

    from nowcast.networks.lstm import PeepholeLSTM

    frames = keras.Input(task.shape, name="frames")
    hidden = ops.reshape(frames, (-1, task.input_frames, math.prod(task.grid) * task.channels))
    states = []
    for units in settings.units:
        hidden, *state = PeepholeLSTM(units)(hidden)
        states.append(state)
    hidden, *_ = PeepholeLSTM(settings.units[-1], steps=task.lead_frames)(states[-1])
    for units, state in zip(settings.units[-2::-1], states[-2::-1], strict=True):
        hidden, *_ = PeepholeLSTM(units)(hidden, initial_state=state)
    rain = keras.layers.Dense(
        math.prod(task.grid) * task.head.outputs, name="rain", dtype="float32"
    )
    fields = ops.reshape(rain(hidden), (-1, task.lead_frames, *task.grid, task.head.outputs))
    return keras.Model(frames, fields, name="fc_lstm")
