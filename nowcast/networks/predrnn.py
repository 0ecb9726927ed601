"""PredRNN: layers of convolutional LSTMs with a memory that zigzags through them and through time.

References
----------
Wang et al. (2022), PredRNN: A Recurrent Neural Network for Spatiotemporal Predictive Learning,
arXiv:2103.09504, doi:10.1109/TPAMI.2022.3165153: for Moving MNIST
``patch=4, filters=128, layers=4, kernel=5``;
Wang et al. (2017), PredRNN: Recurrent Neural Networks for Predictive Learning using
Spatiotemporal LSTMs, Advances in Neural Information Processing Systems 30
"""

from dataclasses import dataclass
from typing import Any

from nowcast.networks.patches import from_patches, to_patches
from nowcast.networks.sizes import check_fits, check_odd, check_positive
from nowcast.networks.tasks import Task

VERSION = 1  # raised whenever weights of the network before would no longer fit or mean the same


@dataclass(frozen=True)
class Settings:
    """What a PredRNN is made of.

    Parameters
    ----------
    patch
        Side of the squares of pixels that are moved to channels before the first layer.
    filters
        Hidden channels of each layer; the memory that goes through all of them has as many.
    layers
        How many.
    kernel
        Side of the kernels, in patches.
    """

    patch: int = 4
    filters: int = 32
    layers: int = 3
    kernel: int = 3

    def __post_init__(self) -> None:
        """Refuse what no network can be made of."""
        check_positive(patch=self.patch, filters=self.filters, layers=self.layers)
        check_odd(kernel=self.kernel)

    @property
    def grid_multiple(self) -> int:
        """Both sides of the grid must be a multiple of this many pixels."""
        return self.patch

    @property
    def any_grid(self) -> bool:
        """Whether weights fitted on one grid can be used on another."""
        return True


def build(settings: Settings, task: Task) -> Any:
    """Build the network: each step forecasts the next frame, which the step after it sees.

    After the last input frame the network sees its own forecasts, in training too. They are what
    a `field` or a `fraction` means by its outputs; of other heads, a 1x1 convolution makes one
    value of a pixel's outputs. All pixels of a forecast count as observed.

    Parameters
    ----------
    settings
        See `Settings`.
    task
        What it is built for.

    Raises
    ------
    ValueError
        If the kernel cannot fit the grid of patches.
    """
    import keras
    from keras import layers, ops

    from nowcast.networks.spatiotemporal import SpatiotemporalLSTM2D

    head, (height, width) = task.head, task.grid
    check_fits("kernel", settings.kernel, (height // settings.patch, width // settings.patch))
    stack = [
        SpatiotemporalLSTM2D(settings.filters, settings.kernel) for _ in range(settings.layers)
    ]
    rain = layers.Dense(head.outputs * settings.patch**2, name="rain", dtype="float32")
    merged = layers.Dense(1, name="seen_again")

    def seen_again(raw: Any) -> Any:
        """Give a forecast, in patches, as an input frame."""
        outputs = ops.reshape(raw, (*_static(raw), settings.patch**2, head.outputs))
        means_a_value = head.kind in ("field", "fraction")
        value = head.values(outputs) if means_a_value else merged(outputs)
        observed = [ops.ones_like(value)] * (task.channels - 1)
        frame = ops.concatenate([value, *observed], axis=-1) if observed else value
        return ops.reshape(frame, (*_static(raw), settings.patch**2 * task.channels))

    frames = keras.Input(task.shape, name="frames")
    patches = to_patches(frames, settings.patch)
    states: list[tuple[Any, Any]] = [(None, None)] * settings.layers
    memory: Any = None
    forecasts: list[Any] = []
    for step in range(task.input_frames + task.lead_frames - 1):
        hidden = patches[:, step] if step < task.input_frames else seen_again(forecasts[-1])
        for layer, cell in enumerate(stack):
            hidden, kept, memory = cell(hidden, *states[layer], memory)
            states[layer] = hidden, kept
        if step >= task.input_frames - 1:
            forecasts.append(rain(hidden))
    return keras.Model(
        frames, from_patches(ops.stack(forecasts, axis=1), settings.patch), name="predrnn"
    )


def _static(field: Any) -> tuple[int, int, int]:
    """Give the shape of a field without its channels, its batch as what a reshape finds."""
    return (-1, *field.shape[1:3])
