"""Parts of `benchmarks.data`: how fast an archive opens, and how fast radar files go into one."""

import dataclasses
import os
import shutil
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from nowcast.clusters import computing
from nowcast.data import framefiles, index
from nowcast.data.archive import ingest, open_archive
from nowcast.data.synthetic import synthesise

SIZES = (1_000, 10_000, 100_000)  # frames
FIVE_MINUTES = 300  # seconds
PLACES = ("threads", "local")


def opening(work: Path, repeats: int, frames: int) -> dict[str, Any]:  # noqa: ARG001
    """Open archives of many frames: the index in full, with the file of the first frame alone.

    Opening reads no other file, so the others need not be there to be timed.
    """
    archive = work / "opened"
    one = synthesise(hours=1, size=64).isel(time=[3])
    one["time"].encoding["units"] = "seconds since 1970-01-01"
    one.to_netcdf(work / "one.nc")
    ingest(work / "one.nc", archive)
    (path,) = archive.rglob("*Z-*.nc")
    first = framefiles.described(path, archive)
    figures, held = {}, 1
    for size in SIZES:
        with index.connect(archive) as connection:
            index.insert(connection, (_later(first, place) for place in range(held, size)))
        held = size
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            assert open_archive(archive).sizes["time"] == size
            seconds.append(time.perf_counter() - began)
        figures[f"{size} frames"] = {
            "seconds": statistics.median(seconds),
            "slowest": max(seconds),
            "index_mb": (archive / index.INDEX).stat().st_size / 1e6,
        }
    return figures


def ingesting(work: Path, repeats: int, frames: int) -> dict[str, Any]:  # noqa: ARG001
    """Take all files of each family of real radar into an archive, in threads and on a cluster."""
    folder = Path(os.environ.get("NOWCAST_SHARED_DATA", "../shared/data"), "radar")
    if not folder.is_dir():
        return {"skipped": f"{folder} is absent; set NOWCAST_SHARED_DATA"}
    figures: dict[str, Any] = {}
    families = sorted(path for path in folder.iterdir() if path.is_dir())
    for where in PLACES:
        with computing(where):
            # Every decoder starts and every library is imported.
            ingest([path for one in families for path in sorted(one.iterdir())[:4]], work / where)
            for family in families:
                archive = work / f"ingested-{where}-{family.name}"
                began = time.perf_counter()
                with _peak() as peak:
                    added = ingest(sorted(family.iterdir()), archive).added
                seconds = time.perf_counter() - began
                row = figures.setdefault(family.name, {"frames": added})
                row[where] = {"frames_per_second": added / seconds, "peak_mb": peak[0]}
                shutil.rmtree(archive)
    return figures


def _later(first: index.Frame, place: int) -> index.Frame:
    frame = dataclasses.replace(first, time=first.time + FIVE_MINUTES * place)
    return dataclasses.replace(frame, path=framefiles.path_of(frame))


@contextmanager
def _peak() -> Iterator[list[float]]:
    """Give the most memory, in MB, of this process and all below it, shared pages once each."""
    most, ended = [0.0], threading.Event()

    def look() -> None:
        while not ended.wait(0.1):
            most[0] = max(most[0], _memory())

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield most
    finally:
        ended.set()
        looking.join()


def _memory() -> float:
    total = 0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.NoSuchProcess:
            continue
    return total / 1e6
