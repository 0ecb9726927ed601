"""Members drawn from probabilities: what a nowcaster says of each pixel, made into fields.

Probabilities of exceedance tell of one pixel and one lead time alone, so an amount over an hour or
an area cannot be had from them. Members hang together in space and time, and have at each pixel
the distribution that was told.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pandas as pd
import xarray as xr
from scipy import fft
from scipy.special import ndtr

from nowcast.conventions import (
    DISTRIBUTIONS,
    EXCEEDANCE,
    VARIABLES,
    build_nowcast,
    check_nowcast,
    known_variable,
)
from nowcast.frames import check_observed, input_frames, step_of
from nowcast.nowcasters.derived import AS_IS, Derived
from nowcast.nowcasters.extrapolation import as_optical_flow_sees, motion, quiet
from nowcast.nowcasters.steps import WET_FROM, pixel_km
from nowcast.rainrate import Transform
from nowcast.spectral import weights

# How fast frames lose their likeness along the motion between 15 and 30 min ahead: 0.9 to 1.6 min
# per km on TAASRAD19 (its training part, wavelengths of 9 to 74 km) and on FMI (7 to 78 km).
MINUTES_PER_KM = 1.0
SLOPE = 2.6  # by which power in the plane rises with wavelength: 2.56 and 2.64 on the same frames
PADDING = 0.5  # of a side, by which the noise, which is periodic, is larger than the grid
DRAWN = f"drawn from {EXCEEDANCE} with noise that moves along, seed {{seed}}"
MOST_PROBABLE = np.nextafter(np.float32(1), np.float32(0))  # below 1, which is sure to be reached


@dataclass(frozen=True)
class Draw:
    """How members are drawn.

    Parameters
    ----------
    members
        Their number.
    seed
        Of the noise, zero or more.
    minutes_per_km
        How long a wave lasts, by its wavelength: the time after which its correlation along the
        motion is 1/e.
    transform
        The scale on which the distribution between two thresholds is uniform; by default the
        physical one, by which `nowcast.verification` scores probabilities.

    Raises
    ------
    ValueError
        If there is no member, the seed is negative, or a wave would last no time or for ever.
    """

    members: int = 24
    seed: int = 0
    minutes_per_km: float = MINUTES_PER_KM
    transform: Transform = AS_IS

    def __post_init__(self) -> None:
        if self.members < 1 or self.seed < 0 or not 0 < self.minutes_per_km < np.inf:
            raise ValueError(
                "there must be 1 member, a seed of 0, or more, and a positive and finite lifetime; "
                f"received members={self.members}, seed={self.seed}, "
                f"minutes_per_km={self.minutes_per_km}"
            )


@dataclass(frozen=True)
class WithMembers(Derived):
    """A nowcaster that gives probabilities of exceedance, with members drawn from them.

    Its probabilities stay; instead of its field there are members, see `members_of`.

    Parameters
    ----------
    nowcaster
        Whose nowcasts have ``probability_of_exceedance``, and no members.
    draw
        How members are drawn.
    """

    draw: Draw = field(default_factory=Draw)

    @property
    def members(self) -> int:
        """Their number."""
        return self.draw.members

    def nowcast(
        self, observed: xr.Dataset, *, base_times: pd.DatetimeIndex, lead_times: pd.TimedeltaIndex
    ) -> xr.Dataset:
        """Give members of the nowcast at each lead time; see `Nowcaster`.

        Raises
        ------
        ValueError
            If the nowcaster gives no probabilities or has members of its own, a lead time is no
            whole number of steps, or the nowcaster refuses.
        """
        return members_of(
            self.probable(observed, base_times=base_times, lead_times=lead_times),
            observed,
            input_frames=self.input_frames,
            step=self.step or step_of(observed),
            draw=self.draw,
        )


def members_of(
    nowcast: xr.Dataset,
    observed: xr.Dataset,
    *,
    input_frames: int,
    step: pd.Timedelta,
    draw: Draw,
) -> xr.Dataset:
    """Give a nowcast's members, drawn from its probabilities of exceedance.

    A member is a field of normal noise at each lead time (a Gaussian copula). At each pixel the
    chance of more noise than there is says how probable its value is: the value is the one that
    is reached with that probability. So the share of members at or above a threshold tends to the
    probability told, at each pixel; wherever that is 1 or 0, all members agree.

    What lies between thresholds and beyond is as for the CRPS, see
    `nowcast.verification.distributions.Ladder`: linear between two thresholds, on the scale of
    `Draw.transform`; below the first one dry, the lowest valid value, or the first threshold of
    another quantity than rain; and never above the last one. So amounts are cut off there: a
    ladder shall reach as high as matters.

    Noise is what takes the place of the last frame, as in STEPS: along the motion each wave of the
    frame is an autoregression of first order, which lasts the longer the larger it is, and its
    noise starts from none at the base time. So noise has small scales first and large ones later.
    It is brought to variance 1 at each lead time: how uncertain a pixel is, its probabilities say.
    The waves are those of the last frame, rain rate in dB, or of a power law where less than
    `steps.WET_FROM` of what was observed is above its lowest value. Motion is the optical flow, and
    what flows in has noise of its own.

    The noise depends on the input frames, the seed and the base time alone, and that of a member
    neither on how many there are nor on the lead times.

    Parameters
    ----------
    nowcast
        With ``probability_of_exceedance``.
    observed
        With the input frames of each base time, on the same grid.
    input_frames
        Frames from which motion is found; with 1, nothing moves.
    step
        Time between them; each lead time is a multiple of it.
    draw
        How members are drawn.

    Returns
    -------
    Dataset
        The nowcast with members instead of its field; missing where that is. The attribute
        ``member_rule`` says how they came about, and ``field_rule`` is gone with the field.

    Raises
    ------
    ValueError
        If a lead time is no whole number of steps, or a base time lacks a frame.

    References
    ----------
    Berrocal et al. (2008), doi:10.1214/08-AOAS203: rain of a given distribution at each pixel, by
    normal noise that hangs together in space;
    Bowler et al. (2006), doi:10.1256/qj.04.100: noise with the spectrum of rain;
    Foresti and Seed (2014), doi:10.5194/hess-18-4671-2014: lifetime by scale, along the motion.

    Examples
    --------
    A chance of one half for 1 mm/h everywhere: about half of all pixels have it, in patches.

    >>> from nowcast.conventions import with_exceedance
    >>> from nowcast.data.synthetic import synthesise
    >>> from nowcast.nowcasters.persistence import Persistence
    >>> observed, step = synthesise(hours=1, size=32).load(), pd.Timedelta("10min")
    >>> nowcast = Persistence().nowcast(
    ...     observed,
    ...     base_times=observed["time"].to_index()[3:4],
    ...     lead_times=pd.TimedeltaIndex([step]),
    ... )
    >>> nowcast = with_exceedance(nowcast, np.full((1, 1, 1, 32, 32), 0.5), thresholds=(1.0,))
    >>> members = members_of(nowcast, observed, input_frames=3, step=step, draw=Draw(members=50))
    >>> rain_rate = members["rain_rate"].squeeze()
    >>> rain_rate.dims, np.unique(rain_rate).tolist()
    (('member', 'y', 'x'), [0.0, 1.0])
    >>> 0.45 < float(rain_rate.mean()) < 0.55
    True
    """
    quantity = known_variable(nowcast)
    base_times, lead_times = (nowcast[dim].to_index() for dim in ("base_time", "lead_time"))
    steps = _whole_steps(lead_times, step)
    probabilities = nowcast[EXCEEDANCE].values
    ladder = _Ladder(
        nowcast["threshold"].values.astype(np.float32),
        quantity.valid_min if quantity.name in VARIABLES else np.inf,
        draw.transform,
    )
    grid = probabilities.shape[3:]
    lasting = step / pd.Timedelta(minutes=1) / (draw.minutes_per_km * pixel_km(observed))
    values = np.empty((len(base_times), draw.members, len(steps), *grid), np.float32)
    for members, chances, base_time in zip(values, probabilities, base_times, strict=True):
        window = _window(observed, quantity.name, base_time, input_frames, step)
        moving = motion(window, quantity)
        noise = _Noise.of(as_optical_flow_sees(window[-1], quantity), lasting, steps)
        origins = _origins(moving, steps, noise.grid)
        for number, member in enumerate(members):
            generator = np.random.default_rng([draw.seed, base_time.value % 2**64, number])
            for lead, normal in enumerate(noise.fields(generator)):
                ladder.fill(member[lead], chances[:, lead], normal, origins[lead])
    drawn = build_nowcast(
        values, observed=nowcast, variable=quantity, base_times=base_times, lead_times=lead_times
    )
    told = {name: nowcast[name] for name in DISTRIBUTIONS if name in nowcast}
    about = {name: value for name, value in nowcast.attrs.items() if name != "field_rule"}
    about["member_rule"] = DRAWN.format(seed=draw.seed)
    return check_nowcast(drawn.assign(told).assign_attrs(about))


def _whole_steps(lead_times: pd.TimedeltaIndex, step: pd.Timedelta) -> np.ndarray:
    """Give the lead times in steps; the noise of a step must not depend on which are asked for."""
    wrong = lead_times[(lead_times < step) | (lead_times % step != pd.Timedelta(0))]
    if len(wrong):
        raise ValueError(
            f"members are drawn in whole steps of {step}; the lead time {wrong[0]} is none; "
            f"ask for multiples of {step}"
        )
    return np.asarray(lead_times // step)


def _window(
    observed: xr.Dataset, name: str, base_time: pd.Timestamp, frames: int, step: pd.Timedelta
) -> np.ndarray:
    window = input_frames(observed, base_time=base_time, frames=frames, step=step)
    values: np.ndarray = check_observed(window, name)[name].values
    return values


@dataclass(frozen=True)
class _Noise:
    """Normal noise in coordinates that move along: a pixel stays where it was at the base time.

    Parameters
    ----------
    grid
        Its pixels, over which it is periodic.
    amplitude
        Of each wave, as `rfft2` orders them, by which normal numbers, real and imaginary, become
        noise of variance 1.
    fading
        How each wave correlates with itself a step later.
    deviation
        By the numbers of steps after which it is given, its standard deviation: it starts from 0.
    """

    grid: tuple[int, int]
    amplitude: np.ndarray
    fading: np.ndarray
    deviation: dict[int, np.float32]

    @classmethod
    def of(cls, frame: np.ndarray, lasting: float, steps: np.ndarray) -> "_Noise":
        """Give noise that replaces a frame whose waves of `lasting` pixels last one step."""
        height, width = (
            fft.next_fast_len(int(np.ceil((1 + PADDING) * side)), real=True) for side in frame.shape
        )
        across = fft.rfftfreq(width)
        waves = np.hypot(fft.fftfreq(height)[:, None], across)
        waves[0, 0] = 1 / max(height, width)  # the mean changes like the longest wave
        power = _power(frame, (height, width))
        if not power.any():
            power = waves**-SLOPE
        # A wave stands for its conjugate too, which `rfft2` leaves out, but in these columns;
        # there `irfft2` takes the real part, and loses half.
        stands_for = np.where((across == 0) | (across == 0.5), 1.0, 2.0)
        share = stands_for * power / (stands_for * power).sum()
        amplitude = height * width * np.sqrt(share) / stands_for
        fading = np.exp(-lasting * waves)
        variance = {int(step): (share * (1 - fading ** (2 * step))).sum() for step in steps}
        deviation = {step: np.float32(np.sqrt(one)) for step, one in variance.items()}
        return cls((height, width), amplitude.astype(np.float32), fading, deviation)

    def fields(self, generator: np.random.Generator) -> Iterator[np.ndarray]:
        """Give one member's noise of variance 1, (y, x) of `grid`, after each number of steps."""
        kept = self.fading.astype(np.float32)
        renewed = np.sqrt(1 - self.fading**2).astype(np.float32)
        state = np.zeros(kept.shape, np.complex64)
        for step in range(1, max(self.deviation) + 1):
            pairs = generator.standard_normal((*kept.shape, 2), np.float32)
            state = kept * state + renewed * pairs.view(np.complex64)[..., 0]
            if step in self.deviation:
                noise = fft.irfft2(self.amplitude * state, s=self.grid)
                yield noise / self.deviation[step]


def _power(frame: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Give the power of a frame's waves on a larger grid; zero where there is next to no rain."""
    seen = np.isfinite(frame)
    weight = weights(seen)
    if np.mean(frame[seen] > frame[seen].min()) < WET_FROM or not weight.any():
        return np.zeros(1)
    values = np.where(seen, frame, 0.0)
    mean = (weight * values).sum() / weight.sum()
    power: np.ndarray = np.abs(fft.rfft2(weight * (values - mean), s=grid)) ** 2
    return power


def _origins(motion: np.ndarray, steps: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Give where in the noise each pixel comes from, (lead, pixel), in flat numbers of `grid`.

    The nearest pixel, since a mean of neighbours would have less variance than each.
    """
    shape = motion.shape[1:]
    places = np.indices(shape)
    displacement: np.ndarray = np.zeros_like(motion)
    origins = []
    for number in np.diff(steps, prepend=0):
        displacement = _displaced(motion, displacement, int(number))
        nearest = np.rint(places + displacement[::-1]).astype(np.intp)
        origins.append(np.ravel_multi_index(tuple(nearest), grid, mode="wrap").ravel())
    return np.stack(origins)


def _displaced(motion: np.ndarray, displacement: np.ndarray, steps: int) -> np.ndarray:
    """Give where pixels were some steps before they were `displacement` from where they are."""
    with quiet():
        from pysteps.extrapolation.semilagrangian import extrapolate

        _, before = extrapolate(
            None, motion, steps, displacement_prev=displacement, return_displacement=True
        )
    return np.asarray(before)


@dataclass(frozen=True)
class _Ladder:
    """What values are reached with which probability, between thresholds and beyond.

    Parameters
    ----------
    levels
        The thresholds, rising.
    dry
        Of what does not reach the first, unless that is below it.
    transform
        On which values are linear between two levels.
    """

    levels: np.ndarray
    dry: float
    transform: Transform

    def fill(
        self, values: np.ndarray, chances: np.ndarray, noise: np.ndarray, origins: np.ndarray
    ) -> None:
        """Set (y, x) to what noise makes of (level, y, x) probabilities; missing where they are."""
        flat, chances = values.reshape(-1), chances.reshape(len(chances), -1)
        flat[:] = np.where(np.isnan(chances[0]), np.nan, min(self.dry, self.levels[0]))
        possible = np.flatnonzero(chances[0] > 0)
        more = np.minimum(ndtr(-noise.reshape(-1)[origins[possible]]), MOST_PROBABLE)
        wet = more < chances[0, possible]
        flat[possible[wet]] = self._values(chances[:, possible[wet]], more[wet])

    def _values(self, chances: np.ndarray, more: np.ndarray) -> np.ndarray:
        """Give the values that are reached with probability `more`, less than the first chance."""
        place = np.zeros(more.shape, np.float32)
        for reached, next_one in pairwise(chances):
            width = np.maximum(reached - next_one, np.finfo(np.float32).tiny)
            place += np.clip((reached - more) / width, 0, 1)
        scaled = self.transform.forward(self.levels.astype(np.float64))
        values = self.transform.inverse(np.interp(place, np.arange(len(scaled)), scaled))
        # Rounding must not take what reaches a level below it.
        values = np.maximum(values, self.levels[place.astype(np.intp)])
        return np.asarray(values, np.float32)
