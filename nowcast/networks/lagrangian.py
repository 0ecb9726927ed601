"""A correction of extrapolation: growth, decay and doubt, learnt in coordinates that move along.

The input frames are advected to the base time, so that what moves stands still; a U-Net sees there
what grows and what decays. Its corrections are advected to each lead time, and added there to what
extrapolation says. At first they are nothing, and the network believes extrapolation, the less the
farther ahead: it starts from the baseline and learns what to change.

References
----------
Ritvanen et al. (2023), L-CNN, growth and decay in coordinates that move along,
doi:10.1109/JSTARS.2023.3238016;
Zhang et al. (2023), NowcastNet, a network that corrects what is advected,
doi:10.1038/s41586-023-06184-4
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from nowcast.networks import unet
from nowcast.networks.sizes import check_fits
from nowcast.networks.tasks import Task

VERSION = 1  # raised whenever weights of the network before would no longer fit or mean the same
HEADS = ("exceedance",)
CORRECTIONS = ("surer", "moving", "standing")  # layers, last, whose outputs are by lead time
FAST = 5.0  # pixels per step; motion is seen as a part of it


@dataclass(frozen=True)
class Settings(unet.Settings):
    """What the network is made of.

    Parameters
    ----------
    filters
        Of the two convolutions at each scale of the U-Net, from the whole grid down.
    kernel
        Side of the convolutions' kernels, in pixels of their scale; odd.
    dropout
        Part of the features that is left out, in training, at the coarsest scale.
    standing
        Whether there are also corrections that stay where they are, as mountains and clutter do.
    """

    filters: tuple[int, ...] = (32, 64, 96, 128)
    standing: bool = True

    @property
    def sees_motion(self) -> bool:
        """Whether it takes the motion of the frames as a second input."""
        return True


def for_leads(
    settings: Settings, weights: list[np.ndarray], *, known: int, wanted: int
) -> list[np.ndarray]:
    """Give weights for fewer lead times, or for more, corrected as the last one that is known.

    Parameters
    ----------
    settings
        Of the network.
    weights
        As it gives them, in its order: corrections are last.
    known, wanted
        Lead times that they are for, and that they are to be for.
    """
    layers = len(CORRECTIONS) if settings.standing else len(CORRECTIONS) - 1
    corrections = 2 * layers  # kernel and bias of each

    def by_lead(weight: np.ndarray) -> np.ndarray:
        told = weight.reshape(*weight.shape[:-1], known, -1)
        places = np.minimum(np.arange(wanted), known - 1)
        return told[..., places, :].reshape(*weight.shape[:-1], -1)

    return [*weights[:-corrections], *map(by_lead, weights[-corrections:])]


def keep_lead_times(network: Any, *, known: int) -> None:
    """Let a network learn the corrections of more lead times, and change nothing else.

    What it gives for the known ones, which come first, stays what it is to the bit.

    Parameters
    ----------
    network
        As built, with the weights that it begins from, before it is compiled.
    known
        Lead times whose corrections are kept.
    """
    from keras import ops

    leads = network.output_shape[1]

    def kept(first: Any) -> Callable[[Any], Any]:
        return lambda weight: ops.concatenate([first, weight[..., first.shape[-1] :]], axis=-1)

    for layer in network.layers:
        if layer.name not in CORRECTIONS:
            layer.trainable = False
            continue
        for variable in layer.trainable_variables:
            weight = ops.convert_to_numpy(variable)
            variable.constraint = kept(weight[..., : weight.shape[-1] // leads * known])


def build(settings: Settings, task: Task) -> Any:
    """Build the network: frames and their motion to raw outputs of an exceedance head.

    Returns
    -------
    keras.Model
        Of ``[frames, motion]``; `motion` is ``(batch, 2, y, x)``, in pixels per step, along x
        first, as `nowcast.nowcasters.extrapolation.motion` gives it.

    Raises
    ------
    ValueError
        If the kernel is larger than all that it can see at the coarsest scale.
    """
    import keras
    from keras import layers, ops

    from nowcast.networks.advection import Believed, Carried, Moved

    coarsest = (task.grid[0] // settings.grid_multiple, task.grid[1] // settings.grid_multiple)
    check_fits("kernel", settings.kernel, coarsest)
    leads, levels = task.lead_frames, task.head.levels
    scaled = [float(level) for level in task.head.levels_on(task.transform)]

    def convolved(field: Any, filters: int) -> Any:
        return layers.Conv2D(
            filters,
            settings.kernel,
            padding="same",
            activation="relu",
            kernel_initializer="he_normal",
        )(field)

    frames = keras.Input(task.shape, name="frames")
    motion = keras.Input((2, *task.grid), name="motion")
    aligned, ahead, places = Moved(leads, dtype="float32", name="moved")(frames, motion)
    as_they_are = ops.reshape(
        ops.transpose(frames, (0, 2, 3, 1, 4)), (-1, *task.grid, task.input_frames * task.channels)
    )
    flow = ops.transpose(motion, (0, 2, 3, 1)) / FAST
    field = ops.concatenate([aligned, as_they_are, flow], axis=-1)
    scales: list[Any] = []
    for filters in settings.filters:
        if scales:
            field = layers.AveragePooling2D(2)(field)
        field = convolved(convolved(field, filters), filters)
        scales.append(field)
    if settings.dropout:
        field = layers.Dropout(settings.dropout)(field)
    for filters, scale in zip(settings.filters[-2::-1], scales[-2::-1], strict=True):
        field = ops.concatenate([layers.UpSampling2D()(field), scale], axis=-1)
        field = convolved(convolved(field, filters), filters)

    def corrections(name: str, outputs: int) -> Any:
        made = layers.Conv2D(
            leads * outputs, 1, kernel_initializer="zeros", dtype="float32", name=name
        )(field)
        return ops.reshape(made, (-1, *task.grid, leads, outputs))

    surer, moving = (
        Carried(dtype="float32", name=f"carried_{name}")(corrections(name, outputs), places)
        for name, outputs in (("surer", 1), ("moving", len(levels)))
    )
    added = [moving]
    if settings.standing:
        standing = corrections("standing", len(levels))
        added.append(ops.transpose(standing, (0, 3, 1, 2, 4)))
    raw = Believed(scaled, dtype="float32", name="believed")(surer, ahead, added)
    return keras.Model([frames, motion], raw, name="lagrangian")
