"""What is ingested while the process is killed or the disk fills, and what must hold afterwards.

The functions without an underscore run in the children of `crash.workers` and speak JSON. An
archive lies in a folder of its own, which is the one that is watched, so that what the archive's
own name needs is seen too.
"""

import contextlib
import hashlib
import json
import os
import resource
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dask
import knmi_sample
import numpy as np

from crash.shim import Shim
from nowcast import durable
from nowcast.conventions import check_observations, variable_of
from nowcast.data import archive as archives
from nowcast.data import blocks, framefiles
from nowcast.data.readers import read
from nowcast.data.synthetic import synthesise

INDEX = "index.sqlite"
SLOWEST_OPENING = 2.0  # seconds
BLOCK = 4096  # bytes; of a tmpfs
TMPFS_BYTES = 4 * 2**20
SPEAKS_OF_SPACE = ("space", "full", "too large", "quota")  # what a clear message holds one of
_VOLATILE = "arrived"  # what may differ between two archives of the same files
_POLL_SECONDS = 0.001
_ELSEWHERE = "/nowhere"  # a root that nothing is below


def write_inputs(folder: Path, *, more: int = 0) -> tuple[list[str], list[str]]:
    """Write what an archive holds before, and what is ingested while it is cut short.

    The latter has new frames, another version of a frame that is held, the same bytes again of
    one held and of one new, a file cut in half, and two frames through the netCDF library.

    Parameters
    ----------
    folder
        Where to write.
    more
        Number of further new frames.
    """
    series = knmi_sample.write_series(folder / "series", 6 + more)
    held, new = series[:3], series[3:]
    correction = knmi_sample.write_knmi(
        folder / "correction.h5", knmi_sample.rain(100), "2010-08-26T00:05"
    )
    copies = [folder / "held-again.h5", folder / "new-again.h5"]
    shutil.copy(held[0], copies[0])
    shutil.copy(new[0], copies[1])
    cut = folder / "cut.h5"
    cut.write_bytes(new[1].read_bytes()[: new[1].stat().st_size // 2])
    several = folder / "several.nc"
    synthesise(hours=1, size=16).isel(time=slice(2)).to_netcdf(several)
    late = [*new[:3], correction, *copies, cut, several, *new[3:]]
    return [str(path) for path in held], [str(path) for path in late]


def take(
    archive: str,
    files: Sequence[str],
    *,
    rebuild: bool = False,
    one_thread: bool = False,
    decoders: bool = True,
    said: str = "",
    **settings: Any,
) -> dict[str, Any]:
    """Ingest, or rebuild the index, while the calls are counted.

    Parameters
    ----------
    archive
        Its folder.
    files
        What is ingested.
    rebuild
        Make the index anew instead.
    one_thread
        Whether to work in one thread, so that the calls have one order.
    decoders
        Whether to decode in child processes, as always. They change nothing in an archive, and
        the seconds that each takes to start are too long for every crash point.
    said
        A file for the number of files that have been acknowledged to the caller.
    settings
        Of `Shim.arm`.
    """
    shim = Shim()
    shim.arm(str(Path(archive).parent), **settings)

    def acknowledged(done: int, _all: int) -> None:
        shim.note("acknowledged")
        if said:
            Path(said).write_text(str(done))

    with contextlib.ExitStack() as stack:
        if one_thread:
            stack.enter_context(dask.config.set(scheduler="synchronous"))
        if not decoders:
            stack.enter_context(_decoding_here())
        if rebuild:
            archives.fsck(archive)
        else:
            archives.ingest(files, archive, progress=acknowledged)
    shim.note("end")
    return {"calls": shim.calls, "takers": shim.takers}


def make(archive: str, files: Sequence[str]) -> None:
    """Ingest, undisturbed."""
    archives.ingest(files, archive)


def describe(archive: str, files: Sequence[str], reference: str) -> None:
    """Write down what an undisturbed archive holds, and what its inputs say that it should."""
    rows = _rows(archive)
    content = {"rows": rows, "files": _published(archive)}
    values = {}
    for path in files:
        digest = durable.sha256(path)
        for row in (row for row in rows if row["input_sha256"] == digest):
            frame = read(path)[row["variable"]].sel(time=_time(row))
            values[_key(row)] = frame.values
    np.savez(Path(reference, "values.npz"), **values)
    Path(reference, "archive.json").write_text(json.dumps(content))


def inspect(archive: str, reference: str, *, held: Sequence[str] = ()) -> dict[str, Any]:
    """Open the archive as it is, with nothing repaired, and give what is wrong with it.

    Parameters
    ----------
    archive
        Its folder.
    reference
        Where `describe` wrote.
    held
        Files that had been acknowledged: all their frames must be there.
    """
    expected = _reference(reference)
    rows = _rows(archive)
    faults = [f"lost: {row['path']}" for row in _of(expected["rows"], held) if row not in rows]
    faults += [f"unknown row: {row['path']}" for row in rows if row not in expected["rows"]]
    if len({_key(row) for row in rows}) < len(rows):
        faults.append("a frame has two rows")
    published = _published(archive)
    faults += [f"row without file: {r['path']}" for r in rows if r["path"] not in published]
    whole = expected["files"]
    faults += [f"not whole: {name}" for name in published if published[name] != whole.get(name)]
    seconds, wrong = _opened(archive, rows, reference)
    return {"faults": [*faults, *wrong], "seconds": seconds, "rows": len(rows)}


def complete(
    archive: str, files: Sequence[str], reference: str, *, rebuild: bool = False
) -> list[str]:
    """Do the same again, undisturbed; give what differs from an archive never disturbed."""
    expected = _reference(reference)
    before = len(_rows(archive))
    faults = []
    if rebuild:
        archives.fsck(archive)
    else:
        added = archives.ingest(files, archive).added
        if before + added != len(expected["rows"]):
            faults.append(f"added {added} frames to {before} of {len(expected['rows'])}")
    if _rows(archive) != expected["rows"]:
        faults.append("other rows than an undisturbed archive")
    if _published(archive) != expected["files"]:
        faults.append("other files than an undisturbed archive")
    faults += [f"temporary file left: {path.name}" for path in _temporary(archive)]
    faults += _opened(archive, expected["rows"], reference)[1]
    rows = _rows(archive, volatile=True)
    archives.fsck(archive)
    if _rows(archive, volatile=True) != rows:
        faults.append("rebuilding the index gives other rows")
    return faults


def kill_later(command: Sequence[str], *, until: str, after: float) -> tuple[float, bool]:
    """Run a command, and SIGKILL it some seconds after a file has appeared.

    Returns
    -------
    lived, was_killed
        Seconds that it lived on after the file appeared, and whether it did not end by itself.
    """
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not Path(until).exists() and process.poll() is None:
        time.sleep(_POLL_SECONDS)
    began = time.monotonic()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after)
    lived = time.monotonic() - began
    process.kill()
    return lived, process.wait() == -signal.SIGKILL


def fill_at(
    archive: str,
    files: Sequence[str],
    reference: str,
    *,
    held: Sequence[str],
    full_from: int,
    rebuild: bool = False,
) -> dict[str, Any]:
    """Ingest onto a disk that is full from some call on; then let there be space, and go on."""
    shim = Shim()
    shim.arm(str(Path(archive).parent), full_from=full_from)
    with _decoding_here(), dask.config.set(scheduler="synchronous"):
        message = _message_of(archive, files, rebuild=rebuild)
        result = _disturbed(message, inspect(archive, reference, held=held))
        shim.arm(_ELSEWHERE)
        result["faults"] += complete(archive, files, reference, rebuild=rebuild)
    return result


def fill_limited(
    archive: str, files: Sequence[str], reference: str, *, held: Sequence[str], blocks: int
) -> dict[str, Any]:
    """Ingest where no file may have more than some blocks; then lift the limit, and go on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (blocks * BLOCK, hard))
    with _decoding_here():
        message = _message_of(archive, files)
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    result = _disturbed(message, inspect(archive, reference, held=held))
    result["faults"] += complete(archive, files, reference)
    return result


def fill_mounted(
    base: str,
    folder: str,
    files: Sequence[str],
    reference: str,
    *,
    held: Sequence[str],
    blocks: int = -1,
    inodes: int = -1,
) -> dict[str, Any]:
    """Ingest onto a small file system with so many free blocks, or free inodes."""
    options = f"size={TMPFS_BYTES},nr_inodes=2000"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)
    archive = shutil.copytree(Path(base, "archive"), Path(folder, "case", "archive"))
    ballast = Path(folder, "ballast")
    ballast.mkdir()
    free = os.statvfs(folder)
    if blocks >= 0:
        with (ballast / "bytes").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, (free.f_bavail - blocks) * free.f_bsize)
    for number in range(free.f_favail - inodes if inodes >= 0 else 0):
        (ballast / str(number)).touch()
    with _decoding_here():
        message = _message_of(str(archive), files)
    return _disturbed(message, inspect(str(archive), reference, held=held))


def complete_mounted(folder: str, files: Sequence[str], reference: str) -> list[str]:
    """Give the space back, do the same again, and unmount; give what differs."""
    shutil.rmtree(Path(folder, "ballast"))
    try:
        with _decoding_here():
            return complete(str(Path(folder, "case", "archive")), files, reference)
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@contextlib.contextmanager
def _decoding_here() -> Iterator[None]:
    """Decode in this process; the inputs have one block of one variable each."""

    def decode(path: Path, *, reader: str = "") -> Iterator[Any]:
        with framefiles.LIBRARY:
            observed = read(path, reader=reader).load()
        header, arrays = blocks.pack(observed, variable_of(observed))
        parts = iter(arrays)
        header = json.loads(json.dumps(header))

        def fill(memory: memoryview) -> None:
            memory[:] = memoryview(next(parts)).cast("B")

        yield check_observations(blocks.unpack(header, fill, largest_frame=observed.nbytes))

    children = archives.decode
    archives.decode = decode
    try:
        yield
    finally:
        archives.decode = children


def _message_of(archive: str, files: Sequence[str], *, rebuild: bool = False) -> str:
    """Ingest, or make the index anew; give what was said if that failed."""
    try:
        if rebuild:
            archives.fsck(archive)
        else:
            archives.ingest(files, archive)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def _disturbed(message: str, seen: dict[str, Any]) -> dict[str, Any]:
    clear = not message or any(word in message.lower() for word in SPEAKS_OF_SPACE)
    unclear = [] if clear else [f"unclear message: {message}"]
    return {**seen, "message": message, "faults": [*seen["faults"], *unclear]}


def _rows(archive: str, *, volatile: bool = False) -> list[dict[str, Any]]:
    """Give the rows of the index, read from a copy so that nothing is repaired."""
    with tempfile.TemporaryDirectory() as copies:
        for suffix in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                shutil.copy(Path(archive, INDEX + suffix), copies)
        with contextlib.closing(sqlite3.connect(Path(copies, INDEX))) as index:
            try:
                found = index.execute("SELECT * FROM frames")
                names = [column[0] for column in found.description]
                rows = [dict(zip(names, row, strict=True)) for row in found]
            except sqlite3.DatabaseError:
                return []  # not made yet, or damaged: nothing is acknowledged
    kept = [{k: v for k, v in row.items() if volatile or k != _VOLATILE} for row in rows]
    return sorted(kept, key=_key)


def _key(row: dict[str, Any]) -> str:
    names = ("source", "product", "grid_id", "variable", "time", "input_sha256")
    return " ".join(str(row[name]) for name in names)


def _time(row: dict[str, Any]) -> np.datetime64:
    return np.datetime64(row["time"], "s").astype("datetime64[ns]")


def _of(rows: list[dict[str, Any]], files: Sequence[str]) -> list[dict[str, Any]]:
    digests = {durable.sha256(path) for path in files}
    return [row for row in rows if row["input_sha256"] in digests]


def _files(archive: str) -> Iterator[Path]:
    paths = (path.relative_to(archive) for path in Path(archive).rglob("*"))
    own = {".lock", *(INDEX + suffix for suffix in ("", "-journal", "-wal", "-shm"))}
    return (path for path in paths if path.name not in own and not Path(archive, path).is_dir())


def _temporary(archive: str) -> list[Path]:
    return [path for path in _files(archive) if durable.is_temporary(path)]


def _published(archive: str) -> dict[str, str]:
    """Give the hash of every file that has its final name."""
    paths = [path for path in _files(archive) if not durable.is_temporary(path)]
    return {path.as_posix(): _fingerprint(Path(archive, path)) for path in paths}


def _fingerprint(path: Path) -> str:
    """Give the hash of a file; of a note in quarantine without the time of writing."""
    if path.suffix != ".json":
        return durable.sha256(path)
    try:
        note = json.loads(path.read_text())
    except ValueError:
        return "no JSON"
    text = json.dumps({**note, "time": ""}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _reference(folder: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(folder, "archive.json").read_text())
    return content


def _opened(archive: str, rows: list[dict[str, Any]], reference: str) -> tuple[float, list[str]]:
    """Open and read everything; give the seconds that opening took, and what is wrong."""
    active: dict[str, dict[Any, dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["version"], row["input_sha256"])):
        part = "/".join(row[name] for name in ("source", "product", "grid_id"))
        active.setdefault(part, {})[_time(row)] = row
    faults = []
    began = time.perf_counter()
    opened = {}
    for part in active:
        try:
            opened[part] = archives.open_archive(archive, source=part)
        except Exception as error:
            faults.append(f"{part} does not open: {type(error).__name__}: {error}")
    seconds = time.perf_counter() - began
    if seconds > SLOWEST_OPENING:
        faults.append(f"opened in {seconds:.1f} s")
    with np.load(Path(reference, "values.npz")) as values, dask.config.set(scheduler="synchronous"):
        for part, observed in opened.items():
            faults += _compared(observed, active[part], values)
    return seconds, faults


def _compared(observed: Any, rows: dict[Any, dict[str, Any]], values: Any) -> list[str]:
    times = list(observed["time"].values)
    if times != sorted(rows):
        return [f"other times than the index: {times}"]
    name = rows[times[0]]["variable"]
    try:
        read_back = observed[name].values
    except Exception as error:
        return [f"cannot be read: {error}"]
    expected = np.stack([values[_key(rows[time])] for time in times])
    return [] if np.array_equal(read_back, expected, equal_nan=True) else ["other values"]
