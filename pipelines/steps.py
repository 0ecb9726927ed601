"""The three steps of a cycle: take files in, issue, verify. Plain calls of what `nowcast` does.

Each opens what it needs by its path and gives JSON types, so that a scheduler can run, record and
repeat it. Doing one twice changes nothing.
"""

import itertools
import json
import logging
from pathlib import Path
from typing import Any

import pandas as pd
import xarray as xr

from nowcast import experiments
from nowcast.config import Config, load
from nowcast.data.archive import ingest
from nowcast.durable import write_json
from nowcast.frames import GapError, Window, base_times, input_frames, step_of
from nowcast.issuing import issue, open_nowcast
from nowcast.nowcasters import Nowcaster
from nowcast.plots import animation, panel
from nowcast.tables import table
from nowcast.tracking import Tracking
from nowcast.verification import case_times, save_scores, standard_measures, verify
from nowcast.verification.views import Fields
from pipelines.issued import SLOT, Issued, nowcast_file

RECENT = 288  # newest frames, and newest issued files, that are looked at: a day of five minutes
CASES = 12  # newest nowcasts that came true, on which the scores rest: an hour of five minutes
FORECAST, ALREADY_DONE, ALREADY_RUNNING = "forecast", "already_done", "already_running"
REFUSED = "refused:"  # and one of these words, and the reason in a sentence
GAP, LATE, UNFIT = "gap", "late", "unfit"
SCORED = "issued_base_times"  # attribute of the scores: of which nowcasts they are

_LOG = logging.getLogger(__name__)


def ingest_feed(feed: str, archive: str) -> dict[str, Any]:
    """Take new files of a feed into the archive.

    Returns
    -------
    dict
        Frames ``ingested``, and the files ``refused`` with the reason.
    """
    report = ingest(feed, archive)
    refused = [{"file": file, "reason": reason} for file, reason in report.refused]
    return {"ingested": report.added, "refused": refused}


def issue_newest(
    archive: str, out: str, nowcaster: str, work: str, config: str
) -> list[dict[str, Any]]:
    """Issue from the newest base time that has its whole input window, unless that was done.

    Returns
    -------
    list of dict
        A verdict for each slot that had none, that of the cycle last. The slot is the time of a
        frame, or that of one that never came. One without its whole window is refused, naming the
        gap; one that a newer base time overtook is refused as late.
    """
    settings, folder = settings_of(config), Path(out)
    opened, provenance = experiments.opened(settings, nowcaster, Tracking(Path(work)))
    try:
        observed = experiments.observations(settings, archive).isel(time=slice(-RECENT, None))
        lead_times = experiments.lead_times_of(settings, opened, observed)
        step = opened.step or step_of(observed)
    except ValueError as error:
        return [verdict(None, _refusal(UNFIT, error))]
    times = observed["time"].to_index()
    whole = base_times(observed, Window(opened.input_frames, 0, step))
    # An older base time deserves a nowcast as long as that reaches beyond the newest frame.
    useful = whole[whole + lead_times[-1] > times[-1]]
    verdicts = [
        _issue_from(slot, opened, observed, lead_times, folder, provenance)
        if nowcast_file(folder, slot).exists()  # by a cycle that ended before its verdict
        else _passed_over(observed, slot, frames=opened.input_frames, step=step)
        for slot in _unjudged(_slots(observed), folder)
        if slot not in useful[-1:]
    ]
    if not len(useful) or (useful[-1] < times[-1] and nowcast_file(folder, useful[-1]).exists()):
        return verdicts
    done = _issue_from(useful[-1], opened, observed, lead_times, folder, provenance)
    return [*verdicts, done]


def verify_issued(archive: str, out: str, work: str, config: str) -> int:
    """Score the newest issued nowcasts that came true, beside the baselines of the settings.

    What was published is compared, not computed anew. ``scores.nc`` is written when there is a
    new case.

    Returns
    -------
    int
        Number of cases scored; 0 if none is new.
    """
    settings, issued, path = settings_of(config), Issued(Path(out), newest=RECENT), _scores(out)
    if not len(issued.base_times):
        return 0
    lead_times = issued.lead_times(issued.base_times[-1])
    baselines, tracking = settings.baselines, Tracking(Path(work))
    compared: dict[str, Nowcaster] = {
        name: experiments.opened(settings, name, tracking)[0] for name in baselines
    }
    compared["issued"] = issued
    margin = 3 * max(one.input_frames for one in compared.values()) * lead_times[0]
    observed = experiments.observations(settings, archive)
    observed = observed.sel(time=slice(issued.base_times[0] - margin, None))
    cases = _cases(issued, observed, compared, lead_times)
    told = " ".join(f"{time:{SLOT}}" for time in cases)
    if not len(cases) or told == _attribute(path, SCORED):
        return 0
    scores = verify(
        compared,
        # The protocol names these observations by a hash of all their values.
        observed.sel(time=slice(cases[0] - margin, cases[-1] + lead_times[-1])),
        base_times=cases,
        lead_times=lead_times,
        thresholds=settings.verification.thresholds,
        baselines=baselines,
        measures=standard_measures(
            observed, settings.verification.thresholds, view=Fields(), basic=True
        ),
        batch_cases=settings.verification.batch_cases,
    )
    save_scores(scores.assign_attrs({SCORED: told}), path)
    _LOG.info("scores of %d nowcasts\n%s", len(cases), table(scores))
    return len(cases)


def verdict(slot: pd.Timestamp | None, what: str, files: list[str] | None = None) -> dict[str, Any]:
    """Give a verdict of JSON types; what the other steps tell is added to it."""
    return {
        "slot": f"{slot:{SLOT}}" if slot is not None else "",
        "verdict": what,
        "files": files or [],
        "ingested": 0,
        "refused": [],
        "verified": 0,
    }


def record(told: dict[str, Any], out: str) -> None:
    """Write the verdict of a slot to ``verdicts/``, unless it stands there already.

    A slot that was refused may be issued after all; what was issued stays issued.
    """
    if told["slot"] and _recorded(Path(out), told["slot"]) not in (FORECAST, told["verdict"]):
        write_json(_verdict_file(Path(out), told["slot"]), told)


def settings_of(config: str) -> Config:
    """Give the settings of a TOML file, or the defaults without one."""
    return load(config) if config else Config()


def _issue_from(
    base_time: pd.Timestamp,
    nowcaster: Nowcaster,
    observed: xr.Dataset,
    lead_times: pd.TimedeltaIndex,
    out: Path,
    provenance: dict[str, str],
) -> dict[str, Any]:
    path = nowcast_file(out, base_time)
    panel_file, animation_file = path.with_suffix(".png"), path.with_suffix(".gif")
    files = [path.name, panel_file.name, animation_file.name]
    if path.exists():
        # An issued forecast never changes; a drawing that a crash cost is made now.
        if not panel_file.exists():
            panel(observed, open_nowcast(path), path=panel_file)
        if not animation_file.exists():
            animation(observed, open_nowcast(path), path=animation_file)
        known = _recorded(out, f"{base_time:{SLOT}}") == FORECAST
        return verdict(base_time, ALREADY_DONE if known else FORECAST, files)
    asked = {"base_times": pd.DatetimeIndex([base_time]), "lead_times": lead_times}
    try:
        issue(nowcaster, observed, **asked, out=out, provenance=provenance)
    except ValueError as error:
        return verdict(base_time, _refusal(UNFIT, error))
    return verdict(base_time, FORECAST, files)


def _passed_over(
    observed: xr.Dataset, slot: pd.Timestamp, *, frames: int, step: pd.Timedelta
) -> dict[str, Any]:
    try:
        input_frames(observed, base_time=slot, frames=frames, step=step)
    except ValueError as error:
        return verdict(slot, _refusal(GAP if isinstance(error, GapError) else UNFIT, error))
    return verdict(slot, _refusal(LATE, "a newer base time was there when the cycle ran"))


def _slots(observed: xr.Dataset) -> pd.DatetimeIndex:
    """Give the times of frames, and those of the newest `RECENT` steps at which none came."""
    times = observed["time"].to_index()
    if len(times) < 2:
        return times
    step = step_of(observed)
    due = pd.date_range(times[-1], max(times[0], times[-1] - RECENT * step), freq=-step)[::-1]
    came = times.get_indexer(due, method="nearest", tolerance=step / 2) >= 0
    return times.union(due[~came])


def _unjudged(times: pd.DatetimeIndex, out: Path) -> pd.DatetimeIndex:
    """Give the newest slot, all since the last that has a verdict, and what was issued without."""
    judged = sorted(path.stem for path in (out / "verdicts").glob("[0-9]*.json"))
    since = pd.to_datetime(judged[-1], format=SLOT) if judged else times[-1]
    owed = [
        nowcast_file(out, time).exists() and _recorded(out, f"{time:{SLOT}}") != FORECAST
        for time in times
    ]
    return times[(times > since) | (times == times[-1]) | owed]


def _cases(
    issued: Issued,
    observed: xr.Dataset,
    compared: dict[str, Any],
    lead_times: pd.TimedeltaIndex,
) -> pd.DatetimeIndex:
    """Give the newest base times that were issued and came true, back to a change of settings."""
    try:
        due = case_times(
            observed, nowcasters=compared, lead_times=lead_times, every=pd.Timedelta(0)
        )
    except ValueError:  # no case at all
        return pd.DatetimeIndex([])
    newest_first = issued.base_times.intersection(due)[::-1][:CASES]
    fitting = itertools.takewhile(
        lambda time: issued.fits(time, observed, lead_times=lead_times), newest_first
    )
    return pd.DatetimeIndex(list(fitting)[::-1])


def _refusal(word: str, reason: ValueError | str) -> str:
    return f"{REFUSED}{word}: {' '.join(str(reason).split())}"


def _scores(out: str) -> Path:
    return Path(out) / "scores.nc"


def _attribute(path: Path, name: str) -> str:
    if not path.exists():
        return ""
    with xr.open_dataset(path, engine="netcdf4") as file:
        return str(file.attrs.get(name, ""))


def _verdict_file(out: Path, slot: str) -> Path:
    return out / "verdicts" / f"{slot}.json"


def _recorded(out: Path, slot: str) -> str:
    path = _verdict_file(out, slot)
    return str(json.loads(path.read_text())["verdict"]) if path.exists() else ""
