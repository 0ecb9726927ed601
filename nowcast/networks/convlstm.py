"""ConvLSTM encoder-forecaster at several scales.

References
----------
Shi et al. (2015), Convolutional LSTM Network, arXiv:1506.04214: the cell, patches to channels,
the reversed forecaster that starts in the encoder's states;
Shi et al. (2017), Deep Learning for Precipitation Nowcasting, arXiv:1706.03458: strided
convolutions between the layers, so that a deep layer sees motion far in one step.
"""

from dataclasses import dataclass
from typing import Any

from nowcast.networks.heads import Head

VERSION = 1  # raised whenever weights of the network before would no longer fit or mean the same


@dataclass(frozen=True)
class Settings:
    """What a ConvLSTM encoder-forecaster is made of.

    Parameters
    ----------
    patch
        Side of the squares of pixels that are moved to channels before the first layer.
    filters
        Hidden channels of each encoder layer, from the input up; each layer works on half the
        resolution of the one below it.
    kernel
        Side of the recurrent layers' kernels, in patches.
    """

    patch: int = 2
    filters: tuple[int, ...] = (16, 32, 48)
    kernel: int = 3

    @property
    def grid_multiple(self) -> int:
        """Both sides of the grid must be a multiple of this many pixels."""
        return int(self.patch * 2 ** (len(self.filters) - 1))

    @property
    def any_grid(self) -> bool:
        """Whether weights fitted on one grid can be used on another."""
        return True


def build(
    settings: Settings,
    *,
    input_frames: int,
    lead_frames: int,
    grid: tuple[int, int],
    channels: int,
    head: Head,
) -> Any:
    """Build the network: the forecaster's layers mirror the encoder's and start in their states.

    The forecaster's first layer gets no input (zeros), each further one the states of the layer
    above it, at twice the resolution; a 1x1 convolution on the last states gives the lead frames.

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

    def recurrent(filters: int) -> Any:
        return layers.ConvLSTM2D(
            filters, settings.kernel, padding="same", return_sequences=True, return_state=True
        )

    def coarser(filters: int) -> Any:
        return layers.Conv2D(filters, 3, strides=2, padding="same", activation="relu")

    def finer(filters: int) -> Any:
        return layers.Conv2DTranspose(filters, 4, strides=2, padding="same", activation="relu")

    frames = keras.Input((input_frames, *grid, channels), name="frames")
    hidden = to_patches(frames, settings.patch)
    states: list[Any] = []
    for filters in settings.filters:
        if states:
            hidden = on_each_frame(coarser(filters), hidden)
        hidden, *state = recurrent(filters)(hidden)
        states.append(state)
    hidden = ops.zeros_like(ops.repeat(states[-1][0][:, None, ..., :1], lead_frames, axis=1))
    for filters in reversed(settings.filters):
        if len(states) < len(settings.filters):
            hidden = on_each_frame(finer(filters), hidden)
        hidden, *_ = recurrent(filters)(hidden, initial_state=states.pop())
    patches = layers.Conv3D(head.outputs * settings.patch**2, 1, name="rain")(hidden)
    return keras.Model(frames, from_patches(patches, settings.patch), name="convlstm")


def on_each_frame(layer: Any, sequence: Any) -> Any:
    """Apply a layer to every frame at once, time folded into the batch.

    Parameters
    ----------
    layer
        A Keras layer without a state.
    sequence : (batch, frame, y, x, channel)
    """
    from keras import ops

    outputs = layer(ops.reshape(sequence, (-1, *sequence.shape[2:])))
    return ops.reshape(outputs, (-1, sequence.shape[1], *outputs.shape[1:]))


def to_patches(frames: Any, patch: int) -> Any:
    """Move squares of pixels to channels.

    Parameters
    ----------
    frames : (batch, frame, y, x, channel)
        With y and x multiples of `patch`.
    patch
        Side of the squares.

    Returns
    -------
    patches : (batch, frame, y / patch, x / patch, patch * patch * channel)
    """
    from keras import ops

    _, count, height, width, channels = frames.shape
    tall, wide = height // patch, width // patch
    blocks = ops.reshape(frames, (-1, count, tall, patch, wide, patch, channels))
    blocks = ops.transpose(blocks, (0, 1, 2, 4, 3, 5, 6))
    return ops.reshape(blocks, (-1, count, tall, wide, patch * patch * channels))


def from_patches(patches: Any, patch: int) -> Any:
    """Move channels back to squares of pixels, the inverse of `to_patches`."""
    from keras import ops

    _, count, tall, wide, channels = patches.shape
    kept = channels // patch**2
    blocks = ops.reshape(patches, (-1, count, tall, wide, patch, patch, kept))
    blocks = ops.transpose(blocks, (0, 1, 2, 4, 3, 5, 6))
    return ops.reshape(blocks, (-1, count, tall * patch, wide * patch, kept))
