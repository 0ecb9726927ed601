"""The index of an archive: which frames there are, in SQLite, and which of them count."""

import contextlib
import dataclasses
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nowcast.data.quality import FrameStatistics

INDEX = "index.sqlite"
INDEX_VERSION = 2  # of the schema; an index of another, or one left unfinished, is made anew
SQLITE_FILES = ("", "-wal", "-shm")  # what follows the name of an index

_KINDS = {int: "INTEGER", float: "REAL", str: "TEXT"}


@dataclass(frozen=True)
class Frame:
    """What the index says of one frame: one row.

    Parameters
    ----------
    source, product, grid_id
        Its partition.
    variable
        Name of the quantity.
    time
        Nominal; seconds since 1970 in UTC, as all times here.
    bounds_start, bounds_end
        Of the observed interval; None where it is unknown.
    version
        That the sender gave it, so written that the later one sorts last; empty if none.
    input_sha256, input_frames
        Of the file it was read from.
    flags
        What ingest found, see `nowcast.data.quality.FLAGS`.
    statistics
        What its values say.
    path, sha256, arrived
        Of its file, within the archive: known once it is written.
    """

    source: str
    product: str
    grid_id: str
    variable: str
    time: int
    bounds_start: int | None
    bounds_end: int | None
    version: str
    input_sha256: str
    input_frames: int
    flags: int
    statistics: FrameStatistics
    path: str = ""
    sha256: str = ""
    arrived: int = 0

    @property
    def partition(self) -> str:
        """Where it lies in the archive."""
        return f"{self.source}/{self.product}/{self.grid_id}"

    def content(self) -> dict[str, Any]:
        """Give what is known of the frame before it is written, as JSON types."""
        told = dataclasses.asdict(self)
        return {name: value for name, value in told.items() if name not in FROM_DISK}

    @classmethod
    def of(cls, content: dict[str, Any]) -> "Frame":
        """Read what `content` gave.

        Raises
        ------
        ValueError
            If something is absent or unknown.
        """
        try:
            statistics = FrameStatistics(**content["statistics"])
            return cls(**{**content, "statistics": statistics})
        except (KeyError, TypeError) as error:
            raise ValueError(f"what the frame says of itself does not fit: {error}") from error


FROM_DISK = frozenset({"path", "sha256", "arrived"})
STATISTICS = tuple(field.name for field in dataclasses.fields(FrameStatistics))
_PLACES = ("time", "bounds_start", "bounds_end", "path", "sha256", "flags")
SERIES = (*_PLACES, "coverage", "wet", "speckle", "values_sha256")
_IN_PARTITION = "source = ? AND product = ? AND grid_id = ?"
_PLAIN = tuple(f.name for f in dataclasses.fields(Frame) if f.name != "statistics")
_COLUMNS = (*_PLAIN, *STATISTICS)


def _kind(name: str) -> str:
    owner = FrameStatistics if name in STATISTICS else Frame
    declared = {field.name: field.type for field in dataclasses.fields(owner)}[name]
    return next(kind for type_, kind in _KINDS.items() if type_.__name__ in str(declared))


_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS frames (
    {", ".join(f"{name} {_kind(name)}" for name in _COLUMNS)},
    PRIMARY KEY (source, product, grid_id, time, version, input_sha256, variable)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS inputs ON frames (input_sha256);
"""


@contextlib.contextmanager
def connect(archive: Path) -> Iterator[sqlite3.Connection]:
    """Give a connection that may write, to an index that is made if missing.

    Raises
    ------
    ValueError
        If what is there is no index.
    """
    connection = sqlite3.connect(archive / INDEX, timeout=60)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.executescript(_SCHEMA)
        yield connection
    except sqlite3.OperationalError as error:
        raise _hindered(archive, error) from error
    except sqlite3.DatabaseError as error:
        raise _damaged(archive, error) from error
    finally:
        connection.close()


def is_current(archive: Path) -> bool:
    """Tell whether there is an index, whole and of this version."""
    if not (archive / INDEX).is_file():
        return False
    return bool(_query(archive, "PRAGMA user_version")[0][0] == INDEX_VERSION)


def insert(connection: sqlite3.Connection, frames: Iterable[Frame]) -> int:
    """Enter frames, all or none; give the number of new ones."""
    marks = ", ".join("?" * len(_COLUMNS))
    with connection:
        before = connection.total_changes
        query = f"INSERT OR IGNORE INTO frames ({', '.join(_COLUMNS)}) VALUES ({marks})"
        connection.executemany(query, map(_row, frames))
    return connection.total_changes - before


def refill(archive: Path, frames: Iterable[Frame]) -> int:
    """Replace everything in the index by these frames, in one transaction; give their number."""
    with connect(archive) as connection:
        connection.execute("DELETE FROM frames")  # opens the transaction that insert ends
        connection.execute(f"PRAGMA user_version = {INDEX_VERSION}")
        return insert(connection, frames)


def known_frames(connection: sqlite3.Connection, input_sha256: str) -> tuple[int, int]:
    """Give how many frames of an input are there, and how many it held; zeros if it is new."""
    query = "SELECT COUNT(*), COALESCE(MAX(input_frames), 0) FROM frames WHERE input_sha256 = ?"
    count, expected = connection.execute(query, (input_sha256,)).fetchone()
    return int(count), int(expected)


def partitions(archive: Path) -> dict[str, tuple[int, int, int]]:
    """Give the partitions: number of times, the first and the last."""
    query = (
        "SELECT source || '/' || product || '/' || grid_id AS part, COUNT(DISTINCT time),"
        " MIN(time), MAX(time) FROM frames GROUP BY part ORDER BY part"
    )
    return {part: (count, first, last) for part, count, first, last in _query(archive, query)}


def parts(archive: Path) -> list[str]:
    """Give the partitions' names alone, which is quicker."""
    query = "SELECT DISTINCT source, product, grid_id FROM frames ORDER BY 1, 2, 3"
    return ["/".join(part) for part in _query(archive, query)]


def variables(archive: Path, partition: str) -> list[str]:
    """Give the names of the variables of a partition."""
    query = f"SELECT DISTINCT variable FROM frames WHERE {_IN_PARTITION} ORDER BY variable"
    return [name for (name,) in _query(archive, query, tuple(partition.split("/")))]


def series(archive: Path, partition: str) -> dict[str, np.ndarray]:
    """Give columns of the frames that count in a partition, in the order of time.

    Of several frames for one time the sender's latest version counts, and of those with the
    same version the one with the greatest hash: a rule of content alone.

    Returns
    -------
    dict
        `SERIES`: numbers, NaN where there is none, or bytes.
    """
    query = (
        f"SELECT {', '.join(SERIES)} FROM frames WHERE {_IN_PARTITION}"
        " ORDER BY time, version, input_sha256"
    )
    rows = _query(archive, query, tuple(partition.split("/")))
    columns = {
        name: np.array(values, dtype="S" if _kind(name) == "TEXT" else float)
        for name, values in zip(SERIES, zip(*rows, strict=True), strict=True)
    }
    last = np.append(np.diff(columns["time"]) > 0, True)
    return columns if last.all() else {name: array[last] for name, array in columns.items()}


def hashes(archive: Path) -> dict[str, str]:
    """Give the hash of every frame's file that the index knows, by its path."""
    return dict(_query(archive, "SELECT path, sha256 FROM frames"))


def remove(archive: Path) -> None:
    """Delete an index that cannot be used; the files can make it anew."""
    for suffix in SQLITE_FILES:
        (archive / f"{INDEX}{suffix}").unlink(missing_ok=True)


def _row(frame: Frame) -> tuple[Any, ...]:
    statistics = [getattr(frame.statistics, name) for name in STATISTICS]
    return (*(getattr(frame, name) for name in _PLAIN), *statistics)


def _query(archive: Path, query: str, values: tuple[str, ...] = ()) -> list[Any]:
    if not (archive / INDEX).is_file():
        raise ValueError(f"{archive} is no archive: it has no {INDEX}; ingest files into it first")
    # A folder that cannot be written has no writer either, and its index needs no lock.
    mode = "mode=rw" if os.access(archive, os.W_OK) else "immutable=1"
    try:
        try:
            return _rows(archive, mode, query, values)
        except sqlite3.OperationalError:
            # A full disk has no room for the files that readers share, which can do without:
            # with no log the database alone is all, and one reader may keep them in memory.
            log = archive / f"{INDEX}-wal"
            if not log.exists() or not log.stat().st_size:
                return _rows(archive, "immutable=1", query, values)
            return _rows(archive, mode, query, values, first="PRAGMA locking_mode = EXCLUSIVE")
    except sqlite3.OperationalError as error:
        raise _hindered(archive, error) from error
    except sqlite3.DatabaseError as error:
        raise _damaged(archive, error) from error


def _rows(
    archive: Path, mode: str, query: str, values: tuple[str, ...], *, first: str = ""
) -> list[Any]:
    uri = f"{(archive / INDEX).resolve().as_uri()}?{mode}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=60)) as connection:
        connection.execute(first)
        return connection.execute(query, values).fetchall()


def _hindered(archive: Path, error: Exception) -> OSError:
    """Give what a new index would not cure: a full disk or a lock."""
    free = shutil.disk_usage(archive).free
    problem = f"the index of {archive} cannot be used now: {error}; is there space left?"
    return OSError(f"{problem} {free:,} bytes are free")


def _damaged(archive: Path, error: Exception) -> ValueError:
    return ValueError(
        f"the index of {archive} cannot be used: {error}; make it anew with: nowcast fsck {archive}"
    )
