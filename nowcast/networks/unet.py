"""U-Net: the input frames as channels of one field, down and up again, to all lead frames at once.

References
----------
Ayzel et al. (2020), RainNet v1.0, doi:10.5194/gmd-13-2631-2020;
Ronneberger et al. (2015), U-Net, arXiv:1505.04597
"""

from dataclasses import dataclass
from typing import Any

from nowcast.networks.sizes import check_fits, check_layers, check_odd
from nowcast.networks.tasks import Task

VERSION = 1  # raised whenever weights of the network before would no longer fit or mean the same


@dataclass(frozen=True)
class Settings:
    """What a U-Net is made of.

    RainNet is ``filters=(64, 128, 256, 512, 1024), dropout=0.5`` with four input frames, one
    channel (values alone) and one lead frame.

    Parameters
    ----------
    filters
        Of the two convolutions at each scale, from the whole grid down; each scale has half the
        resolution of the one before.
    kernel
        Side of the convolutions' kernels, in pixels of their scale; odd.
    dropout
        Part of the features that is left out, in training, at the two coarsest scales.
    """

    filters: tuple[int, ...] = (16, 32, 64, 128)
    kernel: int = 3
    dropout: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what no network can be made of."""
        check_layers(filters=self.filters)
        check_odd(kernel=self.kernel)
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout is a part, from 0 to below 1; received {self.dropout}")

    @property
    def grid_multiple(self) -> int:
        """Both sides of the grid must be a multiple of this many pixels."""
        return int(2 ** (len(self.filters) - 1))

    @property
    def any_grid(self) -> bool:
        """Whether weights fitted on one grid can be used on another."""
        return True


def build(settings: Settings, task: Task) -> Any:
    """Build the network: the layers of RainNet, with as many outputs as there are lead frames.

    RainNet gives one lead frame, and its nowcast is its input for the next, which smooths the
    field a little more each time. Here each lead frame has its own outputs, all made in one pass;
    the narrow layer before the last, two filters in RainNet, has two for each of them.

    Parameters
    ----------
    settings
        See `Settings`.
    task
        What it is built for.

    Raises
    ------
    ValueError
        If the kernel is larger than all that it can see at the coarsest scale.
    """
    import keras
    from keras import layers, ops

    coarsest = (task.grid[0] // settings.grid_multiple, task.grid[1] // settings.grid_multiple)
    check_fits("kernel", settings.kernel, coarsest)
    outputs = task.lead_frames * task.head.outputs

    def convolved(field: Any, filters: int) -> Any:
        return layers.Conv2D(
            filters,
            settings.kernel,
            padding="same",
            activation="relu",
            kernel_initializer="he_normal",
        )(field)

    frames = keras.Input(task.shape, name="frames")
    field = ops.transpose(frames, (0, 2, 3, 1, 4))
    field = ops.reshape(field, (-1, *task.grid, task.input_frames * task.channels))
    scales: list[Any] = []
    for filters in settings.filters:
        if scales:
            field = layers.MaxPooling2D()(field)
        field = convolved(convolved(field, filters), filters)
        scales.append(field)
        if settings.dropout and len(scales) > len(settings.filters) - 2:
            field = layers.Dropout(settings.dropout)(field)
    for filters, scale in zip(settings.filters[-2::-1], scales[-2::-1], strict=True):
        field = ops.concatenate([layers.UpSampling2D()(field), scale], axis=-1)
        field = convolved(convolved(field, filters), filters)
    field = layers.Conv2D(outputs, 1, dtype="float32", name="rain")(convolved(field, 2 * outputs))
    field = ops.reshape(field, (-1, *task.grid, task.lead_frames, task.head.outputs))
    return keras.Model(frames, ops.transpose(field, (0, 3, 1, 2, 4)), name="unet")
