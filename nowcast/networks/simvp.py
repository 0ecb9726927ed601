"""SimVP: convolutions alone; an encoder per frame, a translator over all frames, a decoder.

References
----------
Gao et al. (2022), SimVP: Simpler yet Better Video Prediction, arXiv:2206.05099
"""

import math
from dataclasses import dataclass
from typing import Any

from nowcast.networks.sizes import check_fits, check_odd, check_positive
from nowcast.networks.tasks import Task

VERSION = 1  # raised whenever weights of the network before would no longer fit or mean the same

SLOPE = 0.2  # of the leaky rectifiers, and the other figures of the published code
EPSILON = 1e-5  # of the normalisation
FRAME_GROUPS = 2  # in which the encoder's and the decoder's features are normalised


@dataclass(frozen=True)
class Settings:
    """What a SimVP network is made of.

    The published network for Moving MNIST is ``filters=64, depth=4, translator_filters=256,
    translator_depth=8`` and the other defaults.

    Parameters
    ----------
    filters
        Of the encoder's and the decoder's convolutions.
    depth
        Convolutions in the encoder, and in the decoder; every second one halves the resolution.
    translator_filters
        Of the translator, which sees all frames as channels of one field.
    translator_depth
        Inception blocks in the translator's first half, and in its second.
    kernels
        Sides of an inception block's kernels, in the encoder's pixels; odd.
    groups
        In which a block's channels are convolved and normalised.
    """

    filters: int = 16
    depth: int = 4
    translator_filters: int = 64
    translator_depth: int = 2
    kernels: tuple[int, ...] = (3, 5, 7, 11)
    groups: int = 4

    def __post_init__(self) -> None:
        """Refuse what no network can be made of."""
        check_positive(depth=self.depth, groups=self.groups, filters=self.filters)
        check_positive(translator_filters=self.translator_filters)
        check_odd(kernels=self.kernels)
        if not self.kernels or self.translator_depth < 2:
            raise ValueError(
                "a translator has kernels, and two inception blocks or more in each half; received "
                f"kernels={self.kernels}, translator_depth={self.translator_depth}"
            )
        for name, multiple in (
            ("filters", math.lcm(self.groups, FRAME_GROUPS)),
            ("translator_filters", 2 * self.groups),  # a block's first layer has half of them
        ):
            if getattr(self, name) % multiple:
                raise ValueError(
                    f"{name} must be a multiple of {multiple} with {self.groups} groups; received "
                    f"{getattr(self, name)}; change {name}, or groups"
                )

    @property
    def grid_multiple(self) -> int:
        """Both sides of the grid must be a multiple of this many pixels."""
        return int(2 ** (self.depth // 2))

    @property
    def any_grid(self) -> bool:
        """Whether weights fitted on one grid can be used on another.

        They can; features are normalised by their mean and spread over the whole of a grid.
        """
        return True


def build(settings: Settings, task: Task) -> Any:
    """Build the network, with the layers, paddings and weights of the published code.

    There as many frames come out as go in, and the decoder makes each from the translator's
    features for it and from the first features of the input frame of the same number. Here the
    translator's last block has channels for each lead frame, and lead frames are paired with the
    last input frames, in order, those that find none with the very last.

    Parameters
    ----------
    settings
        See `Settings`.
    task
        What it is built for.

    Raises
    ------
    ValueError
        If a kernel is larger than all that it can see.
    """
    import keras
    from keras import layers, ops

    coarser = (task.grid[0] // settings.grid_multiple, task.grid[1] // settings.grid_multiple)
    check_fits("kernels", max(settings.kernels), coarser)
    frames = keras.Input(task.shape, name="frames")
    field = ops.reshape(frames, (-1, *task.grid, task.channels))
    strides = [1 + number % 2 for number in range(settings.depth)]
    fields = []
    for stride in strides:
        field = _normalised(_convolved(field, settings.filters, stride), FRAME_GROUPS)
        fields.append(field)
    stacked = _to_channels(field, task.input_frames)
    field = _from_channels(_translated(stacked, settings, task.lead_frames), task.lead_frames)
    for stride in strides[:0:-1]:
        field = _normalised(_enlarged(field, settings.filters, stride), FRAME_GROUPS)
    first = ops.reshape(fields[0], (-1, task.input_frames, *task.grid, settings.filters))
    paired = ops.take(first, _pairs(task.input_frames, task.lead_frames), axis=1)
    paired = ops.reshape(paired, (-1, *task.grid, settings.filters))
    field = ops.concatenate([field, paired], axis=-1)
    field = _normalised(_convolved(field, settings.filters, strides[0]), FRAME_GROUPS)
    field = layers.Conv2D(task.head.outputs, 1, dtype="float32", name="rain")(field)
    field = ops.reshape(field, (-1, task.lead_frames, *task.grid, task.head.outputs))
    return keras.Model(frames, field, name="simvp")


def _translated(stacked: Any, settings: Settings, lead_frames: int) -> Any:
    """Give the lead frames' features for the input frames', all as channels of one field."""
    from keras import ops

    field, skipped = stacked, []
    for _ in range(settings.translator_depth):
        field = _inception(field, settings, settings.translator_filters)
        skipped.append(field)
    skipped.pop()  # the last goes on as it is
    field = _inception(field, settings, settings.translator_filters)
    while skipped:
        field = ops.concatenate([field, skipped.pop()], axis=-1)
        filters = settings.translator_filters if skipped else lead_frames * settings.filters
        field = _inception(field, settings, filters)
    return field


def _inception(field: Any, settings: Settings, filters: int) -> Any:
    """Give the sum of convolutions with kernels of several sizes, each normalised."""
    from keras import layers

    narrowed = layers.Conv2D(settings.translator_filters // 2, 1)(field)
    branches = [
        _normalised(_convolved_in_groups(narrowed, filters, side, settings.groups), settings.groups)
        for side in settings.kernels
    ]
    return layers.add(branches) if len(branches) > 1 else branches[0]


def _convolved_in_groups(field: Any, filters: int, kernel: int, groups: int) -> Any:
    """Convolve each group of channels apart.

    Keras has ``groups`` for that, which outside of torch are slow on a CPU: a training step of an
    11x11 kernel in 8 groups took 472 ms with TensorFlow, and 6 ms with a layer for each group.
    """
    from keras import layers, ops

    parts = ops.split(field, groups, axis=-1)
    convolved = [layers.Conv2D(filters // groups, kernel, padding="same")(part) for part in parts]
    return ops.concatenate(convolved, axis=-1)


def _normalised(field: Any, groups: int) -> Any:
    from keras import layers

    normalised = layers.GroupNormalization(groups, epsilon=EPSILON)(field)
    return layers.LeakyReLU(SLOPE)(normalised)


def _convolved(field: Any, filters: int, stride: int) -> Any:
    """Convolve with the kernel's middle on every pixel, or on every second from the first on."""
    from keras import layers

    return layers.Conv2D(filters, 3, strides=stride)(layers.ZeroPadding2D(1)(field))


def _enlarged(field: Any, filters: int, stride: int) -> Any:
    """Undo the resolution of `_convolved`."""
    from keras import layers

    if stride == 1:
        return _convolved(field, filters, 1)
    larger = layers.Conv2DTranspose(filters, 3, strides=stride)(field)
    return layers.Cropping2D(((1, 0), (1, 0)))(larger)


def _to_channels(fields: Any, frames: int) -> Any:
    """Stack the frames of a sequence, which are in the batch, as channels of one field."""
    from keras import ops

    _, height, width, features = fields.shape
    sequence = ops.reshape(fields, (-1, frames, height, width, features))
    sequence = ops.transpose(sequence, (0, 2, 3, 1, 4))
    return ops.reshape(sequence, (-1, height, width, frames * features))


def _from_channels(stacked: Any, frames: int) -> Any:
    """Undo `_to_channels`."""
    from keras import ops

    _, height, width, features = stacked.shape
    sequence = ops.reshape(stacked, (-1, height, width, frames, features // frames))
    sequence = ops.transpose(sequence, (0, 3, 1, 2, 4))
    return ops.reshape(sequence, (-1, height, width, features // frames))


def _pairs(input_frames: int, lead_frames: int) -> list[int]:
    """Give the number of the input frame that each lead frame is paired with.

    Examples
    --------
    >>> _pairs(3, 3), _pairs(3, 5), _pairs(3, 2)
    ([0, 1, 2], [0, 1, 2, 2, 2], [1, 2])
    """
    first = max(0, input_frames - lead_frames)
    return [min(first + lead, input_frames - 1) for lead in range(lead_frames)]
