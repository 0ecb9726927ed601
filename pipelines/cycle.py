"""One cycle of the scheduled run: take in what arrived, issue, verify what has come true.

As a command, once or on a cron: ``python -m pipelines.cycle --help``; see ``docs/pipelines.md``.
"""

if __name__ == "__main__":
    # First of all, since Prefect reads its settings when it is imported. The flow that runs is
    # then the importable pipelines.cycle:cycle, not one of __main__.
    from pipelines.running import main

    main()

import contextlib
import fcntl
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefect import flow, task  # noqa: TID253
from prefect.cache_policies import NO_CACHE  # noqa: TID253

from nowcast.tracking import TrackingError
from pipelines import steps

PASSING = (OSError, TrackingError, sqlite3.OperationalError)  # what another try may cure


def _may_pass(_task: Any, _run: Any, state: Any) -> bool:
    return isinstance(state.result(raise_on_failure=False), PASSING)


TRIES = {"retries": 2, "retry_delay_seconds": 5, "retry_condition_fn": _may_pass}
# Steps pass paths and JSON types and are safe to repeat, so nothing of them is kept or hashed.
_ingest = task(steps.ingest_feed, name="ingest", cache_policy=NO_CACHE, **TRIES)
_issue = task(steps.issue_newest, name="issue", cache_policy=NO_CACHE, **TRIES)
_verify = task(steps.verify_issued, name="verify", cache_policy=NO_CACHE)  # again in a later cycle


@flow(name="cycle")  # type: ignore[untyped-decorator]
def cycle(
    feed: str,
    archive: str,
    out: str,
    nowcaster: str = "extrapolation",
    work: str = "nowcast-work",
    config: str = "",
) -> dict[str, Any]:
    """Ingest the feed, issue from the newest base time, verify what came true.

    Parameters
    ----------
    feed
        Folder, file or pattern of radar files; what was ingested before is left alone.
    archive
        Folder, made if missing.
    out
        Folder of issued files, ``verdicts/`` and ``scores.nc``; made if missing.
    nowcaster
        Name, folder or model of the registry.
    work
        Folder of runs, models and caches.
    config
        TOML file of settings; the defaults without one.

    Returns
    -------
    dict
        ``slot``; ``verdict``: ``forecast``, ``already_done``, ``already_running`` or
        ``refused:<word>: <reason>``; the ``files`` issued; frames ``ingested``; files ``refused``,
        with the reason; cases ``verified``. Of JSON types.
    """
    with _alone(Path(out)) as alone:
        if not alone:
            return steps.verdict(None, steps.ALREADY_RUNNING)
        taken = _ingest(feed, archive)
        *others, last = _issue(archive, out, nowcaster, work, config)
        told: dict[str, Any] = {**last, **taken}
        try:
            told["verified"] = _verify(archive, out, work, config)
        finally:
            for one in (*others, told):
                steps.record(one, out)
    return told


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[bool]:
    """Tell whether no other cycle writes to the folder; the lock ends with its process."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
