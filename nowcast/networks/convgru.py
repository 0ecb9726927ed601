"""ConvGRU encoder-forecaster at several scales.

References
----------
Shi et al. (2017), Deep Learning for Precipitation Nowcasting, arXiv:1706.03458: for frames of
480 x 480 ``features=8, filters=(64, 192, 192), strides=(5, 3, 2), kernel=(5, 5, 3)``
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nowcast.networks.sizes import (
    check_fits,
    check_layers,
    check_odd,
    check_positive,
    for_each_layer,
)
from nowcast.networks.tasks import Task

VERSION = 1  # raised whenever weights of the network before would no longer fit or mean the same


@dataclass(frozen=True)
class Settings:
    """What a ConvGRU encoder-forecaster is made of.

    Parameters
    ----------
    features
        Channels of the convolutions next to the frames.
    filters
        Hidden channels of each encoder layer, from the input up; the forecaster mirrors them.
    strides
        How many times coarser each layer works than the one below it, or than the frames.
    kernel
        Side of the state-to-state kernels, in pixels of the layer: one for all, or one per layer.
    input_kernel
        Side of every layer's input-to-state kernel.
    """

    features: int = 8
    filters: tuple[int, ...] = (16, 32, 48)
    strides: tuple[int, ...] = (2, 2, 2)
    kernel: int | tuple[int, ...] = (5, 5, 3)
    input_kernel: int = 3

    def __post_init__(self) -> None:
        """Refuse what no network can be made of."""
        check_positive(features=self.features)
        check_layers(filters=self.filters)
        for_each_layer("strides", self.strides, len(self.filters))
        check_odd(kernel=self.kernels, input_kernel=self.input_kernel)

    @property
    def kernels(self) -> tuple[int, ...]:
        """Side of each layer's state-to-state kernel."""
        return for_each_layer("kernel", self.kernel, len(self.filters))

    @property
    def grid_multiple(self) -> int:
        """Both sides of the grid must be a multiple of this many pixels."""
        return math.prod(self.strides)

    @property
    def any_grid(self) -> bool:
        """Whether weights fitted on one grid can be used on another."""
        return True


def build(settings: Settings, task: Task) -> Any:
    """Build the network; see `encode_and_forecast`.

    Parameters
    ----------
    settings
        See `Settings`.
    task
        What it is built for.

    Raises
    ------
    ValueError
        If a kernel cannot fit its layer's grid.
    """
    import keras

    from nowcast.networks.layers import ConvGRU2D

    sides = layer_grids(settings.strides, task.grid)
    for kernel, side in zip(settings.kernels, sides, strict=True):
        check_fits("kernel", kernel, side)
        check_fits("input_kernel", settings.input_kernel, side)

    def recurrent(layer: int, steps: int = 0) -> Any:
        return ConvGRU2D(
            settings.filters[layer],
            settings.input_kernel,
            recurrent_kernel_size=settings.kernels[layer],
            reset_after=True,
            activation="leaky_relu",
            recurrent_activation="sigmoid",
            steps=steps,
            padding="same",
            return_sequences=True,
            return_state=True,
        )

    frames = keras.Input(task.shape, name="frames")
    rain = encode_and_forecast(
        frames,
        recurrent,
        lead_frames=task.lead_frames,
        filters=settings.filters,
        strides=settings.strides,
        features=settings.features,
        outputs=task.head.outputs,
    )
    return keras.Model(frames, rain, name="convgru")


def layer_grids(strides: tuple[int, ...], grid: tuple[int, int]) -> list[tuple[int, int]]:
    """Give the grid on which each layer works.

    Examples
    --------
    >>> layer_grids((5, 3, 2), (480, 480))
    [(96, 96), (32, 32), (16, 16)]
    """
    scales = [math.prod(strides[: layer + 1]) for layer in range(len(strides))]
    return [(grid[0] // scale, grid[1] // scale) for scale in scales]


def encode_and_forecast(
    frames: Any,
    recurrent: Callable[..., Any],
    *,
    lead_frames: int,
    filters: tuple[int, ...],
    strides: tuple[int, ...],
    features: int,
    outputs: int,
) -> Any:
    """Give the lead frames: recurrent layers at ever coarser scales, and back.

    Before each layer of the encoder, and after each of the forecaster, stands a convolution that
    makes frames coarser, or finer. The forecaster's layers mirror the encoder's and start in their
    states; its first, at the coarsest scale, gets no input.

    Parameters
    ----------
    frames : (batch, frame, y, x, channel)
    recurrent
        Gives layer ``(number, steps)``, whose call gives its frames and its last states.
    lead_frames
        How many.
    filters, strides, features
        See `Settings`.
    outputs
        Per pixel.

    Returns
    -------
    (batch, lead frame, y, x, output)
    """
    from keras import layers

    from nowcast.networks.layers import TimeDistributed

    def on_each_frame(kind: Any, channels: int, kernel: int, stride: int, sequence: Any) -> Any:
        convolution = kind(
            channels, kernel, strides=stride, padding="same", activation="leaky_relu"
        )
        return TimeDistributed(convolution)(sequence)

    hidden, states = frames, []
    for layer, stride in enumerate(strides):
        # The paper's kernels: 7, 5 and 3 for strides of 5, 3 and 2; on the way back 4 for 2.
        kernel = stride + 1 + stride % 2
        channels = filters[layer] if layer else features
        hidden = on_each_frame(layers.Conv2D, channels, kernel, stride, hidden)
        hidden, *state = recurrent(layer)(hidden)
        states.append(state)
    for layer, stride in reversed(list(enumerate(strides))):
        if layer == len(strides) - 1:
            hidden, *_ = recurrent(layer, steps=lead_frames)(states[layer])
        else:
            hidden, *_ = recurrent(layer)(hidden, initial_state=states[layer])
        channels = filters[layer - 1] if layer else features
        hidden = on_each_frame(layers.Conv2DTranspose, channels, stride + 2, stride, hidden)
    hidden = on_each_frame(layers.Conv2D, features, 3, 1, hidden)
    return layers.Dense(outputs, name="rain", dtype="float32")(hidden)
