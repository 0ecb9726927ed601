"""What a network is built for."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nowcast.networks.heads import Head

if TYPE_CHECKING:  # listing the networks needs no NumPy
    from nowcast.rainrate import Transform


@dataclass(frozen=True)
class Task:
    """The frames that a network sees, and what it makes of them.

    Parameters
    ----------
    input_frames, lead_frames
        Of the window.
    grid : (y, x)
        Pixels.
    channels
        Of an input frame: value and observed, or 1 for values alone.
    head
        How many outputs there are for each pixel, and what they mean.
    transform
        The scale on which it sees the frames.
    """

    input_frames: int
    lead_frames: int
    grid: tuple[int, int]
    channels: int
    head: Head
    transform: "Transform"

    @property
    def shape(self) -> tuple[int, ...]:
        """Of an input without its batch: ``(frame, y, x, channel)``."""
        return (self.input_frames, *self.grid, self.channels)
