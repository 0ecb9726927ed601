import itertools
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from nowcast.cache import build_cache, coding_of
from nowcast.conventions import RAIN_RATE
from nowcast.frames import (
    Batches,
    Block,
    Window,
    as_inputs,
    base_times,
    check_apart,
    input_frames,
    plan,
    split,
    step_of,
    tiles,
)

STEP = pd.Timedelta("10min")
WINDOW = Window(3, 2, STEP)
EVER = Block(pd.Timestamp("2000-01-01"), pd.Timestamp("2100-01-01"))


def _times(slots):
    return pd.DatetimeIndex([pd.Timestamp("2024-01-01") + STEP * slot for slot in slots])


def _observed(slots):
    return xr.Dataset(coords={"time": _times(slots)})


@given(st.sets(st.integers(0, 30), min_size=1))
def test_no_window_straddles_a_gap(slots):
    slots = sorted(slots)
    found = base_times(_observed(slots), WINDOW)
    expected = [slot for slot in slots if {slot + k for k in range(-2, 3)} <= set(slots)]
    assert list(found) == list(_times(expected))


def test_a_window_lies_inside_its_block_with_all_its_frames():
    times = _times(range(20))
    found = base_times(_observed(range(20)), WINDOW, Block(times[5], times[12]))
    assert list(found) == list(times[7:11])


def test_a_coarser_step_than_the_data_is_allowed():
    found = base_times(_observed(range(10)), Window(2, 1, 2 * STEP))
    assert list(found) == list(_times(range(2, 8)))


def test_input_frames_are_the_last_ones_in_order():
    window = input_frames(_observed(range(6)), base_time=_times([4])[0], frames=3, step=STEP)
    assert list(window["time"].to_index()) == list(_times([2, 3, 4]))


def test_a_gap_before_the_base_time_is_named():
    with pytest.raises(ValueError, match=r"2024-01-01T00:20:00 is absent \(a gap\)"):
        input_frames(_observed([0, 1, 3, 4]), base_time=_times([4])[0], frames=3, step=STEP)


def test_a_base_time_not_in_the_data_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"is not in the data; the nearest is 2024-01-01T00:50"):
        input_frames(_observed(range(6)), base_time=pd.Timestamp("2024-01-02"), frames=1, step=STEP)


@given(st.integers(30, 300), st.integers(0, 12))
def test_blocks_are_in_order_with_the_guard_between(frames, guard_steps):
    observed = _observed(range(frames))
    guard = guard_steps * STEP
    try:
        blocks = split(observed, validation_fraction=0.2, test_fraction=0.2, guard=guard)
    except ValueError:
        assert frames * 0.2 < guard_steps + 4
        return
    assert blocks["validation"].start - blocks["train"].end > guard
    assert blocks["test"].start - blocks["validation"].end > guard
    assert blocks["test"].end == observed["time"].to_index()[-1]


def test_too_little_data_for_a_split_is_refused():
    with pytest.raises(ValueError, match="the validation block would hold"):
        split(_observed(range(10)), validation_fraction=0.1, test_fraction=0.1, guard=STEP * 6)


def test_blocks_that_overlap_are_refused():
    blocks = {
        "train": Block.parse("2024-01-01T00:00/2024-01-01T05:00"),
        "test": Block.parse("2024-01-01T05:00/2024-01-01T06:00"),
    }
    with pytest.raises(ValueError, match=r"the train block .* and the test block .* overlap"):
        check_apart(blocks)


def test_a_period_is_read_as_utc():
    block = Block.parse("2024-01-01T00:00+01:00/2024-01-01T05:00+01:00")
    assert block.start == pd.Timestamp("2023-12-31T23:00")


@pytest.mark.parametrize("text", ["2024-01-01", "a/b", "2024-01-02/2024-01-01"])
def test_a_wrong_period_is_refused(text):
    with pytest.raises(ValueError, match="period"):
        Block.parse(text)


def test_the_step_is_the_usual_one_despite_gaps():
    assert step_of(_observed([0, 1, 2, 9, 10])) == STEP


def test_inputs_say_what_was_not_observed():
    scaled = np.array([[[[0.0, np.nan, 2.0]]]], np.float32)
    inputs = as_inputs(scaled)
    assert inputs[..., 0].ravel().tolist() == [0.0, 0.0, 2.0]
    assert inputs[..., 1].ravel().tolist() == [1.0, 0.0, 1.0]


def _cache(values, slots, folder):
    """Give the cache of fields that are the same everywhere, or of whole frames."""
    values = np.asarray(values, np.float32)
    if values.ndim == 1:
        values = values[:, None, None] * np.ones((1, 4, 4), np.float32)
    axes = {
        axis: (axis, 1000.0 * np.arange(size), {"units": "m"})
        for axis, size in zip("yx", values.shape[1:], strict=True)
    }
    grid = xr.Variable((), 0, {"grid_mapping_name": "lambert_azimuthal_equal_area"})
    observed = xr.Dataset(
        {"rain_rate": (("time", "y", "x"), values, RAIN_RATE.attributes)},
        coords={"time": _times(slots), **axes, "crs": grid},
    )
    return build_cache(
        observed, folder / "cache", variable=RAIN_RATE, coding=coding_of(RAIN_RATE, 0.5), step=STEP
    )


def _batches(cache, *, sampling="uniform", **settings):
    return Batches(
        cache,
        plan(cache, WINDOW, EVER, sampling=sampling),
        window=WINDOW,
        **{"batch_size": 2, **settings},
    )


def _decoded(cache, batch):
    return [cache.coding.decode(codes) for codes in batch]


def test_batches_hold_the_right_frames(tmp_path):
    cache = _cache(np.arange(11.0), [0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 12], tmp_path)
    batches = _batches(cache)
    assert len(batches) == 2
    inputs, targets = _decoded(cache, batches[0])
    assert inputs[:, :, 0, 0].tolist() == [[0, 1, 2], [5, 6, 7]]
    assert targets[:, :, 0, 0, 0].tolist() == [[3, 4], [8, 9]]
    inputs, _ = _decoded(cache, batches[1])
    assert inputs[:, :, 0, 0].tolist() == [[6, 7, 8]]
    with pytest.raises(IndexError, match="there are 2 batches; batch 2"):
        batches[2]


@settings(deadline=None, max_examples=30)  # each writes files
@given(st.sets(st.integers(0, 40), min_size=1))
def test_every_window_of_a_plan_lies_side_by_side_in_the_cache(slots):
    with tempfile.TemporaryDirectory() as folder:
        slots = sorted(slots)
        cache = _cache(np.array(slots) / 2, slots, Path(folder))
        expected = base_times(_observed(slots), WINDOW)
        if not len(expected):
            with pytest.raises(ValueError, match="holds no whole window of 5 frames"):
                plan(cache, WINDOW, EVER)
            return
        planned = plan(cache, WINDOW, EVER)
        assert list(planned.base_times) == list(expected)
        for base_time, first in zip(planned.base_times, planned.first, strict=True):
            window = cache.times[first : first + 5]
            assert list(window) == list(base_time + WINDOW.offsets)


def test_a_plan_keeps_to_its_block(tmp_path):
    cache = _cache(np.zeros(20), range(20), tmp_path)
    times = _times(range(20))
    planned = plan(cache, WINDOW, Block(times[5], times[12]))
    assert list(planned.base_times) == list(times[7:11])


def test_a_window_of_another_step_than_the_cache_is_refused(tmp_path):
    cache = _cache(np.zeros(20), range(20), tmp_path)
    with pytest.raises(
        ValueError, match="a step of 20 min cannot be read from a cache made for 10"
    ):
        plan(cache, Window(3, 2, 2 * STEP), EVER)


def _order(cache, batches):
    return [
        float(last)
        for index in range(len(batches))
        for last in cache.coding.decode(batches[index][0])[:, -1, 0, 0]
    ]


def test_every_window_comes_once_an_epoch_in_an_order_of_its_own(tmp_path):
    cache = _cache(np.arange(40.0), range(40), tmp_path)
    batches = _batches(cache, seed=1, batch_size=5)
    first = _order(cache, batches)
    batches.next_epoch()
    second = _order(cache, batches)
    assert first != second
    assert sorted(first) == sorted(second) == list(np.arange(2.0, 38.0))
    assert _order(cache, _batches(cache, seed=1, batch_size=5)) == first


def test_a_batch_is_the_same_whichever_thread_reads_it_and_when(tmp_path):
    cache = _cache(np.arange(60.0), range(60), tmp_path)
    expected = [_batches(cache, seed=3)[index] for index in range(28)]
    batches = _batches(cache, seed=3)
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(batches.__getitem__, reversed(range(28))))
    for one, other in zip(expected, reversed(made), strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])


def test_memory_is_used_again_only_once_nothing_refers_to_it(tmp_path):
    cache = _cache(np.arange(20.0), range(20), tmp_path)
    batches = _batches(cache)
    inputs, targets = batches[0]
    view = inputs[1, 1:]
    kept = inputs.ctypes.data
    del inputs
    others = [batches[index] for index in range(1, 4)]
    assert cache.coding.decode(view)[:, 0, 0].tolist() == [2.0, 3.0]
    assert kept not in [one.ctypes.data for one, _ in others]
    assert cache.coding.decode(targets)[0, :, 0, 0, 0].tolist() == [3.0, 4.0]
    del view
    again, _ = batches[4]
    assert again.ctypes.data == kept


def test_arrays_are_aligned_so_that_backends_need_no_copy(tmp_path):
    batches = _batches(_cache(np.arange(20.0), range(20), tmp_path))
    assert [codes.ctypes.data % 64 for codes in batches[0]] == [0, 0]


def test_targets_that_are_given_come_with_the_windows_they_are_of(tmp_path):
    cache = _cache(np.arange(11.0), [0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 12], tmp_path)
    windows = len(plan(cache, WINDOW, EVER))
    targets = 10.0 * np.arange(windows)[:, None, None] + np.ones((1, 3, 2))
    batches = _batches(cache, seed=1, batch_size=windows, targets=targets)
    inputs, given = batches[0]
    order = plan(cache, WINDOW, EVER).order(1, 0)
    np.testing.assert_array_equal(given, targets[order])
    expected = [_batches(cache, batch_size=windows)[0][0][one] for one in order]
    np.testing.assert_array_equal(inputs, expected)


def test_missing_pixels_stay_missing(tmp_path):
    values = np.ones((6, 2, 2), np.float32)
    values[4, 0, 1] = np.nan
    values[1, 1, 1] = np.nan
    cache = _cache(values, range(6), tmp_path)
    inputs, targets = _decoded(cache, _batches(cache)[0])
    assert np.isnan(targets).sum() == 2
    assert np.isnan(targets[0, 1, 0, 1, 0])
    assert np.isnan(inputs).sum() == 2
    assert np.isnan(inputs[0, 1, 1, 1])


def test_crops_prefer_rain(tmp_path):
    values = np.zeros((30, 32, 32), np.float32)
    values[:, :8, :8] = 1.0
    cache = _cache(values, range(30), tmp_path)
    inputs, _ = _decoded(cache, _batches(cache, crop_pixels=8, seed=0, batch_size=26)[0])
    assert inputs.shape[2:] == (8, 8)
    # One random square in ten meets the rain.
    assert (inputs.max(axis=(1, 2, 3)) > 0).mean() > 0.25


def test_without_a_seed_the_middle_square_is_taken(tmp_path):
    values = np.arange(6 * 8 * 8, dtype=np.float32).reshape(6, 8, 8)
    cache = _cache(values, range(6), tmp_path)
    inputs, targets = _decoded(cache, _batches(cache, crop_pixels=4)[0])
    np.testing.assert_array_equal(inputs[0], values[:3, 2:6, 2:6])
    np.testing.assert_array_equal(targets[0, ..., 0], values[3:5, 2:6, 2:6])


def test_flips_and_turns_are_those_of_a_square_alike_for_all_frames_of_a_window(tmp_path):
    field = np.zeros((4, 4), np.float32)
    field[0, 1] = 1.0  # in none of the eight positions like in another
    field[1, 3] = 2.0
    cache = _cache(np.repeat(field[None], 200, axis=0), range(200), tmp_path)
    inputs, targets = _decoded(cache, _batches(cache, augment=True, seed=0, batch_size=196)[0])
    whole = np.concatenate([inputs, targets[..., 0]], axis=1)
    assert (whole == whole[:, :1]).all()
    turned = [np.rot90(one, turns) for one in (field, field.T) for turns in range(4)]
    found = [[int((one == each).all()) for each in turned] for one in inputs[:, 0]]
    assert np.sum(found, axis=1).tolist() == [1] * 196
    assert (np.sum(found, axis=0) > 8).all()  # 24.5 each on average


def test_what_is_not_a_square_is_flipped_but_not_turned(tmp_path):
    field = np.arange(8, dtype=np.float32).reshape(2, 4)
    cache = _cache(np.repeat(field[None], 60, axis=0), range(60), tmp_path)
    inputs, _ = _decoded(cache, _batches(cache, augment=True, seed=0, batch_size=56)[0])
    flips = {one.tobytes() for one in inputs[:, 0]}
    assert flips == {field[::y, ::x].tobytes() for y in (1, -1) for x in (1, -1)}


def test_flips_differ_between_epochs_and_come_again_with_the_seed(tmp_path):
    cache = _cache(np.random.default_rng(0).integers(0, 9, (30, 4, 4)), range(30), tmp_path)
    batches, again = (_batches(cache, augment=True, seed=5, batch_size=26) for _ in range(2))
    np.testing.assert_array_equal(batches[0][0], again[0][0])
    first = {one.tobytes() for one in batches[0][0]}
    batches.next_epoch()
    assert first != {one.tobytes() for one in batches[0][0]}


def test_flips_without_a_seed_are_refused(tmp_path):
    with pytest.raises(ValueError, match="drawn by a seed"):
        _batches(_cache(np.zeros(6), range(6), tmp_path), augment=True)


def test_wet_windows_come_more_often_by_the_chances_that_are_said(tmp_path):
    values = np.zeros((100, 4, 4), np.float32)
    values[50:, :2] = 1.0  # from here on half of the pixels are wet
    cache = _cache(values, range(100), tmp_path)
    planned = plan(cache, WINDOW, EVER, sampling="wet")
    assert planned.chances.sum() == pytest.approx(1.0)
    # 96 windows; of their 5 frames 0, 1, ..., 4 are wet in 46, 1, ..., 1 and all are in 46.
    wetness = np.array([0] * 46 + [1, 2, 3, 4] + [5] * 46)
    expected = 0.2 / 96 + 0.8 * wetness / wetness.sum()
    np.testing.assert_allclose(planned.chances, expected)
    drawn = np.concatenate([planned.order(0, epoch) for epoch in range(200)])
    counts = np.bincount(drawn, minlength=96) / len(drawn)
    np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(expected.max() / len(drawn)))


def test_intense_windows_are_drawn_by_their_mean(tmp_path):
    cache = _cache([1.0] * 5 + [3.0] * 5, [0, 1, 2, 3, 4, 10, 11, 12, 13, 14], tmp_path)
    planned = plan(cache, WINDOW, EVER, sampling="intense")
    np.testing.assert_allclose(planned.chances, [0.1 + 0.8 * 0.25, 0.1 + 0.8 * 0.75])


def test_dry_windows_are_drawn_alike_where_nothing_is_wet(tmp_path):
    planned = plan(_cache(np.zeros(9), range(9), tmp_path), WINDOW, EVER, sampling="wet")
    np.testing.assert_allclose(planned.chances, 0.2)


def test_a_plan_says_the_chance_of_every_window(tmp_path):
    cache = _cache([1.0] * 5 + [3.0] * 5, [0, 1, 2, 3, 4, 10, 11, 12, 13, 14], tmp_path)
    planned = plan(cache, WINDOW, EVER, sampling="intense")
    assert planned.summary() == {
        "windows": 2,
        "lowest_chance": pytest.approx(0.6),
        "highest_chance": pytest.approx(1.4),
        "effective_windows": pytest.approx(1 / (0.3**2 + 0.7**2)),
    }
    lines = planned.table().splitlines()
    assert lines[:1] == ["base_time,chance"]
    time, chance = lines[2].split(",")
    assert time == "2024-01-01T02:00:00"
    assert float(chance) == pytest.approx(0.7)


@given(
    st.tuples(st.integers(5, 60), st.integers(5, 60)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.integers(0, 30),
)
def test_tiles_cover_every_pixel_and_their_weights_add_to_one(shape, size, overlap):
    cuts = list(zip(shape, size, strict=True))
    if any(tile > whole or (tile < whole and overlap >= tile) for whole, tile in cuts):
        with pytest.raises(ValueError, match="cannot be cut"):
            tiles(shape, size, overlap)
        return
    total = np.zeros(shape)
    for where, weights in tiles(shape, size, overlap):
        assert weights.shape == size
        assert (weights > 0).all()
        total[where] += weights
    np.testing.assert_allclose(total, 1.0, rtol=1e-12)


def test_neighbouring_tiles_share_the_overlap():
    rows = [where[0].start for where, _ in tiles((100, 8), (32, 8), 8)]
    assert rows == [0, 22, 45, 68]
    assert all(after - before <= 32 - 8 for before, after in itertools.pairwise(rows))
