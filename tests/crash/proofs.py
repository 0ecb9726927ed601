"""Runs the scenario under crash points, random kills and full disks, and counts what went wrong.

The default tests take a sample, ``benchmarks/reliability.py crash`` takes all.
"""

import contextlib
import functools
import random
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from crash import scenario
from crash.shim import build_shim
from crash.trace import (
    Durability,
    check_durability,
    counts,
    read_trace,
    run_below_strace,
    strace_counts,
)
from crash.workers import Outcome, Workers

HELD = "ingest into an archive"
NEW = "ingest where there is none"
WHOLE = "fsck of a whole archive"
DAMAGED = "fsck of a damaged index"
STARTS = (HELD, NEW, WHOLE, DAMAGED)
REBUILDING = (WHOLE, DAMAGED)
BLOCKS, INODES, LIMIT = "free blocks", "free inodes", "blocks of one file"

_NAMES_AND_NUMBERS = re.compile(r"/[^\s']*|\d[\d,]*")  # in which messages differ
_COMMAND = (sys.executable, "-c", "from nowcast.cli import main; main()", "ingest")
_FURTHER_POINTS = 200  # beyond those counted
_LONG = 600.0  # seconds, more than an ingest lasts
_FREE_STEPS = 600  # blocks or inodes, more than the scenario takes
# Where a file cannot be closed, netCDF's library lists what is open in it, which may be gone.
_LIBRARY_CRASH = f"status {-signal.SIGSEGV}"
_MOST_LIBRARY_CRASHES = 0.1  # of the disks that became full


@dataclass
class Tally:
    """What was tried, and what came out wrong.

    Parameters
    ----------
    tried
        Number of processes killed, or of disks that were full.
    undisturbed
        Number of processes that ended before the kill, or to which the space sufficed.
    bad
        Each bad outcome, with its case.
    seconds
        That each opening after a disturbance took.
    messages
        What was said on full disks, and how often; how a process ended that said nothing.
    """

    tried: int = 0
    undisturbed: int = 0
    bad: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    messages: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.tried + other.tried,
            self.undisturbed + other.undisturbed,
            self.bad + other.bad,
            self.seconds + other.seconds,
            self.messages + other.messages,
        )


class Proofs:
    """The scenario, its undisturbed outcome, and the workers that disturb it.

    Parameters
    ----------
    folder
        Where everything is written.
    workers
        How many cases run at a time.
    more
        Number of further frames in the ingest.
    """

    def __init__(self, folder: Path, *, workers: int = 2, more: int = 0) -> None:
        self.folder = folder
        self.shim = build_shim(folder)
        held, late = scenario.write_inputs(folder / "inputs", more=more)
        self.files = {HELD: late, NEW: held + late, WHOLE: [], DAMAGED: []}
        self.held = {HELD: held, NEW: [], WHOLE: held, DAMAGED: []}
        self.workers = Workers(self.shim, workers)
        self.menders = Workers(self.shim, workers, lasting=True)
        for start in STARTS:
            self._prepare(start, held, held + late)

    def __enter__(self) -> "Proofs":
        return self

    def __exit__(self, *_: object) -> None:
        self.workers.close()
        self.menders.close()
        if "mounting" in vars(self):
            self.mounting.close()

    @functools.cached_property
    def mounting(self) -> Workers:
        """One worker, since what it mounts is there for itself alone."""
        return Workers(self.shim, 1, own_mounts=True)

    def count(self, start: str, *, one_thread: bool = True) -> tuple[int, int]:
        """Give how many calls an undisturbed run makes, and how many of them take space."""
        with self._case(start) as archive:
            action = self._action(archive, start)
            how = {"one_thread": one_thread, "decoders": False}
            made = self._must(self.workers, "take", **action, **how)
        return made["calls"], made["takers"]

    def crash_points(
        self,
        start: str,
        *,
        one_thread: bool = True,
        torn: bool = True,
        decoders: bool = False,
        every: int = 1,
    ) -> Tally:
        """Kill a run at each of its calls.

        Parameters
        ----------
        start
            One of `STARTS`.
        one_thread
            Work in one thread, in which the calls have one order, or in as many as usual.
        torn
            Do half of a write before the kill, or nothing of it.
        decoders
            Decode in child processes, as always, which takes long.
        every
            Take only each so manieth call.
        """
        calls, _ = self.count(start, one_thread=one_thread)

        def crash(at: int) -> Tally:
            return self._crash(start, at, one_thread=one_thread, torn=torn, decoders=decoders)

        total = _sum(self.workers.each(crash, range(1, calls + 1, every)))
        if one_thread:
            return total
        # Threads may make more calls another time; the first that is not reached ends them.
        for at in range(calls + 1, calls + _FURTHER_POINTS):
            tally = crash(at)
            if tally.undisturbed:
                break
            total += tally
        return total

    def random_kills(self, number: int, *, seed: int) -> Tally:
        """Kill ``nowcast ingest`` in a process of its own, at random times of its work."""
        lasts = self._killed(_LONG)[1]
        generator = random.Random(seed)
        moments = [generator.uniform(0, lasts) for _ in range(number)]
        return _sum(tally for tally, _ in self.workers.each(self._killed, moments))

    def durability(self, start: str) -> Durability:
        """Trace an undisturbed run in threads, and check the order of its flushes."""
        trace = self.folder / f"{start}.trace"
        with self._case(start) as archive:
            self._must(self.workers, "take", **self._action(archive, start), trace=str(trace))
        return check_durability(read_trace(trace))

    def unseen_calls(self, start: str) -> tuple[int, dict[str, int]]:
        """Give how many calls strace sees, and those that the library does not see."""
        own, other = self.folder / "own.trace", self.folder / "strace.trace"
        with self._case(start) as archive:
            action = self._action(archive, start)
            how = {"one_thread": True, "decoders": False, "trace": str(own)}
            run_below_strace(self.shim, other, {**action, **how})
            seen = strace_counts(other, str(Path(archive).parent))
        missed = seen - counts(read_trace(own))
        return seen.total(), dict(missed)

    def full_from_each_call(self, start: str, *, every: int = 1) -> Tally:
        """Have all calls fail that take space, from each one of them on; then none.

        Where netCDF's library ends the process, the archive must be what it is after a kill.
        """

        def fill(full_from: int) -> Tally:
            return self._fill(start, "fill_at", full_from=full_from, rebuild=start in REBUILDING)

        total = _sum(self.workers.each(fill, range(1, self.count(start)[1] + 1, every)))
        crashes = total.messages[_LIBRARY_CRASH]
        if crashes > max(1, _MOST_LIBRARY_CRASHES * total.tried):
            total.bad.append(f"netCDF's library ended {crashes} processes of {total.tried}")
        return total

    def full_disk(self, kind: str, *, every: int = 1) -> Tally:
        """Ingest with ever more space until it suffices, and again when there is enough.

        Parameters
        ----------
        kind
            `BLOCKS` or `INODES` that are free on a small file system, which needs
            `crash.workers.may_mount`; or `LIMIT`, the blocks that one file may have.
        every
            Take only each so manieth amount.
        """
        fill: Callable[[int], Tally] = {
            BLOCKS: lambda amount: self._fill_mounted(blocks=amount),
            INODES: lambda amount: self._fill_mounted(inodes=amount),
            LIMIT: lambda amount: self._fill(HELD, "fill_limited", blocks=amount),
        }[kind]
        total = Tally()
        for amount in range(0, _FREE_STEPS, every):
            tally = fill(amount)
            total += tally
            if tally.undisturbed:
                break
        return total

    def _prepare(self, start: str, held: list[str], files: list[str]) -> None:
        """Make the archive of a start, and the reference: the one that it should become."""
        base, reference = self._base(start), self._reference(start)
        for folder in (base, reference):
            folder.mkdir(parents=True)
            if start != NEW:
                self._must(self.menders, "make", archive=str(folder / "archive"), files=held)
        archive = str(reference / "archive")
        if start == DAMAGED:
            (base / "archive" / scenario.INDEX).write_bytes(b"no index" * 1000)
        if self.files[start]:
            self._must(self.menders, "make", archive=archive, files=self.files[start])
        given = {"archive": archive, "files": files, "reference": str(reference)}
        self._must(self.menders, "describe", **given)

    def _base(self, start: str) -> Path:
        return self.folder / "bases" / start

    def _reference(self, start: str) -> Path:
        return self.folder / "references" / start

    @contextlib.contextmanager
    def _case(self, start: str) -> Iterator[str]:
        """Give a fresh copy of an archive, alone in a folder."""
        with tempfile.TemporaryDirectory(dir=self.folder, prefix="case-") as case:
            watched = Path(case, "watched")
            shutil.copytree(self._base(start), watched)
            (watched / "archive" / ".lock").unlink(missing_ok=True)
            yield str(watched / "archive")

    def _action(self, archive: str, start: str) -> dict[str, Any]:
        return {"archive": archive, "files": self.files[start], "rebuild": start in REBUILDING}

    def _must(self, workers: Workers, function: str, **arguments: Any) -> Any:
        """Run what nothing disturbs; give its result."""
        outcome = workers.run(function, **arguments)
        problems = _problems(outcome)
        if problems or outcome.killed:
            raise RuntimeError(f"{function} with {arguments}: {problems or 'was killed'}")
        return outcome.result

    def _crash(self, start: str, at: int, **how: bool) -> Tally:
        case = ", ".join([start, f"call {at}", *(name for name, given in how.items() if given)])
        with self._case(start) as archive:
            said = Path(archive).parent.with_name("said")
            outcome = self.workers.run(
                "take", **self._action(archive, start), **how, at=at, said=str(said)
            )
            if not outcome.killed and not _problems(outcome):
                return Tally(undisturbed=1)
            done = int(said.read_text()) if said.exists() else 0
            return self._aftermath(case, start, archive, outcome, self.files[start][:done])

    def _aftermath(
        self, case: str, start: str, archive: str, outcome: Outcome, done: list[str]
    ) -> Tally:
        """Look at the archive that a killed process left, and do the same again."""
        reference = str(self._reference(start))
        good = [path for path in done if Path(path).name != "cut.h5"]
        seen = self.workers.run(
            "inspect", archive=archive, reference=reference, held=[*self.held[start], *good]
        )
        again = self.menders.run("complete", **self._action(archive, start), reference=reference)
        problems = [*_problems(outcome), *_problems(seen), *_problems(again)]
        problems += seen.result["faults"] if seen.result else []
        problems += again.result or []
        bad = [f"{case}: {'; '.join(problems)}"] if problems else []
        opened = seen.result and seen.result["rows"]
        return Tally(1, 0, bad, [seen.result["seconds"]] if opened else [])

    def _killed(self, after: float) -> tuple[Tally, float]:
        """Kill a process some seconds into its work; give the seconds that it lived too."""
        with self._case(HELD) as archive:
            command = [*_COMMAND, *self.files[HELD], "--archive", archive]
            lock = str(Path(archive, ".lock"))
            outcome = self.workers.run("kill_later", command=command, until=lock, after=after)
            lived, was_killed = outcome.result or (0.0, False)
            case = f"killed after {lived:.4f} s"
            tally = self._aftermath(case, HELD, archive, outcome, [])
        if not was_killed:
            tally.tried, tally.undisturbed = 0, 1
        return tally, lived

    def _fill(self, start: str, function: str, **amount: Any) -> Tally:
        case = f"{start}, {function} {amount}"
        with self._case(start) as archive:
            outcome = self.workers.run(
                function,
                archive=archive,
                files=self.files[start],
                reference=str(self._reference(start)),
                held=self.held[start],
                **amount,
            )
            if outcome.result is None:  # it crashed; how is the archive?
                known = outcome.error == _LIBRARY_CRASH
                ended = replace(outcome, error="") if known else outcome
                tally = self._aftermath(case, start, archive, ended, [])
                return replace(tally, messages=Counter([_LIBRARY_CRASH] if known else []))
        return _filled(case, outcome)

    def _fill_mounted(self, **amount: int) -> Tally:
        common = {"files": self.files[HELD], "reference": str(self._reference(HELD))}
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            outcome = self.mounting.run(
                "fill_mounted",
                base=str(self._base(HELD)), folder=folder, held=self.held[HELD], **common, **amount,
            )  # fmt: skip
            again = self.mounting.run("complete_mounted", folder=folder, **common)
        tally = _filled(f"tmpfs with {amount}", outcome)
        problems = [*_problems(again), *(again.result or [])]
        return tally + Tally(
            bad=[f"tmpfs with {amount}, again: {'; '.join(problems)}"] * bool(problems)
        )


def _problems(outcome: Outcome) -> list[str]:
    problems = outcome.error.strip().splitlines()[-1:]
    problems += ["hangs"] if outcome.hung else []
    return problems + ([f"{outcome.orphans} orphans"] if outcome.orphans else [])


def _filled(case: str, outcome: Outcome) -> Tally:
    result = outcome.result or {"faults": [], "message": "", "seconds": 0.0}
    problems = [*_problems(outcome), *result["faults"]]
    message = _NAMES_AND_NUMBERS.sub("…", result["message"])
    return Tally(
        tried=bool(message),
        undisturbed=not message,
        bad=[f"{case}: {'; '.join(problems)}"] if problems else [],
        seconds=[result["seconds"]],
        messages=Counter([message] if message else []),
    )


def _sum(tallies: Iterable[Tally]) -> Tally:
    return sum(tallies, Tally())
