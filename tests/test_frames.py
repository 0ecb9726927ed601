import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from nowcast.frames import (
    Batches,
    Block,
    Window,
    as_inputs,
    base_times,
    check_apart,
    input_frames,
    split,
    step_of,
    store,
)
from nowcast.rainrate import Transform

STEP = pd.Timedelta("10min")
WINDOW = Window(3, 2, STEP)


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


def _batches(frames, times, **settings):
    defaults = {"window": WINDOW, "transform": Transform("linear", top=1.0), "batch_size": 2}
    bases = base_times(xr.Dataset(coords={"time": times}), WINDOW)
    return Batches(frames, times=times, base_times=bases, **{**defaults, **settings})


def test_batches_hold_the_right_frames():
    times = _times([0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 12])
    frames = np.arange(11.0)[:, None, None] * np.ones((1, 4, 4))
    batches = _batches(frames, times)
    assert len(batches) == 2
    inputs, targets = batches[0]
    assert inputs[:, :, 0, 0, 0].tolist() == [[0, 1, 2], [5, 6, 7]]
    assert targets[:, :, 0, 0, 0].tolist() == [[3, 4], [8, 9]]
    assert batches[1][0][:, :, 0, 0, 0].tolist() == [[6, 7, 8]]


def test_every_window_comes_once_an_epoch_in_an_order_of_its_own():
    times = _times(range(40))
    frames = np.arange(40.0)[:, None, None] * np.ones((1, 2, 2))
    batches = _batches(frames, times, seed=1, batch_size=5)

    def order():
        return [
            float(last)
            for index in range(len(batches))
            for last in batches[index][0][:, -1, 0, 0, 0]
        ]

    first = order()
    batches.next_epoch()
    second = order()
    assert first != second
    assert sorted(first) == sorted(second) == list(np.arange(2.0, 38.0))


def test_missing_targets_stay_missing():
    times = _times(range(6))
    frames = np.ones((6, 2, 2), np.float32)
    frames[4, 0, 1] = np.nan
    _, targets = _batches(frames, times)[0]
    assert np.isnan(targets).sum() == 2
    assert np.isnan(targets[0, 1, 0, 1, 0])


def test_crops_prefer_rain():
    times = _times(range(30))
    frames = np.zeros((30, 32, 32), np.float32)
    frames[:, :8, :8] = 1.0
    batches = _batches(frames, times, crop_pixels=8, seed=0, batch_size=26)
    inputs, _ = batches[0]
    assert inputs.shape[2:4] == (8, 8)
    # One random square in ten meets the rain.
    assert (inputs[..., 0].max(axis=(1, 2, 3)) > 0).mean() > 0.25


def test_the_cache_holds_what_was_observed(tmp_path, small_observed):
    lazy = small_observed.chunk(time=7)
    frames = store(lazy, tmp_path / "cache.npy")
    np.testing.assert_array_equal(frames, small_observed["rain_rate"].values)
    assert isinstance(frames, np.memmap)
