"""What a network's outputs mean: a field, probabilities, quantiles, a series or a class.

A network ends in raw outputs, without any activation. Its `Head` turns them into what is
forecast, and into the logarithms that a loss needs; both are stable for any finite output.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # listing the networks needs neither
    import numpy as np

    from nowcast.rainrate import Transform

FRAME_HEADS = ("field", "fraction", "exceedance", "quantiles")
SEQUENCE_HEADS = ("series", "classes")
LEVELS = {"exceedance": "thresholds in physical units", "quantiles": "quantiles between 0 and 1"}


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
        Of the points of a series, one if there are none, or of the classes, two or more.

    Raises
    ------
    ValueError
        If the kind is unknown, or the levels or labels do not fit it.
    """

    kind: str = "field"
    levels: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = (*FRAME_HEADS, *SEQUENCE_HEADS)
        if self.kind not in known:
            raise ValueError(f"unknown head {self.kind!r}; known are {', '.join(known)}")
        self._check_levels()
        if self.labels and self.kind not in SEQUENCE_HEADS:
            raise ValueError(f"the head {self.kind!r} has no labels; received {self.labels}")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels must differ from one another; received {self.labels}")
        if self.kind == "classes" and len(self.labels) < 2:
            raise ValueError(
                f"the head 'classes' needs two labels or more; received {self.labels}; "
                "name the classes"
            )

    def _check_levels(self) -> None:
        if self.kind not in LEVELS:
            if self.levels:
                raise ValueError(
                    f"the head {self.kind!r} has no levels; received {self.levels}; leave them out "
                    f"(network.levels=[]), or choose the head {' or '.join(LEVELS)}"
                )
            return
        meaning = f"the head {self.kind!r} needs network.levels, rising {LEVELS[self.kind]}"
        rising = all(low < high for low, high in zip(self.levels, self.levels[1:], strict=False))
        if not self.levels or not rising:
            raise ValueError(f"{meaning}; received {self.levels}")
        if self.kind == "quantiles" and not 0.0 < self.levels[0] <= self.levels[-1] < 1.0:
            raise ValueError(f"{meaning}, such as 0.1, 0.5, 0.9; received {self.levels}")

    @property
    def outputs(self) -> int:
        """Channels of the network's last layer: per pixel, per lead time, or in all."""
        return len(self.levels) or len(self.labels) or 1

    def levels_on(self, transform: "Transform") -> "np.ndarray":
        """Give the thresholds of an ``exceedance`` head on the transform's scale."""
        import numpy as np

        levels: np.ndarray = transform.forward(np.array(self.levels))
        return levels

    def values(self, raw: Any) -> Any:
        """Give what is forecast.

        Parameters
        ----------
        raw : (..., output)
            As the network gives them.

        Returns
        -------
        values : (..., output)
            ``field``, ``series``: `raw` itself, on the transform's scale. ``fraction``: the same
            scale, by a sigmoid. ``exceedance``: probabilities that fall along the levels.
            ``quantiles``: values on the transform's scale that rise along them: the first, and
            the steps from each to the next, by a softplus. ``classes``: probabilities whose sum
            is 1, by a softmax.
        """
        from keras import ops

        if self.kind == "fraction":
            return ops.sigmoid(raw)
        if self.kind == "exceedance":
            return ops.exp(ops.cumsum(ops.log_sigmoid(raw), axis=-1))
        if self.kind == "quantiles":
            steps = ops.concatenate([raw[..., :1], ops.softplus(raw[..., 1:])], axis=-1)
            return ops.cumsum(steps, axis=-1)
        return ops.softmax(raw, axis=-1) if self.kind == "classes" else raw

    def log_probabilities(self, raw: Any) -> tuple[Any, Any]:
        """Give the logarithms of a probability and of its complement, for a cross-entropy.

        Of an ``exceedance`` head, each output is the chance of reaching its level where the level
        below is reached, so that probabilities fall whatever the network gives. The complement is
        summed, not subtracted from 1, which would lose it where a probability is close to 1.

        Parameters
        ----------
        raw : (..., output)
            Of a head ``fraction`` or ``exceedance``.

        Returns
        -------
        reached, missed : (..., output)
            Logarithms of p and 1 - p.

        Raises
        ------
        ValueError
            If the head gives no probabilities of events.
        """
        from keras import ops

        if self.kind not in ("fraction", "exceedance"):
            raise ValueError(f"the head {self.kind!r} gives no probabilities of events")
        goes_on, ends = ops.log_sigmoid(raw), ops.log_sigmoid(-raw)
        if self.kind == "fraction":
            return goes_on, ends
        reached = ops.cumsum(goes_on, axis=-1)
        missed = [ends[..., 0]]
        for level in range(1, self.outputs):
            ends_here = reached[..., level - 1] + ends[..., level]
            missed.append(ops.logaddexp(missed[-1], ends_here))
        return reached, ops.stack(missed, axis=-1)
