"""What weather each case is: how fast, growing or decaying, how intense, how new.

All of it is told from the observations and never from a nowcast, so that every nowcaster meets
the same regimes.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import DEGREES, RAIN_RATE, REFLECTIVITY, Variable, known_variable
from nowcast.frames import step_of
from nowcast.nowcasters.extrapolation import motion
from nowcast.rainrate import to_rain_rate, to_reflectivity
from nowcast.verification.cases import near
from nowcast.verification.events import WET_SHARE, is_wet
from nowcast.verification.scores import reaches

PEAK = 99.0  # percentile; above it there is clutter too
HEAVY_RAIN = 10.0  # mm/h, 39 dBZ by Marshall and Palmer: mostly convection
HEAVY_SHARE = 0.001  # of the observed pixels, from which a case is heavy; 16 km2 of 128 km x 128 km
NEW_RAIN = 2 * WET_SHARE  # from which rain after a dry base time is new rain
SLOW, FAST = 5.0, 10.0  # m/s; slow below the one, fast from the other on
DECAYED, GROWN = 0.8, 1.25  # factors in areal mean rain, one the inverse of the other
EVENTFUL = 0.75  # quantile of the cases' observed events, where any, that a worst case reaches
APART = pd.Timedelta("1h")  # at least, between two of the worst cases
METRES_PER_DEGREE = 111_195.0  # of latitude, on a sphere of radius 6371 km

DESCRIPTION = {
    "wet_share": ("part of the pixels that are wet at the base time", "1"),
    "wet_share_later": ("largest part of the pixels that are wet at a valid time", "1"),
    "peak": ("largest 99th percentile of a frame from the base time on", ""),  # of the variable
    "intense_share": ("largest part of the pixels that are intense from the base time on", "1"),
    "growth": ("areal mean rain rate later over that at the base time", "1"),
    "speed": ("speed of the mean motion of wet pixels", "m s-1"),
    "initiation": ("hardly any pixel is wet at the base time, more are later", "1"),
}


def describe(
    observed: xr.Dataset,
    base_times: pd.DatetimeIndex,
    *,
    lead_times: pd.TimedeltaIndex,
    thresholds: tuple[float, ...],
    input_frames: int = 3,
    batch_cases: int = 8,
    progress: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Say of each case how much it rains, how that changes, and how fast it moves.

    Observed pixels alone count; a frame that is absent is not observed. What is not defined is
    NaN.

    Parameters
    ----------
    observed
        Dims ``(time, y, x)``; only the frames around the cases are read.
    base_times, lead_times
        The cases.
    thresholds
        In the units of the variable; a pixel is wet from the lowest on. Without any, all that asks
        what is wet is NaN.
    input_frames
        Frames up to a base time, one step of the observations apart, from which motion is found.
    batch_cases
        Cases in memory at a time; the answer does not depend on it.
    progress
        Called with the number of cases done after each batch.

    Returns
    -------
    Dataset
        By ``base_time``:

        ``wet_share``, ``wet_share_later``
            part of the pixels that are wet, at the base time, and the largest at a valid time;
        ``peak``
            the largest 99th percentile of a frame, from the base time on, in the units of the
            variable;
        ``intense_share``
            the largest part of the pixels, from the base time on, at or above 10 mm/h, or above
            the highest threshold if the variable is not rain; that value is its attribute
            ``threshold``;
        ``growth``
            mean rain rate in the later half of the lead times (with the middle one) over that at
            the base time, each over the pixels observed at both; reflectivity is turned into
            rain rate first. What flows in or out of the grid counts as growth or decay. NaN
            without rain at the base time, and of what is not rain;
        ``speed``
            of the mean motion by optical flow of the pixels wet at the base time, in m/s; on a
            grid in degrees, by metres at its middle latitude. NaN where less than 1 % is wet,
            since the motion of a few pixels is noise, and where none is seen: of an even field,
            or of the one frame after an absent one;
        ``initiation``
            whether less than 1 % is wet at the base time and 2 % or more at a valid time.

    Raises
    ------
    ValueError
        If there is no case.
    """
    if not len(base_times):
        raise ValueError("there is no case to describe; give a base time or more")
    variable, step = known_variable(observed), step_of(observed)
    offsets = pd.TimedeltaIndex([-back * step for back in range(input_frames - 1, -1, -1)])
    metres_per_second = _pixel_metres(observed) / step.total_seconds()
    rows = []
    for first in range(0, len(base_times), batch_cases):
        batch = base_times[first : first + batch_cases]
        loaded = near(observed, batch, offsets[0], lead_times[-1])[variable.name]
        for base_time in batch:
            times = base_time + offsets.append(lead_times)
            frames = np.ascontiguousarray(loaded.reindex(time=times).values)
            row = _rain(frames[input_frames - 1 :], variable, thresholds)
            row["speed"] = np.nan
            if row["wet_share"] >= WET_SHARE:
                flow = _flow(frames[:input_frames], variable, min(thresholds))
                row["speed"] = float(np.hypot(*(flow * metres_per_second)))
            rows.append(row)
        if progress:
            progress(first + len(batch))
    return _described(rows, base_times, variable, thresholds)


def regimes_of(described: xr.Dataset) -> xr.Dataset:
    """Say to which regimes each case belongs, by bounds that are the same for all data.

    A case belongs to at most one regime of each kind (before the colon), and to none where nothing
    is known or it is dry.

    Parameters
    ----------
    described
        See `describe`.

    Returns
    -------
    Dataset
        ``in_regime(regime, base_time)``; the coordinate ``definition(regime)`` says in words what
        a regime is, with its bounds.
    """
    now = described["wet_share"] >= WET_SHARE
    speed, growth, intense = (described[name] for name in ("speed", "growth", "intense_share"))
    heavy = intense >= HEAVY_SHARE
    level = f"{intense.attrs['threshold']:.3g} {described['peak'].attrs['units']}"
    area = f"of the observed pixels at or above {level}, now or later"
    existing = f"wet on {WET_SHARE:.0%} or more at the base time"
    change = "the areal mean rain rate in the later half of the lead times is"
    regimes = {
        "advection: slow": (speed < SLOW, f"rain moves at less than {SLOW:g} m/s"),
        "advection: middling": (
            (speed >= SLOW) & (speed < FAST),
            f"rain moves at {SLOW:g} m/s or more, and less than {FAST:g} m/s",
        ),
        "advection: fast": (speed >= FAST, f"rain moves at {FAST:g} m/s or more"),
        "evolution: decaying": (
            now & (growth <= DECAYED),
            f"{existing}, and {change} {DECAYED:g} times that at the base time or less",
        ),
        "evolution: steady": (
            now & (growth > DECAYED) & (growth < GROWN),
            f"{existing}, and {change} between {DECAYED:g} and {GROWN:g} times that at it",
        ),
        "evolution: growing": (
            now & (growth >= GROWN),
            f"{existing}, and {change} {GROWN:g} times that at the base time or more",
        ),
        "intensity: light": (
            is_wet(described) & (intense < HEAVY_SHARE),
            f"wet, and less than {HEAVY_SHARE:.1%} {area}",
        ),
        "intensity: heavy": (
            heavy & is_wet(described),
            f"wet, and {HEAVY_SHARE:.1%} or more {area}",
        ),
        "initiation: new rain": (
            described["initiation"],
            f"wet on less than {WET_SHARE:.0%} at the base time, on {NEW_RAIN:.0%} or more later",
        ),
        "initiation: existing rain": (now, existing),
    }
    belongs = np.stack([np.asarray(one, bool) for one, _ in regimes.values()])
    return xr.Dataset(
        {"in_regime": (("regime", "base_time"), belongs, {"long_name": "case is in the regime"})},
        coords={
            "regime": list(regimes),
            "base_time": described["base_time"],
            "definition": ("regime", [words for _, words in regimes.values()]),
        },
    )


def worst_cases(scores: xr.Dataset, nowcaster: str, number: int = 10) -> pd.DatetimeIndex:
    """Give the base times at which a nowcaster scored lowest, the worst first.

    A case with few observed events scores low by chance. So only the quarter with most of them
    counts, of the cases that have any; and two of those given are an hour or more apart, so that
    they show different weather.

    Parameters
    ----------
    scores
        With ``case_csi(nowcaster, base_time)`` and ``case_events(base_time)``, the number of
        observed events.
    nowcaster
        Of the scores.
    number
        At most.

    Examples
    --------
    >>> times = pd.date_range("2024-06-01", periods=4, freq="30min")
    >>> scores = xr.Dataset({"case_csi": (("nowcaster", "base_time"), [[0.3, 0.2, 0.1, 0.0]]),
    ...                      "case_events": ("base_time", [90, 90, 90, 1])},
    ...                     coords={"nowcaster": ["unet"], "base_time": times})
    >>> list(worst_cases(scores, "unet").strftime("%H:%M"))
    ['01:00', '00:00']
    """
    csi = scores["case_csi"].sel(nowcaster=nowcaster).to_series()
    events = scores["case_events"].to_series().reindex(csi.index)
    least = events[events > 0].quantile(EVENTFUL)
    worst: list[pd.Timestamp] = []
    for base_time in csi[events >= least].dropna().sort_values(kind="stable").index:
        if len(worst) < number and all(abs(base_time - other) >= APART for other in worst):
            worst.append(base_time)
    return pd.DatetimeIndex(worst)


def _rain(
    frames: np.ndarray, variable: Variable, thresholds: tuple[float, ...]
) -> dict[str, float]:
    """Describe one case by its frames from the base time on."""
    wet, *wet_later = _shares(frames, min(thresholds, default=np.nan))
    intense = _shares(frames, _intense_from(variable, thresholds))
    return {
        "wet_share": wet,
        "wet_share_later": _largest(wet_later),
        "peak": _largest([_percentile(frame) for frame in frames]),
        "intense_share": _largest(intense),
        "growth": _growth(frames, variable),
        "initiation": wet < WET_SHARE and _largest(wet_later) >= NEW_RAIN,
    }


def _shares(frames: np.ndarray, threshold: float) -> list[float]:
    """Give the part of the observed pixels of each frame that reaches a threshold."""
    if np.isnan(threshold):
        return [np.nan] * len(frames)
    seen = np.isfinite(frames).sum(axis=(1, 2))
    return [
        float(count / number) if number else np.nan
        for count, number in zip(reaches(frames, threshold).sum(axis=(1, 2)), seen, strict=True)
    ]


def _percentile(frame: np.ndarray) -> float:
    seen = frame[np.isfinite(frame)]
    return float(np.percentile(seen, PEAK)) if seen.size else np.nan


def _largest(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return max(known, default=np.nan)


def _growth(frames: np.ndarray, variable: Variable) -> float:
    if variable.name not in (RAIN_RATE.name, REFLECTIVITY.name):
        return np.nan
    rain = frames.astype(float)
    if variable.name == REFLECTIVITY.name:
        rain = to_rain_rate(rain)
    now, later = rain[0], rain[1 + (len(rain) - 1) // 2 :]
    both = np.isfinite(later) & np.isfinite(now)
    before = np.broadcast_to(now, later.shape)[both].sum()
    return float(later[both].sum() / before) if before > 0 else np.nan


def _flow(frames: np.ndarray, variable: Variable, wet_from: float) -> np.ndarray:
    """Give the mean motion, (x, y) in pixels per step, where the last frame is wet."""
    flow = motion(frames, variable)
    if not flow.any():
        return np.full(2, np.nan)
    return np.asarray(flow[:, reaches(frames[-1], wet_from)].mean(axis=1))


def _intense_from(variable: Variable, thresholds: tuple[float, ...]) -> float:
    if variable.name == RAIN_RATE.name:
        return HEAVY_RAIN
    if variable.name == REFLECTIVITY.name:
        return float(to_reflectivity(np.array(HEAVY_RAIN)))
    return max(thresholds, default=np.nan)


def _pixel_metres(observed: xr.Dataset) -> np.ndarray:
    """Give the distance between two pixels along x and along y; 0 where there is only one."""
    axes = [observed[axis].values for axis in ("x", "y")]
    spacing = np.array([abs(axis[-1] - axis[0]) / max(len(axis) - 1, 1) for axis in axes])
    if observed["y"].attrs["units"] not in DEGREES:
        return spacing
    latitude = np.radians(float(observed["y"].mean()))
    return np.asarray(spacing * METRES_PER_DEGREE * [np.cos(latitude), 1.0])


def _described(
    rows: list[dict[str, float]],
    base_times: pd.DatetimeIndex,
    variable: Variable,
    thresholds: tuple[float, ...],
) -> xr.Dataset:
    described = xr.Dataset(coords={"base_time": ("base_time", base_times)})
    for name, (long_name, units) in DESCRIPTION.items():
        attributes = {"long_name": long_name, "units": units or variable.units}
        described[name] = ("base_time", np.array([row[name] for row in rows]), attributes)
    described["intense_share"].attrs["threshold"] = _intense_from(variable, thresholds)
    return described
