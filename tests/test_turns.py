import numpy as np
import pytest

from nowcast.turns import Turn, turns

ALL = turns(8)


def test_all_turns_of_a_square_differ_and_the_first_are_the_flips():
    square = np.arange(9).reshape(3, 3)
    seen = [turn.fields(square).tobytes() for turn in ALL]
    assert len(set(seen)) == 8
    assert turns(1) == [Turn()]
    assert turns(4) == ALL[:4]
    assert not any(turn.swap for turn in turns(4))


@pytest.mark.parametrize("turn", ALL, ids=str)
def test_a_turn_is_undone_wherever_its_axes_are(turn):
    fields = np.random.default_rng(0).random((2, 3, 4, 5))
    np.testing.assert_array_equal(turn.undone(turn.fields(fields), y_axis=2), fields)
    more = np.moveaxis(turn.fields(fields), 1, -1)  # (batch, y, x, more)
    np.testing.assert_array_equal(turn.undone(more, y_axis=1), np.moveaxis(fields, 1, -1))


@pytest.mark.parametrize("turn", ALL, ids=str)
def test_a_pixel_that_moves_is_seen_to_go_where_its_turned_motion_says(turn):
    """It goes from (3, 2) to (1, 3): one along x, two against y."""
    before, after = np.zeros((2, 7, 7))
    before[3, 2] = after[1, 3] = 1.0
    motion = np.broadcast_to(np.array([1.0, -2.0])[:, None, None], (2, 7, 7))
    along_x, along_y = turn.motion(motion)[:, 0, 0]
    (y, x), (y_after, x_after) = (np.argwhere(turn.fields(one))[0] for one in (before, after))
    assert (x_after - x, y_after - y) == (along_x, along_y)
