import shutil
import subprocess
import sys
import time

import pytest

from nowcast.durable import (
    is_temporary,
    replacing,
    replacing_folder,
    require_space,
    sha256,
    write_json,
)

WRITER = """
import itertools, sys
from pathlib import Path
from nowcast.durable import replacing
target = Path(sys.argv[1])
for number in itertools.count():
    with replacing(target) as temporary:
        with temporary.open("w") as file:
            for _ in range(2000):
                file.write(f"{number}\\n")
                file.flush()
    print(number, flush=True)
"""


def test_an_error_leaves_the_old_content_and_no_rest(tmp_path):
    target = tmp_path / "file.txt"
    target.write_text("old")

    def fail_halfway():
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_replaced_whole(tmp_path):
    target = tmp_path / "folder"
    for content in ("one", "two"):
        with replacing_folder(target) as temporary:
            (temporary / content).write_text(content)
    assert [path.name for path in target.iterdir()] == ["two"]
    with pytest.raises(ZeroDivisionError), replacing_folder(target) as temporary:
        (temporary / "three").write_text(str(1 / 0))
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert [path.name for path in target.iterdir()] == ["two"]


def test_a_folder_that_cannot_be_put_in_place_leaves_the_old_one(tmp_path, monkeypatch):
    import os

    target = tmp_path / "folder"
    with replacing_folder(target) as temporary:
        (temporary / "one").touch()
    replace = os.replace

    def fail(source, destination):
        if destination == target and "-old" not in str(source):
            raise OSError("no")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"), replacing_folder(target):
        pass
    assert [path.name for path in target.iterdir()] == ["one"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_killed_writer_leaves_whole_files_only(tmp_path):
    target = tmp_path / "file.txt"
    for round_ in range(5):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(target)], stdout=subprocess.PIPE, text=True
        )
        process.stdout.readline()
        time.sleep(0.003 * round_)
        process.kill()
        process.wait()
        lines = target.read_text().splitlines()
        assert len(lines) == 2000
        assert len(set(lines)) == 1
    rests = [path for path in tmp_path.iterdir() if path != target]
    assert all(is_temporary(path.relative_to(tmp_path)) for path in rests)


def test_more_than_the_disk_has_is_refused_before_anything_is_written(tmp_path):
    require_space(tmp_path, 1)
    with pytest.raises(OSError, match=r"bytes may be needed and .* are free; no space left"):
        require_space(tmp_path, shutil.disk_usage(tmp_path).total)
    assert list(tmp_path.iterdir()) == []


def test_json_knows_no_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_the_hash_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "empty"
    path.touch()
    assert sha256(path).startswith("e3b0c44298fc1c14")
    assert path.stat().st_size == 0
