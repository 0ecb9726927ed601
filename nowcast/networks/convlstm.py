"""ConvLSTM encoder-forecaster, at one scale or at several.

References
----------
Shi et al. (2015), Convolutional LSTM Network, arXiv:1506.04214: the network, with
``multi_scale=False`` and ``peepholes=True``;
Shi et al. (2017), Deep Learning for Precipitation Nowcasting, arXiv:1706.03458: strided
convolutions between the layers, so that a deep layer sees motion far in one step.
"""

from dataclasses import dataclass
from typing import Any

from nowcast.networks.patches import from_patches, to_patches
from nowcast.networks.sizes import (
    check_fits,
    check_layers,
    check_odd,
    check_positive,
    for_each_layer,
)
from nowcast.networks.tasks import Task

VERSION = 2  # raised whenever weights of the network before would no longer fit or mean the same


@dataclass(frozen=True)
class Settings:
    """What a ConvLSTM encoder-forecaster is made of.

    Parameters
    ----------
    patch
        Side of the squares of pixels that are moved to channels before the first layer.
    filters
        Hidden channels of each encoder layer, from the input up; the forecaster mirrors them.
    kernel
        Side of the state-to-state kernels, in patches of the layer: one for all, or one per layer.
    input_kernel
        Side of every layer's input-to-state kernel; 0: as the layer's `kernel`.
    peepholes
        Whether the gates see the cell.
    multi_scale
        Whether each layer works on half the resolution of the one below it, and the uppermost
        forecaster layer alone gives the frames; otherwise all layers work on the same grid, and
        the states of all forecaster layers give the frames.
    """

    patch: int = 2
    filters: tuple[int, ...] = (16, 32, 48)
    kernel: int | tuple[int, ...] = 3
    input_kernel: int = 0
    peepholes: bool = False
    multi_scale: bool = True

    def __post_init__(self) -> None:
        """Refuse what no network can be made of."""
        check_positive(patch=self.patch)
        check_layers(filters=self.filters)
        check_odd(kernel=self.kernels)
        if self.input_kernel:
            check_odd(input_kernel=self.input_kernel)

    @property
    def kernels(self) -> tuple[int, ...]:
        """Side of each layer's state-to-state kernel."""
        return for_each_layer("kernel", self.kernel, len(self.filters))

    @property
    def scales(self) -> tuple[int, ...]:
        """Side of each layer's patches, in pixels."""
        halvings = range(len(self.filters)) if self.multi_scale else (0,) * len(self.filters)
        return tuple(self.patch * 2**times for times in halvings)

    @property
    def grid_multiple(self) -> int:
        """Both sides of the grid must be a multiple of this many pixels."""
        return self.scales[-1]

    @property
    def any_grid(self) -> bool:
        """Whether weights fitted on one grid can be used on another."""
        return True


def build(settings: Settings, task: Task) -> Any:
    """Build the network: the forecaster's layers mirror the encoder's and start in their states.

    The forecaster's first layer gets no input, each further one the states of the layer above it;
    a 1x1 convolution gives the lead frames.

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

    from nowcast.networks.layers import ConvLSTM2D, TimeDistributed

    for kernel, scale in zip(settings.kernels, settings.scales, strict=True):
        side = (task.grid[0] // scale, task.grid[1] // scale)
        check_fits("kernel", kernel, side)
        check_fits("input_kernel", settings.input_kernel, side)

    def recurrent(layer: int, steps: int = 0) -> Any:
        return ConvLSTM2D(
            settings.filters[layer],
            settings.input_kernel or settings.kernels[layer],
            recurrent_kernel_size=settings.kernels[layer],
            peepholes=settings.peepholes,
            steps=steps,
            padding="same",
            return_sequences=True,
            return_state=True,
        )

    def coarser(layer: int) -> Any:
        return keras.layers.Conv2D(
            settings.filters[layer], 3, strides=2, padding="same", activation="relu"
        )

    def finer(layer: int) -> Any:
        return keras.layers.Conv2DTranspose(
            settings.filters[layer], 4, strides=2, padding="same", activation="relu"
        )

    frames = keras.Input(task.shape, name="frames")
    hidden = to_patches(frames, settings.patch)
    layers = range(len(settings.filters))
    states = []
    for layer in layers:
        if layer and settings.multi_scale:
            hidden = TimeDistributed(coarser(layer))(hidden)
        hidden, *state = recurrent(layer)(hidden)
        states.append(state)
    hidden, *_ = recurrent(layers[-1], steps=task.lead_frames)(states[-1])
    seen = [hidden]
    for layer in reversed(layers[:-1]):
        if settings.multi_scale:
            hidden = TimeDistributed(finer(layer))(hidden)
        hidden, *_ = recurrent(layer)(hidden, initial_state=states[layer])
        seen.append(hidden)
    if not settings.multi_scale and len(seen) > 1:
        hidden = keras.ops.concatenate(seen, axis=-1)
    # A convolution of 1x1 is a dense layer on each patch.
    rain = keras.layers.Dense(task.head.outputs * settings.patch**2, name="rain", dtype="float32")
    return keras.Model(frames, from_patches(rain(hidden), settings.patch), name="convlstm")
