"""Threads, a cluster of this machine and one started apart give the same, whoever dies."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import knmi_sample
import pandas as pd
import pytest

from nowcast import clusters
from nowcast.cache import build_cache, coding_of
from nowcast.clusters import computing
from nowcast.conventions import RAIN_RATE
from nowcast.data.archive import ingest, open_archive
from nowcast.durable import is_temporary, sha256

FRAMES, STEP = 32, pd.Timedelta("5min")
DASK = [sys.executable, "-m", "dask"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return knmi_sample.write_series(tmp_path_factory.mktemp("radar"), FRAMES, shape=(48, 40))


@pytest.fixture(scope="module")
def archive(files, tmp_path_factory):
    path = tmp_path_factory.mktemp("threads") / "archive"
    ingest(files, path)
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """Address of a scheduler started apart, and its two workers, each a process of its own."""
    folder = tmp_path_factory.mktemp("cluster")
    told = folder / "scheduler.json"
    scheduler = [*DASK, "scheduler", "--port", "0", "--no-dashboard", "--scheduler-file", told]
    worker = [*DASK, "worker", "--scheduler-file", told, "--nthreads", "1", "--no-dashboard",
              "--local-directory", folder]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    started = [subprocess.Popen(scheduler, **quiet)]
    _wait(told.exists)
    started += [subprocess.Popen(worker, **quiet) for _ in range(2)]
    (address,) = re.findall(r"tcp://[\d.]+:\d+", told.read_text())[:1]
    yield address
    for process in reversed(started):
        process.terminate()
        process.wait(30)


def _wait(happened, seconds=90):
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def _built(observed, folder):
    cache = build_cache(
        observed, folder, variable=RAIN_RATE, coding=coding_of(RAIN_RATE), step=STEP
    )
    return {path.name: sha256(path) for path in cache.folder.iterdir()}


def _frames(archive):
    # What a worker was writing when it was killed is swept by the next ingest.
    return {
        path.relative_to(archive).as_posix(): sha256(path)
        for path in archive.rglob("*.nc")
        if not is_temporary(path.relative_to(archive))
    }


@pytest.fixture(scope="module")
def by_threads(archive, tmp_path_factory):
    with computing("threads"):
        return _built(
            open_archive(archive).chunk(time=4), tmp_path_factory.mktemp("caches") / "threads"
        )


@pytest.mark.slow
@pytest.mark.proof
@pytest.mark.parametrize("where", ["local", "apart"])
def test_a_cache_and_an_archive_are_the_same_wherever_dask_computes(
    archive, files, by_threads, tmp_path, cluster, where
):
    with computing(cluster if where == "apart" else where):
        assert _built(open_archive(archive).chunk(time=4), tmp_path / "cache") == by_threads
        assert ingest(files, tmp_path / "archive").added == FRAMES
    assert _frames(tmp_path / "archive") == _frames(archive)


@pytest.mark.slow
def test_a_worker_killed_in_the_middle_costs_nothing(archive, files, by_threads, tmp_path, cluster):
    from dask.distributed import Client

    killed = []

    def kill_one():
        with Client(cluster, set_as_default=False) as client:
            _wait(lambda: list((tmp_path / "archive").rglob("*.nc")))
            busy = client.run(os.getpid)
            killed.append(next(iter(busy.values())))
            os.kill(killed[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with computing(cluster):
        assert ingest(files, tmp_path / "archive").added == FRAMES
        killer.join()
        assert _built(open_archive(archive).chunk(time=4), tmp_path / "cache") == by_threads
    assert len(killed) == 1
    assert _frames(tmp_path / "archive") == _frames(archive)


@pytest.mark.slow
def test_a_worker_that_dies_while_a_cache_is_built_costs_nothing(
    archive, by_threads, tmp_path, cluster
):
    marker = tmp_path / "died"

    def deadly(block, block_info=None):
        if block_info[0]["chunk-location"][0] == 4 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return block

    observed = open_archive(archive).chunk(time=4)
    values = observed["rain_rate"].data.map_blocks(deadly, dtype="f4")
    observed["rain_rate"] = observed["rain_rate"].copy(data=values)
    with computing(cluster):
        assert _built(observed, tmp_path / "cache") == by_threads
    assert marker.exists()


def test_threads_report_their_progress(archive):
    told = []
    with computing("threads", progress=lambda done, total: told.append((done, total))):
        open_archive(archive).load()
    assert told[-1][0] == told[-1][1] > 0


def test_an_unknown_place_is_named():
    message = "unknown place for Dask 'moon'; give threads, local"
    with pytest.raises(ValueError, match=message), computing("moon"):
        pass


def test_a_scheduler_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(clusters, "SECONDS_TO_ANSWER", 1.0)
    message = r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"
    with pytest.raises(ValueError, match=message), computing("tcp://127.0.0.1:9"):
        pass
