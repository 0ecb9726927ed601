"""The motion of every frame of a training cache, found once, for networks that see motion.

Optical flow takes far longer than reading a window, so it is not for the training loop. A derived
store beside the cache: one array, and a page of JSON with its hash. It may be deleted at any time.
"""

import json
import multiprocessing
import os
import threading
from pathlib import Path

import numpy as np

from nowcast.cache import Cache, Coding
from nowcast.conventions import Variable
from nowcast.durable import replacing_folder, sha256
from nowcast.nowcasters.extrapolation import motion

VERSION = 1  # raised whenever motion would come out otherwise
MOTIONS, CONTENT = "motions.npy", "motions.json"
INPUT_FRAMES = 3  # of which motion is found, as `Extrapolation` does by default
FRAMES_IN_TASK = 256


def motions_of(cache: Cache, variable: Variable, *, input_frames: int = INPUT_FRAMES) -> np.ndarray:
    """Give the motion up to each frame of a cache: found now, in parallel with Dask, or before.

    Parameters
    ----------
    cache
        Whose frames are read.
    variable
        What they are.
    input_frames
        That a nowcaster is given; motion is of the last `INPUT_FRAMES` of them at most.

    Returns
    -------
    motions : (frame, component, y, x)
        Read-only, 16-bit floats: pixels per step, along x first and then along y, as
        `nowcast.nowcasters.extrapolation.motion` gives it. Zero for the first frames of a run,
        which have too few before them.

    Examples
    --------
    >>> import tempfile
    >>> import pandas as pd
    >>> from nowcast.cache import cached, coding_of
    >>> from nowcast.conventions import RAIN_RATE
    >>> from nowcast.data.synthetic import synthesise
    >>> cache = cached(
    ...     synthesise(hours=1, size=32),
    ...     work=Path(tempfile.mkdtemp()),
    ...     variable=RAIN_RATE,
    ...     coding=coding_of(RAIN_RATE),
    ...     step=pd.Timedelta("10min"),
    ... )
    >>> motions_of(cache, RAIN_RATE).shape
    (7, 2, 32, 32)
    """
    used = min(input_frames, INPUT_FRAMES)
    fewer = f"-of-{used}" if used < INPUT_FRAMES else ""
    folder = cache.folder.with_name(f"{cache.folder.name}-motions{fewer}")
    known = {"version": VERSION, "frames_sha256": cache.sha256, "variable": variable.name}
    if not _holds(folder, known):
        _find(cache, variable, folder, known, used)
    motions: np.ndarray = np.load(folder / MOTIONS, mmap_mode="r", allow_pickle=False)
    return motions


def _holds(folder: Path, known: dict[str, object]) -> bool:
    try:
        content = json.loads((folder / CONTENT).read_text())
        digest = content.pop("sha256")
        return bool(content == known and digest == sha256(folder / MOTIONS))
    except (OSError, ValueError, KeyError):
        return False


def _find(
    cache: Cache, variable: Variable, folder: Path, known: dict[str, object], used: int
) -> None:
    import dask

    frames = len(cache.times)
    with replacing_folder(folder.resolve()) as temporary:
        path = temporary / MOTIONS
        shape = (frames, 2, *cache.codes.shape[1:])
        np.lib.format.open_memmap(path, "w+", np.float16, shape).flush()
        spans = [
            (max(first, run.first + used - 1), min(first + FRAMES_IN_TASK, run.first + run.length))
            for run in cache.runs
            for first in range(run.first, run.first + run.length, FRAMES_IN_TASK)
        ]
        write = dask.delayed(_write, pure=False)
        frames_file = str(cache.path)
        tasks = [write(frames_file, cache.coding, variable, str(path), *one, used) for one in spans]
        # Optical flow runs under a lock in one process, so threads would not help.
        scheduler = "processes" if frames > 2 * FRAMES_IN_TASK else "synchronous"
        dask.compute(*tasks, scheduler=scheduler, initializer=_end_with_parent)
        content = {**known, "sha256": sha256(path)}
        (temporary / CONTENT).write_text(json.dumps(content))


def _end_with_parent() -> None:
    """Let this process end when the one that started it does, however that ended."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _write(
    frames: str, coding: Coding, variable: Variable, to: str, first: int, end: int, used: int
) -> None:
    """Write the motion of the frames from `first` to `end` to their places."""
    codes = np.load(frames, mmap_mode="r", allow_pickle=False)
    motions = np.load(to, mmap_mode="r+", allow_pickle=False)
    for place in range(first, end):
        window = coding.decode(codes[place - used + 1 : place + 1])
        motions[place] = motion(window, variable)
    motions.flush()
