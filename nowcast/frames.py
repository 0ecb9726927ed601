"""Windows of frames without gaps, blocks of time, and batches for training.

A window is ``input_frames`` frames up to a base time and ``lead_frames`` after it, all one step
apart; a window with an absent frame does not exist.
"""

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import variable_of
from nowcast.durable import replacing
from nowcast.rainrate import Transform

CROP_TRIES = 4  # random squares among which the wettest is trained on


@dataclass(frozen=True)
class Window:
    """The frames of one forecast, relative to its base time.

    Parameters
    ----------
    input_frames
        Frames up to and with the base time.
    lead_frames
        Frames after it.
    step
        Time between frames.

    Examples
    --------
    >>> Window(2, 1, pd.Timedelta("10min")).offsets
    TimedeltaIndex(['-1 days +23:50:00', '0 days 00:00:00', '0 days 00:10:00'], ...)
    """

    input_frames: int
    lead_frames: int
    step: pd.Timedelta

    @property
    def offsets(self) -> pd.TimedeltaIndex:
        """Times of the window's frames minus the base time."""
        steps = range(1 - self.input_frames, self.lead_frames + 1)
        return pd.TimedeltaIndex([self.step * step for step in steps])


class Block(NamedTuple):
    """A block of time, both ends included."""

    start: pd.Timestamp
    end: pd.Timestamp

    @classmethod
    def parse(cls, text: str) -> "Block":
        """Read ``2010-08-26T00:00/2010-08-26T05:00`` (UTC).

        Raises
        ------
        ValueError
            If it is not two times with a slash between, the first before the second.
        """
        try:
            start, end = (pd.Timestamp(part) for part in text.split("/"))
        except ValueError as error:
            raise ValueError(f"{text!r} is no period; write START/END, as ISO times") from error
        if start.tz is not None or end.tz is not None:
            start, end = (time.tz_convert(None) if time.tz else time for time in (start, end))
        if not start < end:
            raise ValueError(f"the period {text!r} must start before it ends")
        return cls(start, end)

    def __str__(self) -> str:
        return f"{self.start.isoformat()}/{self.end.isoformat()}"


def step_of(observed: xr.Dataset) -> pd.Timedelta:
    """Give the most frequent time between two consecutive frames.

    Raises
    ------
    ValueError
        If there are fewer than two frames.
    """
    times = observed["time"].to_index()
    if len(times) < 2:
        raise ValueError(f"a step needs two frames or more; there are {len(times)}")
    steps = pd.Series(times[1:] - times[:-1])
    return pd.Timedelta(steps.mode().iloc[0])


def base_times(
    observed: xr.Dataset, window: Window, block: Block | None = None
) -> pd.DatetimeIndex:
    """Give every base time whose window is there whole, and inside the block.

    Parameters
    ----------
    observed
        Dims ``(time, y, x)``; only its times are read.
    window
        The frames that must be there.
    block
        Where all of them must lie; by default anywhere.

    Examples
    --------
    >>> times = pd.to_datetime(["2024-01-01T00:00", "2024-01-01T00:10", "2024-01-01T00:20",
    ...                         "2024-01-01T00:40", "2024-01-01T00:50"])
    >>> gappy = xr.Dataset(coords={"time": times})
    >>> list(base_times(gappy, Window(2, 1, pd.Timedelta("10min"))).strftime("%H:%M"))
    ['00:10']
    """
    times = observed["time"].to_index()
    offsets = window.offsets
    whole = (_positions(times, times, offsets) >= 0).all(axis=1)
    if block is not None:
        whole &= (times + offsets[0] >= block.start) & (times + offsets[-1] <= block.end)
    return pd.DatetimeIndex(times[whole])


def input_frames(
    observed: xr.Dataset, *, base_time: pd.Timestamp, frames: int, step: pd.Timedelta
) -> xr.Dataset:
    """Give the frames that a nowcast from this base time may use, oldest first.

    Raises
    ------
    ValueError
        If the base time is not in the data, or a frame before it is absent: a gap.
    """
    times = observed["time"].to_index()
    if base_time not in times:
        raise ValueError(
            f"base time {base_time.isoformat()} is not in the data; {_nearest(times, base_time)}"
        )
    wanted = pd.DatetimeIndex([base_time - step * back for back in range(frames - 1, -1, -1)])
    absent = wanted[~wanted.isin(times)]
    if len(absent):
        raise ValueError(
            f"base time {base_time.isoformat()} needs {frames} frames {_minutes(step)} apart, and "
            f"{', '.join(time.isoformat() for time in absent)} is absent (a gap); "
            "choose a base time after the gap"
        )
    return observed.sel(time=wanted)


def check_observed(window: xr.Dataset, name: str) -> xr.Dataset:
    """Give back the frames of a window if each has an observed pixel.

    Raises
    ------
    ValueError
        Naming the frames in which nothing was observed: no nowcast can be made from nothing.
    """
    blind = ~np.isfinite(window[name].values).any(axis=(1, 2))
    if blind.any():
        times = ", ".join(time.isoformat() for time in window["time"].to_index()[blind])
        raise ValueError(f"no pixel was observed at {times}; choose another base time")
    return window


def split(
    observed: xr.Dataset,
    *,
    validation_fraction: float,
    test_fraction: float,
    guard: pd.Timedelta,
) -> dict[str, Block]:
    """Cut the time axis into blocks: training first, test last, a guard between them.

    Frames are dropped after a boundary until the guard has passed, so that no block holds the
    echo of another's weather.

    Returns
    -------
    dict
        ``train``, ``validation`` and ``test``.

    Raises
    ------
    ValueError
        If a block would be empty.
    """
    times = observed["time"].to_index()
    first_validation = int(len(times) * (1 - validation_fraction - test_fraction))
    first_test = int(len(times) * (1 - test_fraction))
    pieces = {
        "train": times[:first_validation],
        "validation": times[first_validation:first_test],
        "test": times[first_test:],
    }
    blocks: dict[str, Block] = {}
    earliest = times[0] if len(times) else pd.Timestamp(0)
    for name, piece in pieces.items():
        kept = piece[piece >= earliest]
        if len(kept) < 2:
            raise ValueError(
                f"the {name} block would hold {len(kept)} of {len(times)} frames after a guard "
                f"of {_minutes(guard)}; give more data or a smaller guard"
            )
        blocks[name] = Block(kept[0], kept[-1])
        earliest = kept[-1] + guard + pd.Timedelta(1, "ns")
    return blocks


def check_apart(blocks: dict[str, Block]) -> dict[str, Block]:
    """Give back blocks of time of which none overlaps another.

    Raises
    ------
    ValueError
        Naming the two that do: a score on frames that were trained on means nothing.
    """
    ordered = sorted(blocks.items(), key=lambda item: item[1].start)
    for (name, block), (other, later) in itertools.pairwise(ordered):
        if later.start <= block.end:
            raise ValueError(f"the {name} block {block} and the {other} block {later} overlap")
    return blocks


def store(observed: xr.Dataset, path: Path) -> np.ndarray:
    """Write the frames to one memory-mapped file, in parallel with Dask, and give it.

    Training reads windows from it near the speed of memory; the file can be deleted at any time.
    One that is there is used as it is, so its name must say what it holds.

    Returns
    -------
    frames : (time, y, x)
        float32, NaN where not observed; read-only.
    """
    import dask.array

    values = dask.array.asarray(observed[variable_of(observed)].data)
    if path.exists():
        there: np.ndarray = np.load(path, mmap_mode="r")
        return there
    with replacing(path) as temporary:
        frames = np.lib.format.open_memmap(
            temporary, mode="w+", dtype=np.float32, shape=values.shape
        )
        dask.array.store(values, frames, lock=False)
        frames.flush()
    cached: np.ndarray = np.load(path, mmap_mode="r")
    return cached


class Batches:
    """Batches of windows on the network's scale, shuffled anew in each epoch by a seed.

    Parameters
    ----------
    frames : (time, y, x)
        Physical units, NaN where not observed.
    times
        Of the frames.
    base_times
        Of the windows.
    window, transform
        Their frames and the scale.
    batch_size
        Windows in a batch.
    crop_pixels
        Side of the squares taken; 0 takes the whole grid.
    seed
        Of order and crops; None keeps the order, and takes the middle square.
    """

    def __init__(
        self,
        frames: np.ndarray,
        *,
        times: pd.DatetimeIndex,
        base_times: pd.DatetimeIndex,
        window: Window,
        transform: Transform,
        batch_size: int,
        crop_pixels: int = 0,
        seed: int | None = None,
    ) -> None:
        self._frames = frames
        self._windows = _positions(times, base_times, window.offsets)
        if (self._windows < 0).any():
            raise ValueError(
                "a base time without its whole window was given; see frames.base_times"
            )
        self._input_frames = window.input_frames
        self._transform = transform
        self._batch_size = batch_size
        self._crop = crop_pixels
        self._seed = seed
        self._epoch = 0
        self._order = self._shuffled()

    def __len__(self) -> int:
        return -(-len(self._windows) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Give one batch.

        Returns
        -------
        inputs : (batch, frame, y, x, channel)
            See `as_inputs`.
        targets : (batch, frame, y, x, channel)
            On the network's scale, NaN where not observed.
        """
        chosen = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        windows = np.stack([self._cropped(self._windows[one], int(one)) for one in chosen])
        scaled = self._transform.forward(windows).astype(np.float32)
        inputs = as_inputs(scaled[:, : self._input_frames])
        return inputs, scaled[:, self._input_frames :, ..., np.newaxis]

    def next_epoch(self) -> None:
        """Shuffle for the next epoch."""
        self._epoch += 1
        self._order = self._shuffled()

    def _shuffled(self) -> np.ndarray:
        order = np.arange(len(self._windows))
        if self._seed is None:
            return order
        shuffled: np.ndarray = np.random.default_rng((self._seed, self._epoch)).permutation(order)
        return shuffled

    def _cropped(self, positions: np.ndarray, window: int) -> np.ndarray:
        frames: np.ndarray = self._frames[positions]
        height, width = frames.shape[1:]
        side = self._crop
        if not side or (side >= height and side >= width):
            return frames
        tall, wide = min(side, height), min(side, width)
        if self._seed is None:
            corners = [((height - tall) // 2, (width - wide) // 2)]
        else:
            random = np.random.default_rng((self._seed, self._epoch, window))
            size = (CROP_TRIES, 2)
            corners = random.integers((height - tall + 1, width - wide + 1), size=size).tolist()
        squares = [frames[:, top : top + tall, left : left + wide] for top, left in corners]
        return max(squares, key=lambda square: float(np.nansum(square > 0)))


def as_inputs(scaled: np.ndarray) -> np.ndarray:
    """Give what a network sees: the value, and where it was observed.

    A network cannot take NaN: it spreads, or a rectifier turns it into "dry". So missing pixels
    become 0 in the first channel and the second channel says which they are.

    Parameters
    ----------
    scaled : (batch, frame, y, x)
        On the network's scale, NaN where not observed.

    Returns
    -------
    inputs : (batch, frame, y, x, channel)
        Channel 0 the value, channel 1 is 1 where observed and 0 where not.
    """
    seen = np.isfinite(scaled)
    return np.asarray(np.stack([np.where(seen, scaled, 0.0), seen], axis=-1, dtype=np.float32))


def _positions(
    times: pd.DatetimeIndex, bases: pd.DatetimeIndex, offsets: pd.TimedeltaIndex
) -> np.ndarray:
    columns = [np.asarray(times.get_indexer(bases + offset)) for offset in offsets]
    return np.stack(columns, axis=1)


def _nearest(times: pd.DatetimeIndex, wanted: pd.Timestamp) -> str:
    if not len(times):
        return "there are no frames"
    nearest = times[np.abs(times - wanted).argmin()]
    return (
        f"the nearest is {nearest.isoformat()} and the data reach from {times[0].isoformat()} "
        f"to {times[-1].isoformat()}"
    )


def _minutes(duration: pd.Timedelta) -> str:
    return f"{duration.total_seconds() / 60:g} min"
