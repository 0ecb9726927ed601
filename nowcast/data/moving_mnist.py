"""Moving MNIST: handwritten digits that cross a frame and bounce off its walls.

Made as it was for the ConvLSTM: digits from a subset of 500, start and direction uniform, speed
uniform in [3, 5) pixels per frame, mirrored at the walls, placed on whole pixels, and combined by
their maximum where they overlap. Positions between two pixels are cut, as both papers' code does.

References
----------
Srivastava et al. (2015), Unsupervised Learning of Video Representations, arXiv:1502.04681;
Shi et al. (2015), Convolutional LSTM Network, arXiv:1506.04214, section 4.1
"""

import gzip
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import CF_CONVENTIONS, GRID_MAPPING, Variable, check_observations

INTENSITY = Variable("intensity", "1", "intensity", "", 0.0, 1.0)
LEVELS = 255  # an intensity is one of 0/255 to 255/255
DIGITS = 500  # "chosen randomly from a subset of 500 digits": the first ones of the file
SPEED = (3.0, 5.0)  # pixels per frame, the second excluded
FRAMES, SIZE, TOGETHER = 20, 64, 2  # of a sequence; pixels along y and x; digits in a frame
IMAGES = "train-images-idx3-ubyte.gz"

MAGIC = 0x00000803  # idx: unsigned bytes in three dimensions
HEADER = 16  # bytes: the magic number and the three lengths
LARGEST = 200_000_000  # bytes of digits; MNIST has 47 million

FIRST_TIME = "2024-01-01T00:00"  # UTC, of the first sequence
STEP = pd.Timedelta("1min")  # between frames, which have no times of their own
GAP = pd.Timedelta("10min")  # without frames, between two sequences
PIXEL_M = 1000.0  # a length that stands for a pixel, which has none of its own
CHUNK = 50  # sequences


def read_digits(path: Path | str) -> np.ndarray:
    """Read the digits of an idx file, such as MNIST's.

    Parameters
    ----------
    path
        Of the gzipped file, or the folder in which ``train-images-idx3-ubyte.gz`` lies.

    Returns
    -------
    digits : (digit, y, x)
        From 0 to 255.

    Raises
    ------
    ValueError
        If the file is absent, damaged, or holds something else.
    """
    path = Path(path)
    path = path / IMAGES if path.is_dir() else path
    try:
        with gzip.open(path) as file:
            shape = _shape(file.read(HEADER))
            content = file.read(math.prod(shape) + 1)
    except FileNotFoundError as error:
        raise ValueError(
            f"{path} is absent; give the folder that holds MNIST's {IMAGES}, or that file"
        ) from error
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise ValueError(f"{path} is no whole idx file of digits: {error}; get it anew") from error
    if len(content) != math.prod(shape):
        much = "more" if len(content) > math.prod(shape) else f"{len(content):,}"
        raise ValueError(
            f"{path} is damaged: it says that it holds {shape[0]:,} digits of {shape[1]} x "
            f"{shape[2]}, which are {math.prod(shape):,} bytes, and there are {much}; get it anew"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _shape(header: bytes) -> tuple[int, ...]:
    if len(header) < HEADER:
        raise ValueError(f"it ends after {len(header)} bytes, within its header")
    magic, *shape = np.frombuffer(header, ">u4").tolist()
    if magic != MAGIC:
        raise ValueError(f"it begins with {magic:#010x}, not {MAGIC:#010x}; labels are another")
    if not 0 < math.prod(shape) <= LARGEST:
        raise ValueError(f"it says that it holds an array of {tuple(shape)}")
    return tuple(shape)


def moving_mnist(digits: np.ndarray, *, sequences: int, seed: int = 0) -> xr.Dataset:
    """Give sequences of 20 frames in which two digits move, lazily, as observations.

    A sequence depends on the digits, the seed and its own number alone, so any part may be
    computed by itself, in any order, and is the same to the last bit.

    Parameters
    ----------
    digits : (digit, y, x)
        From 0 to 255; the paper took `DIGITS` of them. See `read_digits`.
    sequences
        How many; the paper had 10,000 to train, 2,000 to validate and 3,000 to test on.
    seed
        Zero or more.

    Returns
    -------
    xr.Dataset
        ``intensity(time, y, x)``, from 0 to 1 in steps of 1/255. The frames of a sequence are a
        minute apart, and a gap divides two sequences, so that a window of 20 frames is one.

    Raises
    ------
    ValueError
        If the digits do not fit a frame or are no bytes, or there would be no sequence.

    Examples
    --------
    >>> digits = np.full((1, 1, 1), 255, np.uint8)  # one digit of a single pixel
    >>> observed = moving_mnist(digits, sequences=2)
    >>> dict(observed.sizes)
    {'time': 40, 'y': 64, 'x': 64}
    >>> float(observed["intensity"].max())
    1.0
    """
    digits = np.asarray(digits)
    if digits.dtype != np.uint8 or digits.ndim != 3 or not digits.size:
        raise ValueError(
            "digits are an array (digit, y, x) of 8-bit unsigned integers; received "
            f"{digits.dtype} of {digits.shape}"
        )
    if max(digits.shape[1:]) >= SIZE:
        raise ValueError(f"digits must be smaller than {SIZE} x {SIZE}; they are {digits.shape}")
    if sequences < 1 or seed < 0:
        raise ValueError(f"one sequence or more, seed 0 or more; received {sequences=}, {seed=}")
    counts = [CHUNK] * (sequences // CHUNK) + [sequences % CHUNK] * (sequences % CHUNK > 0)
    intensity = da.map_blocks(
        _intensity,
        _Source(digits, sequences, seed),
        chunks=(tuple(count * FRAMES for count in counts), (SIZE,), (SIZE,)),
        dtype=np.float32,
        meta=np.empty((0, 0, 0), np.float32),
    )
    dataset = xr.Dataset(
        {INTENSITY.name: (("time", "y", "x"), intensity, INTENSITY.attributes)},
        coords=_coordinates(sequences),
        attrs={
            "title": "Moving MNIST",
            "source": f"nowcast.data.moving_mnist, {len(digits)} digits, seed {seed}",
            "Conventions": CF_CONVENTIONS,
        },
    )
    return check_observations(dataset, INTENSITY)


def block_of(first: int, count: int) -> tuple[pd.Timestamp, pd.Timestamp]:
    """Give the times of the first and the last frame of some sequences that follow each other.

    Examples
    --------
    >>> start, end = block_of(1, 2)
    >>> start.isoformat(), end.isoformat()
    ('2024-01-01T00:29:00', '2024-01-01T01:17:00')
    """
    times = _starts(first + count)
    return times[first], times[-1] + (FRAMES - 1) * STEP


@dataclass(frozen=True, eq=False)
class _Source:
    """What all sequences share."""

    digits: np.ndarray
    sequences: int
    seed: int


def _intensity(source: _Source, block_id: tuple[int, ...]) -> np.ndarray:
    """Draw the sequences of one block; dims ``(frame, y, x)``."""
    first = block_id[0] * CHUNK
    numbers = range(first, min(first + CHUNK, source.sequences))
    return np.concatenate([_sequence(source.digits, source.seed, number) for number in numbers])


def _sequence(digits: np.ndarray, seed: int, number: int) -> np.ndarray:
    random = np.random.default_rng([seed, number])
    chosen = digits[random.integers(len(digits), size=TOGETHER)]
    height, width = chosen.shape[1:]
    places = _places(random, room=np.array([SIZE - height, SIZE - width]))
    frames = np.zeros((FRAMES, SIZE, SIZE), np.uint8)
    for digit, path in zip(chosen, places, strict=True):
        for frame, (top, left) in zip(frames, path, strict=True):
            under = frame[top : top + height, left : left + width]
            np.maximum(under, digit, out=under)
    return np.asarray(frames / np.float32(LEVELS), np.float32)


def _places(random: np.random.Generator, *, room: np.ndarray) -> np.ndarray:
    """Give the upper left pixels of all digits; dims ``(digit, frame, axis)``.

    A path that is mirrored at both walls is a straight one, folded at every multiple of the room.
    """
    start = room * random.random((TOGETHER, 1, 2))
    speed = random.uniform(*SPEED, size=(TOGETHER, 1, 1))
    direction = random.uniform(0.0, 2 * np.pi, size=(TOGETHER, 1))
    velocity = speed * np.stack([np.sin(direction), np.cos(direction)], axis=-1)
    straight = start + velocity * np.arange(FRAMES)[:, np.newaxis]
    folded = straight % (2 * room)
    places: np.ndarray = np.floor(np.minimum(folded, 2 * room - folded)).astype(int)
    return places


def _starts(sequences: int) -> pd.DatetimeIndex:
    """Give the time of the first frame of every sequence."""
    apart = (FRAMES - 1) * STEP + GAP
    return pd.date_range(FIRST_TIME, periods=sequences, freq=apart)


def _coordinates(sequences: int) -> dict[str, object]:
    """Give times that stand for numbers, and a plane on which a pixel has a length."""
    offsets = np.arange(FRAMES) * STEP.to_timedelta64()
    times = (_starts(sequences).values[:, np.newaxis] + offsets).ravel()
    centres = (np.arange(SIZE) - (SIZE - 1) / 2.0) * PIXEL_M
    plane = {
        "grid_mapping_name": "lambert_azimuthal_equal_area",
        "latitude_of_projection_origin": 0.0,
        "longitude_of_projection_origin": 0.0,
        "earth_radius": 6_371_000.0,
    }
    return {
        "time": ("time", times.astype("datetime64[ns]"), {"standard_name": "time"}),
        "y": ("y", centres[::-1], {"standard_name": "projection_y_coordinate", "units": "m"}),
        "x": ("x", centres, {"standard_name": "projection_x_coordinate", "units": "m"}),
        GRID_MAPPING: ((), 0, plane),
    }
