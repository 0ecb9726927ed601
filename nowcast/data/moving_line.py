"""The moving-line problem: a line crosses small frames, to the left or to the right.

The problem on which tutorials teach CNN to LSTM networks: which way the line goes can be told by
no frame alone, only by their order.

References
----------
Brownlee (2017), Long Short-Term Memory Networks with Python, chapter 8
"""

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import Variable, check_observations
from nowcast.data.labels import with_labels

DIRECTIONS = ("left", "right")
BRIGHTNESS = Variable("brightness", "1", "brightness", "", 0.0, 1.0)
FIRST_TIME = "2024-01-01T00:00"  # UTC, of the first sequence
STEP = pd.Timedelta(minutes=1)


def moving_lines(*, sequences: int = 100, size: int = 10, seed: int = 0) -> xr.Dataset:
    """Give observations of a line of single pixels that drifts up or down as it crosses.

    A sequence has as many frames as the grid has columns, one minute apart, and two sequences are
    as far apart again, so that no window holds two. In each frame one pixel is 1, in the next
    column to the left or to the right, one row up or down or in the same row, at random; the
    pixels before it stay, so that the last frame shows the whole line.

    Parameters
    ----------
    sequences
        How many; as many to the left as to the right, up to one, in random order.
    size
        Pixels along y and along x, and frames of a sequence.
    seed
        Zero or more; each gives other lines.

    Returns
    -------
    xr.Dataset
        ``brightness(time, y, x)``, 0 or 1; ``label(time)``: to which side the line goes.

    Raises
    ------
    ValueError
        If there would be no line to see.

    Examples
    --------
    >>> lines = moving_lines(sequences=2)
    >>> lines["brightness"].sum(("y", "x")).values[:10].astype(int).tolist()
    [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    """
    if sequences < 1 or size < 2 or seed < 0:
        raise ValueError(
            "moving lines need a sequence, two pixels and a seed not below 0; received "
            f"{sequences=}, {size=}, {seed=}"
        )
    random = np.random.default_rng(seed)
    sides = random.permutation(np.arange(sequences) % 2)
    frames = np.concatenate([_line(bool(side), size, random) for side in sides])
    starts = pd.Timestamp(FIRST_TIME) + 2 * size * STEP * np.arange(sequences)
    times = pd.DatetimeIndex([start + frame * STEP for start in starts for frame in range(size)])
    pixels = np.arange(size, dtype=float)
    lines = xr.Dataset(
        {BRIGHTNESS.name: (("time", "y", "x"), frames, BRIGHTNESS.attributes)},
        coords={
            "time": ("time", times, {"standard_name": "time"}),
            "y": ("y", pixels[::-1].copy(), {"units": "m"}),
            "x": ("x", pixels, {"units": "m"}),
            "crs": ((), 0, {"grid_mapping_name": "mercator"}),  # of no place on earth
        },
        attrs={"title": "Moving lines", "source": f"nowcast.data.moving_line, seed {seed}"},
    )
    return check_observations(with_labels(lines, np.repeat(sides, size), DIRECTIONS), BRIGHTNESS)


def _line(rightward: bool, size: int, random: np.random.Generator) -> np.ndarray:
    """Give the frames of one sequence; ``(frame, y, x)``."""
    steps = random.integers(-1, 2, size - 1)
    rows = np.clip(random.integers(size) + np.append(0, steps.cumsum()), 0, size - 1)
    columns = np.arange(size) if rightward else np.arange(size)[::-1]
    frames = np.zeros((size, size, size), np.float32)
    for frame, (row, column) in enumerate(zip(rows, columns, strict=True)):
        frames[frame:, row, column] = 1.0
    return frames
