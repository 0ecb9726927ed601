"""What networks are fitted by: errors of raw outputs, to which missing pixels contribute nothing.

Each kind of loss fits some kinds of heads, as `LOSSES` tells. Targets are on the transform's scale
and NaN where missing. Every loss is a mean over what was observed, so that its value does not
depend on the size of batch, grid or crop.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from nowcast.conventions import RAIN_RATE, VARIABLES, Variable
from nowcast.networks.heads import Head
from nowcast.rainrate import MARSHALL_PALMER, Transform, to_rain_rate

Loss = Callable[[Any, Any], Any]

POINTWISE = ("mse", "mae", "balanced", "b_mse", "b_mae")
LOSSES = {
    "field": POINTWISE,
    "fraction": (*POINTWISE, "cross_entropy"),
    "exceedance": ("cross_entropy", "crps", "ordinal", "ordinal_heavy"),
    "quantiles": ("quantile", "crps"),
    "series": POINTWISE,
    "classes": ("cross_entropy",),
}
HEAVIEST_WEIGHT = 24.0  # of a pixel in the balanced loss; Ravuri et al. (2021), see loss_of
HKO_7 = ((2.0, 2.0), (5.0, 5.0), (10.0, 10.0), (30.0, 30.0))  # from mm/h on, weight; Shi (2017)
ROUNDING = 5e-6  # of 32-bit floats: a target so little below a level reaches it


def loss_of(kind: str, *, head: Head, variable: Variable, transform: Transform) -> Loss:
    """Give a loss to which missing pixels contribute nothing, neither value nor gradient.

    Parameters
    ----------
    kind
        ``mse``, ``mae``: squared and absolute error on the transform's scale. ``balanced``: a
        squared error in which a pixel weighs one more than its observed rain rate in mm/h, 24 at
        most, so that the rare heavy rain is not averaged away. ``b_mse``, ``b_mae``: errors in
        which it weighs 1, and from 2, 5, 10 and 30 mm/h on 2, 5, 10 and 30.

        ``cross_entropy``: of a fraction, with targets held between 0 and 1; of the event that a
        pixel reaches a threshold, mean over thresholds; or of classes.

        ``crps``: the continuous ranked probability score on the transform's scale: of
        probabilities of exceedance, the sum of their Brier scores, each times the width for which
        its threshold stands, halfway to its neighbours and as far outwards from the first and the
        last; of quantiles, twice the pinball loss integrated over the probabilities, each quantile
        standing for those halfway to its neighbours, 0 and 1. ``quantile``: mean pinball loss.

        ``ordinal``: of probabilities of exceedance, the logarithmic score of the interval between
        two thresholds that a pixel falls into, in nats, which is the sum of the cross-entropies of
        reaching each threshold where the one below is reached. ``ordinal_heavy``: that of each
        threshold weighs one more than its rain rate in mm/h, 24 at most; still proper, since each
        is by itself.
    head
        What the raw outputs mean.
    variable, transform
        What the targets are: rain rates and thresholds are physical.

    Returns
    -------
    callable
        ``loss(targets, raw)``, mean over what was observed, 0 if nothing was. Targets of a head of
        frames are ``(batch, lead frame, y, x, 1)``, of a series ``(batch, lead frame, output)``,
        of classes ``(batch,)``: the number of the right label. NaN is missing.

    Raises
    ------
    ValueError
        If the loss does not fit the head or the variable.

    References
    ----------
    Ravuri et al. (2021), the weights of the grid cell term, doi:10.1038/s41586-021-03854-z;
    Shi et al. (2017), B-MSE and B-MAE, arXiv:1706.03458;
    Gneiting and Raftery (2007), CRPS and pinball loss, doi:10.1198/016214506000001437;
    Gneiting and Ranjan (2011), the threshold and quantile weighted CRPS,
    doi:10.1198/jbes.2010.08110
    """
    if kind not in LOSSES[head.kind]:
        raise ValueError(
            f"the loss {kind!r} does not fit the head {head.kind!r}, which takes "
            f"{', '.join(LOSSES[head.kind])}; set training.loss to one of these, or network.head"
        )
    if kind in ("balanced", "b_mse", "b_mae", "ordinal_heavy") and variable.name not in VARIABLES:
        raise ValueError(f"the loss {kind!r} is for rain, not {variable.name!r}; use another")
    if kind in POINTWISE:
        return _mean_of(_pointwise(kind, head, variable, transform))
    if kind == "cross_entropy":
        return _mean_of(_cross_entropy(head, transform))
    if kind in ("ordinal", "ordinal_heavy"):
        heavy = kind == "ordinal_heavy"
        return _ordinal(head, transform, _weights_of_levels(head, variable) if heavy else None)
    if head.kind == "exceedance":
        return _mean_of(_threshold_weighted(head, transform))
    return _mean_of(_pinball(kind, head))


def cross_entropy_per_sequence(targets: Any, raw: Any) -> Any:
    """Give the cross-entropy of sequences of fractions as papers on Moving MNIST print it.

    Summed over lead frames and pixels, mean over sequences, in nats. Training minimises its mean
    per pixel, by `loss_of`: this divided by the pixels of a sequence.

    Parameters
    ----------
    targets : (batch, lead frame, y, x, 1)
        Between 0 and 1; NaN where missing, which adds nothing.
    raw : (batch, lead frame, y, x, 1)
        Of a head ``fraction``.

    References
    ----------
    Shi et al. (2015), arXiv:1506.04214
    """
    from keras import ops

    targets, observed = _seen(targets, raw)
    entropy = observed * _cross_entropy(Head("fraction"), Transform())(targets, raw)
    return ops.mean(ops.sum(entropy, axis=(1, 2, 3, 4)))


def _mean_of(error: Loss) -> Loss:
    """Give the mean over what was observed of an error per target."""

    def loss(targets: Any, raw: Any) -> Any:
        from keras import ops

        targets, observed = _seen(targets, raw)
        return ops.sum(observed * error(targets, raw)) / ops.maximum(ops.sum(observed), 1.0)

    return loss


def _seen(targets: Any, raw: Any) -> tuple[Any, Any]:
    """Give targets with 0 where missing, so that no gradient is NaN, and 1 where observed."""
    from keras import ops

    seen = ops.isfinite(targets)
    return ops.where(seen, targets, ops.zeros_like(targets)), ops.cast(seen, raw.dtype)


def _pointwise(kind: str, head: Head, variable: Variable, transform: Transform) -> Loss:
    def error(targets: Any, raw: Any) -> Any:
        from keras import ops

        difference = head.values(raw) - targets
        size = ops.abs(difference) if kind in ("mae", "b_mae") else ops.square(difference)
        if kind in ("mse", "mae"):
            return size
        rain_rate = _rain_rate(targets, variable, transform)
        if kind == "balanced":
            return size * ops.minimum(1.0 + rain_rate, HEAVIEST_WEIGHT)
        return size * _hko_7(rain_rate)

    return error


def _hko_7(rain_rate: Any) -> Any:
    from keras import ops

    weight = ops.ones_like(rain_rate)
    for from_mm_h, heavier in HKO_7:
        reached = rain_rate >= from_mm_h * (1.0 - ROUNDING)
        weight = ops.where(reached, ops.full_like(weight, heavier), weight)
    return weight


def _rain_rate(scaled: Any, variable: Variable, transform: Transform) -> Any:
    """Give rain rate in mm/h, as a tensor, for values on the network's scale."""
    from keras import ops

    if transform.name == "log":
        top = float(np.log1p((transform.top - transform.offset) / transform.reference))
        physical = transform.offset + transform.reference * ops.expm1(scaled * top)
    else:
        physical = transform.inverse(scaled)
    if variable.name == "rain_rate":
        return ops.maximum(physical, 0.0)
    a, b = MARSHALL_PALMER
    return ops.power(ops.power(10.0, physical / 10.0) / a, 1.0 / b)


def _cross_entropy(head: Head, transform: Transform) -> Loss:
    if head.kind == "classes":
        return _cross_entropy_of_classes

    def error(targets: Any, raw: Any) -> Any:
        from keras import ops

        reached, missed = head.log_probabilities(raw)
        if head.kind == "fraction":
            event = ops.clip(targets, 0.0, 1.0)  # beyond, no probability would be best
        else:
            event = ops.cast(_reaches(targets, head, transform), raw.dtype)
        entropy = -(event * reached + (1.0 - event) * missed)
        return ops.mean(entropy, axis=-1, keepdims=True)

    return error


def _cross_entropy_of_classes(targets: Any, raw: Any) -> Any:
    from keras import ops

    right = ops.one_hot(ops.cast(targets, "int32"), raw.shape[-1], dtype=raw.dtype)
    return -ops.sum(right * ops.log_softmax(raw, axis=-1), axis=-1)


def _weights_of_levels(head: Head, variable: Variable) -> np.ndarray:
    """Give 1 + the rain rate of each threshold in mm/h, `HEAVIEST_WEIGHT` at most."""
    levels = np.array(head.levels)
    rain_rate = levels if variable.name == RAIN_RATE.name else to_rain_rate(levels)
    return np.minimum(1.0 + rain_rate, HEAVIEST_WEIGHT)


def _ordinal(head: Head, transform: Transform, weights: np.ndarray | None) -> Loss:
    levels = head.levels_on(transform) - ROUNDING
    # The level below; of the first there is none, so all that was observed takes part.
    below = np.concatenate([[np.finfo(np.float32).min], levels[:-1]])

    def loss(targets: Any, raw: Any) -> Any:
        from keras import ops

        # In two dimensions, since broadcasts in more are slow on a processor. A comparison with
        # NaN is false, so what is missing takes part in nothing.
        targets, raw = ops.reshape(targets, (-1, 1)), ops.reshape(raw, (-1, len(levels)))
        surprise = ops.softplus(ops.where(targets >= _tensor(levels), -raw, raw))
        surprise = ops.where(targets >= _tensor(below), surprise, ops.zeros_like(surprise))
        if weights is not None:
            surprise = surprise * _tensor(weights)
        observed = ops.sum(ops.cast(ops.isfinite(targets), raw.dtype))
        return ops.sum(surprise) / ops.maximum(observed, 1.0)

    return loss


def _threshold_weighted(head: Head, transform: Transform) -> Loss:
    levels = head.levels_on(transform)
    widths = np.gradient(levels) if len(levels) > 1 else np.ones(1)

    def error(targets: Any, raw: Any) -> Any:
        from keras import ops

        event = ops.cast(_reaches(targets, head, transform), raw.dtype)
        brier = ops.square(head.values(raw) - event)
        return ops.sum(_tensor(widths) * brier, axis=-1, keepdims=True)

    return error


def _pinball(kind: str, head: Head) -> Loss:
    quantiles = np.array(head.levels)
    weights = np.full(len(quantiles), 1.0 / len(quantiles))
    if kind == "crps":
        weights = 2.0 * np.diff([0.0, *(quantiles[1:] + quantiles[:-1]) / 2.0, 1.0])

    def error(targets: Any, raw: Any) -> Any:
        from keras import ops

        short = targets - head.values(raw)
        over, under = _tensor(quantiles - 1.0), _tensor(quantiles)
        pinball = ops.maximum(under * short, over * short)
        return ops.sum(_tensor(weights) * pinball, axis=-1, keepdims=True)

    return error


def _reaches(targets: Any, head: Head, transform: Transform) -> Any:
    """Tell of each target and threshold whether the first reaches the second."""
    return targets >= _tensor(head.levels_on(transform) - ROUNDING)


def _tensor(values: np.ndarray) -> Any:
    from keras import ops

    return ops.convert_to_tensor(values, dtype="float32")
