"""CNN to LSTM: a convolutional network on every frame, an LSTM over time, then what the head wants.

References
----------
Donahue et al. (2015), Long-term Recurrent Convolutional Networks, arXiv:1411.4389;
Srivastava et al. (2015), Unsupervised Learning of Video Representations, arXiv:1502.04681;
Brownlee (2017), Long Short-Term Memory Networks with Python, chapter 8
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from nowcast.networks import backbones
from nowcast.networks.heads import FRAME_HEADS, SEQUENCE_HEADS
from nowcast.networks.sizes import check_layers, check_positive
from nowcast.networks.tasks import Task

VERSION = 1  # raised whenever weights of the network before would no longer fit or mean the same
HEADS = (*FRAME_HEADS, *SEQUENCE_HEADS)
STYLES = ("layers", "whole")
FEATURES = ("flatten", "mean")


@dataclass(frozen=True)
class Settings:
    """What a CNN to LSTM network is made of.

    Each convolution is followed by a maximum over `pool` pixels, so the field becomes
    `stride` times `pool` coarser with each. The CNN of the tutorials is
    ``filters=(1,), kernel=2, stride=1, pool=2``.

    Parameters
    ----------
    style
        ``layers``: each layer of the CNN is applied to every frame before the next one is;
        ``whole``: the CNN is one network that is. The numbers are the same. A backbone is always
        applied whole.
    filters
        Channels of the convolutions, from the frame down; the decoder mirrors them.
    kernel
        Side of the convolutions' kernels, in pixels of their scale.
    stride
        Pixels from one place of the kernel to the next.
    pool
        Side of the squares of which the maximum is taken; 1: none is taken.
    features
        What the LSTM sees of the CNN's last field: ``flatten``, all of it; ``mean``, the mean of
        each channel.
    units
        Of the LSTMs.
    skips
        Whether the decoder of frames also sees the last input frame, at each scale.
    backbone
        A network of `keras.applications` in place of the convolutions, such as ``VGG16``; see
        `nowcast.networks.backbones`. `filters`, `stride` and `pool` then shape the decoder alone.
    backbone_alpha
        Width of a backbone that comes in several, such as 0.35 for ``MobileNetV2``; 0: its own.
    backbone_weights
        File of the backbone's weights, read when a training starts; empty: drawn at random.
    trainable
        Whether the backbone is trained too, or stays as its file has it.
    """

    style: str = "layers"
    filters: tuple[int, ...] = (8, 16, 24)
    kernel: int = 3
    stride: int = 2
    pool: int = 1
    features: str = "flatten"
    units: int = 128
    skips: bool = True
    backbone: str = ""
    backbone_alpha: float = 0.0
    backbone_weights: str = ""
    trainable: bool = True

    def __post_init__(self) -> None:
        check_layers(filters=self.filters)
        check_positive(kernel=self.kernel, stride=self.stride, pool=self.pool, units=self.units)
        for setting, known in (("style", STYLES), ("features", FEATURES)):
            value = getattr(self, setting)
            if value not in known:
                raise ValueError(f"unknown {setting} {value!r}; known are {', '.join(known)}")
        if self.backbone_alpha < 0:
            raise ValueError(
                f"backbone_alpha is a width above 0, or 0 for the backbone's own; received "
                f"{self.backbone_alpha}"
            )
        self._check_backbone()

    def _check_backbone(self) -> None:
        if not self.trainable and not self.backbone_weights:
            raise ValueError(
                "trainable=false freezes a backbone as its weights file has it; none is given: set "
                "backbone and backbone_weights, or trainable=true"
            )
        if (self.backbone_weights or self.backbone_alpha) and not self.backbone:
            raise ValueError(
                f"backbone_weights={self.backbone_weights!r} and backbone_alpha="
                f"{self.backbone_alpha:g} are of a backbone, and none is set; set backbone to a "
                "network of keras.applications, or leave them out"
            )
        if self.backbone_weights and not self.backbone_weights.endswith(backbones.SUFFIX):
            raise ValueError(
                f"backbone_weights={self.backbone_weights!r} is not named like a file of Keras "
                f"weights, which ends in .weights{backbones.SUFFIX} or {backbones.SUFFIX}; save "
                "the backbone with save_weights"
            )

    @property
    def grid_multiple(self) -> int:
        """Both sides of the grid must be a multiple of this many pixels, or one pixel."""
        return int((self.stride * self.pool) ** len(self.filters))

    @property
    def any_grid(self) -> bool:
        """Whether weights fitted on one grid can be used on another: the LSTM sees all of it."""
        return False

    @property
    def takes_rows(self) -> bool:
        """Whether one of the sides may be a single pixel: convolutions then go along the other."""
        return True


def build(settings: Settings, task: Task) -> Any:
    """Build the network: for frames and series, a second LSTM starts in the states of the first.

    One vector cannot hold a rain field, so at each scale the decoder of frames also sees the
    features of the last input frame: the LSTM says what becomes of it. Where the grid is one row,
    such as a transect or a line of gauges, every convolution goes along it.

    Parameters
    ----------
    settings
        See `Settings`.
    task
        What it is built for.

    Raises
    ------
    ValueError
        If the kernel or the backbone does not fit the grid, or the backbone is not known.
    """
    import keras
    from keras import layers, ops

    sides = tuple(side for side in task.grid if side > 1)
    _check_kernel(settings, sides)
    frames = keras.Input(task.shape, name="frames")
    fields = frames
    if len(sides) < len(task.grid):
        fields = ops.reshape(frames, (-1, task.input_frames, *sides, task.channels))
    skips = settings.skips and task.head.kind in FRAME_HEADS
    scales, features = _encoded(settings, fields, scales_too=skips)
    if task.head.kind == "classes":
        last = layers.LSTM(settings.units, name="encoder")(features)
        outputs = layers.Dense(task.head.outputs, dtype="float32", name="classes")(last)
        return keras.Model(frames, outputs, name="cnn_lstm")
    _, *states = layers.LSTM(settings.units, return_state=True, name="encoder")(features)
    repeated = layers.RepeatVector(task.lead_frames)(states[0])
    hidden = layers.LSTM(settings.units, return_sequences=True, name="forecaster")(
        repeated, initial_state=states
    )
    if task.head.kind == "series":
        outputs = layers.Dense(task.head.outputs, dtype="float32", name="series")(hidden)
        return keras.Model(frames, outputs, name="cnn_lstm")
    seen = [fields, *scales] if skips else []
    rain = _decoded(settings, hidden, seen, sides=sides, outputs=task.head.outputs)
    if len(sides) < len(task.grid):
        rain = ops.reshape(rain, (-1, task.lead_frames, *task.grid, task.head.outputs))
    return keras.Model(frames, rain, name="cnn_lstm")


def initialise(network: Any, settings: Settings) -> None:
    """Read the backbone's weights into a network that is about to be trained.

    Raises
    ------
    ValueError
        If the file is absent or does not hold the weights of this backbone.
    """
    if settings.backbone_weights:
        backbone = network.get_layer("backbone").layer
        backbones.load_weights(backbone, settings.backbone_weights, name=settings.backbone)


def _encoded(settings: Settings, fields: Any, *, scales_too: bool) -> tuple[list[Any], Any]:
    """Give the CNN's fields from fine to coarse, where asked for, and the features of the last."""
    import keras

    from nowcast.networks.layers import TimeDistributed

    if settings.backbone:
        return [], _seen_by_backbone(settings, fields)
    rank = len(fields.shape) - 3
    if settings.style == "layers":
        return _convolved(settings, fields, rank=rank, wrapped=TimeDistributed)
    frame = keras.Input(fields.shape[2:])
    scales, features = _convolved(settings, frame, rank=rank, wrapped=lambda layer: layer)
    cnn = keras.Model(frame, [*scales, features] if scales_too else features, name="cnn")
    outputs = TimeDistributed(cnn, name="cnn")(fields)
    return (outputs[:-1], outputs[-1]) if scales_too else ([], outputs)


def _convolved(
    settings: Settings, field: Any, *, rank: int, wrapped: Callable[[Any], Any]
) -> tuple[list[Any], Any]:
    """Give the fields after each convolution and its maximum, and the features of the last one."""
    from keras import layers

    scales = []
    for filters in settings.filters:
        convolution = getattr(layers, f"Conv{rank}D")(
            filters, settings.kernel, strides=settings.stride, padding="same", activation="relu"
        )
        field = wrapped(convolution)(field)
        if settings.pool > 1:
            field = wrapped(getattr(layers, f"MaxPooling{rank}D")(settings.pool))(field)
        scales.append(field)
    return scales, wrapped(_gathering(settings, rank))(field)


def _gathering(settings: Settings, rank: int) -> Any:
    from keras import layers

    if settings.features == "flatten":
        return layers.Flatten()
    return getattr(layers, f"GlobalAveragePooling{rank}D")()


def _seen_by_backbone(settings: Settings, fields: Any) -> Any:
    """Give a backbone's features of the values, and beside them where there are any.

    A backbone sees pictures, which know no missing pixels: what was observed goes to the LSTM
    past it, as the observed part of each square of pixels that the decoder starts from.
    """
    from keras import layers, ops

    from nowcast.networks.layers import Frozen, TimeDistributed

    if len(fields.shape) != 5:
        raise ValueError(
            f"backbone {settings.backbone!r} sees rows and columns; the grid is one row of "
            f"{fields.shape[2]} pixels; leave backbone out, or use a larger grid"
        )
    backbone = backbones.backbone(
        settings.backbone, grid=fields.shape[2:4], alpha=settings.backbone_alpha
    )
    applied = (TimeDistributed if settings.trainable else Frozen)(backbone, name="backbone")
    features = TimeDistributed(_gathering(settings, 2))(applied(fields[..., :1]))
    if fields.shape[-1] == 1:
        return features
    squares = TimeDistributed(layers.AveragePooling2D(settings.grid_multiple))(fields[..., 1:])
    return ops.concatenate([features, TimeDistributed(layers.Flatten())(squares)], axis=-1)


def _decoded(
    settings: Settings, hidden: Any, seen: list[Any], *, sides: tuple[int, ...], outputs: int
) -> Any:
    """Give the lead frames that the forecaster's states stand for.

    Parameters
    ----------
    settings
        See `Settings`.
    hidden : (batch, lead frame, unit)
    seen
        The input frames and what the CNN made of them, from fine to coarse; may be fewer than
        there are scales, or none.
    sides
        Of the grid, without those of one pixel.
    outputs
        Channels of the last layer.
    """
    from keras import layers, ops

    from nowcast.networks.layers import TimeDistributed

    lead_frames, rank = hidden.shape[1], len(sides)
    factor = settings.stride * settings.pool

    def with_last(field: Any, scale: int) -> Any:
        if scale >= len(seen):
            return field
        last = ops.repeat(seen[scale][:, -1:], lead_frames, axis=1)
        return ops.concatenate([field, last], axis=-1)

    deepest = (*(side // settings.grid_multiple for side in sides), settings.filters[-1])
    field = TimeDistributed(layers.Dense(math.prod(deepest), activation="relu"))(hidden)
    field = ops.reshape(field, (-1, lead_frames, *deepest))
    for scale in range(len(settings.filters), 0, -1):
        finer = getattr(layers, f"Conv{rank}DTranspose")(
            settings.filters[scale - 1],
            2 * factor if factor > 1 else 3,
            strides=factor,
            padding="same",
            activation="relu",
        )
        field = TimeDistributed(finer)(with_last(field, scale))
    last = getattr(layers, f"Conv{rank}D")(outputs, 3, padding="same", dtype="float32", name="rain")
    return TimeDistributed(last)(with_last(field, 0))


def _check_kernel(settings: Settings, sides: tuple[int, ...]) -> None:
    """Refuse a kernel of which a part would see nothing but what lies outside of the field."""
    if not sides:
        raise ValueError(
            "a cnn_lstm needs more than one pixel to convolve; received a grid of (1, 1)"
        )
    if settings.backbone:
        return
    factor = settings.stride * settings.pool
    smallest = min(sides) // factor ** (len(settings.filters) - 1)
    largest = 2 * smallest - 1
    if settings.kernel > largest:
        raise ValueError(
            f"a kernel of {settings.kernel} does not fit the coarsest field that it sees, "
            f"{smallest} pixels wide on a grid with sides of {sides}; set a kernel of {largest} "
            "at most, fewer filters, or a larger grid"
        )
