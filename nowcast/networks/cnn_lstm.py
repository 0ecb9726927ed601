"""CNN to LSTM: a convolutional network on every frame, an LSTM over time, a decoder to frames.

References
----------
Donahue et al. (2015), Long-term Recurrent Convolutional Networks, arXiv:1411.4389;
Srivastava et al. (2015), Unsupervised Learning of Video Representations, arXiv:1502.04681
"""

from dataclasses import dataclass
from typing import Any


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

    filters: tuple[int, ...] = (16, 24, 32)
    units: int = 256

    @property
    def grid_multiple(self) -> int:
        """Both sides of the grid must be a multiple of this many pixels."""
        return int(2 ** len(self.filters))

    @property
    def any_grid(self) -> bool:
        """Whether weights fitted on one grid can be used on another: the LSTM sees all of it."""
        return False


def build(settings: Settings, *, input_frames: int, lead_frames: int, grid: tuple[int, int]) -> Any:
    """Build the network: the decoder's LSTM starts in the encoder's states.

    Parameters
    ----------
    settings
        See `Settings`.
    input_frames, lead_frames
        Of the window.
    grid : (y, x)
        Pixels.

    Returns
    -------
    keras.Model
        ``(batch, frame, y, x, channel)`` to ``(batch, lead frame, y, x, 1)``.
    """
    import keras
    from keras import layers

    frames = keras.Input((input_frames, *grid, 2), name="frames")
    features = layers.TimeDistributed(_encoder(settings, grid), name="cnn")(frames)
    _, *states = layers.LSTM(settings.units, return_state=True, name="encoder")(features)
    repeated = layers.RepeatVector(lead_frames)(states[0])
    hidden = layers.LSTM(settings.units, return_sequences=True, name="forecaster")(
        repeated, initial_state=states
    )
    rain = layers.TimeDistributed(_decoder(settings, grid), name="decoder")(hidden)
    return keras.Model(frames, rain, name="cnn_lstm")


def _encoder(settings: Settings, grid: tuple[int, int]) -> Any:
    import keras
    from keras import layers

    stack = [
        layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")
        for filters in settings.filters
    ]
    return keras.Sequential([keras.Input((*grid, 2)), *stack, layers.Flatten()])


def _decoder(settings: Settings, grid: tuple[int, int]) -> Any:
    import keras
    from keras import layers

    deepest = settings.filters[-1]
    small = tuple(side // settings.grid_multiple for side in grid)
    stack = [
        layers.Conv2DTranspose(filters, 4, strides=2, padding="same", activation="relu")
        for filters in reversed(settings.filters)
    ]
    return keras.Sequential(
        [
            keras.Input((settings.units,)),
            layers.Dense(small[0] * small[1] * deepest, activation="relu"),
            layers.Reshape((*small, deepest)),
            *stack,
            layers.Conv2D(1, 3, padding="same"),
        ]
    )
