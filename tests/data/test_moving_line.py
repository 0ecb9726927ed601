import numpy as np
import pytest

from nowcast.conventions import check_values
from nowcast.data.labels import classes_of, labels_of
from nowcast.data.moving_line import BRIGHTNESS, moving_lines


@pytest.fixture(scope="module")
def lines():
    return moving_lines(sequences=40, seed=3)


def test_the_problem_keeps_the_convention(lines):
    check_values(lines, BRIGHTNESS)
    assert dict(lines.sizes) == {"time": 400, "y": 10, "x": 10}
    assert classes_of(lines) == ("left", "right")


def test_in_each_frame_the_line_is_one_pixel_longer_and_keeps_those_before(lines):
    frames = lines["brightness"].values.reshape(40, 10, 10, 10)
    assert (frames.sum(axis=(2, 3)) == np.arange(1, 11)).all()
    assert (np.diff(frames, axis=1) >= 0).all()


def test_the_line_goes_to_the_side_that_its_label_says_by_one_row_at_most(lines):
    frames = lines["brightness"].values.reshape(40, 10, 10, 10)
    new = np.diff(frames, axis=1, prepend=0)
    columns = new.max(axis=2).argmax(axis=2)
    rows = new.max(axis=3).argmax(axis=2)
    steps = np.where(labels_of(lines).reshape(40, 10) == 1, 1, -1)[:, 1:]
    assert (np.diff(columns, axis=1) == steps).all()
    assert np.abs(np.diff(rows, axis=1)).max() == 1


def test_as_many_lines_go_left_as_right_in_an_order_drawn_by_the_seed(lines):
    sides = labels_of(lines).reshape(40, 10)[:, 0]
    assert sides.sum() == 20
    assert lines.identical(moving_lines(sequences=40, seed=3))
    assert not (sides == labels_of(moving_lines(sequences=40, seed=4)).reshape(40, 10)[:, 0]).all()


def test_the_last_frame_alone_does_not_say_which_way_the_line_went(lines):
    last = lines["brightness"].values.reshape(40, 10, 10, 10)[:, -1]
    assert (last.sum(axis=1) == 1).all()  # a pixel in every column, whichever came first


def test_no_line_is_refused():
    with pytest.raises(ValueError, match="sequences=0"):
        moving_lines(sequences=0)
