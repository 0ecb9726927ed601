"""CNN to LSTM: a convolutional network on every frame, an LSTM over time, a decoder to frames.

References
----------
Donahue et al. (2015), Long-term Recurrent Convolutional Networks, arXiv:1411.4389;
Srivastava et al. (2015), Unsupervised Learning of Video Representations, arXiv:1502.04681
"""

import math
from dataclasses import dataclass
from typing import Any

from nowcast.networks.heads import Head

VERSION = 1  # raised whenever weights of the network before would no longer fit or mean the same


@dataclass(frozen=True)
class Settings:
    """What a CNN to LSTM network is made of.

    Parameters
    ----------
    filters
        Channels of the convolutions of stride 2, from the frame down.
    units
        Of the LSTM.
    """

    filters: tuple[int, ...] = (8, 16, 24)
    units: int = 128

    @property
    def grid_multiple(self) -> int:
        """Both sides of the grid must be a multiple of this many pixels."""
        return int(2 ** len(self.filters))

    @property
    def any_grid(self) -> bool:
        """Whether weights fitted on one grid can be used on another: the LSTM sees all of it."""
        return False


def build(
    settings: Settings,
    *,
    input_frames: int,
    lead_frames: int,
    grid: tuple[int, int],
    channels: int,
    head: Head,
) -> Any:
    """Build the network: the forecaster's LSTM starts in the encoder's states.

    One vector cannot hold a rain field, so at each scale the decoder also sees the features of the
    last input frame: the LSTM says what becomes of it.

    Parameters
    ----------
    settings
        See `Settings`.
    input_frames, lead_frames
        Of the window.
    grid : (y, x)
        Pixels.
    channels
        Of the input.
    head
        How many outputs there are.

    Returns
    -------
    keras.Model
        ``(batch, frame, y, x, channel)`` to ``(batch, lead frame, y, x, output)``.
    """
    import keras
    from keras import layers, ops

    def on_each_frame(layer: Any) -> Any:
        return layers.TimeDistributed(layer)

    def last_frame(sequence: Any) -> Any:
        return ops.repeat(sequence[:, -1:], lead_frames, axis=1)

    frames = keras.Input((input_frames, *grid, channels), name="frames")
    scales = [frames]
    for filters in settings.filters:
        convolution = layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")
        scales.append(on_each_frame(convolution)(scales[-1]))
    features = on_each_frame(layers.Flatten())(scales[-1])
    _, *states = layers.LSTM(settings.units, return_state=True, name="encoder")(features)
    repeated = layers.RepeatVector(lead_frames)(states[0])
    hidden = layers.LSTM(settings.units, return_sequences=True, name="forecaster")(
        repeated, initial_state=states
    )
    deepest = scales[-1].shape[2:]
    field = on_each_frame(layers.Dense(math.prod(deepest), activation="relu"))(hidden)
    field = ops.reshape(field, (-1, lead_frames, *deepest))
    for filters, scale in zip(reversed(settings.filters), reversed(scales[1:]), strict=True):
        field = ops.concatenate([field, last_frame(scale)], axis=-1)
        larger = layers.Conv2DTranspose(filters, 4, strides=2, padding="same", activation="relu")
        field = on_each_frame(larger)(field)
    field = ops.concatenate([field, last_frame(frames)], axis=-1)
    rain = on_each_frame(layers.Conv2D(head.outputs, 3, padding="same", name="rain"))(field)
    return keras.Model(frames, rain, name="cnn_lstm")
