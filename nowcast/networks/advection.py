"""Motion in networks: where pixels come from, and fields and features moved along.

Written with ``keras.ops`` alone, as all networks, so that batches are moved on the device. The
scheme is that of pysteps, which `nowcast.nowcasters.extrapolation` uses: constant motion,
semi-Lagrangian, each step by its midpoint.

References
----------
Germann and Zawadzki (2002), doi:10.1175/1520-0493(2002)130<2859:SDOTPO>2.0.CO;2
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from nowcast.networks.trajectories import warp

COARSER = 4  # pixels along y and x that share a trajectory's starting point
# Log-odds per unit of the network's scale by which extrapolation is believed before anything is
# learnt: of reflectivity over 50 dBZ, half a nat for each dBZ after one step, and so on.
TRUST = 25.0
LEAST_TRUST = 5.0
SURER = (-3.0, 3.0)  # logarithms of the factors on that trust


@keras.saving.register_keras_serializable("nowcast")
class Moved(keras.layers.Layer):  # type: ignore[misc]
    """The frames brought to the base time; the last one at each lead time, and whence.

    Parameters
    ----------
    lead_frames
        How many lead times.
    """

    def __init__(self, lead_frames: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.lead_frames = lead_frames

    def call(self, frames: Any, motion: Any) -> Any:
        """Give (batch, y, x, earlier frame), (batch, lead frame, y, x) and places, as `nearest`.

        Parameters
        ----------
        frames : (batch, frame, y, x, channel)
            Of which the first channel is moved.
        motion : (batch, component, y, x)
            Along x first.
        """
        count, values = frames.shape[1], frames[..., 0]
        flow = ops.flip(ops.transpose(motion, (0, 2, 3, 1)), axis=-1)
        there = origins(flow, max(self.lead_frames, count - 1))
        aligned = [
            between(values[:, -1 - back], there[back - 1]) for back in range(count - 1, 0, -1)
        ]
        there = there[: self.lead_frames]
        ahead = [between(values[:, -1], one) for one in there]
        return ops.stack(aligned, axis=-1), ops.stack(ahead, axis=1), nearest(there)

    def compute_output_spec(self, frames: Any, motion: Any) -> Any:  # noqa: ARG002
        """Give the shapes that `call` gives; tracing it for them takes a second."""
        batch, count, *grid, _ = frames.shape
        by_lead = (batch, self.lead_frames, *grid)
        return (
            keras.KerasTensor((batch, *grid, count - 1), self.compute_dtype),
            keras.KerasTensor(by_lead, self.compute_dtype),
            keras.KerasTensor(by_lead, "int32"),
        )

    def get_config(self) -> dict[str, Any]:
        """Give what makes the same layer again."""
        return {**super().get_config(), "lead_frames": self.lead_frames}


@keras.saving.register_keras_serializable("nowcast")
class Carried(keras.layers.Layer):  # type: ignore[misc]
    """What is told of pixels, where these are at each lead time; see `carried`."""

    def call(self, told: Any, places: Any) -> Any:
        """Give (batch, lead frame, y, x, channel)."""
        return carried(told, places)

    def compute_output_spec(self, told: Any, places: Any) -> Any:
        """Give the shape that `call` gives."""
        return keras.KerasTensor((*places.shape, told.shape[-1]), self.compute_dtype)


@keras.saving.register_keras_serializable("nowcast")
class Believed(keras.layers.Layer):  # type: ignore[misc]
    """Log-odds by the advected value, steeper where the network is surer of it, and corrections.

    Parameters
    ----------
    levels
        Thresholds on the network's scale.
    """

    def __init__(self, levels: list[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.levels = levels

    def call(self, surer: Any, ahead: Any, corrections: Any = ()) -> Any:
        """Give (batch, lead frame, y, x, level).

        Parameters
        ----------
        surer : (batch, lead frame, y, x, 1)
            Logarithms of the factors on the trust.
        ahead : (batch, lead frame, y, x)
            The advected values.
        corrections : (batch, lead frame, y, x, level) of each
            Added.
        """
        leads, *grid = ahead.shape[1:]
        trust = np.log(np.maximum(TRUST / np.arange(1.0, leads + 1.0), LEAST_TRUST))
        lines = np.stack([np.ones(len(self.levels)), -np.array(self.levels)])
        surer = ops.clip(surer, *SURER) + _tensor(trust[None, :, None, None, None])
        steep = ops.reshape(ops.exp(surer), (-1, 1))
        # As a product of matrices: one value, and one line for each level.
        both = ops.concatenate([steep * ops.reshape(ahead, (-1, 1)), steep], axis=-1)
        odds = ops.reshape(ops.matmul(both, _tensor(lines)), (-1, leads, *grid, len(self.levels)))
        for one in corrections:
            odds = odds + one
        return odds

    def compute_output_spec(self, surer: Any, ahead: Any, corrections: Any = ()) -> Any:  # noqa: ARG002
        """Give the shape that `call` gives."""
        return keras.KerasTensor((*ahead.shape, len(self.levels)), self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        """Give what makes the same layer again."""
        return {**super().get_config(), "levels": self.levels}


def _tensor(values: np.ndarray) -> Any:
    return ops.convert_to_tensor(values, dtype="float32")


def origins(motion: Any, steps: int) -> list[Any]:
    """Give from where pixels came after each number of steps, relative to where they are.

    Parameters
    ----------
    motion : (batch, y, x, 2)
        Pixels per step along y and along x, towards higher indices; the same at all times.
    steps
        How many.

    Returns
    -------
    list of (batch, y, x, 2)
        Pixels along y and along x, after 1, 2, ... steps.

    Examples
    --------
    >>> steady = ops.ones((1, 4, 4, 2)) * ops.array([0.0, 0.5])
    >>> [one[0, 2, 2].numpy().tolist() for one in map(ops.convert_to_tensor, origins(steady, 2))]
    [[0.0, -0.5], [0.0, -1.0]]
    """
    motion = ops.cast(motion, "float32")
    height, width = motion.shape[1:3]
    if height % COARSER or width % COARSER:
        return _origins(motion, steps)
    # Motion is smooth: trajectories of a sixteenth of the pixels tell those of all.
    coarse = _origins(ops.average_pool(motion, COARSER, COARSER) / COARSER, steps)
    return [
        ops.image.resize(one, (height, width), data_format="channels_last") * COARSER
        for one in coarse
    ]


def _origins(motion: Any, steps: int) -> list[Any]:
    there, moved = ops.zeros_like(motion), motion
    found = []
    for _ in range(steps):
        halfway = _inside(motion, there - moved / 2.0)
        there = there - halfway
        moved = _inside(motion, there)
        found.append(there)
    return found


def _inside(motion: Any, there: Any) -> Any:
    """Give motion where pixels look; beyond the grid, that of its nearest pixel."""
    height, width = motion.shape[1:3]
    rows = ops.reshape(ops.arange(height, dtype="float32"), (-1, 1))
    columns = ops.reshape(ops.arange(width, dtype="float32"), (1, -1))
    along_y = ops.clip(there[..., 0] + rows, 0.0, height - 1.0) - rows
    along_x = ops.clip(there[..., 1] + columns, 0.0, width - 1.0) - columns
    return warp(motion, ops.stack([along_y, along_x], axis=-1)[..., None, :])[..., 0, :]


def between(field: Any, there: Any) -> Any:
    """Give a field as it is where pixels look, between four pixels by bilinear interpolation.

    Parameters
    ----------
    field : (batch, y, x)
    there : (batch, y, x, 2)
        Pixels along y and along x, from each pixel to where it looks.

    Returns
    -------
    field : (batch, y, x)
        Zero from beyond the grid.
    """
    height, width = field.shape[1:]
    # Nothing all around, and once more behind, where the pixel after the last nothing is read.
    padded = ops.reshape(ops.pad(field, ((0, 0), (1, 2), (1, 2))), (-1,))
    rows = ops.reshape(ops.arange(1.0, height + 1.0), (-1, 1))
    rows = ops.clip(there[..., 0] + rows, 0.0, height + 1.0)
    columns = ops.clip(there[..., 1] + ops.arange(1.0, width + 1.0), 0.0, width + 1.0)
    row, column = ops.floor(rows), ops.floor(columns)
    down, right = rows - row, columns - column
    first = ops.arange(ops.shape(field)[0], dtype="int32") * ((height + 3) * (width + 3))
    place = ops.cast(row, "int32") * (width + 3) + ops.cast(column, "int32")
    place = place + ops.reshape(first, (-1, 1, 1))
    upper = [ops.take(padded, place), ops.take(padded, place + 1)]
    lower = [ops.take(padded, place + width + 3), ops.take(padded, place + width + 4)]
    upper, lower = (left + right * (beside - left) for left, beside in (upper, lower))
    return upper + down * (lower - upper)


def nearest(there: list[Any]) -> Any:
    """Give the pixel that is nearest to where each came from, beyond the grid that at its edge.

    Parameters
    ----------
    there
        As `origins` gives them.

    Returns
    -------
    places : (batch, step, y, x)
        Whole numbers of pixels, counted along x first.
    """
    height, width = there[0].shape[1:3]
    look = ops.stack(there, axis=1)
    rows = ops.round(look[..., 0]) + ops.reshape(ops.arange(height, dtype="float32"), (-1, 1))
    columns = ops.round(look[..., 1]) + ops.arange(width, dtype="float32")
    rows = ops.cast(ops.clip(rows, 0.0, height - 1.0), "int32")
    return rows * width + ops.cast(ops.clip(columns, 0.0, width - 1.0), "int32")


def carried(features: Any, places: Any) -> Any:
    """Give features of pixels where these are after some steps.

    Parameters
    ----------
    features : (batch, y, x, step, channel)
        Of each pixel at the base time, for each of the steps.
    places : (batch, step, y, x)
        Of which pixel, as `nearest` gives it.

    Returns
    -------
    features : (batch, step, y, x, channel)
    """
    height, width, steps, channels = features.shape[1:]
    fields = ops.arange(ops.shape(features)[0], dtype="int32") * (height * width)
    pixels = places + ops.reshape(fields, (-1, 1, 1, 1))
    rows = pixels * steps + ops.reshape(ops.arange(steps, dtype="int32"), (-1, 1, 1))
    return ops.take(ops.reshape(features, (-1, channels)), rows, axis=0)
