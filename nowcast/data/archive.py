"""The frame archive: one immutable file per frame, and an index that the files can rebuild.

Files lie in ``ARCHIVE/<source>/<product>/<grid_id>/YYYY/MM/DD/HHMMSSZ-<hash>.nc``, named only from
their content, so that a frame arriving twice is one file, whatever the order of arrival. The
index, ``ARCHIVE/index.sqlite``, says which frames there are; a frame is in the archive once its
row is. What cannot be read goes to ``ARCHIVE/quarantine``, with the reason.
"""

import contextlib
import datetime
import hashlib
import io
import logging
import os
import re
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nowcast import durable
from nowcast.conventions import (
    CF_CONVENTIONS,
    GRID_MAPPING,
    check_observations,
    check_values,
    grid_id,
    select,
    variable_of,
)
from nowcast.data.readers import expand, first_line, is_zarr, read, sniff

INDEX = "index.sqlite"
INDEX_VERSION = 1  # of the schema; an index of another, or one left unfinished, is made anew
QUARANTINE = "quarantine"
FRAMES_PER_CHUNK = 32  # of an opened archive, unless that is more than
LARGEST_CHUNK = 128_000_000  # bytes
FILES_PER_BATCH = 32  # decoded together, then acknowledged in the index
LARGEST_COPY = 100_000_000  # bytes; a larger bad file is described in quarantine, not copied

_THREAD_SAFE = frozenset({"knmi"})  # readers that do not use the netCDF library
_KEPT_ATTRIBUTES = ("title", "institution", "source", "product", "references", "license", "comment")
_MARK = "nowcast_"  # before the attributes from which the index can be rebuilt
_UNSAFE = re.compile(r"[^a-z0-9_-]+")
_LIBRARY = threading.RLock()  # the netCDF library is not safe in threads: its users take turns
_FRAME_FILES = "*/*/*/[0-9][0-9][0-9][0-9]/[0-9][0-9]/[0-9][0-9]/[0-9]*.nc"
_LOG = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS frames (
    source TEXT NOT NULL,
    product TEXT NOT NULL,
    grid_id TEXT NOT NULL,
    variable TEXT NOT NULL,
    time TEXT NOT NULL,           -- nominal, UTC
    bounds_start TEXT NOT NULL,   -- of the observed interval, UTC; empty where unknown
    bounds_end TEXT NOT NULL,
    path TEXT NOT NULL,           -- within the archive
    sha256 TEXT NOT NULL,         -- of the frame's file
    input_sha256 TEXT NOT NULL,   -- of the file it was read from
    input_frames INTEGER NOT NULL,  -- in that file
    arrived TEXT NOT NULL,        -- when its file was written, UTC
    UNIQUE (source, product, grid_id, variable, time, input_sha256)
);
CREATE INDEX IF NOT EXISTS inputs ON frames (input_sha256);
"""


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
    """

    added: int = 0
    already_there: int = 0
    refused: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class _Frame:
    """One row of the index."""

    source: str
    product: str
    grid_id: str
    variable: str
    time: str
    bounds_start: str
    bounds_end: str
    path: str
    sha256: str
    input_sha256: str
    input_frames: int
    arrived: str

    @property
    def partition(self) -> str:
        return f"{self.source}/{self.product}/{self.grid_id}"


_NAMES = [field.name for field in fields(_Frame)]
_COLUMNS = ", ".join(_NAMES)
_FROM_DISK = {"path", "sha256", "arrived"}  # what is known of a frame only once it is written


def ingest(
    files: Path | str | Iterable[Path | str],
    archive: Path | str,
    *,
    reader: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> IngestReport:
    """Take radar files into the archive; the same bytes twice change nothing.

    Files are decoded in parallel by Dask, in threads or by the current client, and acknowledged
    batch by batch: after a crash, ingest the same files again. Other bytes for a time that is
    already there are kept beside the first; `open_archive` says which count. A bad file never
    stops the others: it is reported, and put into quarantine with the reason.

    Parameters
    ----------
    files
        Paths, patterns or folders of files; a file may hold many frames.
    archive
        Folder; made if missing.
    reader
        One of `nowcast.data.readers.READERS`; empty: found by the content of each file.
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
    >>> ingest(folder / "rain.nc", folder / "archive")
    IngestReport(added=0, already_there=4, refused=())
    """
    archive = Path(archive).resolve()
    archive.mkdir(parents=True, exist_ok=True)
    with _only_one_writer(archive):
        sweep(archive)
        if not _is_indexed(archive):
            _rebuild(archive)
        paths, report = _files(files)
        with _index(archive) as index:
            for start in range(0, len(paths), FILES_PER_BATCH):
                batch = paths[start : start + FILES_PER_BATCH]
                report = _plus(report, _ingest_batch(batch, archive, reader, index))
                if progress:
                    progress(start + len(batch), len(paths))
    return report


def open_archive(archive: Path | str, *, source: str = "") -> xr.Dataset:
    """Open one partition of an archive lazily, as observations.

    Times come from the index and the grid from one frame; the others are read, and their hashes
    checked, when values are computed. Of several frames for one time, that with the greatest
    input hash counts: a rule of content alone, the same whatever arrived first.

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

    Raises
    ------
    ValueError
        If `source` fits no partition, or several; the message lists those there are.
    """
    archive = Path(archive).resolve()
    frames = _active(archive, _partition(archive, source))
    variables = sorted({frame.variable for frame in frames})
    if len(variables) > 1:
        raise ValueError(
            f"{archive} holds {', '.join(variables)} as one product; ingest them apart"
        )
    return check_observations(_assemble(archive, frames))


def partitions(archive: Path | str) -> dict[str, tuple[int, str, str]]:
    """Give the parts of an archive, ``source/product/grid_id``: number of times, first and last.

    Raises
    ------
    ValueError
        If the folder is no archive.
    """
    query = (
        "SELECT source || '/' || product || '/' || grid_id AS part, COUNT(DISTINCT time),"
        " MIN(time), MAX(time) FROM frames GROUP BY part ORDER BY part"
    )
    rows = _query(Path(archive), query)
    return {part: (count, first, last) for part, count, first, last in rows}


def rebuild_index(archive: Path | str) -> IngestReport:
    """Make the index anew, from the files of the frames alone.

    Returns
    -------
    IngestReport
        `added` counts the frames indexed; `refused` names the damaged files, which stay.
    """
    with _only_one_writer(Path(archive).resolve()):
        return _rebuild(Path(archive).resolve())


def sweep(archive: Path | str) -> int:
    """Remove the unfinished files of processes that died; give their number."""
    archive = Path(archive)
    left = [path for path in archive.rglob("*") if durable.is_temporary(path.relative_to(archive))]
    for path in left:
        path.unlink(missing_ok=True)
    return len(left)


def is_archive(path: Path | str) -> bool:
    """Tell whether a folder is a frame archive."""
    return (Path(path) / INDEX).is_file()


def _files(files: Path | str | Iterable[Path | str]) -> tuple[list[Path], IngestReport]:
    """Give every file that is named or lies in a named folder, and what is not there."""
    report, found = IngestReport(), []
    for part in [files] if isinstance(files, Path | str) else files:
        try:
            found += expand(part)
        except FileNotFoundError as error:
            report = _plus(report, IngestReport(refused=((str(part), str(error)),)))
    folders = {path for path in found if path.is_dir() and not is_zarr(path)}
    inside = {path: sorted(filter(Path.is_file, path.rglob("[!.]*"))) for path in folders}
    return [each for path in found for each in inside.get(path, [path])], report


def _ingest_batch(
    paths: list[Path], archive: Path, reader: str, index: sqlite3.Connection
) -> IngestReport:
    import dask

    unseen, report = _unseen(paths, index)
    tasks = [
        dask.delayed(_store)(str(path.resolve()), digest, str(archive), reader)
        for digest, path in unseen.items()
    ]
    for path, (frames, reason) in zip(unseen.values(), dask.compute(*tasks), strict=True):
        refused = ((str(path), reason),) if reason else ()
        report = _plus(report, IngestReport(_acknowledge(index, frames), 0, refused))
    return report


def _unseen(paths: list[Path], index: sqlite3.Connection) -> tuple[dict[str, Path], IngestReport]:
    """Give the files, by hash, of which not every frame is in the index yet."""
    unseen: dict[str, Path] = {}
    report = IngestReport()
    for path in paths:
        try:
            digest = _content_sha256(path)
        except (OSError, ValueError) as error:
            report = _plus(report, IngestReport(refused=((str(path), first_line(error)),)))
            continue
        known = "SELECT COUNT(*), MAX(input_frames) FROM frames WHERE input_sha256 = ?"
        count, expected = index.execute(known, (digest,)).fetchone()
        if count and count == expected:
            report = _plus(report, IngestReport(already_there=count))
        else:
            unseen.setdefault(digest, path)
    return unseen, report


def _plus(one: IngestReport, other: IngestReport) -> IngestReport:
    return IngestReport(
        one.added + other.added,
        one.already_there + other.already_there,
        one.refused + other.refused,
    )


def _content_sha256(path: Path) -> str:
    """Give the hash of a file, or of all files of a Zarr store."""
    if path.is_file():
        return durable.sha256(path)
    if not path.is_dir():
        raise ValueError("is neither a file nor a folder")
    parts = [f"{p.relative_to(path)} {durable.sha256(p)}" for p in path.rglob("*") if p.is_file()]
    return hashlib.sha256("\n".join(sorted(parts)).encode(errors="surrogateescape")).hexdigest()


def _store(path: str, digest: str, archive: str, reader: str) -> tuple[list[_Frame], str]:
    """Write the frames of one file; give their rows, or the reason to refuse the file.

    Runs as a Dask task. Only what lies in the file is refused: a full disk raises.
    """
    with contextlib.ExitStack() as stack:
        try:
            if (reader or sniff(Path(path))) not in _THREAD_SAFE:
                stack.enter_context(_LIBRARY)
            parts = _decode(Path(path), reader)
            if _content_sha256(Path(path)) != digest:
                raise ValueError("changed while it was read; ingest it once it is complete")
        # Whatever a damaged file makes a library raise must not stop the files after it.
        except Exception as error:
            reason = first_line(error).removeprefix(path).lstrip(": ") or type(error).__name__
            _quarantine(Path(path), digest, Path(archive), reason)
            return [], reason
        rows = [
            _write(frame, row, Path(archive))
            for part in parts
            for frame, row in _frames(part, digest, sum(each.sizes["time"] for each in parts))
        ]
    return rows, ""


def _decode(path: Path, reader: str) -> list[xr.Dataset]:
    """Give each variable of a file, with all its values checked."""
    observed = read(path, reader=reader)
    seconds = observed["time"].values.astype("datetime64[s]")
    if (seconds != observed["time"].values).any():
        raise ValueError("times must be whole seconds; some have fractions")
    names = [str(name) for name, array in observed.items() if "time" in array.dims]
    parts = [select(observed, name) for name in names]
    for part, name in zip(parts, names, strict=True):
        part.attrs["product"] = _product(part, name, alone=len(names) == 1)
    return [_checked(part) for part in parts]


def _checked(part: xr.Dataset) -> xr.Dataset:
    """Give the part, in memory if it is one block, once all its values are checked."""
    block = None
    for block in _blocks(part):
        check_values(block)
    if block is None:
        raise ValueError("holds no frame")
    return block if block.sizes["time"] == part.sizes["time"] else part


def _blocks(part: xr.Dataset) -> Iterator[xr.Dataset]:
    """Give the frames in memory, as many at a time as make a Dask chunk."""
    start = 0
    for size in part.chunksizes.get("time", (part.sizes["time"],)):
        yield part.isel(time=slice(start, start + size)).load(scheduler="synchronous")
        start += size


def _product(part: xr.Dataset, name: str, *, alone: bool) -> str:
    given = str(part.attrs.get("product", ""))
    return given if given and alone else f"{given}-{name}" if given else name


def _frames(part: xr.Dataset, digest: str, count: int) -> Iterator[tuple[xr.Dataset, _Frame]]:
    """Give each frame of a part with its row, of which `_FROM_DISK` is still empty."""
    source, product = (sanitise(str(part.attrs.get(name, ""))) for name in ("source", "product"))
    place = (source, product, grid_id(part), variable_of(part))
    for block in _blocks(part):
        for position in range(block.sizes["time"]):
            frame = block.isel(time=[position])
            bounds = frame["time_bnds"].values[0] if "time_bnds" in frame.variables else ()
            start, end = map(_utc, bounds) if len(bounds) else ("", "")
            time = _utc(frame["time"].values[0])
            yield frame, _Frame(*place, time, start, end, "", "", digest, count, "")


def sanitise(text: str) -> str:
    """Give a text as part of a path: lowercase letters, digits, ``_`` and ``-`` only.

    Examples
    --------
    >>> sanitise("RAD_NL25/../H1.5")
    'rad_nl25-h1-5'
    """
    return _UNSAFE.sub("-", text.lower())[:64].strip("-") or "unknown"


def _utc(time: Any) -> str:
    return f"{np.datetime_as_string(time, unit='s')}Z"


def _frame_path(row: _Frame) -> str:
    day, clock = row.time.split("T")
    name = f"{clock.replace(':', '')}-{row.input_sha256[:8]}.nc"
    return "/".join([row.partition, *day.split("-"), name])


def _write(frame: xr.Dataset, row: _Frame, archive: Path) -> _Frame:
    """Write a frame, unless a run that died has done so, and give its complete row."""
    path = archive / _frame_path(row)
    if path.exists():
        with contextlib.suppress(ValueError):
            return _described(path, archive)
    with _LIBRARY, durable.replacing(path) as temporary:
        _plain(frame, row).to_netcdf(temporary, engine="netcdf4", encoding=_encoding(frame, row))
    return _with_disk(row, path, archive)


def _with_disk(row: _Frame, path: Path, archive: Path) -> _Frame:
    written = datetime.datetime.fromtimestamp(int(path.stat().st_mtime), datetime.UTC)
    arrived = written.strftime("%Y-%m-%dT%H:%M:%SZ")
    place = path.relative_to(archive).as_posix()
    return replace(row, path=place, sha256=durable.sha256(path), arrived=arrived)


def _plain(frame: xr.Dataset, row: _Frame) -> xr.Dataset:
    """Give a frame with nothing but what the convention asks for and the index needs."""
    given = {name: str(frame.attrs[name]) for name in _KEPT_ATTRIBUTES if name in frame.attrs}
    marks = {_MARK + name: getattr(row, name) for name in _NAMES if name not in _FROM_DISK}
    frame = frame.reset_coords([name for name in frame.coords if name not in frame.dims])
    frame = frame.drop_encoding().assign_attrs(Conventions=CF_CONVENTIONS)
    frame.attrs = {"Conventions": CF_CONVENTIONS, **given, **marks}
    simple = (str, int, float, list, np.ndarray, np.generic)
    for array in frame.variables.values():
        array.attrs = {k: v for k, v in array.attrs.items() if isinstance(v, simple)}
    return frame


def _encoding(frame: xr.Dataset, row: _Frame) -> dict[str, Any]:
    times = {"units": "seconds since 1970-01-01", "dtype": "int64", "_FillValue": None}
    values = {"dtype": "float32", "_FillValue": np.float32(np.nan), "zlib": True, "complevel": 1}
    named = {name: times for name in ("time", "time_bnds") if name in frame.variables}
    axes = {axis: {"_FillValue": None} for axis in ("y", "x")}
    return {row.variable: {**values, "shuffle": True, "fletcher32": True}, **named, **axes}


def _quarantine(path: Path, digest: str, archive: Path, reason: str) -> None:
    folder = archive / QUARANTINE
    copy = folder / f"{digest[:16]}.data"
    copied = path.is_file() and path.stat().st_size <= LARGEST_COPY
    if copied:
        with durable.replacing(copy) as temporary:
            shutil.copyfile(path, temporary)
    note = {
        "file": str(path),
        "sha256": digest,
        "reason": reason,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "copy": copy.name if copied else "",
    }
    durable.write_json(folder / f"{digest[:16]}.json", note)


@contextlib.contextmanager
def _only_one_writer(archive: Path) -> Iterator[None]:
    """Wait for other processes to finish writing; the lock ends with its process."""
    import fcntl

    with (archive / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _index(archive: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(archive / INDEX, timeout=60)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(_SCHEMA)
        yield connection
    except sqlite3.OperationalError:
        raise  # a full disk or a lock, which a new index would not cure
    except sqlite3.DatabaseError as error:
        raise _damaged(archive, error) from error
    finally:
        connection.close()


def _is_indexed(archive: Path) -> bool:
    return is_archive(archive) and _query(archive, "PRAGMA user_version")[0][0] == INDEX_VERSION


def _acknowledge(index: sqlite3.Connection, frames: list[_Frame]) -> int:
    """Enter frames in the index, all or none; give the number of new ones."""
    marks = ", ".join("?" * len(_NAMES))
    with index:
        before = index.total_changes
        rows = map(astuple, frames)
        index.executemany(f"INSERT OR IGNORE INTO frames ({_COLUMNS}) VALUES ({marks})", rows)
    return index.total_changes - before


def _query(archive: Path, query: str, values: tuple[str, ...] = ()) -> list[Any]:
    if not is_archive(archive):
        raise ValueError(f"{archive} is no archive: it has no {INDEX}; ingest files into it first")
    # A folder that cannot be written has no writer either, and its index needs no lock.
    mode = "mode=rw" if os.access(archive, os.W_OK) else "immutable=1"
    uri = f"{(archive / INDEX).resolve().as_uri()}?{mode}"
    try:
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=60)) as index:
            return index.execute(query, values).fetchall()
    except sqlite3.DatabaseError as error:
        raise _damaged(archive, error) from error


def _damaged(archive: Path, error: Exception) -> ValueError:
    advice = "make it anew with nowcast.data.archive.rebuild_index"
    return ValueError(f"the index of {archive} cannot be used: {error}; {advice}")


def _partition(archive: Path, source: str) -> str:
    held = partitions(archive)
    if not held:
        raise ValueError(f"the archive {archive} holds no frames")
    wanted = [sanitise(part) for part in source.split("/") if part]
    fitting = [part for part in held if part.split("/")[: len(wanted)] == wanted]
    if len(fitting) == 1:
        return fitting[0]
    lines = [f"{part} ({n} frames, {first}..{last})" for part, (n, first, last) in held.items()]
    problem = f"source {source!r} fits {len(fitting) or 'none'}" if source else "name one as source"
    raise ValueError(f"{archive} holds {len(held)} partitions; {problem}: {'; '.join(lines)}")


def _active(archive: Path, partition: str) -> list[_Frame]:
    """Give the frame that counts for each time, in the order of time."""
    # SQLite takes the other columns of a MAX query from the row that has the maximum.
    query = (
        f"SELECT {_COLUMNS}, MAX(input_sha256) FROM frames"
        " WHERE source = ? AND product = ? AND grid_id = ? GROUP BY time ORDER BY time"
    )
    rows = _query(archive, query, tuple(partition.split("/")))
    return [_Frame(*row[: len(_NAMES)]) for row in rows]


def _assemble(archive: Path, frames: list[_Frame]) -> xr.Dataset:
    with _LIBRARY, xr.open_dataset(archive / frames[0].path, engine="netcdf4") as first:
        pattern = first.drop_encoding().drop_vars(["time", "time_bnds"], errors="ignore")
        grid = pattern.drop_vars(frames[0].variable).load()
        attributes = dict(first[frames[0].variable].attrs)
    grid = grid.set_coords([GRID_MAPPING])
    grid.attrs = {k: v for k, v in grid.attrs.items() if not k.startswith(_MARK)}
    shape = (grid.sizes["y"], grid.sizes["x"])
    values = _lazy(archive, frames, shape)
    array = xr.DataArray(values, dims=("time", "y", "x"), attrs=attributes)
    return grid.assign_coords(_times(frames)).assign({frames[0].variable: array})


def _times(frames: list[_Frame]) -> dict[str, Any]:
    times = _datetimes([frame.time for frame in frames])
    attributes = {"standard_name": "time"}
    if not all(frame.bounds_start and frame.bounds_end for frame in frames):
        return {"time": ("time", times, attributes)}
    bounds = [
        _datetimes([f.bounds_start for f in frames]),
        _datetimes([f.bounds_end for f in frames]),
    ]
    return {
        "time": ("time", times, {**attributes, "bounds": "time_bnds"}),
        "time_bnds": (("time", "bnds"), np.stack(bounds, axis=1)),
    }


def _datetimes(texts: list[str]) -> Any:
    return np.array([text.removesuffix("Z") for text in texts], dtype="datetime64[ns]")


def _lazy(archive: Path, frames: list[_Frame], shape: tuple[int, int]) -> Any:
    import dask.array

    content = [[frame.path, frame.sha256, frame.variable] for frame in frames]
    fitting = LARGEST_CHUNK // (shape[0] * shape[1] * np.dtype(np.float32).itemsize)
    size = max(1, min(FRAMES_PER_CHUNK, fitting))
    rows = dask.array.from_array(np.array(content), chunks=(size, 3))
    return rows.map_blocks(
        _read_block,
        archive=str(archive),
        shape=shape,
        drop_axis=1,
        new_axis=[1, 2],
        chunks=(rows.chunks[0], (shape[0],), (shape[1],)),
        meta=np.empty((0, 0, 0), np.float32),
    )


def _read_block(rows: Any, *, archive: str, shape: tuple[int, int]) -> Any:
    block = np.empty((len(rows), *shape), np.float32)
    for position, (path, sha256, variable) in enumerate(rows):
        block[position] = _read_frame(Path(archive, path), sha256, variable)
    return block


def _read_frame(path: Path, sha256: str, variable: str) -> Any:
    import h5py

    if not path.exists():
        raise ValueError(f"the frame {path} is gone; restore it, or rebuild the index without it")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(
            f"the frame {path} is damaged: its bytes are not those written; restore it"
        )
    with h5py.File(io.BytesIO(content), "r") as file:
        return file[variable][0]


def _rebuild(archive: Path) -> IngestReport:
    rows, refused = [], []
    for path in sorted(archive.glob(_FRAME_FILES)):
        try:
            rows.append(_described(path, archive))
        except ValueError as error:
            _LOG.warning("left out of the index: %s", error)
            refused.append((str(path), str(error)))
    try:
        added = _refill(archive, rows)
    except ValueError:
        for suffix in ("", "-wal", "-shm"):
            (archive / f"{INDEX}{suffix}").unlink(missing_ok=True)
        added = _refill(archive, rows)
    return IngestReport(added, 0, tuple(refused))


def _refill(archive: Path, rows: list[_Frame]) -> int:
    with _index(archive) as index:
        # One transaction, which Python opens at DELETE and _acknowledge ends.
        index.execute("DELETE FROM frames")
        index.execute(f"PRAGMA user_version = {INDEX_VERSION}")
        return _acknowledge(index, rows)


def _described(path: Path, archive: Path) -> _Frame:
    """Give the row of a frame from its file, whose checksums are checked."""
    import h5py

    try:
        with h5py.File(io.BytesIO(path.read_bytes()), "r") as file:
            content = {n: file.attrs[_MARK + n] for n in _NAMES if n not in _FROM_DISK}
            file[content["variable"]][...]
    except (OSError, KeyError, RuntimeError) as error:
        raise ValueError(f"the frame {path} is damaged: {first_line(error)}") from error
    count = int(np.ravel(content.pop("input_frames"))[0])
    texts = {name: _decoded(value) for name, value in content.items()}
    row = _Frame(**texts, input_frames=count, path="", sha256="", arrived="")
    if _frame_path(row) != path.relative_to(archive).as_posix():
        raise ValueError(f"the frame {path} says that it belongs at {_frame_path(row)}")
    return _with_disk(row, path, archive)


def _decoded(attribute: Any) -> str:
    # netCDF writes ASCII as bytes, other text as str, and an empty text as no value at all.
    if isinstance(attribute, bytes):
        return attribute.decode()
    return attribute if isinstance(attribute, str) else ""
