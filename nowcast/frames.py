"""Windows of frames without gaps, blocks of time, batches for training, and tiles of a grid.

A window is ``input_frames`` frames up to a base time and ``lead_frames`` after it, all one step
apart; a window with an absent frame does not exist. Which windows are trained on is planned apart
from reading them.
"""

import collections
import itertools
import math
import weakref
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.cache import Cache

CROP_TRIES = 4  # random squares among which the wettest is trained on
ALIKE = 0.2  # part of a window's chance to be drawn that is the same for all
ALIGNMENT = 64  # bytes, of arrays that TensorFlow and JAX take over as they are
LOWEST_CODE = 1  # of a pixel at the lowest valid value, such as dry; above it there is something


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


@dataclass(frozen=True, eq=False)
class Plan:
    """Which windows are trained on, and with what chance; nothing of them is read.

    Parameters
    ----------
    base_times
        Of the windows.
    first
        Place of each window's first frame in the cache; the others lie behind it, side by side.
    chances
        Of each window to be the next one drawn; they add up to 1. None: each comes once an epoch.
    """

    base_times: pd.DatetimeIndex
    first: np.ndarray
    chances: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.first)

    def order(self, seed: int | None, epoch: int) -> np.ndarray:
        """Give the windows of an epoch, as many as there are; without a seed in their order."""
        everyone = np.arange(len(self))
        if seed is None:
            return everyone
        random = np.random.default_rng((seed, epoch))
        if self.chances is None:
            return random.permutation(everyone)
        return random.choice(everyone, size=len(self), p=self.chances)

    def summary(self) -> dict[str, float]:
        """Give how many windows there are and how unlike their chances, as parts of the mean."""
        chances = np.full(len(self), 1 / len(self)) if self.chances is None else self.chances
        relative = len(self) * chances
        return {
            "windows": len(self),
            "lowest_chance": float(relative.min()),
            "highest_chance": float(relative.max()),
            "effective_windows": float(1 / (chances**2).sum()),
        }

    def table(self) -> str:
        """Give every window's base time and chance as CSV."""
        chances = np.full(len(self), 1 / len(self)) if self.chances is None else self.chances
        columns = {"base_time": self.base_times, "chance": chances}
        return str(pd.DataFrame(columns).to_csv(index=False, date_format="%Y-%m-%dT%H:%M:%S"))


def plan(cache: Cache, window: Window, block: Block, *, sampling: str = "uniform") -> Plan:
    """Plan the windows of a block of time.

    Where rain is rare, most windows teach little. ``wet`` draws them by the mean wet fraction of
    their frames, ``intense`` by the mean of their frames above the lowest valid value; `ALIKE` of
    the chance is the same for all, so that dry windows keep their share.

    Parameters
    ----------
    cache
        Only its times and statistics are read.
    window, block
        Which frames, and where all of them must lie.
    sampling
        ``uniform``, ``wet`` or ``intense``.

    Raises
    ------
    ValueError
        If the windows have another step than the cache, or there is none.
    """
    if window.step != cache.step:
        raise ValueError(
            f"windows with a step of {_minutes(window.step)} cannot be read from a cache made for "
            f"{_minutes(cache.step)}; prepare the data again"
        )
    times = cache.times
    bases = base_times(xr.Dataset(coords={"time": times.sort_values()}), window, block)
    length = len(window.offsets)
    if not len(bases):
        raise ValueError(
            f"the block {block} holds no whole window of {length} frames; give more data, another "
            "split or a shorter window"
        )
    first: np.ndarray = times.get_indexer(bases + window.offsets[0])
    if sampling == "uniform":
        return Plan(bases, first)
    statistics = cache.statistics
    scores = statistics["wet"] if sampling == "wet" else statistics["mean"] - cache.coding.offset
    of_frames = np.lib.stride_tricks.sliding_window_view(scores.fillna(0.0).to_numpy(), length)
    return Plan(bases, first, _chances(of_frames[first].mean(axis=1)))


def _chances(scores: np.ndarray) -> np.ndarray:
    alike = np.full(len(scores), 1 / len(scores))
    if not scores.sum():
        return alike
    chances: np.ndarray = ALIKE * alike + (1 - ALIKE) * scores / scores.sum()
    return np.asarray(chances / chances.sum())


class Batches:
    """Batches of windows as codes, drawn anew in each epoch by a seed.

    What is in a batch depends on the plan, the seed, the epoch and its number alone, so any thread
    may read any batch. Arrays lie in memory that is used again once nothing refers to them.

    Parameters
    ----------
    cache, plan
        The codes and which windows of them.
    window
        As the plan was made for.
    batch_size
        Windows in a batch.
    crop_pixels
        Side of the squares taken, the wettest of `CROP_TRIES`; 0 takes the whole grid.
    augment
        Flip along y and x, and turn squares by quarters, at random; needs a seed.
    seed
        Of order, squares and flips; None keeps the order, and takes the middle square unturned.
    targets : (window, ...)
        Of each window of the plan, instead of its lead frames.
    """

    def __init__(
        self,
        cache: Cache,
        plan: Plan,
        *,
        window: Window,
        batch_size: int,
        crop_pixels: int = 0,
        augment: bool = False,
        seed: int | None = None,
        targets: np.ndarray | None = None,
    ) -> None:
        if augment and seed is None:
            raise ValueError("flips and turns are drawn by a seed; give one, or augment=False")
        self._codes = cache.codes
        self._first = plan.first
        self._plan = plan
        self._input_frames, self._lead_frames = window.input_frames, window.lead_frames
        self._batch_size = batch_size
        height, width = cache.codes.shape[1:]
        self.grid = (min(crop_pixels or height, height), min(crop_pixels or width, width))
        self._augment = augment
        self._seed = seed
        self.targets = targets
        self._epoch = 0
        self._order = plan.order(seed, 0)
        self._memory = _Memory(cache.codes.dtype)

    def __len__(self) -> int:
        return -(-len(self._order) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Give one batch.

        Returns
        -------
        inputs : (batch, frame, y, x)
            Codes; see `nowcast.cache.Coding`.
        targets : (batch, frame, y, x, channel)
            Codes, with one channel as networks give it; or the targets that were given.
        """
        chosen = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        if not len(chosen):
            raise IndexError(f"there are {len(self)} batches; batch {index} was asked for")
        inputs = self._memory.take((len(chosen), self._input_frames, *self.grid))
        if self.targets is not None:
            for place, one in enumerate(chosen):
                inputs[place] = self._read(int(one))[: self._input_frames]
            return inputs, self.targets[chosen]
        targets = self._memory.take((len(chosen), self._lead_frames, *self.grid))
        for place, one in enumerate(chosen):
            frames = self._read(int(one))
            inputs[place] = frames[: self._input_frames]
            targets[place] = frames[self._input_frames :]
        return inputs, targets[..., np.newaxis]

    def next_epoch(self) -> None:
        """Draw for the next epoch."""
        self._epoch += 1
        self._order = self._plan.order(self._seed, self._epoch)

    def _read(self, window: int) -> np.ndarray:
        """Give the frames of a window, cropped and turned: a view of the file."""
        first = self._first[window]
        frames = self._codes[first : first + self._input_frames + self._lead_frames]
        if self._seed is None:
            return _middle(frames, self.grid)
        random = np.random.default_rng((self._seed, self._epoch, window))
        frames = _wettest(frames, self.grid, random)
        return _turned(frames, random) if self._augment else frames


class _Memory:
    """Arrays in memory that is used again once nothing refers to the array.

    The pages of new memory cost about as much as what is copied into them. It is aligned, so that
    TensorFlow and JAX take such an array over without a copy of their own.
    """

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = dtype
        self._free: dict[int, collections.deque[memoryview]] = {}

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Give an array; what it holds is left over from before."""
        size = math.prod(shape) * self._dtype.itemsize
        free = self._free.setdefault(size, collections.deque())
        try:
            memory = free.pop()
        except IndexError:
            new = np.empty(size + ALIGNMENT, np.uint8)
            first = -new.ctypes.data % ALIGNMENT
            memory = new[first : first + size].data
        array = np.frombuffer(memory, self._dtype)
        # Every view of the array refers to it, and it alone to the memory.
        weakref.finalize(array, free.append, memory).atexit = False
        return array.reshape(shape)


def _middle(frames: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    top, left = ((have - take) // 2 for have, take in zip(frames.shape[1:], grid, strict=True))
    return frames[:, top : top + grid[0], left : left + grid[1]]


def _wettest(frames: np.ndarray, grid: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Give the one of some random squares in which most pixels are above the lowest value."""
    room = [have - take + 1 for have, take in zip(frames.shape[1:], grid, strict=True)]
    if room == [1, 1]:
        return frames
    corners = random.integers(room, size=(CROP_TRIES, 2)).tolist()
    squares = [frames[:, top : top + grid[0], left : left + grid[1]] for top, left in corners]
    return max(squares, key=lambda square: int(np.count_nonzero(square > LOWEST_CODE)))


def _turned(frames: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Flip along y and x, and swap the two where they are equally long: all turns of a square."""
    flip_y, flip_x, swap = random.integers(2, size=3)
    frames = frames[:, :: -1 if flip_y else 1, :: -1 if flip_x else 1]
    return frames.swapaxes(1, 2) if swap and frames.shape[1] == frames.shape[2] else frames


def tiles(
    shape: tuple[int, int], size: tuple[int, int], overlap: int
) -> list[tuple[tuple[slice, slice], np.ndarray]]:
    """Give tiles that cover a grid, and the weights by which what they hold adds up to a whole.

    Parameters
    ----------
    shape : (y, x)
        Of the grid; at least `size`.
    size : (y, x)
        Of every tile.
    overlap
        Pixels that two neighbours share at least; a weight falls to its tile's edge over as many.

    Returns
    -------
    list
        Rows and columns of each tile, and its weights; at every pixel of the grid these add to 1.

    Raises
    ------
    ValueError
        If a tile exceeds the grid or does not exceed the overlap.

    Examples
    --------
    >>> [(rows.start, weights[:, 0].round(2).tolist()) for (rows, _), weights in
    ...  tiles((6, 4), (4, 4), 2)]
    [(0, [1.0, 1.0, 0.67, 0.33]), (2, [0.33, 0.67, 1.0, 1.0])]
    """
    cuts = list(zip(shape, size, strict=True))
    if any(tile > whole or (tile < whole and overlap >= tile) for whole, tile in cuts):
        raise ValueError(f"a grid of {shape} cannot be cut into {size} with {overlap} in common")
    rows, columns = (_pieces(whole, tile, overlap) for whole, tile in zip(shape, size, strict=True))
    return [((row, column), np.outer(tall, wide)) for row, tall in rows for column, wide in columns]


def _pieces(whole: int, tile: int, overlap: int) -> list[tuple[slice, np.ndarray]]:
    """Give the tiles along one axis, and their weights, which add to 1 at every pixel."""
    count = 1 if tile == whole else 1 + -(-(whole - tile) // (tile - overlap))
    starts = np.linspace(0, whole - tile, count).astype(int)
    pieces = [slice(int(start), int(start) + tile) for start in starts]
    ramps = []
    for piece in pieces:
        inside = np.arange(tile) + 1.0
        from_start = inside if piece.start else np.inf
        to_end = inside[::-1] if piece.stop < whole else np.inf
        ramps.append(np.minimum(np.minimum(from_start, to_end), overlap + 1.0) + np.zeros(tile))
    total = np.zeros(whole)
    for piece, ramp in zip(pieces, ramps, strict=True):
        total[piece] += ramp
    return [(piece, ramp / total[piece]) for piece, ramp in zip(pieces, ramps, strict=True)]


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
