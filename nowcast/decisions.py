"""What a user may ask of the field that calibrated probabilities decide."""

from dataclasses import dataclass
from typing import Literal

Summary = Literal["mean", "median"]  # of probabilities, as a field instead of the decided one


@dataclass(frozen=True)
class Decisions:
    """How the field is decided; see `nowcast.postprocessing`.

    Parameters
    ----------
    most_bias
        Frequency bias of the field at most, on the cases that are calibrated on; on other weather
        it may be more.
    extrapolate_from
        Threshold of the network from which on the field is that of extrapolation, where too few
        heavier events were seen to correct them.
    keep_area
        Whether the field reaches each threshold on no fewer pixels than extrapolation does, where
        too little weather was seen to tell how soon rain fades.
    """

    most_bias: float = 1.2
    extrapolate_from: float | None = None
    keep_area: bool = False

    def __post_init__(self) -> None:
        """Refuse a bias with which nothing could be forecast."""
        if not self.most_bias > 0:
            raise ValueError(f"most_bias must be above 0; received {self.most_bias:g}")

    def check(self, network: str, thresholds: tuple[float, ...], *, motion: bool) -> None:
        """Refuse what a network cannot give.

        Parameters
        ----------
        network, thresholds
            Its name, and of what it gives probabilities.
        motion
            Whether it sees any, and so corrects an extrapolation.

        Raises
        ------
        ValueError
            If it corrects none and one is asked for, or the threshold is not one of its own.
        """
        if not motion and (self.keep_area or self.extrapolate_from is not None):
            raise ValueError(
                f"the network {network!r} sees no motion, so there is no extrapolation to keep the "
                f"area of or to leave heavy rain to; received {self}; use a network that sees it, "
                "such as lagrangian"
            )
        if self.extrapolate_from not in (None, *thresholds):
            raise ValueError(
                f"what is left to extrapolation begins at one of the thresholds {thresholds}; "
                f"received {self.extrapolate_from}"
            )
