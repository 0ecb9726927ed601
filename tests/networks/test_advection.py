"""Where pixels come from; the same under any backend, `test_backends` runs this file under each."""

import numpy as np
import pytest

from nowcast.networks.trajectories import warp

STEADY = (0.5, -1.25)  # pixels per step along y and along x


def _tensor(values):
    from keras import ops

    return ops.convert_to_tensor(np.asarray(values, np.float32))


def _array(tensor):
    from keras import ops

    return ops.convert_to_numpy(tensor)


def _moving(grid, along_y, along_x):
    """One motion field, (1, y, x, 2), of numbers or of fields."""
    fields = [np.broadcast_to(one, grid) for one in (along_y, along_x)]
    return np.stack(fields, axis=-1)[None].astype(np.float32)


def _origins(motion, steps):
    from nowcast.networks.advection import origins

    return [_array(one) for one in origins(_tensor(motion), steps)]


def _between(field, there):
    from nowcast.networks.advection import between

    return _array(between(_tensor(field), _tensor(there)))


def _rotating(grid, radians):
    """Motion about the middle of a grid, along y and along x."""
    rows, columns = (np.arange(side) - (side - 1) / 2 for side in grid)
    return radians * columns[None, :] + 0 * rows[:, None], -radians * rows[:, None] + 0 * columns


def _bumps(grid):
    """Smooth rain of several cells, alike in no direction."""
    random, (rows, columns) = np.random.default_rng(0), np.mgrid[: grid[0], : grid[1]]
    field = np.zeros(grid)
    for _ in range(12):
        y, x, height = random.uniform(0.2, 0.8, 3) * (*grid, 4.0)
        field += height * np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / 30.0)
    return field


@pytest.mark.parametrize("grid", [(8, 12), (5, 7)], ids=["coarse", "each pixel"])
def test_pixels_in_steady_motion_come_from_as_many_steps_behind(grid):
    found = _origins(_moving(grid, *STEADY), 3)
    assert len(found) == 3
    for step, there in enumerate(found, start=1):
        assert there.shape == (1, *grid, 2)
        np.testing.assert_allclose(there, _moving(grid, *STEADY) * -step, rtol=1e-6)


def test_a_step_is_taken_with_the_motion_at_its_middle_by_hand():
    """1 pixel per step and 0.1 more for each pixel: from 6, 1.6; from 5.2, halfway, 1.52.

    The next step begins at 4.48, where it is 1.448; halfway, at 3.756, it is 1.3756.
    """
    first, second = _origins(_moving((3, 9), 0.0, 1.0 + 0.1 * np.arange(9.0)), 2)
    np.testing.assert_allclose(first[0, 1, 6], [0.0, -1.52], rtol=1e-6)
    np.testing.assert_allclose(second[0, 1, 6], [0.0, -1.52 - 1.3756], rtol=1e-6)


def test_beyond_the_grid_pixels_move_as_at_its_edge():
    """From the first pixels one looks out of the grid at once, and on with the edge's motion."""
    first, second = _origins(_moving((3, 9), 0.0, 2.0 + np.arange(9.0)), 2)
    np.testing.assert_allclose([first[0, 1, 0, 1], second[0, 1, 0, 1]], [-2.0, -4.0], rtol=1e-6)


def test_trajectories_of_a_sixteenth_of_the_pixels_tell_those_of_all():
    from nowcast.networks.advection import _origins as of_every_pixel

    motion = _moving((48, 64), *_rotating((48, 64), 0.05))
    motion += _moving((48, 64), 0.3 * np.sin(np.arange(64) / 12), 1.0)
    coarse = _origins(motion, 4)
    fine = [_array(one) for one in of_every_pixel(_tensor(motion), 4)]
    for few, all_ in zip(coarse, fine, strict=True):
        inside = (slice(None), slice(8, -8), slice(8, -8))
        np.testing.assert_allclose(few[inside], all_[inside], atol=0.05)


@pytest.mark.parametrize(
    ("grid", "tolerance"), [((64, 64), 5e-3), ((61, 67), 1e-4)], ids=["coarse", "each pixel"]
)
def test_a_field_in_rotation_moves_as_pysteps_moves_it(grid, tolerance):
    """Up to 3 pixels per step; in six steps by a third of a right angle and more."""
    from nowcast.nowcasters.extrapolation import advect

    field, (along_y, along_x) = _bumps(grid), _rotating(grid, 0.1)
    expected = advect(field, np.stack([along_x, along_y]), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    rows, columns = (np.arange(side) - (side - 1) / 2 for side in grid)
    inside = np.hypot(rows[:, None], columns) < min(grid) / 2 - 6
    for there, theirs in zip(_origins(_moving(grid, along_y, along_x), 6), expected, strict=True):
        ours = _between(field[None], there)[0]
        assert np.isfinite(theirs[inside]).all()
        np.testing.assert_allclose(ours[inside], theirs[inside], atol=tolerance * field.max())
    assert np.abs(theirs - field)[inside].max() > 0.5 * field.max()  # it has moved


def test_between_pixels_lie_their_weighted_means_by_hand():
    field = np.zeros((1, 3, 4))
    field[0, 1, 2], field[0, 2, 2] = 8.0, 4.0
    there = np.zeros((1, 3, 4, 2))
    there[0, 1, 1] = (0.25, 0.5)  # to row 1.25 and column 1.5
    there[0, 0, 0] = (1.0, 2.0)
    found = _between(field, there)
    assert found[0, 1, 1] == pytest.approx(0.5 * (0.75 * 8.0 + 0.25 * 4.0))
    assert found[0, 0, 0] == 8.0
    assert found[0, 2, 2] == 4.0


@pytest.mark.parametrize("far", [1.0, 1.7, 40.0, 1e6])
def test_nothing_flows_in_from_beyond_the_grid(far):
    grid = (4, 6)
    for axis, sign in ((0, 1), (0, -1), (1, 1), (1, -1)):
        there = np.zeros((1, *grid, 2))
        there[..., axis] = sign * far
        found = np.moveaxis(_between(np.ones((1, *grid)), there)[0], axis, 0)[:: -sign or None]
        beyond = min(int(far), len(found))
        assert (found[:beyond] == 0.0).all()
        if far == 1.7:
            np.testing.assert_allclose(found[beyond], 0.3, rtol=1e-5)
        assert (found[beyond + 1 :] == 1.0).all()


def test_what_is_seen_between_pixels_is_what_links_of_a_trajgru_see():
    random = np.random.default_rng(0)
    fields, there = random.random((2, 5, 7)), random.normal(0, 3, (2, 5, 7, 2))
    warped = _array(warp(_tensor(fields[..., None]), _tensor(there[..., None, :])))
    np.testing.assert_allclose(_between(fields, there), warped[..., 0, 0], atol=1e-6)


def test_marks_are_carried_to_where_their_pixels_belong():
    """2 pixels down and 3 to the left in each step; each step and sequence has its own mark."""
    from nowcast.networks.advection import carried, nearest

    grid, marks = (16, 24), [[(3, 20), (5, 17), (2, 22)], [(1, 21), (9, 12), (6, 11)]]
    features = np.zeros((2, *grid, 3, 2))
    for one, of_steps in enumerate(marks):
        for step, (row, column) in enumerate(of_steps):
            features[one, row, column, step] = (1.0, 10.0 * one + step + 1.0)
    there = _origins(np.repeat(_moving(grid, 2.0, -3.0), 2, axis=0), 3)
    found = _array(carried(_tensor(features), nearest([_tensor(one) for one in there])))
    assert found.shape == (2, 3, *grid, 2)
    for one, of_steps in enumerate(marks):
        for step, (row, column) in enumerate(of_steps):
            expected = np.zeros((*grid, 2))
            moved = (row + 2 * (step + 1), column - 3 * (step + 1))
            expected[moved] = (1.0, 10.0 * one + step + 1.0)
            np.testing.assert_array_equal(found[one, step], expected)


def test_the_nearest_pixel_is_told_and_beyond_the_grid_that_at_its_edge():
    from nowcast.networks.advection import nearest

    grid = (3, 4)
    ways = [(0.0, 0.0), (0.4, -0.6), (-9.0, 9.0)]
    there = [_tensor(_moving(grid, *way)) for way in ways]
    found = _array(nearest(there))[0]
    rows, columns = np.mgrid[:3, :4]
    np.testing.assert_array_equal(found[0], rows * 4 + columns)
    np.testing.assert_array_equal(found[1], rows * 4 + np.maximum(columns - 1, 0))
    np.testing.assert_array_equal(found[2], 3)  # the upper right corner


def test_a_flipped_motion_has_flipped_origins():
    random = np.random.default_rng(0)
    smooth = np.cumsum(np.cumsum(random.normal(size=(2, 16, 24)), axis=1), axis=2) / 40.0
    motion = _moving((16, 24), *smooth)
    flipped = motion[:, ::-1] * np.array([-1.0, 1.0])
    for one, other in zip(_origins(motion, 3), _origins(flipped, 3), strict=True):
        np.testing.assert_allclose(other, one[:, ::-1] * np.array([-1.0, 1.0]), atol=1e-4)


def test_frames_are_brought_to_the_base_time_and_the_last_one_ahead():
    """A field that moves by whole pixels stands still, and comes where it will be."""
    from nowcast.networks.advection import Moved

    grid, way = (24, 32), (1, 2)
    field = np.random.default_rng(0).random((60, 60)).astype(np.float32)
    at = [field[20 - step : 44 - step, 20 - 2 * step : 52 - 2 * step] for step in range(-2, 4)]
    frames = np.stack(at[:3])[None, ..., None]  # two earlier ones and the last
    motion = np.moveaxis(_moving(grid, *way)[..., ::-1], -1, 1)
    aligned, ahead, places = (_array(one) for one in Moved(3)(_tensor(frames), _tensor(motion)))
    assert aligned.shape == (1, *grid, 2)
    assert ahead.shape == places.shape == (1, 3, *grid)
    for earlier in (0, 1):
        come = 2 - earlier  # steps; from beyond the grid comes nothing
        inside = (slice(come, None), slice(2 * come, None))
        np.testing.assert_allclose(aligned[0, ..., earlier][inside], at[2][inside], rtol=1e-5)
        assert (aligned[0, :come, :, earlier] == 0.0).all()
    for lead in range(3):
        inside = (slice(lead + 1, None), slice(2 * (lead + 1), None))
        np.testing.assert_allclose(ahead[0, lead][inside], at[3 + lead][inside], rtol=1e-5)


def test_extrapolation_is_believed_the_less_the_farther_ahead_by_hand():
    """25 of log-odds per unit at first, then 12.5, never less than 5; surer doubles it."""
    from nowcast.networks.advection import Believed

    ahead = np.full((1, 6, 1, 2), 0.6)
    surer = np.zeros((1, 6, 1, 2, 1))
    surer[:, :, :, 1] = np.log(2.0)
    found = _array(Believed([0.2, 0.6, 1.0])(_tensor(surer), _tensor(ahead)))
    trust = np.array([25.0, 12.5, 25.0 / 3, 6.25, 5.0, 5.0])
    expected = trust[:, None] * (0.6 - np.array([0.2, 0.6, 1.0]))
    np.testing.assert_allclose(found[0, :, 0, 0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(found[0, :, 0, 1], 2.0 * expected, rtol=1e-5, atol=1e-5)
    wild = _array(Believed([0.2])(_tensor(surer + 1e4), _tensor(ahead)))
    np.testing.assert_allclose(wild[0, :, 0, 0, 0], np.exp(3.0) * trust * 0.4, rtol=1e-5)


@pytest.mark.parametrize("layer", ["moved", "carried", "believed"])
def test_layers_give_what_they_say_of_it_beforehand(layer):
    """Networks are built by what a layer says; what it gives must be that."""
    import keras

    from nowcast.networks.advection import Believed, Carried, Moved

    shapes = {
        "moved": (Moved(2), (5, 3, 8, 12, 2), (5, 2, 8, 12)),
        "carried": (Carried(), (5, 8, 12, 2, 4), (5, 2, 8, 12)),
        "believed": (Believed([0.2, 0.6]), (5, 2, 8, 12, 1), (5, 2, 8, 12)),
    }
    one, *taken = shapes[layer]
    kinds = ["int32" if layer == "carried" and place else "float32" for place in (0, 1)]
    told = one.compute_output_spec(*map(keras.KerasTensor, taken, kinds))
    given = one(*(keras.ops.zeros(*each) for each in zip(taken, kinds, strict=True)))
    told, given = (each if isinstance(each, tuple) else (each,) for each in (told, given))
    assert len(told) == len(given)
    for said, found in zip(told, given, strict=True):
        assert said.shape == tuple(found.shape)
        assert said.dtype == keras.backend.standardize_dtype(found.dtype)
