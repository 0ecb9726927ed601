"""The frame archive: one immutable file per frame, and an index that the files can rebuild.

Files lie in ``ARCHIVE/<source>/<product>/<grid_id>/YYYY/MM/DD/HHMMSSZ-<hash>.nc``, named only from
their content, so that a frame arriving twice is one file, whatever the order of arrival. The
index, ``ARCHIVE/index.sqlite``, says which frames there are; a frame is in the archive once its
row is. What cannot be read, or contradicts what is known of its source, goes to
``ARCHIVE/quarantine``, with the reason.
"""

import contextlib
import datetime
import hashlib
import json
import logging
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nowcast import __version__, durable
from nowcast.conventions import (
    GRID_MAPPING,
    check_observations,
    check_values,
    grid_id,
    known_variable,
    select,
    variable_of,
)
from nowcast.data import framefiles, index
from nowcast.data.contracts import check_contract, check_name, contract_of
from nowcast.data.decoding import Overrun, decode
from nowcast.data.framefiles import sanitise
from nowcast.data.index import Frame
from nowcast.data.quality import FLAGS, frame_statistics, quality_flags, quality_variable
from nowcast.data.readers import auxiliary, expand, first_line, is_zarr

QUARANTINE = "quarantine"
FRAMES_PER_CHUNK = 32  # of an opened archive, unless that is more than
LARGEST_CHUNK = 128_000_000  # bytes
LARGEST_KEPT = 256_000_000  # bytes of values; what holds more is decoded again to be written
FILES_PER_BATCH = 32  # decoded together, then acknowledged in the index
FRAMES_PER_CHECK = 256  # files of frames that one task checks
LARGEST_COPY = 100_000_000  # bytes; a larger bad file is described in quarantine, not copied
TASKS_AT_ONCE = 16  # of those
CHECKSUMS = (".sha256", ".md5")  # of a sender, in a file of the same name and this beside it
LONGEST_CHECKSUM = 200  # bytes of such a file that are read
LEAST_SPACE = 1_000_000  # bytes that must be free for an ingest to begin
FUTURE = 120  # seconds that a sender's clock may be ahead of ours

# What the content of a file can make a check or the writer raise, an odd attribute for one.
_OF_THE_FILE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError)
_DIGITS = re.compile(r"\d+")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class IngestReport:
    """What became of the files given to `ingest`.

    Parameters
    ----------
    added
        Frames that are new in the archive.
    already_there
        Frames whose input had been ingested before, with the same bytes.
    refused
        Files that were not taken, each with the reason.
    skipped
        Files that hold no frames but belong to some that do, each with what they are.
    """

    added: int = 0
    already_there: int = 0
    refused: tuple[tuple[str, str], ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: "IngestReport") -> "IngestReport":
        return IngestReport(
            self.added + other.added,
            self.already_there + other.already_there,
            self.refused + other.refused,
            self.skipped + other.skipped,
        )


@dataclass(frozen=True)
class Checked:
    """What `fsck` found.

    Parameters
    ----------
    frames
        Whole frames, all in the index now.
    restored
        Of those, frames that were not in the index before.
    damaged
        Files that are not what was written, each with the reason; they stay, and count no more.
    gone
        Files that the index named and that are not there.
    """

    frames: int = 0
    restored: int = 0
    damaged: tuple[tuple[str, str], ...] = ()
    gone: tuple[str, ...] = ()


def ingest(
    files: Path | str | Iterable[Path | str],
    archive: Path | str,
    *,
    reader: str = "",
    contracts: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> IngestReport:
    """Take radar files into the archive; the same bytes twice change nothing.

    Files are decoded in child processes with limits, checked against what is known of their
    source, and written in parallel by Dask, in threads or by the current client; they are
    acknowledged batch by batch: after a crash, ingest the same files again. Other bytes for a
    time that is already there are kept beside the first; `open_archive` says which count. A bad
    file never stops the others: it is reported, and put into quarantine with the reason.

    Parameters
    ----------
    files
        Paths, patterns or folders of files; a file may hold many frames.
    archive
        Folder; made if missing.
    reader
        One of `nowcast.data.readers.READERS`; empty: found by the content of each file.
    contracts
        TOML file of contracts beside those that come with nowcast; see `nowcast.data.contracts`.
    progress
        Called after each batch with the number of files done and that of all files.

    Examples
    --------
    >>> import tempfile
    >>> from nowcast.data.synthetic import synthesise
    >>> folder = Path(tempfile.mkdtemp())
    >>> observed = synthesise(hours=1, size=16).isel(time=slice(4))
    >>> observed["time"].encoding["units"] = "seconds since 1970-01-01"
    >>> observed.to_netcdf(folder / "rain.nc")
    >>> ingest(folder / "rain.nc", folder / "archive").added
    4
    >>> ingest(folder / "rain.nc", folder / "archive").already_there
    4
    """
    archive = Path(archive).resolve()
    durable.make_folder(archive)
    durable.require_space(archive, LEAST_SPACE)
    with _only_one_writer(archive):
        sweep(archive)
        if not _is_indexed(archive):
            _rebuild(archive)
        paths, report = _files(files)
        task = _Task(str(archive), reader, str(contracts.resolve()) if contracts else "")
        with index.connect(archive) as connection:
            for start in range(0, len(paths), FILES_PER_BATCH):
                batch = paths[start : start + FILES_PER_BATCH]
                report += _ingest_batch(batch, task, connection)
                if progress:
                    progress(start + len(batch), len(paths))
    return report


def watch(
    folder: Path | str,
    archive: Path | str,
    *,
    every_seconds: float = 10.0,
    reader: str = "",
    contracts: Path | None = None,
) -> Iterator[IngestReport]:
    """Follow a folder into which a feed writes, for ever; give a report of each round.

    A file is taken once its size and time of change have stayed the same for one round; names
    that start with a dot are being written and are left alone.

    Parameters
    ----------
    folder
        Watched with all that is below it.
    archive, reader, contracts
        See `ingest`.
    every_seconds
        Between two looks.

    Yields
    ------
    IngestReport
        Of the files taken in this round; an empty one where there was none.
    """
    taken: dict[Path, tuple[int, int]] = {}
    before: dict[Path, tuple[int, int]] = {}
    while True:
        now = _states(Path(folder))
        settled = [p for p, state in now.items() if before.get(p) == state != taken.get(p)]
        if settled:
            yield ingest(settled, archive, reader=reader, contracts=contracts)
        else:
            yield IngestReport()
        taken = {p: state for p, state in taken.items() if p in now}
        taken.update({path: now[path] for path in settled})
        before = now
        time.sleep(every_seconds)


def open_archive(archive: Path | str, *, source: str = "") -> xr.Dataset:
    """Open one partition of an archive lazily, as observations.

    Times come from the index and the grid from one frame; the others are read, and their hashes
    checked, when values are computed. Of several frames for one time, the sender's latest version
    counts, and of those with the same version that with the greatest input hash: a rule of
    content alone, the same whatever arrived first.

    Parameters
    ----------
    archive
        Folder.
    source
        ``source``, ``source/product`` or ``source/product/grid_id``; may be empty if the archive
        holds one partition only.

    Returns
    -------
    xr.Dataset
        Observations in Dask chunks of many frames (`FRAMES_PER_CHUNK`); a missing frame is absent.
        The coordinate ``quality_flag(time)`` says what is suspicious of a frame; see
        `nowcast.data.quality`.

    Raises
    ------
    ValueError
        If `source` fits no partition, or several; the message lists those there are.
    """
    archive = Path(archive).resolve()
    part = _partition(archive, source)
    names = index.variables(archive, part)
    if len(names) > 1:
        raise ValueError(f"{archive} holds {', '.join(names)} as one product; ingest them apart")
    return check_observations(_assemble(archive, names[0], index.series(archive, part)))


def partitions(archive: Path | str) -> dict[str, tuple[int, str, str]]:
    """Give the parts of an archive, ``source/product/grid_id``: number of times, first and last.

    Raises
    ------
    ValueError
        If the folder is no archive.
    """
    held = index.partitions(Path(archive))
    return {part: (n, _iso(first), _iso(last)) for part, (n, first, last) in held.items()}


def fsck(archive: Path | str, *, progress: Callable[[int, int], None] | None = None) -> Checked:
    """Check every frame against its hash, and make the index anew from the files that are whole.

    Nothing is deleted: ingest the inputs of damaged or lost frames again, and they are replaced.

    Parameters
    ----------
    archive
        Folder.
    progress
        Called with the number of files checked and that of all files.

    Raises
    ------
    ValueError
        If the folder holds no frames and no index.
    """
    archive = Path(archive).resolve()
    if not is_archive(archive) and not any(archive.glob(framefiles.FRAME_FILES)):
        raise ValueError(f"{archive} is no archive: it holds neither an index nor frames")
    with _only_one_writer(archive):
        sweep(archive)
        return _rebuild(archive, progress)


def sweep(archive: Path | str) -> int:
    """Remove the unfinished files of processes that died; give their number."""
    archive = Path(archive)
    left = [path for path in archive.rglob("*") if durable.is_temporary(path.relative_to(archive))]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def is_archive(path: Path | str) -> bool:
    """Tell whether a folder is a frame archive."""
    return (Path(path) / index.INDEX).is_file()


class _ForNowError(ValueError):
    """What stands against a file today, and may not tomorrow."""


@dataclass(frozen=True)
class _Task:
    """What a task needs beside its file, in plain types that travel to any worker."""

    archive: str
    reader: str
    contracts: str

    def judge(self, path: Path) -> str:
        """By what a file was refused: by another, it is tried again.

        The name belongs to it, since a name may hold another time than the file.
        """
        own = durable.sha256(self.contracts)[:12] if self.contracts else ""
        name = os.fsencode(path.name).decode("utf-8", "backslashreplace")
        return " ".join(part for part in (__version__, self.reader, own, name) if part)


def _files(files: Path | str | Iterable[Path | str]) -> tuple[list[Path], IngestReport]:
    """Give every file that is named or lies in a named folder, and what is not there."""
    report, found = IngestReport(), []
    for part in [files] if isinstance(files, Path | str) else files:
        try:
            found += expand(part)
        except FileNotFoundError as error:
            report += IngestReport(refused=((str(part), str(error)),))
    folders = {path for path in found if path.is_dir() and not is_zarr(path)}
    inside = {path: sorted(filter(Path.is_file, path.rglob("[!.]*"))) for path in folders}
    return [each for path in found for each in inside.get(path, [path])], report


def _states(folder: Path) -> dict[Path, tuple[int, int]]:
    states = {}
    for path in sorted(folder.rglob("[!.]*")):
        with contextlib.suppress(FileNotFoundError):  # taken away since it was listed
            state = path.stat()
            if path.is_file():
                states[path] = (state.st_size, state.st_mtime_ns)
    return states


def _ingest_batch(paths: list[Path], task: _Task, connection: sqlite3.Connection) -> IngestReport:
    import dask

    unseen, report = _unseen(paths, task, connection)
    stored = [
        dask.delayed(_store)(str(path.resolve()), digest, task) for digest, path in unseen.items()
    ]
    for path, (frames, reason) in zip(unseen.values(), dask.compute(*stored), strict=True):
        refused = ((str(path), reason),) if reason else ()
        report += IngestReport(index.insert(connection, frames), 0, refused)
    return report


def _unseen(
    paths: list[Path], task: _Task, connection: sqlite3.Connection
) -> tuple[dict[str, Path], IngestReport]:
    """Give the files, by hash, of which not every frame is in the index yet."""
    unseen: dict[str, Path] = {}
    report = IngestReport()
    for path in paths:
        try:
            what = _checksum_of(path) or auxiliary(path)
            digest = "" if what else _content_sha256(path)
        except (OSError, ValueError) as error:
            report += IngestReport(refused=((str(path), first_line(error)),))
            continue
        if what:
            report += IngestReport(skipped=((str(path), what),))
            continue
        count, expected = index.known_frames(connection, digest)
        reason = _refused_before(Path(task.archive), digest, task.judge(path))
        if count and count == expected:
            report += IngestReport(already_there=count)
        elif reason:
            report += IngestReport(refused=((str(path), reason),))
        else:
            unseen.setdefault(digest, path)
    return unseen, report


def _content_sha256(path: Path) -> str:
    """Give the hash of a file, or of all files of a Zarr store."""
    if path.is_file():
        return durable.sha256(path)
    if not path.is_dir():
        raise ValueError("is neither a file nor a folder")
    parts = [f"{p.relative_to(path)} {durable.sha256(p)}" for p in path.rglob("*") if p.is_file()]
    return hashlib.sha256("\n".join(sorted(parts)).encode(errors="surrogateescape")).hexdigest()


def _checksum_of(path: Path) -> str:
    """Tell what a file is that holds nothing but the checksum of the one beside it."""
    beside = path.with_suffix("")
    return f"checksum of {beside.name}" if path.suffix in CHECKSUMS and beside.is_file() else ""


def _check_sent(path: Path) -> None:
    """Refuse a file that is not what its sender's checksum, in a file beside it, promises."""
    for suffix in CHECKSUMS:
        sent = path.with_name(path.name + suffix)
        if not (path.is_file() and sent.is_file()):
            continue
        with sent.open("rb") as file:
            words = file.read(LONGEST_CHECKSUM).decode(errors="replace").lower().split()
        with path.open("rb") as file:
            found = hashlib.file_digest(file, suffix[1:]).hexdigest()
        if words[:1] != [found]:
            promised = " ".join(words[:1]) or "nothing"
            message = f"{sent.name} promises {promised}, but it is {found}; fetch it again"
            raise _ForNowError(message)


def _store(path: str, digest: str, task: _Task) -> tuple[list[Frame], str]:
    """Write the frames of one file; give their rows, or the reason to refuse the file.

    Runs as a Dask task, and again if a worker dies: the same file gives the same frames. Only
    what lies in the file is refused: a full disk raises.
    """
    archive = Path(task.archive)
    try:
        _check_sent(Path(path))
        blocks, layout = _checked(Path(path), task)
        if _content_sha256(Path(path)) != digest:
            raise _ForNowError("changed while it was read; ingest it once it is complete")
        again = iter(blocks) if blocks is not None else decode(Path(path), reader=task.reader)
        rows = list(_written(again, digest, layout, archive))
    except (FileNotFoundError, PermissionError, ImportError) as error:  # nothing in the file
        return [], first_line(error)
    except _OF_THE_FILE as error:
        reason = first_line(error).removeprefix(path).lstrip(": ") or type(error).__name__
        judge = "" if isinstance(error, _ForNowError | Overrun) else task.judge(Path(path))
        _quarantine(Path(path), digest, archive, reason, judge)
        return [], reason
    _release(digest, archive)
    return rows, ""


def _written(
    blocks: Iterator[xr.Dataset], digest: str, layout: "_Layout", archive: Path
) -> Iterator[Frame]:
    for block in blocks:
        for position in range(block.sizes["time"]):
            frame = block.isel(time=[position])
            yield framefiles.write(frame, _row(frame, digest, layout), archive)


@dataclass
class _Layout:
    """What is known of a file once all of it was checked."""

    variables: set[str] = field(default_factory=set)
    frames: int = 0
    unproven: set[str] = field(default_factory=set)


def _checked(path: Path, task: _Task) -> tuple[list[xr.Dataset] | None, _Layout]:
    """Check all of a file; give its blocks too if they are small enough to be kept."""
    layout, kept, size = _Layout(), [], 0
    for block in decode(path, reader=task.reader):
        _check(block, path.name, task, layout)
        size += block.nbytes
        if size <= LARGEST_KEPT:
            kept.append(block)
    if not layout.frames:
        raise ValueError("holds no frame")
    return (kept if size <= LARGEST_KEPT else None), layout


def _check(block: xr.Dataset, file: str, task: _Task, layout: _Layout) -> None:
    name = variable_of(block)
    times = block["time"].values
    if (times.astype("datetime64[s]") != times).any():
        raise ValueError("times must be whole seconds; some have fractions")
    if _seconds(times[-1]) > time.time() + FUTURE:
        raise _ForNowError(f"the frame of {_iso(_seconds(times[-1]))} lies in the future")
    check_values(block)
    source, product = (str(block.attrs.get(part, "")) for part in ("source", "product"))
    extra = Path(task.contracts) if task.contracts else None
    contract = contract_of(source, product, extra)
    if contract:
        check_contract(block, contract)
        check_name(file, block["time"].to_index(), contract)
    else:
        layout.unproven.add(name)
    layout.variables.add(name)
    layout.frames += block.sizes["time"]


def _row(frame: xr.Dataset, digest: str, layout: _Layout) -> Frame:
    """Give the row of one frame, of which what is only known on disk is still empty."""
    name = variable_of(frame)
    values = frame[name]
    start, end = None, None
    if "time_bnds" in frame.variables:
        start, end = (_seconds(bound) for bound in frame["time_bnds"].values[0])
    flags = FLAGS["unit_unproven"].mask if name in layout.unproven else 0
    if values.attrs.get("out_of_range", 0):
        flags |= FLAGS["out_of_range"].mask
    return Frame(
        source=sanitise(str(frame.attrs.get("source", ""))),
        product=sanitise(_product(frame, name, alone=len(layout.variables) == 1)),
        grid_id=grid_id(frame),
        variable=name,
        time=_seconds(frame["time"].values[0]),
        bounds_start=start,
        bounds_end=end,
        version=_version(frame),
        input_sha256=digest,
        input_frames=layout.frames,
        flags=flags,
        statistics=frame_statistics(values.values[0], known_variable(frame)),
    )


def _product(frame: xr.Dataset, name: str, *, alone: bool) -> str:
    given = str(frame.attrs.get("product", ""))
    return given if given and alone else f"{given}-{name}" if given else name


def _version(frame: xr.Dataset) -> str:
    """Give the sender's version of a frame, so written that the later one sorts last."""
    given = frame.attrs.get("product_version") or frame.attrs.get("product_time") or ""
    return _DIGITS.sub(lambda digits: digits[0].zfill(12), str(given))[:200]


def _seconds(at: Any) -> int:
    return int(np.datetime64(at, "s").astype(np.int64))


def _iso(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _quarantine(path: Path, digest: str, archive: Path, reason: str, judge: str) -> None:
    folder = archive / QUARANTINE
    copy = folder / f"{digest[:16]}.data"
    copied = path.is_file() and path.stat().st_size <= LARGEST_COPY
    if copied:
        with durable.replacing(copy) as temporary:
            shutil.copyfile(path, temporary)
    note = {
        "file": os.fsencode(path).decode("utf-8", "backslashreplace"),
        "sha256": digest,
        "reason": reason,
        "judge": judge,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "copy": copy.name if copied else "",
    }
    durable.write_json(folder / f"{digest[:16]}.json", note)


def _refused_before(archive: Path, digest: str, judge: str) -> str:
    """Give why this content was refused by the same judge; empty if it was not."""
    try:
        note = json.loads((archive / QUARANTINE / f"{digest[:16]}.json").read_text())
    except (FileNotFoundError, ValueError):
        return ""
    same = note.get("sha256") == digest and note.get("judge") == judge
    return str(note["reason"]) if same else ""


def _release(digest: str, archive: Path) -> None:
    """Take out of quarantine what was accepted after all."""
    for suffix in (".json", ".data"):
        (archive / QUARANTINE / f"{digest[:16]}{suffix}").unlink(missing_ok=True)


@contextlib.contextmanager
def _only_one_writer(archive: Path) -> Iterator[None]:
    """Wait for other processes to finish writing; the lock ends with its process."""
    import fcntl

    with (archive / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_indexed(archive: Path) -> bool:
    return is_archive(archive) and index.is_current(archive)


def _partition(archive: Path, source: str) -> str:
    names = index.parts(archive)
    if not names:
        raise ValueError(f"the archive {archive} holds no frames")
    wanted = [sanitise(part) for part in source.split("/") if part]
    fitting = [part for part in names if part.split("/")[: len(wanted)] == wanted]
    if len(fitting) == 1:
        return fitting[0]
    held = partitions(archive)
    lines = [f"{part} ({n} frames, {first}..{last})" for part, (n, first, last) in held.items()]
    problem = f"source {source!r} fits {len(fitting) or 'none'}" if source else "name one as source"
    raise ValueError(f"{archive} holds {len(held)} partitions; {problem}: {'; '.join(lines)}")


def _assemble(archive: Path, name: str, frames: dict[str, np.ndarray]) -> xr.Dataset:
    one = archive / frames["path"][0].decode()
    framefiles.content(one, frames["sha256"][0].decode())  # the grid of all is taken from it
    with framefiles.LIBRARY, xr.open_dataset(one, engine="netcdf4") as first:
        pattern = select(first.drop_encoding().set_coords([GRID_MAPPING]), name)
        pattern = pattern.drop_vars(["time", "time_bnds"], errors="ignore")
        grid = pattern.drop_vars(name).load()
        attributes = dict(pattern[name].attrs)
    grid.attrs = {k: v for k, v in grid.attrs.items() if k != framefiles.MARK}
    shape = (grid.sizes["y"], grid.sizes["x"])
    values = _lazy(archive, name, frames, shape)
    array = xr.DataArray(values, dims=("time", "y", "x"), attrs=attributes)
    observed = grid.assign_coords(_times(frames)).assign({name: array})
    times = observed["time"].values
    flags = quality_flags(times, frames, ingested=frames["flags"].astype(np.int32))
    return observed.assign_coords(quality_flag=quality_variable(times, flags))


def _times(frames: dict[str, np.ndarray]) -> dict[str, Any]:
    times = _datetimes(frames["time"])
    attributes = {"standard_name": "time"}
    bounds = [frames["bounds_start"], frames["bounds_end"]]
    if any(np.isnan(bound).any() for bound in bounds):
        return {"time": ("time", times, attributes)}
    return {
        "time": ("time", times, {**attributes, "bounds": "time_bnds"}),
        "time_bnds": (("time", "bnds"), np.stack([_datetimes(b) for b in bounds], axis=1)),
    }


def _datetimes(seconds: np.ndarray) -> np.ndarray:
    return seconds.astype("datetime64[s]").astype("datetime64[ns]")


def _lazy(archive: Path, name: str, frames: dict[str, np.ndarray], shape: tuple[int, int]) -> Any:
    import dask.array

    times = frames["time"].astype(np.int64).astype("S")
    content = np.stack([frames["path"], frames["sha256"], times], axis=1)
    fitting = LARGEST_CHUNK // (shape[0] * shape[1] * np.dtype(np.float32).itemsize)
    size = max(1, min(FRAMES_PER_CHUNK, fitting))
    rows = dask.array.from_array(content, chunks=(size, 3))
    return rows.map_blocks(
        _read_block,
        archive=str(archive),
        variable=name,
        shape=shape,
        drop_axis=1,
        new_axis=[1, 2],
        chunks=(rows.chunks[0], (shape[0],), (shape[1],)),
        meta=np.empty((0, 0, 0), np.float32),
    )


def _read_block(rows: Any, *, archive: str, variable: str, shape: tuple[int, int]) -> Any:
    block = np.empty((len(rows), *shape), np.float32)
    for position, (path, sha256, at) in enumerate(rows):
        frame = Path(archive, path.decode())
        block[position] = framefiles.values(frame, sha256.decode(), variable, time=int(at))
    return block


def _rebuild(archive: Path, progress: Callable[[int, int], None] | None = None) -> Checked:
    import dask

    known = _known(archive)
    paths = sorted(
        path.relative_to(archive).as_posix() for path in archive.glob(framefiles.FRAME_FILES)
    )
    rows: list[Frame] = []
    damaged: list[tuple[str, str]] = []
    tasks = [
        dask.delayed(_checked_frames)(part, [known.get(path, "") for path in part], str(archive))
        for part in (
            paths[n : n + FRAMES_PER_CHECK] for n in range(0, len(paths), FRAMES_PER_CHECK)
        )
    ]
    done = 0
    for start in range(0, len(tasks), TASKS_AT_ONCE):
        for whole, bad, count in dask.compute(*tasks[start : start + TASKS_AT_ONCE]):
            rows += whole
            damaged += bad
            done += count
        if progress:
            progress(done, len(paths))
    for _, reason in damaged:
        _LOG.warning("left out of the index: %s", reason)
    index.refill(archive, rows)
    gone = tuple(sorted(set(known) - set(paths)))
    restored = sum(row.path not in known for row in rows)
    return Checked(len(rows), restored, tuple(damaged), gone)


def _known(archive: Path) -> dict[str, str]:
    """Give the hashes that the index knows; none, and no index, if it cannot be used."""
    try:
        if _is_indexed(archive):
            return index.hashes(archive)
    except ValueError as error:
        _LOG.warning("%s", error)
    index.remove(archive)
    return {}


def _checked_frames(
    paths: list[str], hashes: list[str], archive: str
) -> tuple[list[Frame], list[tuple[str, str]], int]:
    whole, damaged = [], []
    for path, sha256 in zip(paths, hashes, strict=True):
        try:
            row = framefiles.described(Path(archive, path), Path(archive))
            if sha256 and row.sha256 != sha256:
                raise ValueError(f"the frame {path} is damaged: its bytes are not those written")
        except (OSError, ValueError) as error:
            damaged.append((path, str(error)))
        else:
            whole.append(row)
    return whole, damaged, len(paths)
