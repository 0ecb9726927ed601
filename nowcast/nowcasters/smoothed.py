"""Extrapolation, blurred as much as a network: what remains of a network's skill beyond its blur.

A network that is trained on squared errors blurs what it cannot foresee, and scores better for that
alone. So it is compared with an extrapolation that is as blurred.
"""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import xarray as xr
from scipy.ndimage import gaussian_filter
from scipy.optimize import brentq

from nowcast.conventions import check_nowcast, known_variable, variable_of
from nowcast.nowcasters import Nowcaster
from nowcast.nowcasters.extrapolation import Extrapolation
from nowcast.spectral import radial_power, wavelengths

FINE = 4  # waves on the longer side, from which on power is matched
FIRST_SIGMA = 0.5  # pixels; a Gaussian that is narrower barely reaches the next pixel
WIDEST = 4  # of the grid's shorter side, the largest standard deviation that is tried
TOLERANCE = 0.01  # pixels, of a fitted standard deviation
ALIKE = 1e-9  # part by which two powers differ that are the same but for rounding


class UnmatchedError(ValueError):
    """There is nothing to which the power of a network can be matched; the message tells why."""


@dataclass(frozen=True)
class SmoothedExtrapolation:
    """Extrapolation, and then a Gaussian mean whose width depends on the lead time.

    The mean is over the pixels that extrapolation gives: what it leaves missing stays missing and
    takes no part. `matched` finds the widths at which it has the power of a network.

    Parameters
    ----------
    sigmas
        Standard deviations of the Gaussian, in pixels, for each of `lead_minutes`.
    lead_minutes
        Rising. Between two of them the width is linear; it is 0 at the base time, and beyond the
        last that of the last.
    like
        The name of the network that it is as blurred as.
    extrapolation
        What is smoothed.

    Raises
    ------
    ValueError
        If there are not as many widths as lead times, one is negative, or the lead times do not
        rise.

    Examples
    --------
    >>> from nowcast.data.synthetic import synthesise
    >>> observed = synthesise(hours=1, size=32).load()
    >>> nowcaster = SmoothedExtrapolation(sigmas=(1.0, 3.0), lead_minutes=(10, 30))
    >>> nowcaster.sigma(pd.to_timedelta([5, 20, 60], unit="min")).tolist()
    [0.5, 2.0, 3.0]
    >>> nowcast = nowcaster.nowcast(
    ...     observed,
    ...     base_times=observed["time"].to_index()[3:4],
    ...     lead_times=pd.to_timedelta([10, 20], unit="min"),
    ... )
    >>> dict(nowcast["rain_rate"].sizes)
    {'base_time': 1, 'lead_time': 2, 'y': 32, 'x': 32}
    """

    sigmas: tuple[float, ...]
    lead_minutes: tuple[float, ...]
    like: str = ""
    extrapolation: Extrapolation = field(default_factory=Extrapolation)

    def __post_init__(self) -> None:
        rising = all(np.diff(self.lead_minutes, prepend=0.0) > 0)
        if len(self.sigmas) != len(self.lead_minutes) or not self.sigmas or not rising:
            raise ValueError(
                "each lead time needs a width, and lead times must rise from above 0; received "
                f"{len(self.sigmas)} widths for lead times of {self.lead_minutes} minutes"
            )
        if not all(sigma >= 0 for sigma in self.sigmas):
            raise ValueError(f"widths must be 0 or more; received {self.sigmas}")

    @property
    def input_frames(self) -> int:
        """Number of frames used, up to and with the base time."""
        return self.extrapolation.input_frames

    @property
    def step(self) -> pd.Timedelta | None:
        """Time between the frames used; None is the step of the observations."""
        return self.extrapolation.step

    def sigma(self, lead_times: pd.TimedeltaIndex) -> np.ndarray:
        """Give the standard deviation in pixels at each lead time."""
        minutes = lead_times / pd.Timedelta(minutes=1)
        return np.asarray(
            np.interp(minutes, (0.0, *self.lead_minutes), (0.0, *self.sigmas)), np.float64
        )

    def nowcast(
        self, observed: xr.Dataset, *, base_times: pd.DatetimeIndex, lead_times: pd.TimedeltaIndex
    ) -> xr.Dataset:
        """Give the smoothed extrapolation of each base time; see `Nowcaster`.

        Raises
        ------
        ValueError
            If a base time lacks a frame, or a frame has no observed pixel.
        """
        nowcast = self.extrapolation.nowcast(observed, base_times=base_times, lead_times=lead_times)
        name = variable_of(nowcast)
        values = nowcast[name].values.copy()
        for lead, sigma in enumerate(self.sigma(lead_times)):
            values[:, lead] = smooth(values[:, lead], sigma)
        return check_nowcast(nowcast.assign({name: nowcast[name].copy(data=values)}))


def smooth(fields: np.ndarray, sigma: float) -> np.ndarray:
    """Give the Gaussian mean of the observed pixels around each of them; missing stays missing.

    Parameters
    ----------
    fields : (..., y, x)
        NaN where missing.
    sigma
        Standard deviation in pixels; 0 gives the fields as they are.

    Examples
    --------
    >>> smooth(np.array([[0.0, 0.0, 9.0, np.nan]]), 1.0).round(1).tolist()
    [[0.7, 2.5, 5.2, nan]]
    """
    if not sigma:
        return fields
    there = np.isfinite(fields)
    values = np.where(there, fields, 0.0)
    summed, weight = (
        gaussian_filter(each.astype(np.float64), sigma, mode="constant", axes=(-2, -1))
        for each in (values, there)
    )
    mean = np.full(fields.shape, np.nan, fields.dtype)
    np.divide(summed, weight, out=mean, where=there, casting="same_kind")
    return mean


def matched(
    network: Nowcaster,
    observed: xr.Dataset,
    *,
    base_times: pd.DatetimeIndex,
    lead_times: pd.TimedeltaIndex,
    like: str,
    extrapolation: Extrapolation | None = None,
) -> SmoothedExtrapolation:
    """Give the extrapolation that is smoothed until it has the power of a network at small scales.

    At each lead time by itself, a width is found at which both have the same power at wavelengths
    of up to a quarter of the grid's longer side, summed over the base times and the pixels that
    both reach. The width is 0 where the network has as much power as the extrapolation; where it
    has hardly any, it is a quarter of the shorter side. Nothing that was observed after a base time
    is looked at: the fit is to the network, not to what came.

    Parameters
    ----------
    network
        Whose field is matched; of an ensemble, the mean.
    observed
        With the input frames of both.
    base_times
        Some 16 of them, evenly spaced, tell enough; those without rain count for nothing.
    lead_times
        At which it is fitted.
    like
        The network's name.
    extrapolation
        What is smoothed; by default as `Extrapolation` is by default.

    Raises
    ------
    UnmatchedError
        If extrapolation has no power at small scales at any lead time, since it gives no rain, or
        rain only where it does not count, or since the grid has no such scales.
    ValueError
        If a base time lacks a frame.
    """
    _check_scales((observed.sizes["y"], observed.sizes["x"]), like)
    extrapolation = extrapolation or Extrapolation()
    moved, aim = [], np.zeros(len(lead_times))
    for base_time in base_times:
        one = _field(extrapolation, observed, base_time, lead_times)
        other = _field(network, observed, base_time, lead_times)
        aim += _fine_power(np.where(np.isfinite(one), other, np.nan))
        moved.append(np.where(np.isfinite(other), one, np.nan))
    fields = np.stack(moved)
    rain = _fine_power(fields).sum(0) > 0
    if not rain.any():
        raise _unmatched(fields, like, dry=known_variable(observed).valid_min)
    sigmas = [_width(fields[:, lead], aim[lead]) for lead in np.flatnonzero(rain)]
    minutes = (lead_times[rain] / pd.Timedelta(minutes=1)).tolist()
    return SmoothedExtrapolation(tuple(sigmas), tuple(minutes), like, extrapolation)


def _check_scales(grid: tuple[int, int], like: str) -> None:
    """Refuse a grid that is too small to have the scales at which power is matched."""
    rings = len(wavelengths(grid, 1.0))
    if rings < FINE:
        raise UnmatchedError(
            f"the spectrum of a grid of {grid[0]} x {grid[1]} pixels has {rings} rings, and power "
            f"is matched from ring {FINE} on, so that no width makes extrapolation as blurred "
            f"as {like!r}; a side of {2 * FINE + 1} pixels or more would do"
        )


def _unmatched(fields: np.ndarray, like: str, *, dry: float) -> UnmatchedError:
    """Tell why fields (case, lead_time, y, x) have no power at small scales."""
    if not (fields > dry).any():
        return UnmatchedError(
            f"extrapolation gives nothing but dryness from the {len(fields)} base times where "
            f"{like!r} gives anything, so that no width makes it as blurred; give base times with "
            "rain"
        )
    return UnmatchedError(
        f"extrapolation from the {len(fields)} base times has no power at small scales: its rain "
        "lies at the edge of the grid or of what is missing, where a pixel has no weight in the "
        f"spectrum, or is the same everywhere; so no width makes it as blurred as {like!r}; give "
        "base times with rain further inside"
    )


def _field(
    nowcaster: Nowcaster,
    observed: xr.Dataset,
    base_time: pd.Timestamp,
    lead_times: pd.TimedeltaIndex,
) -> np.ndarray:
    """Give what is forecast from one base time, (lead_time, y, x); of an ensemble the mean."""
    nowcast = nowcaster.nowcast(
        observed, base_times=pd.DatetimeIndex([base_time]), lead_times=lead_times
    )
    fields = nowcast[variable_of(nowcast)].isel(base_time=0)
    values: np.ndarray = (fields.mean("member") if "member" in fields.dims else fields).values
    return values


def _fine_power(fields: np.ndarray) -> np.ndarray:
    """Give the power of fields (..., y, x) at small scales: a ring is as long as it has waves."""
    power, _ = radial_power(fields)
    waves = np.arange(1, power.shape[-1] + 1)
    return np.asarray((power * waves)[..., FINE - 1 :].sum(-1))


def _width(fields: np.ndarray, aim: float) -> float:
    """Give the sigma at which fields (case, y, x) together have so much power at small scales."""

    def excess(sigma: float) -> float:
        return float(_fine_power(smooth(fields, sigma)).sum()) - aim

    if excess(0.0) <= ALIKE * aim:
        return 0.0
    widest = float(min(fields.shape[1:]) / WIDEST)
    low, high = 0.0, FIRST_SIGMA
    while excess(high) > 0:
        if high >= widest:
            return widest
        low, high = high, min(2 * high, widest)
    return float(brentq(excess, low, high, xtol=TOLERANCE))
