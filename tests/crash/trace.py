"""Reads the trace of one run: was everything durable before it was said to be there?"""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from nowcast import durable

INDEX = "index.sqlite"
_WRITES = frozenset({"write", "writev", "pwrite", "sendfile", "copy_file_range", "truncate"})
_MAKES = frozenset({"create", "mkdir", "link", "symlink"})
_REMOVES = frozenset({"unlink", "rmdir"})
_SYSTEM_CALLS = {
    "write": "write",
    "pwrite64": "pwrite",
    "writev": "writev",
    "pwritev": "writev",
    "pwritev2": "writev",
    "sendfile": "sendfile",
    "copy_file_range": "copy_file_range",
    "fallocate": "fallocate",
    "truncate": "truncate",
    "ftruncate": "truncate",
    "fsync": "fsync",
    "fdatasync": "fsync",
    "mkdir": "mkdir",
    "mkdirat": "mkdir",
    "rename": "rename",
    "renameat": "rename",
    "renameat2": "rename",
    "link": "link",
    "linkat": "link",
    "symlink": "symlink",
    "symlinkat": "symlink",
    "unlink": "unlink",
    "unlinkat": "unlink",
    "rmdir": "rmdir",
}
_STRACE = re.compile(
    r'\d+ +(?P<call>\w+)\((?:\d+<(?P<open>[^>]*)>|(?:AT_FDCWD(?:<[^>]*>)?, )?"(?P<name>[^"]*)")'
)
_TRANSIENT = (".lock", f"{INDEX}-shm")  # what need not outlive a loss of power


@dataclass(frozen=True)
class Call:
    """One line of a trace; `result` is what the kernel gave, negative if it refused."""

    name: str
    result: int
    path: str
    other: str


@dataclass
class Durability:
    """What a trace shows.

    Parameters
    ----------
    renames
        Number of names that were published by a rename.
    folders
        Number of folders made.
    commits
        Number of times that the log of the index was written and made durable.
    violations
        Each breach of the order: content flushed, then renamed, then the folder flushed, then
        acknowledged.
    """

    renames: int = 0
    folders: int = 0
    commits: int = 0
    violations: list[str] = field(default_factory=list)


def read_trace(path: Path) -> list[Call]:
    """Give the calls in the order in which they ended."""
    lines = (line.split("\t") for line in path.read_text().splitlines())
    return [Call(name, int(result), path, other) for _, _, name, result, path, other in lines]


def counts(calls: list[Call]) -> Counter[str]:
    """Give how often each call was made; to create is to open."""
    names = Counter("open" if call.name == "create" else call.name for call in calls)
    del names["note"]
    return names


def run_below_strace(shim: Path, trace: Path, arguments: dict[str, Any]) -> None:
    """Call `crash.scenario.take` in a process of its own that strace watches, too."""
    code = "import json, sys; from crash.scenario import take; take(**json.loads(sys.argv[1]))"
    strace = ["strace", "-f", "-y", "-qq", "-E", f"LD_PRELOAD={shim}", "-o", str(trace)]
    watched = ["-e", f"trace={','.join(_SYSTEM_CALLS)},openat,open"]
    paths = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [*strace, *watched, sys.executable, "-c", code, json.dumps(arguments)]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def strace_counts(path: Path, root: str) -> Counter[str]:
    """Give how often strace has seen each call below a folder, by our name of it."""
    seen: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        found = _STRACE.match(line)
        if not found or not _is_within(found["open"] or found["name"], root):
            continue
        call = found["call"]
        if call in ("open", "openat"):
            seen["open"] += "O_CREAT" in line or "O_TRUNC" in line
        elif call == "unlinkat":
            seen["rmdir" if "AT_REMOVEDIR" in line else "unlink"] += 1
        else:
            seen[_SYSTEM_CALLS[call]] += 1
    return seen


def check_durability(calls: list[Call]) -> Durability:
    """Follow what is not yet durable, call by call.

    A rename that publishes a name needs the content to have been flushed after its last write. A
    new name needs its folder to be flushed afterwards, before the index is written or anything is
    acknowledged. What is written to the index needs to be flushed before it is acknowledged, and
    its log must not go before the database is flushed.
    """
    follower = _Follower()
    for call in calls:
        if call.result >= 0:
            follower.follow(call)
    return follower.found


class _Follower:
    def __init__(self) -> None:
        self.found = Durability()
        self.content: set[str] = set()  # files and folders with content that is not flushed
        self.names: dict[str, str] = {}  # whose folder is not flushed, and what made them

    def follow(self, call: Call) -> None:
        if call.name in _WRITES:
            self._write(call.path)
        elif call.name in _MAKES:
            self._make(call)
        elif call.name == "fsync":
            self._flush(call.path)
        elif call.name == "rename":
            self._rename(call.other, call.path)
        elif call.name in _REMOVES:
            self._remove(call.path)
        elif call.name == "note":
            self._acknowledge(call.path)

    def _write(self, path: str) -> None:
        if _is_index(path):
            self._expect_names("the index was written", [n for n in self.names if not _is_index(n)])
        self.content.add(path)

    def _make(self, call: Call) -> None:
        self.content.add(call.path)
        self.names[call.path] = call.name
        self.found.folders += call.name == "mkdir"

    def _flush(self, path: str) -> None:
        self.found.commits += path in self.content and path.endswith(f"{INDEX}-wal")
        self.content.discard(path)
        for name in [name for name in self.names if str(PurePosixPath(name).parent) == path]:
            del self.names[name]

    def _rename(self, old: str, new: str) -> None:
        made_by = self.names.pop(old, "rename")
        loose = {path for path in {*self.content, *self.names} if _is_within(path, old)}
        self.content = {_moved(path, old, new) for path in self.content}
        self.names = {_moved(path, old, new): made for path, made in self.names.items()}
        if _is_passing(new):
            self.names[new] = made_by
            return
        self.found.renames += 1
        self.names[new] = "rename"
        self.found.violations += [f"{path} was renamed before it was flushed" for path in loose]

    def _remove(self, path: str) -> None:
        if path.endswith("-wal") and path.removesuffix("-wal") in self.content:
            self.found.violations.append(f"{path} went before its database was flushed")
        self.content.discard(path)
        self.names.pop(path, None)

    def _acknowledge(self, what: str) -> None:
        self._expect_names(what, self.names)
        loose = [path for path in self.content if path.endswith(f"{INDEX}-wal")]
        self.found.violations += [f"{what} before {path} was flushed" for path in loose]

    def _expect_names(self, what: str, names: Iterable[str]) -> None:
        """Report names that are not durable, each once."""
        for name in [name for name in names if not _is_passing(name)]:
            made_by = self.names.pop(name)
            self.found.violations.append(
                f"{what} before the folder of {name} was flushed, after {made_by}"
            )


def _moved(path: str, old: str, new: str) -> str:
    return new + path.removeprefix(old) if _is_within(path, old) else path


def _is_within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(f"{folder}/")


def _is_index(path: str) -> bool:
    return PurePosixPath(path).name.startswith(INDEX) and not path.endswith("-shm")


def _is_passing(path: str) -> bool:
    """Tell whether a name is not meant to last."""
    return durable.is_temporary(Path(path)) or path.endswith(_TRANSIENT)
