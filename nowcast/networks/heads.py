"""What a network's outputs mean: a field, probabilities, quantiles, a series or a class."""

from dataclasses import dataclass

FRAME_HEADS = ("field", "fraction", "exceedance", "quantiles")
SEQUENCE_HEADS = ("series", "classes")


@dataclass(frozen=True)
class Head:
    """What a network's last layer gives, and how it becomes a forecast.

    Parameters
    ----------
    kind
        ``field``: one value per pixel on the transform's scale; ``fraction``: the same, held
        between 0 and 1; ``exceedance``: probabilities of reaching each of `levels`;
        ``quantiles``: the values of the quantiles `levels`. For networks that see a sequence and
        give no frames: ``series``: a value per lead time for each of `labels`; ``classes``: the
        probability of each of `labels`.
    levels
        Thresholds in physical units, or quantiles between 0 and 1; rising.
    labels
        Of the points of a series, or of the classes.
    """

    kind: str = "field"
    levels: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def outputs(self) -> int:
        """Channels of the network's last layer: per pixel, per lead time, or in all."""
        return len(self.levels) or len(self.labels) or 1
