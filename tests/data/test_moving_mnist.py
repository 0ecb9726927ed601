import gzip
import struct

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nowcast.cache import cached, coding_of
from nowcast.conventions import check_values
from nowcast.data.moving_mnist import (
    DIGITS,
    FRAMES,
    INTENSITY,
    SIZE,
    block_of,
    moving_mnist,
    read_digits,
)
from nowcast.frames import Block, Window, base_times

DOT = np.full((1, 1, 1), 255, np.uint8)


def _digits(count=3, side=5):
    return np.random.default_rng(0).integers(0, 256, (count, side, side), np.uint8)


def _idx(shape, *, magic=0x803, content=None):
    size = int(np.prod(shape))
    pixels = bytes(index % 251 for index in range(size)) if content is None else content
    return struct.pack(">4I", magic, *shape) + pixels


def _written(path, content):
    path.write_bytes(gzip.compress(content))
    return path


def _frames(observed):
    """Intensity as ``(sequence, frame, y, x)``."""
    return observed["intensity"].values.reshape(-1, FRAMES, SIZE, SIZE)


def _dots(frames):
    """Where the two one-pixel digits of a sequence are in each frame, as sets of pixels."""
    return [{tuple(place) for place in np.argwhere(frame).tolist()} for frame in frames]


def _walk(start, velocity, room):
    """Step a place by its velocity, mirrored at the walls, one frame after another."""
    place, velocity = np.array(start), np.array(velocity)
    for _ in range(FRAMES):
        yield tuple(np.floor(place).astype(int).tolist())
        place = place + velocity
        for axis in range(2):
            if not 0 <= place[axis] <= room:
                place[axis] = -place[axis] if place[axis] < 0 else 2 * room - place[axis]
                velocity[axis] *= -1


def test_a_digit_of_one_pixel_moves_by_its_velocity_and_is_mirrored_at_the_walls():
    observed = moving_mnist(DOT, sequences=6, seed=4)
    bounces = 0
    for number, frames in enumerate(_frames(observed)):
        random = np.random.default_rng([4, number])
        random.integers(1, size=2)
        room = SIZE - 1
        start = room * random.random((2, 2))
        speed = random.uniform(3, 5, size=2)
        direction = random.uniform(0, 2 * np.pi, size=2)
        assert ((speed >= 3) & (speed < 5)).all()
        velocity = speed[:, None] * np.stack([np.sin(direction), np.cos(direction)], axis=1)
        one, other = (list(_walk(start[n], velocity[n], room)) for n in range(2))
        assert _dots(frames) == [set(pair) for pair in zip(one, other, strict=True)]
        far = start + velocity * (FRAMES - 1)
        bounces += int(((far < 0) | (far > room)).sum())
    assert bounces > 6


def test_speeds_and_directions_are_those_of_the_paper():
    """Of digits of one pixel, from their displacement between the first frames."""
    digits = np.zeros((1, 1, 1), np.uint8) + 255
    frames = _frames(moving_mnist(digits, sequences=300, seed=1))[:, :6]
    moved = []
    for sequence in frames:
        places = _dots(sequence)
        if any(len(place) != 2 for place in places):
            continue
        path = [min(places[0])]
        for place in places[1:]:
            path.append(min(place, key=lambda at, last=path[-1]: np.hypot(*np.subtract(at, last))))
        steps = np.diff(path, axis=0)
        if np.ptp(steps, axis=0).max() <= 1:  # neither mirrored nor mistaken for the other
            moved.append((np.array(path[-1]) - path[0]) / 5)
    speeds = np.hypot(*np.array(moved).T)
    assert len(moved) > 100
    assert 2.7 < speeds.min() < 3.3
    assert 4.6 < speeds.max() < 5.3
    assert np.abs(np.mean(moved / speeds[:, None], axis=0)).max() < 0.2


def test_where_digits_overlap_the_brighter_counts():
    digits = np.full((1, 60, 60), 100, np.uint8)
    digits[0, 0, 0] = 200
    frame = _frames(moving_mnist(digits, sequences=1))[0, 0]
    assert set(np.rint(np.unique(frame) * 255)) == {0, 100, 200}
    assert (frame == np.float32(200 / 255)).sum() <= 2
    assert np.count_nonzero(frame) < 2 * 60 * 60


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), height=st.integers(1, 63), width=st.integers(1, 63))
def test_no_digit_ever_leaves_the_frame(seed, height, width):
    digits = np.full((1, height, width), 255, np.uint8)
    frames = _frames(moving_mnist(digits, sequences=1, seed=seed))[0]
    pixels = np.count_nonzero(frames, axis=(1, 2))
    assert (pixels >= height * width).all()  # a digit cut off at a wall would have fewer
    assert (pixels <= 2 * height * width).all()


def test_a_sequence_depends_on_the_seed_and_its_number_alone():
    digits = _digits()
    few, many = (moving_mnist(digits, sequences=n, seed=7) for n in (2, 53))
    np.testing.assert_array_equal(_frames(few), _frames(many)[:2])
    np.testing.assert_array_equal(
        many["intensity"].isel(time=slice(1000, 1040)).values.reshape(2, FRAMES, SIZE, SIZE),
        _frames(many)[50:52],
    )
    other = _frames(moving_mnist(digits, sequences=2, seed=8))
    assert (other != _frames(few)).any(axis=(1, 2, 3)).all()
    assert (_frames(many)[0] != _frames(many)[1]).any()


def test_it_is_lazy_and_keeps_the_convention():
    observed = moving_mnist(_digits(), sequences=120)
    assert observed["intensity"].chunks[0] == (1000, 1000, 400)
    check_values(observed.isel(time=slice(0, 40)), INTENSITY)
    window = Window(10, 10, pd.Timedelta("1min"))
    assert len(base_times(observed, window)) == 120
    assert len(base_times(observed, window, Block(*block_of(100, 20)))) == 20


def test_the_cache_holds_every_intensity_exactly(tmp_path):
    digits = np.arange(256, dtype=np.uint8).reshape(1, 16, 16)
    observed = moving_mnist(digits, sequences=2)
    coding = coding_of(INTENSITY, 1 / 255)
    step = pd.Timedelta("1min")
    cache = cached(observed, work=tmp_path, variable=INTENSITY, coding=coding, step=step)
    values = coding.decode(np.asarray(cache.codes))
    np.testing.assert_array_equal(values, observed["intensity"].values)
    assert len(np.unique(values)) == 256
    assert [run.length for run in cache.runs] == [20, 20]
    again = moving_mnist(digits, sequences=2)
    folder = cached(again, work=tmp_path, variable=INTENSITY, coding=coding, step=step).folder
    assert folder == cache.folder


@pytest.mark.parametrize(
    ("digits", "said"),
    [
        (np.zeros((1, 2, 2), np.float32), "received float32"),
        (np.zeros((2, 2), np.uint8), r"of \(2, 2\)"),
        (np.zeros((0, 2, 2), np.uint8), "received uint8"),
        (np.zeros((1, 64, 2), np.uint8), "smaller than 64 x 64"),
    ],
)
def test_what_is_no_digit_is_refused(digits, said):
    with pytest.raises(ValueError, match=said):
        moving_mnist(digits, sequences=1)


def test_no_sequence_is_refused():
    with pytest.raises(ValueError, match="sequences=0"):
        moving_mnist(DOT, sequences=0)


def test_digits_are_read_from_a_file_or_its_folder(tmp_path):
    content = _idx((3, 4, 5))
    path = _written(tmp_path / "train-images-idx3-ubyte.gz", content)
    for where in (path, tmp_path):
        digits = read_digits(where)
        assert digits.shape == (3, 4, 5)
        assert digits.tobytes() == content[16:]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (_idx((3, 4, 5), magic=0x801), "begins with 0x00000801"),
        (_idx((3, 4, 5))[:-1], "60 bytes, and there are 59"),
        (_idx((3, 4, 5)) + b"0", "and there are more"),
        (_idx((3, 4, 5))[:9], "ends after 9 bytes"),
        (_idx((0, 28, 28), content=b""), "an array of"),
        (_idx((2**31, 28, 28), content=b""), "an array of"),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content, said):
    with pytest.raises(ValueError, match=said):
        read_digits(_written(tmp_path / "images.gz", content))


def test_a_damaged_file_is_refused_and_named(tmp_path):
    whole = gzip.compress(_idx((30, 28, 28), content=np.random.default_rng(0).bytes(30 * 784)))
    damaged = [whole[:-2000], whole[:100] + b"\0" * 50 + whole[150:], b"no gzip", b""]
    for number, content in enumerate(damaged):
        path = tmp_path / f"damaged-{number}.gz"
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"damaged-{number}.gz"):
            read_digits(path)


def test_an_absent_file_is_said_kindly(tmp_path):
    with pytest.raises(ValueError, match="give the folder that holds MNIST's"):
        read_digits(tmp_path)


def test_sequences_of_the_real_digits(shared_data):
    if not (shared_data / "mnist").is_dir():
        pytest.skip(f"no MNIST: {shared_data / 'mnist'} is absent")
    digits = read_digits(shared_data / "mnist")
    assert digits.shape == (60_000, 28, 28)
    observed = moving_mnist(digits[:DIGITS], sequences=20)
    frames = _frames(check_values(observed, INTENSITY))
    lit = (frames > 0.5).mean(axis=(2, 3))
    assert 0.02 < lit.mean() < 0.1
    assert frames.max() == 1.0
