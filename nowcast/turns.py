"""Flips and quarter turns of frames and of the motion they show."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Views = Literal[1, 4, 8]


@dataclass(frozen=True)
class Turn:
    """A way to look at a grid: flipped along y and x, then with the two swapped.

    Parameters
    ----------
    flip_y, flip_x
        Whether the rows, and the columns, come in the reverse order.
    swap
        Whether rows then become columns.

    Examples
    --------
    >>> Turn(flip_x=True, swap=True).fields(np.array([[1, 2], [3, 4]]))
    array([[2, 4],
           [1, 3]])
    """

    flip_y: bool = False
    flip_x: bool = False
    swap: bool = False

    def fields(self, fields: np.ndarray) -> np.ndarray:
        """Give fields, (..., y, x), as they are seen so; a view of them."""
        fields = self._flipped(fields, fields.ndim - 2)
        return fields.swapaxes(-2, -1) if self.swap else fields

    def motion(self, motion: np.ndarray) -> np.ndarray:
        """Give the motion that is seen so, of motion (..., component, y, x), along x first."""
        signs = np.array([-1 if self.flip_x else 1, -1 if self.flip_y else 1], motion.dtype)
        motion = self.fields(motion) * signs[:, None, None]
        return motion[..., ::-1, :, :] if self.swap else motion

    def undone(self, fields: np.ndarray, *, y_axis: int) -> np.ndarray:
        """Give fields that are seen so as they are; x comes after y, and more axes may follow."""
        fields = fields.swapaxes(y_axis, y_axis + 1) if self.swap else fields
        return self._flipped(fields, y_axis)

    def _flipped(self, fields: np.ndarray, y_axis: int) -> np.ndarray:
        axes = ((y_axis, self.flip_y), (y_axis + 1, self.flip_x))
        return np.flip(fields, tuple(axis for axis, flip in axes if flip))


def turns(views: Views) -> list[Turn]:
    """Give the first ways of looking at a grid: as it is, the four flips, or all turns too."""
    both = (False, True)
    return [Turn(y, x, swap) for swap in both for y in both for x in both][:views]
