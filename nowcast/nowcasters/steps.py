"""STEPS: an ensemble of extrapolations, with noise where rain cannot be foreseen."""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import (
    DEGREES,
    RAIN_RATE,
    REFLECTIVITY,
    Variable,
    build_nowcast,
    check_nowcast,
    known_variable,
)
from nowcast.frames import check_observed, input_frames, step_of
from nowcast.nowcasters.extrapolation import (
    RAIN_FROM,
    advect,
    as_optical_flow_sees,
    motion,
    quiet,
)

# From which on STEPS sees rain: 0.1 mm/h, and in dBZ what that is by Z = 200 R^1.6.
SEEN_FROM = {RAIN_RATE.name: RAIN_FROM, REFLECTIVITY.name: 7.0}
WET_FROM = 0.01  # part of the observed pixels; with less rain in a frame there is nothing to fit
SMALLEST_SIDE = 8  # pixels, of a grid with scales to tell apart
FEWEST_LEVELS, MOST_LEVELS = 3, 6  # of scales: what pysteps demands, and what it takes by default
FITTED_FRAMES = 3  # the last ones, for an autoregression of second order
KM_PER_DEGREE = 111.2  # of latitude

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Steps:
    """Short-term ensemble prediction system (STEPS), by pysteps: members of equal likelihood.

    Each member moves on with a motion perturbed in its own way. Its field, in decibels, is a sum
    of scales; each scale loses its likeness to the last frame as fast as the input frames show,
    and noise with the spectrum of the rain takes its place. The distribution of values stays that
    of the last frame, so members are as sharp as observations, and their mean is smooth.

    Rain is what reaches `SEEN_FROM`. Where neither a member nor the extrapolation has any, the
    member has the value of the extrapolation: drizzle, or a radar's noise. So it has where it would
    show what was not observed in each of the frames. It is missing where the extrapolation is, and
    nowhere else.

    All members are the extrapolation where there is nothing to fit: where rain covers less than
    `WET_FROM` of what was observed, inside the ellipse that fills the grid, in either of the last
    two frames; where frames stand still or are not alike at all; and on a grid of fewer than
    `SMALLEST_SIDE` pixels a side.

    The noise depends on the seed and the base time alone, and that of a member not on how many
    there are. The pixels of a grid in degrees are measured at its middle latitude.

    Parameters
    ----------
    members
        Their number.
    input_frames
        Frames from which motion is found; the last `FITTED_FRAMES` of them make the rest.
    seed
        Of the noise, zero or more.
    step
        Time between frames; by default that of the observations.
    variable
        What is forecast, rain rate or reflectivity; by default the one that the observations hold.

    References
    ----------
    Bowler et al. (2006), doi:10.1256/qj.04.100;
    Pulkkinen et al. (2019), pysteps, doi:10.5194/gmd-12-4185-2019

    Examples
    --------
    >>> from nowcast.data.synthetic import synthesise
    >>> observed = synthesise(hours=1, size=32)
    >>> nowcast = Steps(members=3).nowcast(
    ...     observed,
    ...     base_times=observed["time"].to_index()[3:4],
    ...     lead_times=pd.to_timedelta([10, 20], unit="min"),
    ... )
    >>> nowcast["rain_rate"].dims
    ('base_time', 'member', 'lead_time', 'y', 'x')
    """

    members: int = 12
    input_frames: int = 3
    seed: int = 0
    step: pd.Timedelta | None = None
    variable: Variable | None = None

    def __post_init__(self) -> None:
        if self.members < 1 or self.input_frames < 2 or self.seed < 0:
            raise ValueError(
                "STEPS needs 1 member, 2 input frames and a seed of 0, or more; received "
                f"members={self.members}, input_frames={self.input_frames}, seed={self.seed}"
            )

    def nowcast(
        self, observed: xr.Dataset, *, base_times: pd.DatetimeIndex, lead_times: pd.TimedeltaIndex
    ) -> xr.Dataset:
        """Give members of the nowcast at each lead time; see `Nowcaster`.

        Raises
        ------
        ValueError
            If the quantity is neither rain rate nor reflectivity, a lead time is no whole number
            of steps, a base time lacks a frame, or a frame has no observed pixel.
        """
        variable = _check_rain(self.variable or known_variable(observed))
        step = self.step or step_of(observed)
        steps = _whole_steps(lead_times, step)
        settings = {
            "n_ens_members": self.members,
            "kmperpixel": pixel_km(observed),
            "timestep": step / pd.Timedelta(1, "min"),
        }
        grid = (observed.sizes["y"], observed.sizes["x"])
        values = np.empty((len(base_times), self.members, len(steps), *grid), np.float32)
        for members, base_time in zip(values, base_times, strict=True):
            window = input_frames(
                observed, base_time=base_time, frames=self.input_frames, step=step
            )
            frames = check_observed(window, variable.name)[variable.name].values
            moving = motion(frames, variable)
            moved = advect(frames[-1], moving, [float(number) for number in steps])
            settings["seed"] = _seed(self.seed, base_time)
            fields = _perturbed(frames, moving, variable, steps, settings)
            members[:] = moved
            # Neither is true of NaN, which a member has where it shows what was not observed.
            changed = ((fields == 0) & (moved >= SEEN_FROM[variable.name])) | (fields > 0)
            np.copyto(members, fields, where=changed & np.isfinite(moved))
        np.clip(values, variable.valid_min, variable.valid_max, out=values)
        return check_nowcast(
            build_nowcast(
                values,
                observed=observed,
                variable=variable,
                base_times=base_times,
                lead_times=lead_times,
            )
        )


def _check_rain(variable: Variable) -> Variable:
    if variable.name not in SEEN_FROM:
        raise ValueError(
            f"STEPS makes members of {' or '.join(SEEN_FROM)}; received "
            f"{variable.name!r}; use persistence, extrapolation or a trained nowcaster"
        )
    return variable


def _whole_steps(lead_times: pd.TimedeltaIndex, step: pd.Timedelta) -> np.ndarray:
    """Give the lead times in steps; the noise of a step must not depend on which are asked for."""
    wrong = lead_times[(lead_times < step) | (lead_times % step != pd.Timedelta(0))]
    if len(wrong):
        raise ValueError(
            f"STEPS goes in whole steps of {step}; the lead time {wrong[0]} is none; "
            f"ask for multiples of {step}"
        )
    return np.asarray(lead_times // step)


def pixel_km(observed: xr.Dataset) -> float:
    """Give the side of a square as large as a pixel."""
    y, x = (observed[axis].values.astype(float) for axis in ("y", "x"))
    height, width = (abs(line[-1] - line[0]) / max(len(line) - 1, 1) for line in (y, x))
    if observed["x"].attrs["units"] in DEGREES:
        along = np.cos(np.deg2rad((y[0] + y[-1]) / 2))
        return float(KM_PER_DEGREE * np.sqrt(height * width * along))
    return float(np.sqrt(height * width) / 1000)


def _seed(seed: int, base_time: pd.Timestamp) -> int:
    """Give a seed for NumPy's old generators, which pysteps uses."""
    entropy = [seed, base_time.value % 2**64]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _perturbed(
    frames: np.ndarray,
    motion: np.ndarray,
    variable: Variable,
    steps: np.ndarray,
    settings: dict[str, Any],
) -> np.ndarray:
    """Give members at each of the steps; NaN where a pixel has none, everywhere if nothing fits.

    Returns
    -------
    members : (member, step, y, x)
        In the units of `variable`.
    """
    fitted = frames[-FITTED_FRAMES:]
    # Missing in one, missing in all: else rain in a sector that comes and goes would seem to do so.
    fitted = np.where(np.isfinite(fitted).all(axis=0), fitted, np.nan)
    decibels = _decibels(fitted, variable)
    threshold = float(_decibels(np.array(SEEN_FROM[variable.name]), variable))
    nothing = np.array(np.nan, np.float32)
    if min(frames.shape[1:]) < SMALLEST_SIDE or _is_dry(decibels[-2:], threshold):
        return nothing
    fields: list[np.ndarray] = []
    try:
        _forecast(
            decibels,
            motion,
            int(steps[-1]),
            n_cascade_levels=_levels(max(frames.shape[1:])),
            ar_order=len(decibels) - 1,
            precip_thr=threshold,
            callback=lambda members: fields.append(_physical(members, variable)),
            **settings,
        )
    except (ValueError, RuntimeError) as error:  # what pysteps raises on a degenerate fit
        _LOG.info("STEPS cannot be fitted (%s); its members are the extrapolation", error)
        return nothing
    return np.stack([fields[step - 1] for step in steps], axis=1)


def _forecast(decibels: np.ndarray, motion: np.ndarray, steps: int, **settings: Any) -> None:
    """Have pysteps call back after each step, in this thread, whatever cluster Dask knows of."""
    import dask

    with quiet(), dask.config.set(scheduler="synchronous"), _global_noise_untouched():
        from pysteps.nowcasts.steps import forecast

        forecast(decibels, motion, steps, return_output=False, **settings)


@contextlib.contextmanager
def _global_noise_untouched() -> Iterator[None]:
    """Put the state of NumPy's global generator back: pysteps seeds it, and draws nothing of it."""
    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)


def _decibels(values: np.ndarray, variable: Variable) -> np.ndarray:
    """Give values as STEPS sees them: all that is no rain is alike; NaN stays."""
    if variable.name == RAIN_RATE.name:
        return as_optical_flow_sees(values, variable)
    return np.where(values < SEEN_FROM[variable.name], 0.0, values)


def _physical(decibels: np.ndarray, variable: Variable) -> np.ndarray:
    rain = 10 ** (decibels / 10) if variable.name == RAIN_RATE.name else decibels
    return np.where(rain < SEEN_FROM[variable.name], 0.0, rain).astype(np.float32)


def _is_dry(decibels: np.ndarray, threshold: float) -> bool:
    """Tell whether a frame has too little rain, by the window under which pysteps looks at it."""
    with quiet():
        from pysteps.utils.check_norain import check_norain

        return any(
            check_norain(frame, threshold, WET_FROM * np.isfinite(frame).mean(), "tukey")
            for frame in decibels
        )


def _levels(side: int) -> int:
    """Give as many scales as there are octaves, within limits."""
    return min(max(int(np.log2(side / 2)), FEWEST_LEVELS), MOST_LEVELS)
