"""The process in which radar files are decoded: ``python -m nowcast.data.decoder``.

Started by `nowcast.data.decoding`. A request is a line of JSON on standard input; an answer is a
header in JSON, after its length, and the arrays that it describes. What the libraries print goes
nowhere.
"""

import bisect
import contextlib
import fcntl
import itertools
import json
import math
import os
import resource
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import dask
import dask.array
import h5py
import xarray as xr

from nowcast.conventions import gridded
from nowcast.data.blocks import FRAMES_PER_BLOCK, LARGEST_BLOCK, ancillary, pack
from nowcast.data.decoding import LENGTH_BYTES, LIMITS, LONGEST_REASON, Limits
from nowcast.data.readers import first_line, read_each

_MOST_OPEN_FILES = 64
_COMPUTED_AT_ONCE = 16_000_000  # bytes, of small Dask chunks
_CHUNK_SHARE = 4  # part of the memory that one stored chunk may take
_ELSEWHERE = " lies in another file, which is not followed"
_PARENT_IS_GONE = 3  # exit status


def main() -> None:
    """Answer requests until standard input ends."""
    limits = Limits(**json.loads(sys.argv[1])) if sys.argv[1:] else LIMITS
    requests, answers = _pipes()
    dask.config.set(scheduler="synchronous")
    _restrict(limits)
    _send(answers, {"ready": True}, [])
    for line in requests:
        request = json.loads(line)
        _allow_processor_time(limits.cpu_seconds)
        path = Path(os.fsdecode(request["path"].encode("latin-1")))
        # Tied only while nothing can arrive: a request would end the process too.
        with _tied_to_parent(requests):
            for header, arrays in _answers(path, request["reader"], limits):
                if header["last"]:
                    break
                _send(answers, header, arrays)
        _send(answers, header, arrays)
        del header, arrays


def _pipes() -> tuple[BinaryIO, int]:
    """Give the pipes for requests and answers, out of reach of what libraries read and print."""
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1):
        os.dup2(nothing, standard)
    fcntl.fcntl(requests, fcntl.F_SETOWN, -os.getpgrp())
    return os.fdopen(requests, "rb"), answers


def _restrict(limits: Limits) -> None:
    _limit(resource.RLIMIT_AS, limits.memory_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    _limit(resource.RLIMIT_NOFILE, _MOST_OPEN_FILES)


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    # macOS refuses to limit the address space.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(kind, (most, most))


def _allow_processor_time(seconds: int) -> None:
    """Have the kernel end this process after that much more processor time."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(time.process_time()) + seconds
    most = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (most, hard))


@contextlib.contextmanager
def _tied_to_parent(requests: BinaryIO) -> Iterator[None]:
    """Have the kernel end this process, and what it has forked, as soon as its parent ends.

    By SIGIO on the end of the requests, which needs no Python and so comes through to a library
    that spins or sleeps. PR_SET_PDEATHSIG would come when the *thread* that started this process
    ends, which is not the last to use it.
    """
    plain = fcntl.fcntl(requests, fcntl.F_GETFL)
    fcntl.fcntl(requests, fcntl.F_SETFL, plain | os.O_ASYNC)
    if select.select([requests], [], [], 0)[0]:
        sys.exit(_PARENT_IS_GONE)
    try:
        yield
    finally:
        fcntl.fcntl(requests, fcntl.F_SETFL, plain)


def _answers(path: Path, reader: str, limits: Limits) -> Iterator[tuple[dict[str, Any], list[Any]]]:
    """Give the blocks of a file, or the reason why there are none."""
    try:
        _check_hdf5(path, limits)
        for observed, last in _with_last(read_each(path, reader=reader)):
            names = _checked_names(observed, limits)
            for name in names:
                for block, end in _blocks(observed, name):
                    header, arrays = pack(block, name)
                    header["last"] = last and end and name == names[-1]
                    yield header, arrays
    except MemoryError:
        reason = f"needs more memory to be decoded than {limits.memory_bytes:,} bytes, the limit"
        yield _refusal(reason, reusable=False)
    except (FileNotFoundError, PermissionError) as error:
        yield _refusal(first_line(error), kind=type(error).__name__)
    except ImportError as error:
        yield _refusal(first_line(error), kind="ImportError")
    except ValueError as error:
        yield _refusal(first_line(error).removeprefix(str(path)).lstrip(": "))
    # Whatever a damaged file makes a library raise; a reader may even try to exit.
    except (Exception, SystemExit) as error:
        yield _refusal(f"damaged or cut short: {type(error).__name__}: {first_line(error)}")


def _with_last(datasets: Iterator[xr.Dataset]) -> Iterator[tuple[xr.Dataset, bool]]:
    """Give each dataset, and whether it is the last."""
    observed = next(datasets, None)
    if observed is None:
        raise ValueError("holds no frame")
    while observed is not None:
        following = next(datasets, None)
        yield observed, following is None
        observed = following


def _refusal(
    reason: str, *, kind: str = "", reusable: bool = True
) -> tuple[dict[str, Any], list[Any]]:
    reason = reason[:LONGEST_REASON]
    return {"refused": reason, "kind": kind, "reusable": reusable, "last": True}, []


def _check_hdf5(path: Path, limits: Limits) -> None:
    """Refuse what HDF5 would take from other files, and chunks that are unpacked whole."""
    if path.is_dir() or not h5py.is_hdf5(path):
        return
    largest = limits.memory_bytes // _CHUNK_SHARE

    def link_problem(name: bytes, link: Any) -> str | None:
        return _shown(name) + _ELSEWHERE if link.type == h5py.h5l.TYPE_EXTERNAL else None

    def object_problem(name: bytes, item: Any) -> str | None:
        if item.type != h5py.h5o.TYPE_DATASET:
            return None
        return _storage_problem(_shown(name), h5py.h5d.open(file.id, name), largest)

    # What is not None ends a visit; an error raised in one would confuse h5py.
    with h5py.File(path, "r") as file:
        problem = file.id.links.visit(link_problem, info=True)
        problem = problem or h5py.h5o.visit(file.id, object_problem, info=True)
    if problem:
        raise ValueError(problem)


def _storage_problem(name: str, dataset: Any, largest: int) -> str | None:
    plan = dataset.get_create_plist()
    if plan.get_layout() == h5py.h5d.VIRTUAL or plan.get_external_count():
        return name + _ELSEWHERE
    if plan.get_layout() != h5py.h5d.CHUNKED:
        return None
    size = math.prod(plan.get_chunk()) * dataset.dtype.itemsize
    if size <= largest:
        return None
    return f"a chunk of {name} claims {size:,} bytes; {largest:,} is the limit"


def _shown(name: bytes) -> str:
    return repr(name.decode(errors="replace"))


def _checked_names(observed: xr.Dataset, limits: Limits) -> list[str]:
    """Give the names of the variables, once it is known that they are not too large."""
    names = [name for name in gridded(observed) if "time" in observed[name].dims]
    if not names:
        raise ValueError("no variable has time, y and x")
    pixels = observed.sizes["y"] * observed.sizes["x"]
    if pixels > limits.largest_frame:
        raise ValueError(f"a frame claims {pixels:,} pixels; {limits.largest_frame:,} is the limit")
    frames = observed.sizes["time"] * len(names)
    if frames > limits.frames:
        raise ValueError(f"the file claims {frames:,} frames; {limits.frames:,} is the limit")
    if not frames or not pixels:
        raise ValueError("holds no frame")
    return names


def _blocks(observed: xr.Dataset, name: str) -> Iterator[tuple[xr.Dataset, bool]]:
    """Give the blocks of one variable in memory, and whether each is its last."""
    wanted = {name, *ancillary(observed, name)}
    others = [each for each, array in observed.items() if {"y", "x"} <= set(array.dims)]
    part = observed.drop_vars([each for each in others if each not in wanted])
    count = part.sizes["time"]
    frame_bytes = sum(part[each].nbytes for each in wanted) // count
    step = max(1, min(FRAMES_PER_BLOCK, LARGEST_BLOCK // frame_bytes))
    for start, stop in _pieces(part[name], frame_bytes):
        piece = part.isel(time=slice(start, stop)).load()
        for first in range(0, stop - start, step):
            block = piece.isel(time=slice(first, first + step))
            yield block, start + first + step >= count


def _pieces(array: xr.DataArray, frame_bytes: int) -> Iterator[tuple[int, int]]:
    """Give start and stop of what is computed at once: whole Dask chunks, if they are not large.

    Several small ones, since each computation has its price.
    """
    few = max(1, _COMPUTED_AT_ONCE // frame_bytes)
    most = max(1, LARGEST_BLOCK // frame_bytes)
    chunks = array.chunksizes.get("time", (array.sizes["time"],))
    ends = [0, *itertools.accumulate(chunks)]
    start = 0
    while start < ends[-1]:
        whole = ends[bisect.bisect(ends, start + few) - 1]
        stop = max(whole, min(ends[bisect.bisect(ends, start)], start + most))
        yield start, stop
        start = stop


def _send(answers: int, header: dict[str, Any], arrays: list[Any]) -> None:
    text = json.dumps(header).encode()
    for part in (len(text).to_bytes(LENGTH_BYTES, "little"), text, *arrays):
        left = memoryview(part)
        while left:
            left = left[os.write(answers, left) :]


if __name__ == "__main__":
    main()
