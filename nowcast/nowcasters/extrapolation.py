"""Optical flow: the last frame moves on as it has moved."""

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import Variable, build_nowcast, check_nowcast, known_variable
from nowcast.frames import check_observed, input_frames, step_of

RAIN_FROM = 0.1  # mm/h; below it optical flow sees no rain (the usual choice in pysteps)
DRY_DB = -15.0  # dB of the dry pixels that optical flow sees (likewise)

_PYSTEPS = threading.RLock()  # standard output and warning filters are the whole process's


@dataclass(frozen=True)
class Extrapolation:
    """Lucas-Kanade optical flow and semi-Lagrangian advection of the last frame, by pysteps.

    What flows in from outside the grid, or from where nothing was observed, is missing.

    Parameters
    ----------
    input_frames
        Frames from which motion is found.
    step
        Time between them; by default that of the observations.
    variable
        What is forecast; by default the one quantity that the observations hold.

    References
    ----------
    Pulkkinen et al. (2019), pysteps, doi:10.5194/gmd-12-4185-2019;
    Germann and Zawadzki (2002), doi:10.1175/1520-0493(2002)130<2859:SDOTPO>2.0.CO;2
    """

    input_frames: int = 3
    step: pd.Timedelta | None = None
    variable: Variable | None = None

    def nowcast(
        self, observed: xr.Dataset, *, base_times: pd.DatetimeIndex, lead_times: pd.TimedeltaIndex
    ) -> xr.Dataset:
        """Give the last frame advected to each lead time; see `Nowcaster`.

        Raises
        ------
        ValueError
            If a base time lacks a frame, or a frame has no observed pixel.
        """
        variable = self.variable or known_variable(observed)
        step = self.step or step_of(observed)
        fields = []
        for base_time in base_times:
            window = input_frames(
                observed, base_time=base_time, frames=self.input_frames, step=step
            )
            frames = window[variable.name].values
            check_observed(window, variable.name)
            moved = advect(frames[-1], motion(frames, variable), list(lead_times / step))
            fields.append(moved)
        values = np.clip(np.stack(fields), variable.valid_min, variable.valid_max)
        return check_nowcast(
            build_nowcast(
                values,
                observed=observed,
                variable=variable,
                base_times=base_times,
                lead_times=lead_times,
            )
        )


def motion(frames: np.ndarray, variable: Variable) -> np.ndarray:
    """Give the motion that Lucas-Kanade optical flow sees in frames; zero where it sees none.

    Parameters
    ----------
    frames : (time, y, x)
        One step apart, oldest first; NaN where not observed.
    variable
        What they are; rain rates are seen in dB.

    Returns
    -------
    motion : (component, y, x)
        In pixels per step, along x first and then along y, towards higher indices.

    Examples
    --------
    >>> from nowcast.conventions import RAIN_RATE
    >>> motion(np.zeros((3, 16, 16)), RAIN_RATE).shape
    (2, 16, 16)
    """
    moving = _last_textured(as_optical_flow_sees(frames, variable))
    if len(moving) < 2:
        return np.zeros((2, *frames.shape[1:]))
    with quiet():
        from pysteps.motion.lucaskanade import dense_lucaskanade

        return np.asarray(dense_lucaskanade(np.ma.masked_invalid(moving)))


def _last_textured(frames: np.ndarray) -> np.ndarray:
    """Give the frames after the last one that is uniform: optical flow fails on such frames."""
    uniform = [index for index, frame in enumerate(frames) if _is_uniform(frame)]
    return frames[uniform[-1] + 1 :] if uniform else frames


def advect(frame: np.ndarray, motion: np.ndarray, steps: list[float]) -> np.ndarray:
    """Give a frame moved on by `motion` for each of these numbers of steps, (step, y, x).

    What flows in from outside the grid, or from where nothing was observed, is NaN.
    """
    if not np.isfinite(frame).any():  # which pysteps refuses
        return np.full((len(steps), *frame.shape), np.nan)
    with quiet():
        from pysteps.extrapolation.semilagrangian import extrapolate

        return np.asarray(
            extrapolate(frame.astype(float), motion, steps, allow_nonfinite_values=True)
        )


def as_optical_flow_sees(frames: np.ndarray, variable: Variable) -> np.ndarray:
    """Give rain rates in dB, and in `DRY_DB` where they are below `RAIN_FROM`; others as is."""
    if variable.name != "rain_rate":
        return frames.astype(float)
    wet = np.where(frames >= RAIN_FROM, frames, RAIN_FROM)
    decibel = np.where(frames >= RAIN_FROM, 10 * np.log10(wet), DRY_DB)
    return np.where(np.isfinite(frames), decibel, np.nan)


def _is_uniform(frame: np.ndarray) -> bool:
    finite = frame[np.isfinite(frame)]
    return finite.size == 0 or float(np.ptp(finite)) == 0.0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hush pysteps: it prints when imported and at work, and warns where motion is degenerate.

    One thread at a time: of two that hush and unhush in turn, one would leave it hushed for good.
    Warnings that pysteps causes are ignored from then on, and no others; to ignore all for a while
    would leave them ignored where another thread, in any library, does the same meanwhile.
    """
    with _PYSTEPS, contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
        warnings.filterwarnings("ignore", module=r"(pysteps|cv2)\b")
        yield
