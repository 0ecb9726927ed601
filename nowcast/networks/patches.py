"""Squares of pixels as channels: a coarser grid on which nothing is lost.

References
----------
Shi et al. (2015), Convolutional LSTM Network, arXiv:1506.04214, section 4
"""

from typing import Any


def to_patches(frames: Any, patch: int) -> Any:
    """Move squares of pixels to channels.

    Parameters
    ----------
    frames : (batch, frame, y, x, channel)
        With y and x multiples of `patch`.
    patch
        Side of the squares.

    Returns
    -------
    patches : (batch, frame, y / patch, x / patch, patch * patch * channel)
    """
    from keras import ops

    _, count, height, width, channels = frames.shape
    tall, wide = height // patch, width // patch
    blocks = ops.reshape(frames, (-1, count, tall, patch, wide, patch, channels))
    blocks = ops.transpose(blocks, (0, 1, 2, 4, 3, 5, 6))
    return ops.reshape(blocks, (-1, count, tall, wide, patch * patch * channels))


def from_patches(patches: Any, patch: int) -> Any:
    """Move channels back to squares of pixels, the inverse of `to_patches`."""
    from keras import ops

    _, count, tall, wide, channels = patches.shape
    kept = channels // patch**2
    blocks = ops.reshape(patches, (-1, count, tall, wide, patch, patch, kept))
    blocks = ops.transpose(blocks, (0, 1, 2, 4, 3, 5, 6))
    return ops.reshape(blocks, (-1, count, tall * patch, wide * patch, kept))
