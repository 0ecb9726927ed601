"""Rain rate, reflectivity, and the invertible scales on which networks see them."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

MARSHALL_PALMER = (200.0, 1.6)  # Z = a R^b, Z in mm6 m-3, R in mm/h; Marshall and Palmer (1948)


def to_rain_rate(
    reflectivity: Any, *, a: float = MARSHALL_PALMER[0], b: float = MARSHALL_PALMER[1]
) -> Any:
    """Turn reflectivity into rain rate by ``Z = a R^b``.

    Parameters
    ----------
    reflectivity
        dBZ; 0 dBZ and less is dry, NaN stays NaN.
    a, b
        Of the relation; the default is that of Marshall and Palmer.

    Returns
    -------
    Same kind and shape as `reflectivity`
        Rain rate in mm/h.

    References
    ----------
    Marshall and Palmer (1948), doi:10.1175/1520-0469(1948)005<0165:TDORWS>2.0.CO;2

    Examples
    --------
    >>> np.round(to_rain_rate(np.array([-5.0, 0.0, 23.0, np.nan])), 2)
    array([ 0.,  0.,  1., nan])
    """
    # Multiplying the comparison keeps NaN, and works for NumPy, Dask and xarray alike.
    return (10.0 ** (reflectivity / 10.0) / a) ** (1.0 / b) * (reflectivity > 0.0)


def to_reflectivity(
    rain_rate: Any, *, a: float = MARSHALL_PALMER[0], b: float = MARSHALL_PALMER[1]
) -> Any:
    """Turn rain rate into reflectivity by ``Z = a R^b``.

    Parameters
    ----------
    rain_rate
        mm/h; what would fall below 0 dBZ (0.036 mm/h) is dry, 0 dBZ; NaN stays NaN.
    a, b
        Of the relation; the default is that of Marshall and Palmer.

    Returns
    -------
    Same kind and shape as `rain_rate`
        Reflectivity in dBZ.

    References
    ----------
    Marshall and Palmer (1948), doi:10.1175/1520-0469(1948)005<0165:TDORWS>2.0.CO;2

    Examples
    --------
    >>> np.round(to_reflectivity(np.array([0.0, 1.0, 10.0])), 1)
    array([ 0., 23., 39.])
    """
    lowest = (1.0 / a) ** (1.0 / b)
    return (10.0 * np.log10(a * rain_rate.clip(lowest) ** b)).clip(0.0)


@dataclass(frozen=True)
class Transform:
    """An invertible scale on which a network sees a quantity: common values between 0 and 1.

    Parameters
    ----------
    name
        ``log``: ``log(1 + (v - offset) / reference)``, for rain rate, whose errors matter in
        ratio; ``linear``: ``(v - offset)``, for reflectivity and the like.
    offset
        The physical value that becomes 0.
    reference
        For ``log``, where the scale turns from linear to logarithmic; physical units.
    top
        The physical value that becomes 1.

    Examples
    --------
    >>> scale = Transform("log", reference=0.5, top=50.0)
    >>> scale.forward(np.array([0.0, 50.0]))
    array([0., 1.])
    >>> np.round(scale.inverse(scale.forward(np.array([3.0]))), 6)
    array([3.])
    """

    name: Literal["log", "linear"] = "log"
    offset: float = 0.0
    reference: float = 0.5
    top: float = 3.0

    def forward(self, value: Any) -> Any:
        """Take physical values to the network's scale; NaN stays NaN."""
        if self.name == "linear":
            return (value - self.offset) / (self.top - self.offset)
        return np.log1p((value - self.offset) / self.reference) / self._log_top

    def inverse(self, scaled: Any) -> Any:
        """Take the network's scale back to physical values; NaN stays NaN."""
        if self.name == "linear":
            return self.offset + scaled * (self.top - self.offset)
        return self.offset + self.reference * np.expm1(scaled * self._log_top)

    @property
    def _log_top(self) -> float:
        return float(np.log1p((self.top - self.offset) / self.reference))
