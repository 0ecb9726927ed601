"""Files that are either whole or not there: the one way in which nowcast writes."""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_TEMPORARY = ".tmp-"
_FEWEST_FILES = 32  # a file, its folders, and what an index needs beside it


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Give a temporary path that becomes `path` when the block ends without error.

    The content is written beside its destination, flushed to disk, renamed over it, and the
    folder is flushed: a crash at any moment leaves the old content or the new one, whole.

    Parameters
    ----------
    path
        Destination; missing parent folders are made.

    Examples
    --------
    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "note.txt"
    >>> with replacing(target) as temporary:
    ...     _ = temporary.write_text("rain")
    >>> target.read_text()
    'rain'
    """
    path = Path(path)
    make_folder(path.parent)
    # The suffix is kept, since some writers choose their format by it.
    temporary = path.parent / f"{_TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}"
    try:
        yield temporary
        _flush(temporary)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path | str) -> Iterator[Path]:
    """Give a temporary folder that becomes `path` when the block ends without error.

    Parameters
    ----------
    path
        Destination. An existing folder there is replaced; between its removal and the rename
        there is an instant with neither, so readers that share it should use a new name.
    """
    path = Path(path)
    make_folder(path.parent)
    temporary = path.parent / f"{_TEMPORARY}{uuid.uuid4().hex[:12]}-{path.name}"
    old = temporary.with_name(temporary.name + "-old")
    temporary.mkdir()
    try:
        yield temporary
        for item in sorted(temporary.rglob("*")):
            _flush(item)
        _flush(temporary)
        if path.exists():
            os.replace(path, old)
        os.replace(temporary, path)
        _flush(path.parent)
    finally:
        if old.exists() and not path.exists():
            os.replace(old, path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder and its parents so that they outlive a loss of power."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in missing:
        _flush(one.parent)


def require_space(folder: Path, size: int) -> None:
    """Refuse to begin what will not fit: some libraries take a full disk for a fault of theirs.

    Parameters
    ----------
    folder
        Where something will be written; it must be there.
    size
        Bytes that may be needed.

    Raises
    ------
    OSError
        If the disk, or the quota that it tells of, has less space, or no more files.
    """
    disk = os.statvfs(folder)
    free = disk.f_bavail * disk.f_frsize
    if free < size:
        message = f"{size:,} bytes may be needed and {free:,} are free; no space left"
        raise OSError(errno.ENOSPC, message, str(folder))
    if disk.f_files and disk.f_favail < _FEWEST_FILES:
        message = f"only {disk.f_favail} more files can be made; no space left"
        raise OSError(errno.ENOSPC, message, str(folder))


def write_json(path: Path | str, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, sort_keys=True, allow_nan=False) + "\n")


def sha256(path: Path | str) -> str:
    """Give the SHA-256 of a file's bytes, in hexadecimal."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_temporary(path: Path) -> bool:
    """Tell whether a path is the unfinished work of a process that died."""
    return any(part.startswith(_TEMPORARY) for part in path.parts)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
