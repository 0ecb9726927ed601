"""Processes that have imported everything, and fork one child per crash point.

A child that is to be killed costs a fork instead of seconds of imports. A worker adopts what its
children leave behind, so that processes that outlive a killed parent are found.
"""

import concurrent.futures
import contextlib
import ctypes
import importlib
import json
import logging
import os
import queue
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
ORPHAN_SECONDS = 10.0  # that a process may outlive its killed parent
PATIENCE_SECONDS = 120.0  # after which a child counts as hanging
_POLL_SECONDS = 0.001
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of linux/prctl.h
_IMPORTED = (
    "dask.array",
    "dask.delayed",
    "dask.threaded",
    "h5py",
    "netCDF4",
    "xarray.backends.netCDF4_",
    "nowcast.data.archive",
    "nowcast.data.readers.cf",
    "nowcast.data.readers.knmi",
    "crash.scenario",
)


@dataclass(frozen=True)
class Outcome:
    """What became of one child.

    Parameters
    ----------
    result
        What its function gave; None if it was killed.
    error
        Its traceback, if it failed.
    killed
        Whether SIGKILL ended it.
    hung
        Whether it, or what it left behind, had to be stopped for taking too long.
    orphans
        Number of processes that outlived it by more than `ORPHAN_SECONDS`.
    """

    result: Any = None
    error: str = ""
    killed: bool = False
    hung: bool = False
    orphans: int = 0


def may_mount() -> bool:
    """Tell whether a file system can be mounted in a namespace of its own."""
    command = [*_OWN_MOUNTS, "mount", "-t", "tmpfs", "none", "/mnt"]
    with contextlib.suppress(FileNotFoundError):
        return subprocess.run(command, capture_output=True).returncode == 0
    return False


_OWN_MOUNTS = ("unshare", "--mount", "--map-root-user")


class Workers:
    """Several workers, each doing one thing at a time.

    Parameters
    ----------
    shim
        The compiled library.
    count
        Number of workers.
    own_mounts
        Whether they may mount file systems that nobody else sees.
    lasting
        Whether they do everything themselves instead of in a child, which keeps decoders warm.
    """

    def __init__(
        self, shim: Path, count: int, *, own_mounts: bool = False, lasting: bool = False
    ) -> None:
        prefix = list(_OWN_MOUNTS) if own_mounts else []
        paths = [str(FOLDER.parent), str(FOLDER.parents[1]), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "LD_PRELOAD": str(shim),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "OPENBLAS_NUM_THREADS": "1",  # no thread may live when a worker forks
        }
        self.processes = [
            subprocess.Popen(
                [*prefix, sys.executable, "-m", "crash.workers", *["lasting"] * lasting],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for _ in range(count)
        ]
        self._idle: queue.SimpleQueue[subprocess.Popen[str]] = queue.SimpleQueue()
        for process in self.processes:
            self._idle.put(process)

    def close(self) -> None:
        """End the workers."""
        for process in self.processes:
            process.stdin.close()
            process.wait()
            process.stdout.close()

    def run(self, function: str, **arguments: Any) -> Outcome:
        """Call a function of `crash.scenario` in a child of a worker."""
        process = self._idle.get()
        try:
            process.stdin.write(json.dumps([function, arguments]) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        finally:
            self._idle.put(process)
        if not answer:
            raise RuntimeError(f"a worker ended while it ran {function} with {arguments}")
        return Outcome(**json.loads(answer))

    def each(self, function: Callable[..., Any], items: Iterable[Any]) -> list[Any]:
        """Call a function of this process for each item, as many at a time as there are workers."""
        with concurrent.futures.ThreadPoolExecutor(len(self.processes)) as threads:
            return list(threads.map(function, items))


def _serve() -> None:
    for name in _IMPORTED:
        importlib.import_module(name)
    importlib.import_module("xarray").backends.list_engines()
    logging.disable(logging.WARNING)  # that an index is damaged is expected here
    ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)
    # What children print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        function, arguments = json.loads(line)
        lasting = sys.argv[1:] == ["lasting"]
        outcome = _done(function, arguments) if lasting else _in_child(function, arguments)
        print(json.dumps(outcome), file=answers, flush=True)


def _in_child(function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as answer:
        child = os.fork()
        if child == 0:
            _answer(function, arguments, answer.fileno())
        status, hung = _wait(child)
        orphans = _reap()
        answer.seek(0)
        content = answer.read()
    given = json.loads(content) if content else {"error": "" if hung else f"status {status}"}
    if status == -signal.SIGKILL and not hung:
        given = {"killed": True}
    return {**given, "hung": hung, "orphans": orphans}


def _answer(function: str, arguments: dict[str, Any], descriptor: int) -> None:
    """Do the work of a child, write what it gave, and end without cleaning up."""
    os.write(descriptor, json.dumps(_done(function, arguments)).encode())
    os._exit(0)


def _done(function: str, arguments: dict[str, Any]) -> dict[str, Any]:
    from crash import scenario

    try:
        return {"result": getattr(scenario, function)(**arguments)}
    except BaseException:
        return {"error": traceback.format_exc()}


def _wait(child: int) -> tuple[int, bool]:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), False
        time.sleep(_POLL_SECONDS)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), True


def _reap() -> int:
    """Wait for what a child has left running; end what does not end, and give its number."""
    deadline = time.monotonic() + ORPHAN_SECONDS
    late = 0
    while True:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return late
        if ended:
            continue
        if time.monotonic() > deadline:
            left = list(_children())
            late += len(left)
            for process in left:
                os.kill(process, signal.SIGKILL)
            deadline = time.monotonic() + ORPHAN_SECONDS
        time.sleep(_POLL_SECONDS)


def _children() -> Iterator[int]:
    import psutil

    for process in psutil.Process().children(recursive=True):
        if process.status() != psutil.STATUS_ZOMBIE:
            yield process.pid


if __name__ == "__main__":
    _serve()
