import json
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import psutil
import pytest

from nowcast.cache import build_cache, coding_of
from nowcast.conventions import RAIN_RATE
from nowcast.data.synthetic import synthesise
from nowcast.nowcasters import motions
from nowcast.nowcasters.extrapolation import motion
from nowcast.nowcasters.motions import motions_of

STEP = pd.Timedelta("10min")


@pytest.fixture(scope="module")
def rain():
    """Two events of an hour, and in the first one a gap."""
    observed = synthesise(events=2, hours=1, size=32, seed=3).load()
    return observed.drop_isel(time=2)


def _cache(rain, folder):
    return build_cache(
        rain, folder / "cache", variable=RAIN_RATE, coding=coding_of(RAIN_RATE), step=STEP
    )


@pytest.fixture(scope="module")
def cache(rain, tmp_path_factory):
    return _cache(rain, tmp_path_factory.mktemp("cached"))


@pytest.mark.parametrize("used", [3, 2])
def test_motion_of_a_cache_is_that_of_its_frames(cache, used):
    """To the 11 bits of its floats; zero for the first frames of a run: of 2, 4 and 7 frames."""
    found = motions_of(cache, RAIN_RATE, input_frames=used)
    frames = cache.coding.decode(cache.codes)
    assert found.shape == (13, 2, 32, 32)
    assert found.dtype == np.float16
    assert [run.length for run in cache.runs] == [2, 4, 7]
    moving = 0
    for run in cache.runs:
        for place in range(run.first, run.first + run.length):
            if place < run.first + used - 1:
                assert (found[place] == 0.0).all()
                continue
            expected = motion(frames[place - used + 1 : place + 1], RAIN_RATE)
            np.testing.assert_allclose(found[place], expected, rtol=1e-3, atol=1e-3)
            moving += bool(np.abs(expected).max() > 0.3)
    assert moving >= 5


def test_no_more_frames_are_used_than_extrapolation_uses(cache):
    np.testing.assert_array_equal(
        motions_of(cache, RAIN_RATE, input_frames=6), motions_of(cache, RAIN_RATE)
    )


def test_it_is_read_only_and_lies_beside_the_cache(cache):
    found = motions_of(cache, RAIN_RATE)
    assert not found.flags.writeable
    folder = cache.folder.with_name("cache-motions")
    assert sorted(path.name for path in folder.iterdir()) == ["motions.json", "motions.npy"]


def test_what_was_found_is_found_again_without_computing(cache, monkeypatch):
    before = np.array(motions_of(cache, RAIN_RATE))

    def computed(*_):
        raise AssertionError("computed")

    monkeypatch.setattr(motions, "motion", computed)
    np.testing.assert_array_equal(motions_of(cache, RAIN_RATE), before)


@pytest.mark.parametrize("damage", ["byte", "short", "absent", "json", "version", "frames"])
def test_what_is_not_what_was_written_is_found_anew(rain, tmp_path, damage, monkeypatch):
    cache = _cache(rain, tmp_path)
    before = np.array(motions_of(cache, RAIN_RATE))
    folder = cache.folder.with_name("cache-motions")
    file, told = folder / "motions.npy", folder / "motions.json"
    content = bytearray(file.read_bytes())
    if damage == "byte":
        content[-5] ^= 1
        file.write_bytes(content)
    elif damage == "short":
        file.write_bytes(content[: len(content) // 2])
    elif damage == "absent":
        file.unlink()
    elif damage == "json":
        told.write_text(told.read_text()[:-3])
    elif damage == "version":
        monkeypatch.setattr(motions, "VERSION", motions.VERSION + 1)
    else:  # it was made of other frames
        known = json.loads(told.read_text())
        told.write_text(json.dumps({**known, "frames_sha256": "0" * 64}))
    counted = []
    found = motions.motion
    monkeypatch.setattr(
        motions, "motion", lambda frames, variable: (counted.append(1), found(frames, variable))[1]
    )
    np.testing.assert_array_equal(motions_of(cache, RAIN_RATE), before)
    assert len(counted) == 2 + 5
    np.testing.assert_array_equal(motions_of(cache, RAIN_RATE), before)
    assert len(counted) == 2 + 5


@pytest.mark.proof
def test_it_is_the_same_however_many_tasks_find_it(cache, rain, tmp_path, monkeypatch):
    monkeypatch.setattr(motions, "FRAMES_IN_TASK", 2)  # so many that they run in processes
    other = _cache(rain, tmp_path)
    np.testing.assert_array_equal(motions_of(other, RAIN_RATE), motions_of(cache, RAIN_RATE))


def test_an_interruption_leaves_nothing_that_passes_for_it(rain, tmp_path, monkeypatch):
    cache = _cache(rain, tmp_path)

    def lost(*_):
        raise OSError("no space left")

    monkeypatch.setattr(motions, "motion", lost)
    with pytest.raises(OSError, match="no space left"):
        motions_of(cache, RAIN_RATE)
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


FOREVER = """
import sys, time
from nowcast.cache import open_cache
from nowcast.conventions import RAIN_RATE
from nowcast.nowcasters import motions

def write(*_):
    time.sleep(600)

if __name__ == "__main__":
    motions.FRAMES_IN_TASK = 2  # so many that they run in processes
    motions._write = write
    motions.motions_of(open_cache(sys.argv[1]), RAIN_RATE)
"""


@pytest.mark.proof
def test_processes_that_find_it_end_with_the_one_that_was_killed(rain, tmp_path):
    script = tmp_path / "forever.py"
    script.write_text(FOREVER)
    folder = _cache(rain, tmp_path).folder
    started = subprocess.Popen([sys.executable, script, str(folder)])
    workers = []
    while started.poll() is None and not any("spawn_main" in one for _, one in workers):
        time.sleep(0.2)
        children = psutil.Process(started.pid).children(recursive=True)
        workers = [(one, " ".join(one.cmdline())) for one in children]
    time.sleep(5)  # until they are in their tasks
    started.send_signal(signal.SIGKILL)
    started.wait()
    gone, left = psutil.wait_procs([one for one, _ in workers], timeout=30)
    for one in left:
        one.kill()
    assert gone
    assert not left
