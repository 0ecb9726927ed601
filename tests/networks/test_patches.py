import numpy as np

from nowcast.networks.patches import from_patches, to_patches


def test_patches_hold_squares_row_by_row_and_can_be_undone():
    frames = np.random.default_rng(0).random((2, 3, 8, 12, 2), np.float32)
    patches = np.asarray(to_patches(frames, 4))
    assert patches.shape == (2, 3, 2, 3, 32)
    np.testing.assert_array_equal(patches[0, 0, 0, 0].reshape(4, 4, 2), frames[0, 0, :4, :4])
    np.testing.assert_array_equal(np.asarray(from_patches(patches, 4)), frames)
