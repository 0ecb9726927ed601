"""The tools of the crash tests themselves: they see, kill and complain where they should."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from crash.shim import build_shim, why_not
from crash.trace import Call, check_durability, counts, read_trace

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not() or "it runs here")

PROGRAM = """
import os, subprocess, sys
from pathlib import Path
from crash.shim import Shim
watched, settings = Path(sys.argv[1]), eval(sys.argv[2])
Shim().arm(str(watched), **settings)
Path(watched.parent, "elsewhere").write_bytes(b"not watched")
subprocess.run(["touch", str(watched / "by-a-child")], check=True)
(watched / "one").write_bytes(b"12345678")
try:
    (watched / "two").write_bytes(b"12345678")
except OSError as error:
    print(error.strerror)
os.rename(watched / "one", watched / "three")
(watched / "three").unlink()
print("end")
"""
CALLS = ["create", "write", "create", "write", "rename", "unlink"]


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    return build_shim(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def watched(tmp_path):
    folder = tmp_path / "watched"
    folder.mkdir()
    return folder


def run(shim, watched, **settings):
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "LD_PRELOAD": str(shim), "PYTHONPATH": str(tests)}
    command = [sys.executable, "-c", PROGRAM, str(watched), repr(settings)]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_every_call_of_the_process_is_seen_and_none_of_its_children_or_elsewhere(
    shim, watched, tmp_path
):
    done = run(shim, watched, trace=str(tmp_path / "trace"))
    assert done.stdout == "end\n"
    assert [call.name for call in read_trace(tmp_path / "trace")] == CALLS
    assert counts(read_trace(tmp_path / "trace")) == {
        "open": 2, "write": 2, "rename": 1, "unlink": 1
    }  # fmt: skip
    assert (watched / "by-a-child").exists()


@pytest.mark.parametrize("at", range(1, len(CALLS) + 1))
def test_the_process_dies_before_the_chosen_call(shim, watched, at):
    assert run(shim, watched, at=at).returncode == -9
    sizes = {path.name: path.stat().st_size for path in watched.iterdir()}
    sizes.pop("by-a-child")
    assert (
        sizes
        == [
            {},
            {"one": 0},
            {"one": 8},
            {"one": 8, "two": 0},
            {"one": 8, "two": 8},
            {"two": 8, "three": 8},
        ][at - 1]
    )


def test_a_torn_write_is_half_done(shim, watched):
    assert run(shim, watched, at=2, torn=True).returncode == -9
    assert (watched / "one").read_bytes() == b"1234"


def test_on_a_full_disk_the_rest_is_refused_and_what_takes_no_space_goes_on(shim, watched):
    assert run(shim, watched, full_from=4).stdout == "No space left on device\nend\n"
    assert (watched / "two").read_bytes() == b"1234"
    assert not (watched / "three").exists()


def trace(*lines):
    """Give calls from words: its name, its path, and the old name of what was renamed."""
    return [Call(name, 0, path, *(rest or [""])) for name, path, *rest in map(str.split, lines)]


GOOD = (
    "mkdir /a/day",
    "fsync /a",
    "create /a/day/.tmp-frame",
    "write /a/day/.tmp-frame",
    "fsync /a/day/.tmp-frame",
    "rename /a/day/frame /a/day/.tmp-frame",
    "fsync /a/day",
    "write /a/index.sqlite-wal",
    "fsync /a/index.sqlite-wal",
    "note acknowledged",
)


def test_the_order_of_a_good_writer_has_no_violation():
    found = check_durability(trace(*GOOD))
    assert (found.renames, found.folders, found.commits) == (1, 1, 1)
    assert found.violations == []


@pytest.mark.parametrize(
    ("line", "violation"),
    [
        ("fsync /a", "the index was written before the folder of /a/day was flushed, after mkdir"),
        ("fsync /a/day/.tmp-frame", "/a/day/.tmp-frame was renamed before it was flushed"),
        (
            "fsync /a/day",
            "the index was written before the folder of /a/day/frame was flushed, after rename",
        ),
        (
            "fsync /a/index.sqlite-wal",
            "acknowledged before /a/index.sqlite-wal was flushed",
        ),
    ],
)
def test_each_flush_that_is_left_out_is_a_violation(line, violation):
    assert check_durability(trace(*(each for each in GOOD if each != line))).violations == [
        violation
    ]


def test_a_write_after_the_flush_is_a_violation():
    late = [*GOOD[:5], "write /a/day/.tmp-frame", *GOOD[5:]]
    assert check_durability(trace(*late)).violations == [
        "/a/day/.tmp-frame was renamed before it was flushed"
    ]


def test_a_log_that_goes_before_its_database_is_flushed_is_a_violation():
    end = ["write /a/index.sqlite", "unlink /a/index.sqlite-wal"]
    assert check_durability(trace(*GOOD, *end)).violations == [
        "/a/index.sqlite-wal went before its database was flushed"
    ]
    flushed = [end[0], "fsync /a/index.sqlite", end[1]]
    assert check_durability(trace(*GOOD, *flushed)).violations == []
