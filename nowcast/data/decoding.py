"""Decoding without trust: files are decoded in child processes with limits.

The libraries that read radar files are large and written in C; a damaged or hostile file makes
them crash, hang, or take all memory. So they run in `nowcast.data.decoder`, a process with limits
on memory, time and size, which sends back nothing but a header and raw arrays. Whatever
happens to it, the process that asked gets blocks that keep the convention, or `Undecodable`.

Decoders are started when they are needed, kept for the files after, and end with this process.
"""

import atexit
import contextlib
import errno
import json
import math
import os
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from nowcast.conventions import check_observations
from nowcast.data.blocks import LARGEST_HEADER, unpack
from nowcast.data.readers import is_zarr

FILES_PER_DECODER = 1000  # then it is replaced, so that what its libraries lose does not add up
SECONDS_TO_START = 120.0  # of a decoder: the imports, on a busy machine
_GLANCE = 0.2  # seconds between looks at whether a silent decoder still runs
LENGTH_BYTES = 8  # of a header's length, before it
LONGEST_REASON = 500  # characters

_INVALID = (ValueError, TypeError, KeyError, OverflowError, RecursionError)
_KEPT_ERRORS = {each.__name__: each for each in (FileNotFoundError, PermissionError, ImportError)}
# One thread each: there is one decoder per thread that asks. No filter that HDF5 would load from
# a folder; "::" is its word for none. Fewer arenas, since their addresses count as memory.
_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "GDAL_NUM_THREADS": "1",
    "ZARR_THREADING__MAX_WORKERS": "1",
    "HDF5_PLUGIN_PATH": "",
    "HDF5_PLUGIN_PRELOAD": "::",
    "MALLOC_ARENA_MAX": "2",
}


class Undecodable(ValueError):  # noqa: N818, it says of a file what it is
    """A file that could not be decoded within the limits; the message names it and says why."""


class Overrun(Undecodable):
    """A file that took too long, or whose decoder died; it may be the machine that is to blame."""


@dataclass(frozen=True)
class Limits:
    """What decoding one file may take.

    Parameters
    ----------
    memory_bytes
        Address space of a decoder, some 0.8 GB of which are its libraries. Where the system
        knows no such limit (macOS), only the sizes below hold.
    seconds
        Wall clock until the first block, and from each block to the next. The time in which the
        caller does something else does not count.
    cpu_seconds
        Processor time for the whole file.
    largest_frame
        Pixels of a frame.
    largest_file
        Bytes on disk, of a file or of all files of a Zarr store.
    frames
        In one file, of all variables together.
    """

    memory_bytes: int = 2_000_000_000
    seconds: float = 20.0
    cpu_seconds: int = 600
    largest_frame: int = 50_000_000
    largest_file: int = 2_000_000_000
    frames: int = 1_000_000


LIMITS = Limits()


def decode(path: Path | str, *, reader: str = "", limits: Limits = LIMITS) -> Iterator[xr.Dataset]:
    """Give the frames of a radar file block by block, decoded in a process with limits.

    Parameters
    ----------
    path
        A file, or the folder of a Zarr store.
    reader
        One of `nowcast.data.readers.known_readers`; empty: found by the content of the file.
    limits
        What it may take.

    Yields
    ------
    xr.Dataset
        Observations in memory of one variable, and of what it names as its
        ``ancillary_variables``; at most 32 frames or 128 MB, variable after variable in the order
        of the file. Values have not been checked against the variable's range.

    Raises
    ------
    FileNotFoundError, PermissionError
        As opening the file would.
    ImportError
        If a package that the reader needs is not installed.
    Undecodable
        If the file is damaged, no radar file that nowcast knows or beyond the limits, or if its
        decoder crashed; `Overrun` where another try might end otherwise.
    RuntimeError
        If no decoder can be started, which no file is to blame for.

    Examples
    --------
    >>> import tempfile
    >>> from nowcast.data.synthetic import synthesise
    >>> path = Path(tempfile.mkdtemp()) / "rain.nc"
    >>> observed = synthesise(hours=8, size=16)
    >>> observed["time"].encoding["units"] = "seconds since 1970-01-01"
    >>> observed.to_netcdf(path)
    >>> [block.sizes["time"] for block in decode(path)]
    [32, 17]
    """
    path = Path(path)
    _check_file(path, limits)
    try:
        with _asked(path, reader, limits) as decoder:
            block, last = decoder.answer()
            while not last:
                yield block
                block, last = decoder.answer()
    except Undecodable as error:
        raise type(error)(_named(path, str(error))) from None
    # By now another thread may have the decoder.
    yield block


def _check_file(path: Path, limits: Limits) -> None:
    status = path.stat()
    size = status.st_size
    if stat.S_ISDIR(status.st_mode):
        size = _store_size(path) if is_zarr(path) else 0
    # Opening a pipe or a device waits, or does something.
    elif not stat.S_ISREG(status.st_mode):
        raise Undecodable(_named(path, "is neither a regular file nor a folder"))
    if not os.access(path, os.R_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    if size > limits.largest_file:
        reason = f"is too large: {size:,} bytes, and {limits.largest_file:,} is the limit"
        raise Undecodable(_named(path, reason))


def _store_size(path: Path) -> int:
    size = 0
    for part in path.rglob("*"):
        status = part.lstat()
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            raise Undecodable(_named(path, f"holds {part.name!a}, which is no regular file"))
        size += status.st_size
    return size


def _named(path: Path, reason: str) -> str:
    line = (reason.splitlines() or ["undecodable"])[0][:LONGEST_REASON]
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    return f"{path} {line}" if line.startswith("is ") else f"{path}: {line}"


class _Decoder:
    """A running `nowcast.data.decoder`, used by one thread at a time."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.files = 0
        self.at_rest = False
        self._frames = 0
        self._owner = os.getpid()
        # -P: no file in the current folder passes for a library; -B: nothing is written.
        command = [sys.executable, "-P", "-B", "-m", "nowcast.data.decoder"]
        self._process = subprocess.Popen(
            [*command, json.dumps(asdict(limits))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd=os.sep,
            env={**os.environ, **_ENVIRONMENT, **_python_path()},
            start_new_session=True,
        )
        _DECODERS.add(self)
        try:
            self._message(SECONDS_TO_START)
        except (TimeoutError, EOFError, *_INVALID) as error:
            self.end()
            raise RuntimeError(
                f"the decoder does not start (exit status {self._process.returncode}); see what "
                f"it says: {' '.join(command)} < /dev/null"
            ) from error
        except BaseException:
            self.end()
            raise

    def ask(self, path: Path, reader: str) -> None:
        """Have it decode a file.

        Raises
        ------
        BrokenPipeError
            If the decoder has ended since its last file.
        """
        # Bytes as Latin-1, since a path need not be text.
        text = os.fsencode(path.absolute()).decode("latin-1")
        self.files += 1
        self.at_rest = False
        self._frames = 0
        assert self._process.stdin
        request = json.dumps({"path": text, "reader": reader})
        self._process.stdin.write(request.encode() + b"\n")

    def answer(self) -> tuple[xr.Dataset, bool]:
        """Give the next block, and whether it is the last.

        Raises
        ------
        Undecodable
            With the reason alone.
        """
        try:
            block, last = self._block()
        except TimeoutError:
            reason = f"took longer than {self.limits.seconds:g} s to decode"
            raise Overrun(reason) from None
        except EOFError:
            raise Overrun(self._reason_of_end()) from None
        except Undecodable:
            raise
        except _INVALID as error:
            raise Undecodable(f"its decoder gave no valid answer: {error}") from error
        self.at_rest = last
        return block, last

    def check_alive(self) -> None:
        """Raise BrokenPipeError if the process has ended, as writing to it would a moment later."""
        if self._process.poll() is not None:
            raise BrokenPipeError

    def end(self) -> None:
        """End the process, and all that it has started."""
        _DECODERS.discard(self)
        self.close()
        if os.getpid() != self._owner:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        # One that waits for a disk that does not answer cannot even be killed.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=2)

    def close(self) -> None:
        """Close this side of the pipes, on which an idle decoder ends by itself."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def _block(self) -> tuple[xr.Dataset, bool]:
        deadline = time.monotonic() + self.limits.seconds
        header = self._message(self.limits.seconds)
        if "refused" in header:
            self._refuse(header)

        def fill(memory: memoryview) -> None:
            self._fill(memory, deadline)

        block = unpack(header, fill, largest_frame=self.limits.largest_frame)
        self._frames += block.sizes["time"]
        if self._frames > self.limits.frames:
            raise ValueError(f"more than {self.limits.frames:,} frames")
        return self._checked(block), header["last"] is True

    def _checked(self, block: xr.Dataset) -> xr.Dataset:
        try:
            return check_observations(block)
        except ValueError as error:
            raise Undecodable(str(error)) from error

    def _refuse(self, header: dict[str, Any]) -> None:
        self.at_rest = header["reusable"] is True
        kind = _KEPT_ERRORS.get(header["kind"], Undecodable)
        raise kind(str(header["refused"]))

    def _message(self, seconds: float) -> dict[str, Any]:
        deadline = time.monotonic() + seconds
        length = bytearray(LENGTH_BYTES)
        self._fill(memoryview(length), deadline)
        size = int.from_bytes(length, "little")
        if size > LARGEST_HEADER:
            raise ValueError(f"a header of {size:,} bytes")
        header = bytearray(size)
        self._fill(memoryview(header), deadline)
        message = json.loads(header)
        if not isinstance(message, dict):
            raise ValueError(f"a header that is {type(message).__name__}")
        return message

    def _fill(self, memory: memoryview, deadline: float) -> None:
        assert self._process.stdout
        channel = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(channel, select.POLLIN)
        while memory:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            # What a decoder has forked may hold the pipe open when it has crashed.
            crashed = self._process.poll() is not None
            if not poll.poll(math.ceil(min(left, _GLANCE) * 1000)):
                if crashed:
                    raise EOFError
                continue
            count = os.readv(channel, [memory])
            if not count:
                raise EOFError
            memory = memory[count:]

    def _reason_of_end(self) -> str:
        self.end()
        status = self._process.returncode
        if status == -signal.SIGXCPU:
            return f"took longer than {self.limits.cpu_seconds} s of processor time to decode"
        if status is not None and status < 0:
            return f"its decoder crashed ({signal.Signals(-status).name})"
        return f"its decoder ended (exit status {status})"


def _python_path() -> dict[str, str]:
    """Give the search path of Python from the current folder's point of view, if one is set."""
    parts = [part for part in os.environ.get("PYTHONPATH", "").split(os.pathsep) if part]
    return {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, parts))} if parts else {}


_MOST_IDLE = os.cpu_count() or 1
_LOCK = threading.Lock()
_DECODERS: set[_Decoder] = set()  # all that run
_IDLE: list[_Decoder] = []


@contextlib.contextmanager
def _asked(path: Path, reader: str, limits: Limits) -> Iterator[_Decoder]:
    """Give a decoder that has been asked for a file, and take it back for the next one."""
    decoder = _ask(path, reader, limits)
    try:
        yield decoder
    finally:
        _take_back(decoder)


def _ask(path: Path, reader: str, limits: Limits) -> _Decoder:
    while True:
        decoder = _idle(limits) or _Decoder(limits)
        try:
            decoder.check_alive()
            decoder.ask(path, reader)
        # It was killed while it was idle, for which the file is not to blame.
        except BrokenPipeError:
            decoder.end()
        else:
            return decoder


def _idle(limits: Limits) -> _Decoder | None:
    with _LOCK:
        fitting = [decoder for decoder in _IDLE if decoder.limits == limits]
        if not fitting:
            return None
        _IDLE.remove(fitting[-1])
        return fitting[-1]


def _take_back(decoder: _Decoder) -> None:
    if not decoder.at_rest or decoder.files >= FILES_PER_DECODER:
        decoder.end()
        return
    with _LOCK:
        _IDLE.append(decoder)
        surplus = _IDLE.pop(0) if len(_IDLE) > _MOST_IDLE else None
    if surplus:
        surplus.end()


def _end_all() -> None:
    for decoder in list(_DECODERS):
        decoder.end()


def _forget() -> None:
    """After a fork: leave the decoders to the parent, whose end they could not see otherwise."""
    global _LOCK
    _LOCK = threading.Lock()
    for decoder in list(_DECODERS):
        decoder.close()
    _DECODERS.clear()
    _IDLE.clear()


atexit.register(_end_all)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
