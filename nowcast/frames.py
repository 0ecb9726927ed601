"""Windows of frames without gaps, blocks of time, batches for training, and tiles of a grid.

A window is ``input_frames`` frames up to a base time and ``lead_frames`` after it, all one step
apart; a window with an absent frame does not exist, unless training may leave the last of its lead
frames missing. Which windows are trained on is planned apart from reading them.
"""

import collections
import itertools
import math
import weakref
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.cache import Cache
from nowcast.turns import Turn

CROP_TRIES = 4  # random squares among which the wettest is trained on
ALIKE = 0.2  # part of a window's chance to be drawn that is the same for all
ALIGNMENT = 64  # bytes, of arrays that TensorFlow and JAX take over as they are
EPOCH = pd.Timestamp(0)
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
MISSING = 0  # the code; see nowcast.cache.Coding
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


@dataclass(frozen=True)
class Block:
    """A block of time, both ends included; or several, no window of which reaches over two.

    Parameters
    ----------
    start, end
        Of the first and of the last.
    pieces
        Of which it is made; none where it is one.

    Examples
    --------
    >>> days = Block.parse("2024-05-01/2024-05-02 2024-05-04/2024-05-05")
    >>> times = pd.to_datetime(["2024-05-01T12:00", "2024-05-03T12:00", "2024-05-04T12:00"])
    >>> days.holds(times, times).tolist()
    [True, False, True]
    """

    start: pd.Timestamp
    end: pd.Timestamp
    pieces: tuple["Block", ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Block":
        """Read ``2010-08-26T00:00/2010-08-26T05:00`` (UTC), or several with spaces between.

        Raises
        ------
        ValueError
            If one is not two times with a slash between, the first before the second, or they are
            not in order.
        """
        pieces = tuple(map(_period, text.split() or [text]))
        return pieces[0] if len(pieces) == 1 else cls.of(pieces)

    @classmethod
    def of(cls, pieces: tuple["Block", ...]) -> "Block":
        """Join blocks that follow one another in time.

        Raises
        ------
        ValueError
            If two overlap or are out of order.
        """
        for earlier, later in itertools.pairwise(pieces):
            if later.start <= earlier.end:
                raise ValueError(
                    f"periods must follow one another; {later} begins before {earlier} ends"
                )
        return cls(pieces[0].start, pieces[-1].end, pieces)

    def holds(self, first: pd.DatetimeIndex, last: pd.DatetimeIndex) -> np.ndarray:
        """Tell which stretches of time, from `first` to `last` each, lie inside of one piece."""
        inside = [(first >= one.start) & (last <= one.end) for one in self.pieces or (self,)]
        held: np.ndarray = np.any(inside, axis=0)
        return held

    def __str__(self) -> str:
        if self.pieces:
            return " ".join(map(str, self.pieces))
        return f"{self.start.isoformat()}/{self.end.isoformat()}"


def _period(text: str) -> Block:
    try:
        start, end = (pd.Timestamp(part) for part in text.split("/"))
    except ValueError as error:
        raise ValueError(f"{text!r} is no period; write START/END, as ISO times") from error
    if start.tz is not None or end.tz is not None:
        start, end = (time.tz_convert(None) if time.tz else time for time in (start, end))
    if not start < end:
        raise ValueError(f"the period {text!r} must start before it ends")
    return Block(start, end)


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
        whole &= block.holds(times + offsets[0], times + offsets[-1])
    return pd.DatetimeIndex(times[whole])


class GapError(ValueError):
    """A frame that a nowcast needs is absent."""


def input_frames(
    observed: xr.Dataset, *, base_time: pd.Timestamp, frames: int, step: pd.Timedelta
) -> xr.Dataset:
    """Give the frames that a nowcast from this base time may use, oldest first.

    Raises
    ------
    GapError
        If the base time is not in the data, or a frame before it is absent.
    ValueError
        If the observations never come at this step.
    """
    times = observed["time"].to_index()
    if base_time not in times:
        raise GapError(
            f"base time {base_time.isoformat()} is not in the data; {_nearest(times, base_time)}"
        )
    wanted = pd.DatetimeIndex([base_time - step * back for back in range(frames - 1, -1, -1)])
    absent = wanted[~wanted.isin(times)]
    if len(absent) and len(times) > 1 and step % step_of(observed) != pd.Timedelta(0):
        raise ValueError(
            f"frames every {_minutes(step)} are needed; the observations come every "
            f"{_minutes(step_of(observed))}; give others, or a nowcaster made for these"
        )
    if len(absent):
        raise GapError(
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


def deal(
    observed: xr.Dataset,
    *,
    validation_fraction: float,
    test_fraction: float,
    guard: pd.Timedelta,
    length: pd.Timedelta,
) -> dict[str, Block]:
    """Deal stretches of time in turn to the three blocks, so that each has all seasons.

    Time is cut into stretches of a length, counted from 1970; those with frames are dealt by the
    golden ratio, which spreads any share of them as evenly as can be. A guard is left unused at
    the end of each stretch.

    Returns
    -------
    dict
        ``train``, ``validation`` and ``test``.

    Raises
    ------
    ValueError
        If a guard leaves nothing of a stretch, or a block would be empty.

    Examples
    --------
    >>> times = pd.date_range("2024-05-01", "2024-05-10", freq="1h", inclusive="left")
    >>> dealt = deal(
    ...     xr.Dataset(coords={"time": times}), validation_fraction=0.25, test_fraction=0.2,
    ...     guard=pd.Timedelta("1h"), length=pd.Timedelta("1D"),
    ... )
    >>> {name: [piece.start.day for piece in block.pieces] for name, block in dealt.items()}
    {'train': [1, 3, 4, 6, 8, 9], 'validation': [2, 5], 'test': [7]}
    """
    if guard >= length:
        raise ValueError(
            f"a guard of {_minutes(guard)} leaves nothing of stretches of {_minutes(length)}; give "
            "a shorter guard or longer stretches"
        )
    times = observed["time"].to_index()
    numbers = np.unique((times - EPOCH) // length)
    shares = {
        "validation": validation_fraction,
        "test": test_fraction,
        "train": 1.0 - validation_fraction - test_fraction,
    }
    places = np.arange(1, len(numbers) + 1) * GOLDEN % 1.0
    dealt = np.searchsorted(np.cumsum(list(shares.values())[:-1]), places, side="right")
    blocks: dict[str, Block] = {}
    for name in ("train", "validation", "test"):
        own = numbers[dealt == list(shares).index(name)]
        if not len(own):
            raise ValueError(
                f"the {name} block would hold none of {len(numbers)} stretches of "
                f"{_minutes(length)}; give more data, shorter stretches or larger fractions"
            )
        starts = [EPOCH + int(number) * length for number in own]
        ends = [start + length - guard - pd.Timedelta(1, "ns") for start in starts]
        blocks[name] = Block.of(tuple(map(Block, starts, ends)))
    return blocks


def check_apart(blocks: dict[str, Block]) -> dict[str, Block]:
    """Give back blocks of time of which none overlaps another.

    Raises
    ------
    ValueError
        Naming the two that do: a score on frames that were trained on means nothing.
    """
    pieces = [(name, one) for name, block in blocks.items() for one in block.pieces or (block,)]
    ordered = sorted(pieces, key=lambda item: item[1].start)
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
    leads
        Lead frames of each window that are there; the others are missing. None: all are.
    """

    base_times: pd.DatetimeIndex
    first: np.ndarray
    chances: np.ndarray | None = None
    leads: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.first)

    def order(self, seed: int | None, epoch: int, *, least: int = 0) -> np.ndarray:
        """Give the windows of an epoch, as many as there are or more; without a seed in order."""
        everyone = np.arange(len(self))
        if seed is None:
            return everyone
        random = np.random.default_rng((seed, epoch))
        if self.chances is None:
            rounds = max(1, -(-least // len(self)))
            return np.concatenate([random.permutation(everyone) for _ in range(rounds)])
        return random.choice(everyone, size=max(len(self), least), p=self.chances)

    def thinned(self, most: int) -> "Plan":
        """Give so many of the windows at most, evenly spread over them, all alike."""
        if len(self) <= most:
            return self
        kept = np.linspace(0, len(self) - 1, most).round().astype(int)
        leads = None if self.leads is None else self.leads[kept]
        return Plan(self.base_times[kept], self.first[kept], leads=leads)

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


def plan(
    cache: Cache, window: Window, block: Block, *, sampling: str = "uniform", least_leads: int = 0
) -> Plan:
    """Plan the windows of a block of time.

    Where rain is rare, most windows teach little. ``wet`` draws them by the mean wet fraction of
    their input frames, ``intense`` by the mean of those above the lowest valid value; `ALIKE` of
    the chance is the same for all, so that dry windows keep their share. The frames to forecast
    have no say: drawn by those too, rain would follow more often than it does.

    Parameters
    ----------
    cache
        Only its times and statistics are read.
    window, block
        Which frames, and where all of them must lie.
    sampling
        ``uniform``, ``wet`` or ``intense``.
    least_leads
        Lead frames, from the first on, that must be there; what lies behind the end of the block or
        in a gap is missing. 0: all must.

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
    frames = xr.Dataset(coords={"time": times.sort_values()})
    shortest = replace(window, lead_frames=least_leads or window.lead_frames)
    bases = base_times(frames, shortest, block)
    if not len(bases):
        raise ValueError(
            f"the block {block} holds no whole window of {len(shortest.offsets)} frames; give more "
            "data, another split or a shorter window"
        )
    first: np.ndarray = times.get_indexer(bases + window.offsets[0])
    leads = np.full(len(bases), shortest.lead_frames)
    for more in range(shortest.lead_frames + 1, window.lead_frames + 1):
        leads[bases.isin(base_times(frames, replace(window, lead_frames=more), block))] = more
    if sampling == "uniform":
        return Plan(bases, first, leads=leads)
    statistics = cache.statistics
    scores = statistics["wet"] if sampling == "wet" else statistics["mean"] - cache.coding.offset
    known = window.input_frames
    of_frames = np.lib.stride_tricks.sliding_window_view(scores.fillna(0.0).to_numpy(), known)
    return Plan(bases, first, _chances(of_frames[first].mean(axis=1)), leads)


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
        Side of the squares taken, of `CROP_TRIES` the wettest in the input frames; 0 takes the
        whole grid.
    augment
        Flip along y and x, and turn squares by quarters, at random; needs a seed.
    seed
        Of order, squares and flips; None keeps the order, and takes the middle square unturned.
    targets : (window, ...)
        Of each window of the plan, instead of its lead frames.
    motions : (frame, component, y, x)
        Of each frame of the cache, for networks that see the motion at the base time.
    least
        Windows in an epoch at least; where there are fewer they come again, cropped and turned
        otherwise.
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
        motions: np.ndarray | None = None,
        least: int = 0,
    ) -> None:
        if augment and seed is None:
            raise ValueError("flips and turns are drawn by a seed; give one, or augment=False")
        self._codes = cache.codes
        self._first = plan.first
        leads = np.full(len(plan), window.lead_frames) if plan.leads is None else plan.leads
        self._there = window.input_frames + leads
        self._plan = plan
        self._input_frames, self._lead_frames = window.input_frames, window.lead_frames
        self._batch_size = batch_size
        height, width = cache.codes.shape[1:]
        self.grid = (min(crop_pixels or height, height), min(crop_pixels or width, width))
        self._augment = augment
        self._seed = seed
        self.targets = targets
        self._motions = motions
        self._epoch = 0
        self._least = least
        self._order = plan.order(seed, 0, least=least)
        self._memory = _Memory(cache.codes.dtype)

    def __len__(self) -> int:
        return -(-len(self._order) // self._batch_size)

    def __getitem__(self, index: int) -> tuple[Any, np.ndarray]:
        """Give one batch.

        Returns
        -------
        inputs : (batch, frame, y, x)
            Codes; see `nowcast.cache.Coding`. With motions a pair, of these and of the motion at
            the base times, (batch, component, y, x), cropped and turned like the frames.
        targets : (batch, frame, y, x, channel)
            Codes, with one channel as networks give it; or the targets that were given.
        """
        chosen = self._order[index * self._batch_size : (index + 1) * self._batch_size]
        if not len(chosen):
            raise IndexError(f"there are {len(self)} batches; batch {index} was asked for")
        inputs = self._memory.take((len(chosen), self._input_frames, *self.grid))
        moving = np.zeros((len(chosen), 2, *self.grid), np.float32)
        leads = 0 if self.targets is not None else self._lead_frames
        targets = self._memory.take((len(chosen), leads, *self.grid))
        for place in range(len(chosen)):
            frames, motion = self._read(index * self._batch_size + place)
            inputs[place] = frames[: self._input_frames]
            there = frames[self._input_frames :][:leads]
            targets[place, : len(there)] = there
            targets[place, len(there) :] = MISSING
            if motion is not None:
                moving[place] = motion
        given = inputs if self._motions is None else (inputs, moving)
        if self.targets is not None:
            return given, self.targets[chosen]
        return given, targets[..., np.newaxis]

    def next_epoch(self) -> None:
        """Draw for the next epoch."""
        self._epoch += 1
        self._order = self._plan.order(self._seed, self._epoch, least=self._least)

    def _read(self, place: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Give a window of the order, and its motion, cropped and turned: views of the files."""
        window = self._order[place]
        first = self._first[window]
        frames = self._codes[first : first + self._there[window]]
        motion = None
        if self._motions is not None:
            motion = self._motions[first + self._input_frames - 1]
        if self._seed is None:
            rows, columns = _middle(frames, self.grid)
        else:
            random = np.random.default_rng((self._seed, self._epoch, place))
            rows, columns = _wettest(frames[: self._input_frames], self.grid, random)
        frames = frames[:, rows, columns]
        motion = None if motion is None else motion[:, rows, columns]
        return _turned(frames, motion, random) if self._augment else (frames, motion)


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


def _middle(frames: np.ndarray, grid: tuple[int, int]) -> tuple[slice, slice]:
    top, left = ((have - take) // 2 for have, take in zip(frames.shape[1:], grid, strict=True))
    return slice(top, top + grid[0]), slice(left, left + grid[1])


def _wettest(
    frames: np.ndarray, grid: tuple[int, int], random: np.random.Generator
) -> tuple[slice, slice]:
    """Give the one of some random squares in which most pixels are above the lowest value.

    The frames are those of the input, as in `plan`: what is to be forecast has no say.
    """
    room = [have - take + 1 for have, take in zip(frames.shape[1:], grid, strict=True)]
    if room == [1, 1]:
        return _middle(frames, grid)
    corners = random.integers(room, size=(CROP_TRIES, 2)).tolist()
    squares = [(slice(top, top + grid[0]), slice(left, left + grid[1])) for top, left in corners]

    def wet(square: tuple[slice, slice]) -> int:
        return int(np.count_nonzero(frames[:, square[0], square[1]] > LOWEST_CODE))

    return max(squares, key=wet)


def _turned(
    frames: np.ndarray, motion: np.ndarray | None, random: np.random.Generator
) -> tuple[np.ndarray, np.ndarray | None]:
    """Flip along y and x, and swap the two where they are equally long: all turns of a square."""
    flip_y, flip_x, swap = map(bool, random.integers(2, size=3))
    turn = Turn(flip_y, flip_x, swap and frames.shape[1] == frames.shape[2])
    return turn.fields(frames), None if motion is None else turn.motion(motion)


def tiles(
    shape: tuple[int, int], size: tuple[int, int], overlap: int, *, rim: int = 0
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
    rim
        Pixels along a tile's edge, unless it is the grid's, that count for nothing: of these
        `overlap` holds two.

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
    rows, columns = (_pieces(whole, tile, overlap, rim) for whole, tile in cuts)
    return [((row, column), np.outer(tall, wide)) for row, tall in rows for column, wide in columns]


def _pieces(whole: int, tile: int, overlap: int, rim: int) -> list[tuple[slice, np.ndarray]]:
    """Give the tiles along one axis, and their weights, which add to 1 at every pixel."""
    count = 1 if tile == whole else 1 + -(-(whole - tile) // (tile - overlap))
    starts = np.linspace(0, whole - tile, count).astype(int)
    pieces = [slice(int(start), int(start) + tile) for start in starts]
    ramps = []
    for piece in pieces:
        inside = np.maximum(np.arange(tile) + 1.0 - rim, 0.0)
        from_start = inside if piece.start else np.inf
        to_end = inside[::-1] if piece.stop < whole else np.inf
        ramps.append(
            np.minimum(np.minimum(from_start, to_end), overlap - 2 * rim + 1.0) + np.zeros(tile)
        )
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
