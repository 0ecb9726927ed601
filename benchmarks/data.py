"""Speed and memory of the data's way: from observations to the cache, from the cache to Keras.

``python -m benchmarks.data [PART ...] [--repeats N] [--frames N] [--out FILE]``; without a part,
all of `PARTS`. Every figure of a part comes from one run, its candidates side by side, in turns.

feed
    Shuffled windows of 20 frames of 256 x 256, batch 8, from the same 2,000 frames of synthetic
    rain: the training cache by both feeds of `nowcast.training`, xbatcher, and xarray with Dask
    per batch, each handed to ``keras.Model.fit``; and, as the bound, a loop that copies the same
    windows from a `numpy.memmap` of the cache's file into one array. The model that is fitted is
    one dense layer on one pixel of each input frame, its loss on one pixel of the targets: it takes
    over every batch whole and computes next to nothing, eight steps to an execution. xbatcher and
    Dask read an uncompressed netCDF file of 32-bit floats, which spares them decoding.
taasrad19
    Making the cache of TAASRAD19's training frames, if ``NOWCAST_SHARED_DATA`` names its folder.
opening
    Archives of 1,000, 10,000 and 100,000 frames.
ingesting
    Frames per second of each family of real radar files, in threads and on a local cluster.

Each candidate's memory is that of a process of its own: the peak of what is not backed by files.
"""

import argparse
import concurrent.futures
import functools
import gc
import json
import multiprocessing
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import xarray as xr

from benchmarks.archives import ingesting, opening
from nowcast.cache import FRAMES, Cache, build_cache, coding_of, open_cache
from nowcast.conventions import RAIN_RATE, REFLECTIVITY
from nowcast.frames import Batches, Block, Window, plan

STEP = pd.Timedelta("10min")
WINDOW = Window(4, 16, STEP)
BATCH, SIDE, EVENTS = 8, 256, 4
COARSE = 4  # synthetic pixels along each side are repeated as often
EVER = Block(pd.Timestamp("2000-01-01"), pd.Timestamp("2100-01-01"))
SEED = 0
STEPS = 8  # per execution, for every candidate: the model is to cost next to nothing


@dataclass(frozen=True)
class Candidate:
    """One way from the file to the model.

    Parameters
    ----------
    run
        Given the work folder and the number of batches, hands them over; gives the seconds.
    most
        Batches in a run: the slow ones get the first of the same windows.
    cold
        Whether it reads a copy of the cache of which no page is in memory.
    """

    run: Callable[[Path, int], float]
    most: int = 240
    cold: bool = False


def feed(work: Path, repeats: int, frames: int) -> dict[str, Any]:
    """Measure every candidate `repeats` times in turns."""
    windows = _make(work, frames)
    batches = windows // BATCH
    for candidate in CANDIDATES.values():
        # Imports, TensorFlow's tracing, and the first epoch, which takes new memory.
        candidate.run(work, min(batches, candidate.most))
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in CANDIDATES}
    for _ in range(repeats):
        for name, candidate in CANDIDATES.items():
            gc.collect()
            folder = _cold_copy(work) if candidate.cold else work
            figures[name].append(_measured(candidate, folder, min(batches, candidate.most)))
    rows = {name: _median(ones) for name, ones in figures.items()}
    for name, row in rows.items():
        row["peak_anonymous_mb"] = _alone(_peak_of, name, str(work))
        reference = rows["bound, cold" if CANDIDATES[name].cold else "bound"]
        row["part_of_bound"] = row["windows_per_second"] / reference["windows_per_second"]
        row["times_xbatcher"] = row["windows_per_second"] / rows["xbatcher"]["windows_per_second"]
    return {"batches": batches, "repeats": repeats, "candidates": rows}


def taasrad19(work: Path, repeats: int, frames: int) -> dict[str, Any]:  # noqa: ARG001
    """Make the cache of TAASRAD19's training frames once, in a process of its own."""
    path = Path(os.environ.get("NOWCAST_SHARED_DATA", "../shared/data"), "taasrad19", "train.nc")
    if not path.exists():
        return {"skipped": f"{path} is absent; set NOWCAST_SHARED_DATA"}
    return _alone(_prepare, str(path.resolve()), str(work))


PARTS: dict[str, Callable[[Path, int, int], dict[str, Any]]] = {
    "feed": feed,
    "taasrad19": taasrad19,
    "opening": opening,
    "ingesting": lambda *arguments: _alone(ingesting, *arguments),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=[], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--out", type=Path, help="JSON")
    given = parser.parse_args()
    if unknown := set(given.parts) - set(PARTS):
        parser.error(f"unknown {', '.join(sorted(unknown))}; known are {', '.join(PARTS)}")
    figures: dict[str, Any] = {"machine": {"cores": os.cpu_count(), "load": os.getloadavg()[0]}}
    for name in given.parts or PARTS:
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = PARTS[name](Path(folder), given.repeats, given.frames)
        print(name, json.dumps(figures[name], indent=2), flush=True)
    if given.out:
        given.out.write_text(json.dumps(figures, indent=2) + "\n")


def _make(work: Path, frames: int) -> int:
    """Write the cache and the netCDF file of the same frames; give the number of windows."""
    from nowcast.data.synthetic import synthesise

    hours = (frames // EVENTS - 1) * STEP / pd.Timedelta("1h")
    coarse = synthesise(events=EVENTS, hours=hours, size=SIDE // COARSE, seed=SEED)
    fine = coarse["rain_rate"].data.repeat(COARSE, axis=1).repeat(COARSE, axis=2)
    axes = {axis: (axis, 1000.0 * np.arange(SIDE), {"units": "m"}) for axis in ("y", "x")}
    observed = coarse.drop_vars(["rain_rate", "time_bnds", "y", "x"]).assign_coords(axes)
    observed["rain_rate"] = (("time", "y", "x"), fine, RAIN_RATE.attributes)
    observed["time"].attrs.pop("bounds", None)
    cache = build_cache(
        observed, work / "cache", variable=RAIN_RATE, coding=coding_of(RAIN_RATE), step=STEP
    )
    plain = observed[["rain_rate"]].drop_vars(["crs", "motion_x", "motion_y"], errors="ignore")
    plain.to_netcdf(work / "rain.nc", encoding={"rain_rate": {"_FillValue": None}})
    return len(plan(cache, WINDOW, EVER))


def _opened(work: Path) -> tuple[Cache, np.ndarray]:
    """Give the cache, and the first frames of its windows in the order of all candidates."""
    cache = open_cache(work / "cache", verify=False)
    planned = plan(cache, WINDOW, EVER)
    return cache, planned.first[planned.order(SEED, 0)]


def _bound(work: Path, batches: int) -> float:
    cache, order = _opened(work)
    frames = len(WINDOW.offsets)
    batch = np.zeros((BATCH, frames, SIDE, SIDE), cache.codes.dtype)
    started = time.perf_counter()
    for window, first in enumerate(order[: batches * BATCH]):
        batch[window % BATCH] = cache.codes[first : first + frames]
    return time.perf_counter() - started


def _cache(work: Path, batches: int, *, by: str, workers: int) -> float:
    from nowcast import devices

    feed = {"PyDataset": devices.feed, "tf.data": devices.feed_tf_data}[by]
    cache, _ = _opened(work)
    windows = Batches(cache, plan(cache, WINDOW, EVER), window=WINDOW, batch_size=BATCH, seed=SEED)
    model = _one_layer(cache.coding.dtype)
    return _fitted(model, feed(windows, workers=workers, limit=batches))


def _xbatcher(work: Path, batches: int) -> float:
    import xbatcher

    _, order = _opened(work)
    with xr.open_dataset(work / "rain.nc", cache=False) as dataset:
        sizes = {"time": len(WINDOW.offsets), "y": SIDE, "x": SIDE}
        overlap = {"time": len(WINDOW.offsets) - 1}
        items = xbatcher.BatchGenerator(dataset["rain_rate"], sizes, input_overlap=overlap)

        def batch(firsts: np.ndarray) -> np.ndarray:
            return np.stack([items[int(first)].values for first in firsts])

        return _fitted(_one_layer("float32"), _floats(batch, order, batches))


def _dask(work: Path, batches: int) -> float:
    import dask.array

    _, order = _opened(work)
    with xr.open_dataset(work / "rain.nc", chunks={"time": len(WINDOW.offsets)}) as dataset:
        values, frames = dataset["rain_rate"].data, len(WINDOW.offsets)

        def batch(firsts: np.ndarray) -> np.ndarray:
            windows = [values[int(first) : int(first) + frames] for first in firsts]
            stacked: np.ndarray = dask.array.stack(windows).compute()
            return stacked

        return _fitted(_one_layer("float32"), _floats(batch, order, batches))


CANDIDATES = {
    "bound": Candidate(_bound),
    "cache by PyDataset, 1 worker": Candidate(functools.partial(_cache, by="PyDataset", workers=1)),
    "cache by PyDataset, 2 workers": Candidate(
        functools.partial(_cache, by="PyDataset", workers=2)
    ),
    "cache by tf.data, 2 workers": Candidate(functools.partial(_cache, by="tf.data", workers=2)),
    "xbatcher": Candidate(_xbatcher, most=30),
    "xarray and Dask": Candidate(_dask, most=30),
    "bound, cold": Candidate(_bound, cold=True),
    "cache by PyDataset, 2 workers, cold": Candidate(
        functools.partial(_cache, by="PyDataset", workers=2), cold=True
    ),
}


def _floats(read: Callable[[np.ndarray], np.ndarray], order: np.ndarray, batches: int) -> Any:
    import keras

    class Floats(keras.utils.PyDataset):  # type: ignore[misc]
        """Batches of 32-bit floats, read by two threads as those of the cache."""

        def __len__(self) -> int:
            return batches

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            frames = read(order[index * BATCH : (index + 1) * BATCH])
            return frames[:, : WINDOW.input_frames], frames[:, WINDOW.input_frames :]

    return Floats(workers=2)


@functools.cache
def _one_layer(dtype: str) -> Any:
    from nowcast.networks import load_keras

    keras = load_keras()

    class OnePixel(keras.Model):  # type: ignore[misc]
        """Its loss looks at one pixel."""

        def compute_loss(self, _: Any, y: Any, y_pred: Any, __: Any = None) -> Any:
            target = keras.ops.cast(y[:, 0, 0, 0], "float32")
            return keras.ops.mean(keras.ops.square(keras.ops.reshape(target, (-1, 1)) - y_pred))

    frames = keras.Input((WINDOW.input_frames, SIDE, SIDE), dtype=dtype)
    pixel = keras.ops.cast(frames[:, :, 0, 0], "float32")
    model = OnePixel(frames, keras.layers.Dense(1)(pixel))
    model.compile(
        optimizer=keras.optimizers.SGD(1e-9), steps_per_execution=STEPS, jit_compile=False
    )
    return model


def _fitted(model: Any, batches: Any) -> float:
    started = time.perf_counter()
    model.fit(batches, epochs=1, shuffle=False, verbose=0)
    return time.perf_counter() - started


def _measured(candidate: Candidate, work: Path, batches: int) -> dict[str, float]:
    process = psutil.Process()
    before, read = process.cpu_times(), process.io_counters().read_bytes
    seconds = candidate.run(work, batches)
    after = process.cpu_times()
    windows = batches * BATCH
    codes = 2 * SIDE * SIDE * len(WINDOW.offsets)  # bytes of a window in the cache
    return {
        "windows_per_second": windows / seconds,
        "mb_per_second": windows * codes / seconds / 1e6,
        "cpu_ms_per_batch": 1e3 * (sum(after[:2]) - sum(before[:2])) / batches,
        "mb_from_disk": (process.io_counters().read_bytes - read) / 1e6,
    }


def _median(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(row[name] for row in rows) for name in rows[0]}


def _cold_copy(work: Path) -> Path:
    """Give a folder with a copy of the cache that nobody maps, dropped from the page cache."""
    cold = Path(tempfile.mkdtemp(dir=work))
    shutil.copytree(work / "cache", cold / "cache")
    with (cold / "cache" / FRAMES).open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return cold


def _alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a fresh process."""
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *arguments).result()


def _peak_of(name: str, work: str) -> float:
    with _Peak() as peak:
        CANDIDATES[name].run(Path(work), 40)
    return peak.megabytes


def _prepare(path: str, work: str) -> dict[str, Any]:
    from nowcast.data.observations import open_observations

    started = time.perf_counter()
    with _Peak() as peak:
        observed = open_observations(path)
        cache = build_cache(
            observed,
            Path(work) / "cache",
            variable=REFLECTIVITY,
            coding=coding_of(REFLECTIVITY),
            step=pd.Timedelta("5min"),
        )
    seconds = time.perf_counter() - started
    del observed
    return {"seconds": seconds, "peak_anonymous_mb": peak.megabytes, **cache.summary()}


class _Peak:
    """Samples what the process holds that no file backs, 20 times a second."""

    def __enter__(self) -> "_Peak":
        self.megabytes = 0.0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        process = psutil.Process()
        while not self._done.wait(0.05):
            memory = process.memory_info()
            self.megabytes = max(self.megabytes, (memory.rss - memory.shared) / 1e6)


if __name__ == "__main__":
    sys.exit(main())
