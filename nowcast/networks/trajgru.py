"""TrajGRU encoder-forecaster at several scales.

References
----------
Shi et al. (2017), Deep Learning for Precipitation Nowcasting, arXiv:1706.03458: for frames of
480 x 480 ``features=8, filters=(64, 192, 192), strides=(5, 3, 2), links=(13, 13, 9)``
"""

import math
from dataclasses import dataclass
from typing import Any

from nowcast.networks.convgru import encode_and_forecast, layer_grids
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
    """What a TrajGRU encoder-forecaster is made of.

    Parameters
    ----------
    features
        Channels of the convolutions next to the frames.
    filters
        Hidden channels of each encoder layer, from the input up; the forecaster mirrors them.
    strides
        How many times coarser each layer works than the one below it, or than the frames.
    links
        Flows along which a layer gathers its state: one for all, or one per layer.
    input_kernel
        Side of every layer's input-to-state kernel.
    flow_kernel
        Side of the kernels that find the flows, in pixels of the layer: one for all, or one per
        layer.
    """

    features: int = 8
    filters: tuple[int, ...] = (16, 32, 48)
    strides: tuple[int, ...] = (2, 2, 2)
    links: int | tuple[int, ...] = 5
    input_kernel: int = 3
    flow_kernel: int | tuple[int, ...] = 5

    def __post_init__(self) -> None:
        """Refuse what no network can be made of."""
        check_positive(features=self.features)
        check_layers(filters=self.filters)
        for_each_layer("strides", self.strides, len(self.filters))
        for_each_layer("links", self.links, len(self.filters))
        check_odd(flow_kernel=self.flow_kernels, input_kernel=self.input_kernel)

    @property
    def flow_kernels(self) -> tuple[int, ...]:
        """Side of the kernels that find each layer's flows."""
        return for_each_layer("flow_kernel", self.flow_kernel, len(self.filters))

    @property
    def grid_multiple(self) -> int:
        """Both sides of the grid must be a multiple of this many pixels."""
        return math.prod(self.strides)

    @property
    def any_grid(self) -> bool:
        """Whether weights fitted on one grid can be used on another."""
        return True


def build(settings: Settings, task: Task) -> Any:
    """Build the network; see `nowcast.networks.convgru.encode_and_forecast`.

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

    from nowcast.networks.trajectories import TrajGRU2D

    links = for_each_layer("links", settings.links, len(settings.filters))
    sides = layer_grids(settings.strides, task.grid)
    for kernel, side in zip(settings.flow_kernels, sides, strict=True):
        check_fits("flow_kernel", kernel, side)
        check_fits("input_kernel", settings.input_kernel, side)

    def recurrent(layer: int, steps: int = 0) -> Any:
        return TrajGRU2D(
            settings.filters[layer],
            settings.input_kernel,
            links=links[layer],
            flow_kernel_size=settings.flow_kernels[layer],
            steps=steps,
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
    return keras.Model(frames, rain, name="trajgru")
