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
    Plan,
    Window,
    as_inputs,
    base_times,
    check_apart,
    deal,
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


def test_frames_that_come_too_seldom_are_told_from_a_gap():
    with pytest.raises(ValueError, match=r"every 10 min are needed; .* come every 20 min"):
        input_frames(_observed([0, 2, 4]), base_time=_times([4])[0], frames=3, step=STEP)


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


@pytest.mark.parametrize(
    "text",
    [
        "2024-01-01",
        "a/b",
        "2024-01-02/2024-01-01",
        "",
        "  ",
        "2024-01-01/2024-01-02 2024-01-04",
        "2024-01-04/2024-01-05 2024-01-01/2024-01-02",
        "2024-01-01/2024-01-02 2024-01-02/2024-01-03",
    ],
)
def test_a_wrong_period_is_refused(text):
    with pytest.raises(ValueError, match="period"):
        Block.parse(text)


def test_several_periods_are_one_block_of_several_pieces():
    text = "2024-01-01T00:00:00/2024-01-01T03:00:00 2024-01-02T00:00:00/2024-01-02T06:00:00"
    block = Block.parse(f" {text.replace(' ', '   ')} ")
    assert (block.start, block.end) == (pd.Timestamp("2024-01-01"), pd.Timestamp("2024-01-02T06"))
    assert [str(piece) for piece in block.pieces] == text.split()
    assert str(block) == text
    assert Block.parse(str(block)) == block
    assert Block.parse(text.split()[0]).pieces == ()


def test_a_block_of_several_pieces_holds_what_lies_in_one_of_them():
    block = Block.parse("2024-01-01T00:00/2024-01-01T03:00 2024-01-01T04:00/2024-01-01T06:00")
    spans = {
        ("00:00", "03:00"): True,
        ("02:30", "03:10"): False,
        ("02:00", "05:00"): False,  # both ends are inside, of two pieces
        ("03:20", "03:40"): False,
        ("04:00", "04:00"): True,
        ("05:00", "06:10"): False,
    }
    first, last = (pd.to_datetime([f"2024-01-01T{span[at]}" for span in spans]) for at in (0, 1))
    assert block.holds(first, last).tolist() == list(spans.values())


def test_no_window_reaches_over_two_pieces():
    times = _times(range(30))
    block = Block.of((Block(times[0], times[9]), Block(times[10], times[19])))
    found = base_times(_observed(range(30)), WINDOW, block)
    assert list(found) == [*times[2:8], *times[12:18]]


def test_pieces_of_two_blocks_may_take_turns_and_none_may_overlap():
    parsed = {
        "train": Block.parse("2024-01-01/2024-01-02 2024-01-05/2024-01-06"),
        "validation": Block.parse("2024-01-03/2024-01-04"),
    }
    assert check_apart(parsed) == parsed
    within = {**parsed, "test": Block.parse("2024-01-05T12:00/2024-01-05T13:00")}
    with pytest.raises(ValueError, match=r"train block 2024-01-05.* and the test block .* overlap"):
        check_apart(within)


def _dealt(times, **settings):
    shares = {"validation_fraction": 0.2, "test_fraction": 0.1, "guard": pd.Timedelta("2h")}
    given = {**shares, "length": pd.Timedelta("2D"), **settings}
    return deal(xr.Dataset(coords={"time": times}), **given)


def _of_block(times, block):
    return times[block.holds(times, times)]


def test_stretches_are_dealt_by_the_golden_ratio_by_hand():
    """0.618, 0.236, 0.854, 0.472, 0.090, 0.708, 0.326, 0.944, 0.562 and 0.180 of the way.

    Up to 0.2 lies the validation, up to 0.3 the test.
    """
    times = pd.date_range("2024-05-01", periods=10 * 24, freq="1h")
    dealt = _dealt(times, length=pd.Timedelta("1D"))
    days = {name: [piece.start.day for piece in block.pieces] for name, block in dealt.items()}
    assert days == {"train": [1, 3, 4, 6, 7, 8, 9], "validation": [5, 10], "test": [2]}
    first = dealt["test"].pieces[0]
    assert first.start == pd.Timestamp("2024-05-02")
    assert first.end == pd.Timestamp("2024-05-02T22:00") - pd.Timedelta(1, "ns")


@settings(deadline=None, max_examples=40)
@given(
    st.integers(150, 400),
    st.floats(0.05, 0.4),
    st.floats(0.05, 0.4),
    st.sampled_from([12, 24, 48]),
    st.integers(0, 6),
)
def test_dealt_blocks_have_their_shares_and_lie_a_guard_apart(
    days, validation, test, hours, guard_hours
):
    times = pd.date_range("2023-03-05T07:00", periods=days * 6, freq="4h")
    guard = pd.Timedelta(hours=guard_hours)
    dealt = _dealt(
        times,
        validation_fraction=validation,
        test_fraction=test,
        guard=guard,
        length=pd.Timedelta(hours=hours),
    )
    assert list(dealt) == ["train", "validation", "test"]
    assert check_apart(dealt) == dealt
    stretches = {name: len(block.pieces) for name, block in dealt.items()}
    shares = {"train": 1.0 - validation - test, "validation": validation, "test": test}
    for name, count in stretches.items():
        assert abs(count - shares[name] * sum(stretches.values())) < 4.0
    owner = np.full(len(times), "", object)
    for name, block in dealt.items():
        inside = block.holds(times, times)
        assert (owner[inside] == "").all()
        owner[inside] = name
    # Between the frames of two blocks lies more than the guard; within a stretch none is lost.
    kept = np.flatnonzero(owner != "")
    for one, other in itertools.pairwise(kept):
        if owner[one] != owner[other]:
            assert times[other] - times[one] > guard
    unused = (times[owner == ""] - pd.Timestamp(0)) % pd.Timedelta(hours=hours)
    assert (unused >= pd.Timedelta(hours=hours) - guard).all()


def test_every_dealt_block_has_every_month():
    times = pd.date_range("2022-01-01", "2023-12-31T23:00", freq="1h")
    for name, block in _dealt(times).items():
        months = _of_block(times, block).month.value_counts()
        assert sorted(months.index) == list(range(1, 13)), name
        assert months.min() > 0.2 * months.mean()


def test_only_stretches_with_frames_are_dealt():
    """Ten days of rain, a year of none: as the ten days alone, which come evenly to all."""
    wet = pd.date_range("2024-05-01", periods=10 * 24, freq="1h")
    later = wet + pd.Timedelta(days=366)
    dealt = _dealt(wet.append(later), length=pd.Timedelta("1D"))
    pieces = [piece.start for block in dealt.values() for piece in block.pieces]
    assert sorted(pieces) == list(wet[::24].append(later[::24]))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guard": pd.Timedelta("2D")}, "guard of 2880 min leaves nothing of stretches of 2880"),
        ({"test_fraction": 0.01}, "the test block would hold none of 5 stretches of 2880 min"),
        ({"length": pd.Timedelta("10D")}, "the validation block would hold none of 2 stretches"),
    ],
)
def test_a_deal_that_leaves_a_block_without_stretches_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        _dealt(pd.date_range("2024-05-01", periods=10 * 24, freq="1h"), **settings)


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
    return _batches_of(cache, plan(cache, WINDOW, EVER, sampling=sampling), **settings)


def _batches_of(cache, planned, **settings):
    return Batches(cache, planned, window=WINDOW, **{"batch_size": 2, **settings})


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


def test_no_planned_window_reaches_over_two_pieces(tmp_path):
    cache = _cache(np.arange(20.0), range(20), tmp_path)
    times = _times(range(20))
    block = Block.of((Block(times[1], times[7]), Block(times[8], times[13])))
    planned = plan(cache, WINDOW, block)
    assert list(planned.base_times) == [*times[3:6], *times[10:12]]
    assert planned.first.tolist() == [1, 2, 3, 8, 9]
    inputs, targets = _decoded(cache, _batches_of(cache, planned, batch_size=5)[0])
    whole = np.concatenate([inputs[:, :, 0, 0], targets[:, :, 0, 0, 0]], axis=1)
    assert whole.tolist() == [[first + k for k in range(5)] for first in planned.first]


def test_a_thinned_plan_keeps_its_windows_evenly(tmp_path):
    cache = _cache(np.arange(40.0), range(40), tmp_path)
    planned = plan(cache, WINDOW, EVER, sampling="intense")
    assert len(planned) == 36
    thinned = planned.thinned(6)
    assert thinned.first.tolist() == [0, 7, 14, 21, 28, 35]
    assert list(thinned.base_times) == list(planned.base_times[::7])
    assert thinned.chances is None  # all alike
    assert planned.thinned(1).first.tolist() == [0]
    assert planned.thinned(36) is planned
    assert planned.thinned(99) is planned


@settings(deadline=None)
@given(st.integers(1, 400), st.integers(1, 400))
def test_a_thinned_plan_has_no_window_twice(windows, most):
    times = _times(range(windows))
    thinned = Plan(times, np.arange(windows)).thinned(most)
    assert len(np.unique(thinned.first)) == len(thinned) == min(windows, most)
    assert list(thinned.base_times) == list(times[thinned.first])


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


def test_the_last_lead_frames_of_a_window_may_be_missing(tmp_path):
    """What lies in a gap, or in another block, is not taken for what follows."""
    slots = [0, 1, 2, 3, 4, 5, 8, 9, 10, 11]
    cache = _cache(np.arange(1.0, 11.0), slots, tmp_path)
    block = Block(_times([0])[0], _times([10])[0])
    window = Window(2, 3, STEP)
    planned = plan(cache, window, block, least_leads=1)
    assert list(planned.base_times) == list(_times([1, 2, 3, 4, 9]))
    assert planned.leads.tolist() == [3, 3, 2, 1, 1]
    inputs, targets = Batches(cache, planned, window=window, batch_size=5)[0]
    inputs, targets = _decoded(cache, (inputs, targets[..., 0]))
    assert inputs[:, :, 0, 0].tolist() == [[1, 2], [2, 3], [3, 4], [4, 5], [7, 8]]
    nan = np.nan
    expected = [[3, 4, 5], [4, 5, 6], [5, 6, nan], [6, nan, nan], [9, nan, nan]]
    for corner in targets[:, :, 0, 0], targets[:, :, -1, -1]:
        np.testing.assert_array_equal(corner, expected)
    assert planned.thinned(2).leads.tolist() == [3, 1]
    assert list(plan(cache, window, block).base_times) == list(_times([1, 2]))


def test_crops_prefer_rain(tmp_path):
    values = np.zeros((30, 32, 32), np.float32)
    values[:, :8, :8] = 1.0
    cache = _cache(values, range(30), tmp_path)
    inputs, _ = _decoded(cache, _batches(cache, crop_pixels=8, seed=0, batch_size=26)[0])
    assert inputs.shape[2:] == (8, 8)
    # One random square in ten meets the rain.
    assert (inputs.max(axis=(1, 2, 3)) > 0).mean() > 0.25


def test_what_is_to_be_forecast_has_no_say_in_where_is_cropped(tmp_path):
    values = np.zeros((5, 32, 32), np.float32)
    values[0] = 0.5 * np.arange(1, 32 * 32 + 1).reshape(
        32, 32
    )  # tells the square, and is wet all over
    rain_to_come = values.copy()
    rain_to_come[3:, :8, :8] = 1.0
    caches = [
        _cache(made, range(5), tmp_path / name)
        for name, made in (("dry", values), ("rain to come", rain_to_come))
    ]
    for seed in range(20):
        dry, rain = (_batches(cache, crop_pixels=8, seed=seed)[0][0] for cache in caches)
        np.testing.assert_array_equal(dry, rain)


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


def _motions(cache, seed=0):
    """Smooth motion of every frame of a cache, alike in no two of them and in no direction."""
    shape = (len(cache.codes), 2, *cache.codes.shape[1:])
    random = np.random.default_rng(seed).normal(0.0, 0.2, shape)
    return np.cumsum(np.cumsum(random, axis=2), axis=3).clip(-3.0, 3.0).astype(np.float16)


def test_motion_at_the_base_time_comes_with_the_frames(tmp_path):
    cache = _cache(np.arange(11.0), [0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 12], tmp_path)
    motions = _motions(cache)
    (frames, moving), targets = _batches(cache, motions=motions)[0]
    without, same = _batches(cache)[0]
    np.testing.assert_array_equal(frames, without)
    np.testing.assert_array_equal(targets, same)
    assert cache.coding.decode(frames)[:, -1, 0, 0].tolist() == [2.0, 7.0]
    assert moving.dtype == np.float32
    np.testing.assert_array_equal(moving, motions[[2, 7]])


def test_motion_is_cropped_like_the_frames(tmp_path):
    """Told by motions that say which pixel they are of."""
    rows, columns = np.mgrid[:20, :24]
    values = np.random.default_rng(0).integers(0, 900, (40, 20, 24))
    cache = _cache(values, range(40), tmp_path)
    motions = np.broadcast_to(np.stack([columns, rows]), (40, 2, 20, 24)).astype(np.float16)
    for seed in (3, None):
        batches = _batches(cache, motions=motions, crop_pixels=8, batch_size=36, seed=seed)
        (frames, moving), targets = batches[0]
        order = plan(cache, WINDOW, EVER).order(seed, 0)
        corners = set()
        for window, inputs, motion, leads in zip(order, frames, moving, targets, strict=True):
            left, top = motion[:, 0, 0].astype(int)
            square = (slice(None), slice(top, top + 8), slice(left, left + 8))
            np.testing.assert_array_equal(motion, motions[0][square])
            whole = cache.codes[window : window + 5][square]
            np.testing.assert_array_equal(inputs, whole[:3])
            np.testing.assert_array_equal(leads[..., 0], whole[3:])
            corners.add((top, left))
        assert len(corners) > 20 if seed else corners == {(6, 8)}


def test_turned_frames_go_where_their_turned_motion_says(tmp_path):
    """To move and then to turn is to turn both and then to move, for each turn of a square."""
    from nowcast.nowcasters.extrapolation import advect

    field = np.zeros((12, 12), np.float32)
    field[2:5, 3:9], field[6, 2] = 4.0, 7.0  # alike in none of the eight positions
    cache = _cache(np.repeat(field[None], 60, axis=0), range(60), tmp_path)
    motions = np.repeat(_motions(cache)[:1], 60, axis=0)
    moved = advect(field, motions[0].astype(float), [1.0, 2.0])
    assert np.nanmax(np.abs(moved - field)) > 1.0
    turns = [
        lambda one, turn=turn, swap=swap: np.rot90(
            one.swapaxes(-1, -2) if swap else one, turn, axes=(-2, -1)
        )
        for turn in range(4)
        for swap in (False, True)
    ]
    batches = _batches(cache, motions=motions, augment=True, seed=0, batch_size=56)
    (frames, moving), _ = batches[0]
    met = set()
    for codes, motion in zip(frames, moving, strict=True):
        last = cache.coding.decode(codes[-1])
        (which,) = [at for at, turn in enumerate(turns) if (turn(field) == last).all()]
        met.add(which)
        found = advect(last, motion.astype(float), [1.0, 2.0])
        np.testing.assert_allclose(found, turns[which](moved), atol=1e-4)
    assert met == set(range(8))


def test_what_is_not_a_square_goes_where_its_flipped_motion_says(tmp_path):
    from nowcast.nowcasters.extrapolation import advect

    field = np.zeros((8, 14), np.float32)
    field[1:3, 2:7] = 5.0
    cache = _cache(np.repeat(field[None], 30, axis=0), range(30), tmp_path)
    motions = np.repeat(_motions(cache)[:1], 30, axis=0)
    moved = advect(field, motions[0].astype(float), [1.0])[0]
    (frames, moving), _ = _batches(cache, motions=motions, augment=True, seed=0, batch_size=26)[0]
    flips = [(slice(None, None, y), slice(None, None, x)) for y in (1, -1) for x in (1, -1)]
    met = set()
    for codes, motion in zip(frames, moving, strict=True):
        last = cache.coding.decode(codes[-1])
        (which,) = [at for at, flip in enumerate(flips) if (field[flip] == last).all()]
        met.add(which)
        found = advect(last, motion.astype(float), [1.0])[0]
        np.testing.assert_allclose(found, moved[flips[which]], atol=1e-4)
    assert met == {0, 1, 2, 3}


@pytest.mark.parametrize("sampling", ["uniform", "wet"])
def test_where_there_are_few_windows_they_come_again_cropped_and_turned_otherwise(
    tmp_path, sampling
):
    values = np.random.default_rng(0).integers(0, 900, (9, 16, 16))
    cache = _cache(values, range(9), tmp_path)
    settings = {"seed": 2, "crop_pixels": 8, "augment": True, "batch_size": 4}
    batches = _batches(cache, sampling=sampling, least=32, **settings)
    assert len(plan(cache, WINDOW, EVER)) == 5
    order = plan(cache, WINDOW, EVER, sampling=sampling).order(2, 0, least=32)
    assert len(order) == (35 if sampling == "uniform" else 32)  # whole rounds, or as many draws
    assert len(batches) == -(-len(order) // 4)
    if sampling == "uniform":
        assert np.bincount(order).tolist() == [7] * 5
        assert all(sorted(order[at : at + 5]) == [0, 1, 2, 3, 4] for at in range(0, 35, 5))
    read = [window for index in range(len(batches)) for window in batches[index][0]]
    assert len(read) == len(order)
    assert len({one.tobytes() for one in read}) > 0.9 * len(order)  # of 5 windows
    again = _batches(cache, sampling=sampling, least=32, **settings)
    for index in (0, 5, 7):
        np.testing.assert_array_equal(again[index][0], batches[index][0])
    batches.next_epoch()
    assert len(batches) == len(again)
    assert not np.array_equal(batches[0][0], again[0][0])


def test_enough_windows_come_as_ever(tmp_path):
    cache = _cache(np.arange(40.0), range(40), tmp_path)
    planned = plan(cache, WINDOW, EVER)
    for least in (0, 10, 36):
        np.testing.assert_array_equal(planned.order(1, 0, least=least), planned.order(1, 0))
    assert planned.order(None, 0, least=99).tolist() == list(range(36))  # a validation is as it is


def test_flips_without_a_seed_are_refused(tmp_path):
    with pytest.raises(ValueError, match="drawn by a seed"):
        _batches(_cache(np.zeros(6), range(6), tmp_path), augment=True)


def test_wet_windows_come_more_often_by_the_chances_that_are_said(tmp_path):
    values = np.zeros((100, 4, 4), np.float32)
    values[50:, :2] = 1.0  # from here on half of the pixels are wet
    cache = _cache(values, range(100), tmp_path)
    planned = plan(cache, WINDOW, EVER, sampling="wet")
    assert planned.chances.sum() == pytest.approx(1.0)
    # 96 windows; of their 3 input frames none, 1, 2 are wet in 48, 1, 1 and all are in 46.
    wetness = np.array([0] * 48 + [1, 2] + [3] * 46)
    expected = 0.2 / 96 + 0.8 * wetness / wetness.sum()
    np.testing.assert_allclose(planned.chances, expected)
    drawn = np.concatenate([planned.order(0, epoch) for epoch in range(200)])
    counts = np.bincount(drawn, minlength=96) / len(drawn)
    np.testing.assert_allclose(counts, expected, atol=5 * np.sqrt(expected.max() / len(drawn)))


def test_intense_windows_are_drawn_by_what_is_known_at_their_base_time(tmp_path):
    values = [1.0, 1.0, 1.0, 9.0, 9.0, 3.0, 3.0, 3.0, 0.0, 0.0]
    cache = _cache(values, [0, 1, 2, 3, 4, 10, 11, 12, 13, 14], tmp_path)
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


@settings(deadline=None)
@given(
    st.tuples(st.integers(5, 90), st.integers(5, 90)),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.integers(0, 20),
    st.integers(0, 12),
)
def test_weights_are_nothing_in_the_rim_unless_it_is_the_edge_of_the_grid(shape, size, more, rim):
    overlap = more + 2 * rim  # at least both rims
    cuts = list(zip(shape, size, strict=True))
    if any(tile > whole or (tile < whole and overlap >= tile) for whole, tile in cuts):
        return
    total = np.zeros(shape)
    for where, weights in tiles(shape, size, overlap, rim=rim):
        total[where] += weights
        counts = []
        for piece, whole in zip(where, shape, strict=True):
            place = np.arange(piece.start, piece.stop)
            after = (place >= piece.start + rim) | (piece.start == 0)
            before = (place < piece.stop - rim) | (piece.stop == whole)
            counts.append(after & before)
        np.testing.assert_array_equal(weights > 0.0, np.outer(*counts))
    np.testing.assert_allclose(total, 1.0, rtol=1e-12)


def test_weights_fall_to_the_rim_by_hand():
    """Tiles of 8 with a rim of 2: they share 5 pixels, and the one between both rims equally."""
    (first, ahead), (second, behind) = tiles((11, 3), (8, 3), 5, rim=2)
    assert (first[0], second[0]) == (slice(0, 8), slice(3, 11))
    np.testing.assert_allclose(ahead[:, 0], [1, 1, 1, 1, 1, 0.5, 0, 0])
    np.testing.assert_allclose(behind[:, 0], [0, 0, 0.5, 1, 1, 1, 1, 1])
