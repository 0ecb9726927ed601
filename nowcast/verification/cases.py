"""The cases on which nowcasters are compared, and the protocol that names them."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import VARIABLES, Variable, grid_id, known_variable
from nowcast.durable import replacing
from nowcast.frames import Block, Window, base_times, step_of
from nowcast.nowcasters import BASELINES, Nowcaster
from nowcast.verification.scores import DEFINITIONS, from_sums, sums

SCORING_VERSION = 1  # raised by hand whenever a score would come out otherwise

SumsOf = Callable[[xr.Dataset, pd.DatetimeIndex], dict[str, xr.Dataset]]


class UsesFrames(Interface):
    """Whatever is compared: the frames that it uses up to a base time decide on the cases."""

    @property
    def input_frames(self) -> int:
        """Number of frames used, up to and with the base time."""
        ...

    @property
    def step(self) -> pd.Timedelta | None:
        """Time between the frames used; None is the step of the observations."""
        ...


@dataclass(frozen=True)
class Protocol:
    """What scores depend on besides the nowcaster: scores of different protocols do not compare.

    Parameters
    ----------
    data_fingerprint, grid_id
        Of the observations.
    variable, units
        What was scored.
    period
        First and last base time.
    cases
        How many base times.
    base_times_sha256
        Which ones.
    lead_minutes, thresholds
        What was scored.
    baselines
        Whose reach decides which pixels count: by name, the frames that each uses.
    missing_rule
        Which pixels count.
    scoring_version
        Of the code.
    """

    data_fingerprint: str
    grid_id: str
    variable: str
    units: str
    period: str
    cases: int
    base_times_sha256: str
    lead_minutes: tuple[float, ...]
    thresholds: tuple[float, ...]
    baselines: dict[str, dict[str, float]]
    missing_rule: str
    scoring_version: int = SCORING_VERSION

    @property
    def sha256(self) -> str:
        """Hash of all of it."""
        content = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def attributes(self) -> dict[str, str]:
        """What is stamped on every score file."""
        return {"protocol": json.dumps(asdict(self)), "protocol_sha256": self.sha256}


def case_times(
    observed: xr.Dataset,
    *,
    nowcasters: Mapping[str, UsesFrames],
    lead_times: pd.TimedeltaIndex,
    every: pd.Timedelta,
    block: Block | None = None,
) -> pd.DatetimeIndex:
    """Give the base times at which every nowcaster has its frames and the future was observed.

    Parameters
    ----------
    observed
        Only its times are read.
    nowcasters
        Those compared.
    lead_times
        Those compared.
    every
        Least time between two cases.
    block
        In which all frames must lie.

    Raises
    ------
    ValueError
        If there is none.
    """
    common: pd.DatetimeIndex | None = None
    step = lead_times[0] if len(lead_times) == 1 else pd.Timedelta(np.diff(lead_times).min())
    leads = round(lead_times[-1] / step)
    for nowcaster in nowcasters.values():
        inputs = Window(nowcaster.input_frames, 0, nowcaster.step or step_of(observed))
        outputs = Window(1, leads, step)
        whole = base_times(observed, inputs, block).intersection(
            base_times(observed, outputs, block)
        )
        common = whole if common is None else common.intersection(whole)
    if common is None or not len(common):
        where = f" in {block}" if block else ""
        raise ValueError(
            f"no base time{where} has all input frames and all lead times up to {lead_times[-1]}; "
            "choose a longer period or shorter lead times"
        )
    return spaced(common, every)


def verify(
    nowcasters: Mapping[str, Nowcaster],
    observed: xr.Dataset,
    *,
    base_times: pd.DatetimeIndex,
    lead_times: pd.TimedeltaIndex,
    thresholds: tuple[float, ...],
    baselines: Sequence[str] = BASELINES,
    batch_cases: int = 8,
    progress: Callable[[int], None] | None = None,
) -> xr.Dataset:
    """Score nowcasters on identical cases: the same base times, lead times and pixels.

    Parameters
    ----------
    nowcasters
        By name; the baselines must be among them, since their reach is part of what is counted.
    observed
        Observations that hold the valid times; one that is absent counts as missing.
    base_times, lead_times, thresholds
        The cases; thresholds in the units of the variable, and none for no categorical scores. A
        base time of which an input frame has no observed pixel is left out for every nowcaster.
    baselines
        Names of those that everything is compared with.
    batch_cases
        Cases in memory at a time.
    progress
        Called with the number of cases done after each batch.

    Returns
    -------
    Dataset
        Scores by ``(nowcaster, threshold, lead_time)``; see `nowcast.verification.scores`.
        ``left_missing`` counts the pixels that a nowcaster left missing where it was scored. The
        protocol stands in the attributes.

    Raises
    ------
    ValueError
        If a baseline is absent or there is no case.
    """
    from nowcast.data.observations import fingerprint

    absent = [name for name in baselines if name not in nowcasters]
    if absent or not baselines or not len(base_times):
        raise ValueError(
            f"a verification needs a case or more ({len(base_times)} given) and one or more "
            f"baselines: {', '.join(baselines)} (absent: {', '.join(absent) or 'none'})"
        )
    variable, step = known_variable(observed), step_of(observed)

    def sums_of(near: xr.Dataset, seen: pd.DatetimeIndex) -> dict[str, xr.Dataset]:
        forecasts = {
            name: one.nowcast(near, base_times=seen, lead_times=lead_times)[variable.name]
            for name, one in nowcasters.items()
        }
        return batch_sums(forecasts, near[variable.name], thresholds, baselines)

    totals, base_times = totals_of(
        nowcasters,
        observed,
        base_times=base_times,
        until=lead_times[-1],
        sums_of=sums_of,
        batch_cases=batch_cases,
        progress=progress,
    )
    protocol = Protocol(
        data_fingerprint=fingerprint(observed),
        grid_id=grid_id(observed),
        variable=variable.name,
        units=variable.units,
        period=f"{base_times[0].isoformat()}/{base_times[-1].isoformat()}",
        cases=len(base_times),
        base_times_sha256=hashlib.sha256(str(list(base_times)).encode()).hexdigest(),
        lead_minutes=tuple(lead_times.total_seconds() / 60),
        thresholds=tuple(thresholds),
        baselines={name: frames_of(nowcasters[name], step) for name in baselines},
        missing_rule=missing_rule(variable, baselines),
    )
    return as_scores(totals, variable, protocol)


def totals_of(
    compared: Mapping[str, UsesFrames],
    observed: xr.Dataset,
    *,
    base_times: pd.DatetimeIndex,
    until: pd.Timedelta,
    sums_of: SumsOf,
    batch_cases: int,
    progress: Callable[[int], None] | None,
) -> tuple[dict[str, xr.Dataset], pd.DatetimeIndex]:
    """Add up sums over all cases, with the frames of one batch of them in memory.

    Parameters
    ----------
    compared
        By name.
    observed, base_times, batch_cases, progress
        See `verify`.
    until
        Longest time after a base time of which a frame is needed.
    sums_of
        The sums of one batch by name, from the frames around its cases and their base times.

    Returns
    -------
    totals, base_times
        The second without those of which an input frame has no observed pixel.

    Raises
    ------
    ValueError
        If no case is left.
    """
    step = step_of(observed)
    inputs = {(one.input_frames, one.step or step) for one in compared.values()}
    offsets = sorted({-back * step for frames, step in inputs for back in range(frames)})
    totals: dict[str, xr.Dataset] = {}
    used: list[pd.Timestamp] = []
    for first in range(0, len(base_times), batch_cases):
        batch = base_times[first : first + batch_cases]
        near = _near(observed, batch, offsets[0], until)
        seen = _with_sight(near, batch, offsets)
        used += list(seen)
        for name, part in (sums_of(near, seen) if len(seen) else {}).items():
            totals[name] = totals[name] + part if name in totals else part
        if progress:
            progress(first + len(batch))
    if not used:
        raise ValueError("in every case an input frame has no observed pixel; give other cases")
    return totals, pd.DatetimeIndex(used)


def save_scores(scores: xr.Dataset, path: Path) -> Path:
    """Write scores as netCDF, whole or not at all."""
    with replacing(path) as temporary:
        scores.to_netcdf(temporary, engine="netcdf4")
    return path


def _near(
    observed: xr.Dataset, batch: pd.DatetimeIndex, first: pd.Timedelta, last: pd.Timedelta
) -> xr.Dataset:
    """Load the frames around the cases of a batch, and none of those between two cases."""
    times = observed["time"].to_index()
    around = [(times >= base_time + first) & (times <= base_time + last) for base_time in batch]
    return observed.isel(time=np.flatnonzero(np.any(around, axis=0))).load()


def _with_sight(
    near: xr.Dataset, batch: pd.DatetimeIndex, offsets: list[pd.Timedelta]
) -> pd.DatetimeIndex:
    """Leave out base times of which an input frame has no observed pixel: nothing to start from."""
    seen = near[known_variable(near).name].notnull().any(("y", "x")).to_series()
    kept = [
        base_time
        for base_time in batch
        if seen.reindex([base_time + offset for offset in offsets], fill_value=True).all()
    ]
    return pd.DatetimeIndex(kept)


def batch_sums(
    forecasts: Mapping[str, xr.DataArray],
    observed: xr.DataArray,
    thresholds: tuple[float, ...],
    baselines: Sequence[str],
) -> dict[str, xr.Dataset]:
    """Give the sums of a batch of cases, over what was observed and every baseline reaches.

    Parameters
    ----------
    forecasts
        By name; dims ``(base_time, lead_time, y, x)``.
    observed
        Dims ``(time, y, x)``.
    thresholds, baselines
        See `verify`.
    """
    valid = forecasts[baselines[0]]["valid_time"]
    truth = observed.reindex(time=np.unique(valid)).sel(time=valid).drop_vars("time")
    counted = truth.notnull()
    for baseline in baselines:
        counted = counted & forecasts[baseline].notnull()
    truth = truth.where(counted)
    result = {}
    for name, forecast in forecasts.items():
        left = (counted & forecast.isnull()).sum(("base_time", "y", "x"))
        if observed.name not in VARIABLES and int(left.sum()):
            raise ValueError(
                f"{name} leaves {int(left.sum())} pixels missing where it is scored; only for rain "
                "does missing count as none; issue on the whole of what the baselines reach"
            )
        filled = forecast.fillna(0.0).where(counted)
        result[name] = sums(filled, truth, list(thresholds)).assign(left_missing=left)
    return result


def missing_rule(variable: Variable, baselines: Sequence[str]) -> str:
    """Give which pixels count, in words; only of rain can missing be taken for none."""
    left = (
        "what a nowcaster leaves missing there counts as no rain"
        if variable.name in VARIABLES
        else "a nowcaster that leaves one of them missing is refused"
    )
    reached = " and ".join(baselines)
    return f"counted: pixels observed at the valid time and reached by {reached}; {left}"


def frames_of(nowcaster: UsesFrames, step: pd.Timedelta) -> dict[str, float]:
    """Give which frames a nowcaster uses, as the protocol tells it."""
    minutes = (nowcaster.step or step) / pd.Timedelta(minutes=1)
    return {"input_frames": nowcaster.input_frames, "step_minutes": minutes}


def as_scores(totals: dict[str, xr.Dataset], variable: Variable, protocol: Protocol) -> xr.Dataset:
    """Give the scores that follow from the sums of all cases, with their protocol."""
    parts = [
        from_sums(total).assign(left_missing=total["left_missing"]) for total in totals.values()
    ]
    names = pd.Index(list(totals), name="nowcaster")
    scores = xr.concat(parts, dim=names, coords="minimal", compat="override", join="exact")
    for score, (long_name, reference) in DEFINITIONS.items():
        units = variable.units if score in ("mae", "rmse", "me") else "1"
        scores[score].attrs = {"long_name": long_name, "units": units, "references": reference}
    scores["threshold"].attrs = {"units": variable.units}
    return scores.assign_attrs({"title": "verification of nowcasts", **protocol.attributes})


def spaced(times: pd.DatetimeIndex, every: pd.Timedelta) -> pd.DatetimeIndex:
    """Give the times that lie at least so far apart, from the first one on."""
    kept: list[Any] = []
    for time in times:
        if not kept or time - kept[-1] >= every:
            kept.append(time)
    return pd.DatetimeIndex(kept)
