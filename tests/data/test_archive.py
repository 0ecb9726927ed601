import contextlib
import hashlib
import itertools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace

import knmi_sample
import numpy as np
import pytest
import xarray as xr

from nowcast import durable
from nowcast.conventions import check_observations
from nowcast.data import archive as archives
from nowcast.data import quality
from nowcast.data.archive import (
    Checked,
    IngestReport,
    fsck,
    ingest,
    open_archive,
    partitions,
    sweep,
)
from nowcast.data.contracts import contract_of
from nowcast.data.framefiles import sanitise
from nowcast.data.observations import open_observations

PART = "knmi/rad_test_5min"


@pytest.fixture
def archive(tmp_path):
    return tmp_path / "archive"


@pytest.fixture
def files(tmp_path):
    return knmi_sample.write_series(tmp_path / "radar", 6)


def index_rows(archive):
    with contextlib.closing(sqlite3.connect(archive / "index.sqlite")) as index:
        return sorted(index.execute("SELECT * FROM frames").fetchall())


def contents(archive):
    """Give the hash of every frame's file, by its place."""
    paths = [path for path in archive.rglob("*.nc") if path.is_file()]
    return {path.relative_to(archive).as_posix(): durable.sha256(path) for path in paths}


def temperatures(path, *, frames=100, source="ERA5"):
    """Write a file of many frames, without bounds."""
    generator = np.random.default_rng(3)
    values = generator.normal(280, 5, (frames, 4, 5)).astype("f4")
    times = np.datetime64("2019-03-01", "ns") + np.arange(frames) * np.timedelta64(1, "h")
    coords = {
        "time": times,
        "lat": ("lat", [3.0, 2, 1, 0], {"standard_name": "latitude", "units": "degrees_north"}),
        "lon": ("lon", np.arange(5.0), {"standard_name": "longitude", "units": "degrees_east"}),
    }
    dataset = xr.Dataset({"t2m": (("time", "lat", "lon"), values, {"units": "K"})}, coords)
    dataset.attrs["source"] = source
    dataset.to_netcdf(path)
    return dataset


def test_the_archive_gives_back_what_the_files_held(files, archive):
    assert ingest(files, archive) == IngestReport(added=6)
    observed = check_observations(open_archive(archive))
    expected = open_observations(files)
    np.testing.assert_array_equal(observed["time"], expected["time"])
    np.testing.assert_array_equal(observed["time_bnds"], expected["time_bnds"])
    np.testing.assert_array_equal(observed["rain_rate"], expected["rain_rate"])
    assert observed["rain_rate"].attrs == expected["rain_rate"].attrs
    assert observed["crs"].attrs == expected["crs"].attrs


def test_missing_stays_missing_and_dry_stays_dry(tmp_path, archive):
    rain_mm = np.array([[0.0, np.nan], [np.nan, 0.0]])
    ingest(knmi_sample.write_knmi(tmp_path / "a.h5", rain_mm, "2024-06-01T12:00"), archive)
    values = open_archive(archive)["rain_rate"].values[0]
    np.testing.assert_array_equal(values, rain_mm)


def test_a_missing_frame_is_absent(files, archive):
    ingest([*files[:2], *files[4:]], archive)
    times = open_archive(archive)["time"].values
    assert len(times) == 4
    assert times[2] - times[1] == np.timedelta64(15, "m")


def test_frames_lie_where_their_content_says(files, archive):
    ingest(files[:1], archive)
    digest = durable.sha256(files[0])
    (path,) = contents(archive)
    assert path.startswith(f"{PART}/")
    assert path.endswith(f"/2010/08/26/000000Z-{digest[:8]}.nc")


def test_an_archived_frame_opens_as_plain_netcdf(files, archive):
    ingest(files[:1], archive)
    (path,) = contents(archive)
    with xr.open_dataset(archive / path) as frame:
        check_observations(frame)
        told = json.loads(frame.attrs["nowcast_frame"])
    assert told["input_sha256"] == durable.sha256(files[0])
    assert told["statistics"]["coverage"] == np.isfinite(knmi_sample.rain(0)).mean()


def test_the_same_bytes_twice_change_nothing(files, archive):
    ingest(files, archive)
    before = {path: path.stat().st_mtime_ns for path in archive.rglob("*.nc")}
    rows = index_rows(archive)
    copy = files[0].with_name("copy.h5")
    shutil.copy(files[0], copy)
    assert ingest([*files, copy], archive) == IngestReport(already_there=7)
    assert {path: path.stat().st_mtime_ns for path in archive.rglob("*.nc")} == before
    assert index_rows(archive) == rows


def test_two_copies_in_one_call_are_one_frame(files, archive):
    copy = files[0].with_name("copy.h5")
    shutil.copy(files[0], copy)
    assert ingest([files[0], copy], archive).added == 1
    assert len(contents(archive)) == 1


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_of_other_bytes_for_one_time_both_are_kept_and_the_greater_hash_counts(
    tmp_path, archive, order
):
    end = "2010-08-26T00:05"
    versions = [
        knmi_sample.write_knmi(tmp_path / f"{n}.h5", np.full((3, 3), n / 10), end) for n in (1, 2)
    ]
    for position in order:
        ingest(versions[position], archive)
    assert len(contents(archive)) == 2
    assert len(index_rows(archive)) == 2
    observed = open_archive(archive)
    assert observed.sizes["time"] == 1
    expected = 1.2 if durable.sha256(versions[0]) > durable.sha256(versions[1]) else 2.4
    assert float(observed["rain_rate"].max()) == pytest.approx(expected)


def test_the_order_of_arrival_does_not_matter(files, tmp_path):
    correction = knmi_sample.write_knmi(tmp_path / "again.h5", np.ones((12, 10)), "2010-08-26")
    arrivals = [*files[:3], correction]
    ingest(arrivals, tmp_path / "reference")
    reference = open_archive(tmp_path / "reference").load()
    for number, order in enumerate(itertools.islice(itertools.permutations(arrivals), 1, 24, 5)):
        archive = tmp_path / str(number)
        for file in order:
            ingest(file, archive)
        assert contents(archive) == contents(tmp_path / "reference")
        xr.testing.assert_identical(open_archive(archive).load(), reference)


def test_a_file_of_many_frames_is_split(tmp_path, archive):
    expected = temperatures(tmp_path / "t2m.nc")
    assert ingest(tmp_path / "t2m.nc", archive).added == 100
    observed = open_archive(archive)
    np.testing.assert_array_equal(observed["t2m"], expected["t2m"])
    np.testing.assert_array_equal(observed["time"], expected["time"])
    assert "time_bnds" not in observed
    assert observed["t2m"].chunks[0] == (32, 32, 32, 4)
    assert ingest(tmp_path / "t2m.nc", archive).already_there == 100


def test_a_file_of_which_frames_are_lacking_is_completed(tmp_path, archive):
    temperatures(tmp_path / "t2m.nc", frames=5)
    ingest(tmp_path / "t2m.nc", archive)
    lost = sorted(archive.rglob("*.nc"))[2]
    lost.unlink()
    assert fsck(archive).frames == 4
    assert ingest(tmp_path / "t2m.nc", archive).added == 1
    assert open_archive(archive).sizes["time"] == 5


def test_a_zarr_store_is_taken_in(tmp_path, archive):
    temperatures(tmp_path / "t2m.nc", frames=3).to_zarr(tmp_path / "t2m.zarr", consolidated=False)
    assert ingest(tmp_path / "t2m.zarr", archive).added == 3
    assert ingest(tmp_path / "t2m.zarr", archive).already_there == 3


def test_a_folder_of_files_is_taken_in(files, archive):
    assert ingest(files[0].parent, archive).added == 6


def test_opening_is_lazy_and_reads_one_frame_only(files, archive, computing_fails):
    ingest(files, archive)
    for path in sorted(archive.rglob("*.nc"))[1:]:
        path.unlink()
    with computing_fails():
        observed = open_archive(archive)
    assert observed["rain_rate"].chunks[0] == (6,)
    with pytest.raises(ValueError, match=r"000500Z-.*\.nc is gone"):
        observed["rain_rate"].load()


def test_a_damaged_frame_is_named_when_it_is_read(files, archive):
    ingest(files, archive)
    path = sorted(archive.rglob("*.nc"))[3]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    observed = open_archive(archive)
    with pytest.raises(ValueError, match=rf"{path.name} is damaged"):
        observed["rain_rate"].load()


def test_the_grid_is_not_taken_from_a_damaged_frame(files, archive):
    """The first frame's is that of all, whichever are read."""
    ingest(files, archive)
    path = min(archive.rglob("*.nc"))
    grid = open_archive(archive)["y"].values.astype("<f8")
    content = path.read_bytes()
    assert content.count(grid.tobytes()) == 1
    path.write_bytes(content.replace(grid.tobytes(), (grid + 5e5).tobytes()))
    with pytest.raises(ValueError, match=rf"{path.name} is damaged"):
        open_archive(archive)


def test_a_frame_is_not_taken_for_another_time(files, archive):
    ingest(files, archive)
    with sqlite3.connect(archive / "index.sqlite") as index:
        index.execute(
            "UPDATE frames SET time = time + 60 WHERE time = (SELECT MAX(time) FROM frames)"
        )
    index.close()
    with pytest.raises(ValueError, match=r"says that the frame .* is of .*; run nowcast fsck"):
        open_archive(archive)["rain_rate"].load()
    assert fsck(archive).frames == 6
    open_archive(archive)["rain_rate"].load()


def test_bad_files_go_to_quarantine_and_never_stop_the_rest(files, archive, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("it rained")
    cut = tmp_path / "cut.h5"
    cut.write_bytes(files[0].read_bytes()[:-100])
    report = ingest([text, files[0], cut, tmp_path / "gone.h5", *files[1:]], archive)
    assert report.added == 6
    reasons = dict(report.refused)
    assert set(reasons) == {str(text), str(cut), str(tmp_path / "gone.h5")}
    assert reasons[str(text)].startswith("is not a radar file nowcast knows")
    digest = durable.sha256(text)
    note = json.loads((archive / "quarantine" / f"{digest[:16]}.json").read_text())
    assert note["file"] == str(text)
    assert note["sha256"] == digest
    assert note["reason"] == reasons[str(text)]
    assert note["time"].endswith("+00:00")
    assert (archive / "quarantine" / note["copy"]).read_bytes() == text.read_bytes()
    assert open_archive(archive).sizes["time"] == 6


def test_impossible_rain_is_refused(tmp_path, archive):
    path = knmi_sample.write_knmi(tmp_path / "a.h5", np.full((2, 2), 100.0), "2024-06-01T12:00")
    ((file, reason),) = ingest(path, archive).refused
    assert file == str(path)
    assert "outside [0.0, 1000.0] mm h-1" in reason


def test_a_full_disk_is_no_fault_of_the_file(files, archive, monkeypatch):
    def full(*_args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(archives.framefiles, "write", full)
    with pytest.raises(OSError, match="No space left"):
        ingest(files, archive)
    assert not (archive / "quarantine").exists()
    monkeypatch.undo()
    assert ingest(files, archive).added == 6


def test_an_index_rebuilt_from_the_files_is_the_same(files, archive, tmp_path):
    temperatures(tmp_path / "t2m.nc", frames=4)
    ingest([*files, tmp_path / "t2m.nc"], archive)
    before = index_rows(archive)
    assert fsck(archive) == Checked(frames=10)
    assert index_rows(archive) == before
    for path in archive.glob("index.sqlite*"):
        path.unlink()
    assert ingest(files, archive).already_there == 6
    assert index_rows(archive) == before


def test_an_index_left_unfinished_is_made_anew(files, archive):
    ingest(files, archive)
    before = index_rows(archive)
    (archive / "index.sqlite").write_bytes(b"")
    assert ingest(files[:1], archive).already_there == 1
    assert index_rows(archive) == before


def test_large_frames_make_small_chunks(files, archive, monkeypatch):
    ingest(files, archive)
    monkeypatch.setattr(archives, "LARGEST_CHUNK", 2 * 12 * 10 * 4)
    assert open_archive(archive)["rain_rate"].chunks[0] == (2, 2, 2)


def test_a_file_that_changes_while_it_is_read_is_refused(files, archive, monkeypatch):
    check = archives._checked

    def growing(path, task):
        checked = check(path, task)
        path.write_bytes(path.read_bytes() + b"more")
        return checked

    monkeypatch.setattr(archives, "_checked", growing)
    assert "changed while it was read" in ingest(files[:1], archive).refused[0][1]


def test_a_damaged_index_says_so_and_can_be_rebuilt(files, archive):
    ingest(files, archive)
    before = index_rows(archive)
    (archive / "index.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(ValueError, match="nowcast fsck"):
        open_archive(archive)
    assert fsck(archive).frames == 6
    assert index_rows(archive) == before


def test_rebuilding_leaves_out_damaged_frames(files, archive):
    ingest(files, archive)
    path = sorted(archive.rglob("*.nc"))[0]
    path.write_bytes(path.read_bytes()[:1000])
    report = fsck(archive)
    assert report.frames == 5
    assert path.name in report.damaged[0][0]


def test_several_partitions_are_listed(files, archive, tmp_path):
    temperatures(tmp_path / "t2m.nc", frames=4)
    ingest([*files, tmp_path / "t2m.nc"], archive)
    with pytest.raises(ValueError, match="holds 2 partitions; name one as source") as caught:
        open_archive(archive)
    knmi, era5 = (part for part in reversed(sorted(partitions(archive))))
    assert f"{knmi} (6 frames, 2010-08-26T00:00:00Z..2010-08-26T00:25:00Z)" in str(caught.value)
    assert f"{era5} (4 frames, 2019-03-01T00:00:00Z..2019-03-01T03:00:00Z)" in str(caught.value)
    with pytest.raises(ValueError, match="'dwd' fits none"):
        open_archive(archive, source="dwd")


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_partition_is_named_by_as_much_as_tells_it_apart(files, archive, tmp_path, depth):
    temperatures(tmp_path / "t2m.nc", frames=4)
    ingest([*files, tmp_path / "t2m.nc"], archive)
    (part,) = (part for part in partitions(archive) if part.startswith("knmi"))
    source = "/".join(part.split("/")[:depth])
    assert "rain_rate" in open_archive(archive, source=source)


def test_two_grids_are_two_partitions(tmp_path, archive):
    one = knmi_sample.write_series(tmp_path / "one", 2)
    other = knmi_sample.write_series(tmp_path / "other", 2, row_offset=3651.0)
    ingest([*one, *other], archive)
    with pytest.raises(ValueError, match=f"fits 2: {PART}"):
        open_archive(archive, source="KNMI")


def test_a_folder_that_is_no_archive_is_named(tmp_path):
    with pytest.raises(ValueError, match="is no archive: it has no index"):
        open_archive(tmp_path)


def test_an_archive_without_frames_says_so(tmp_path, archive):
    text = tmp_path / "notes.txt"
    text.write_text("it rained")
    ingest(text, archive)
    with pytest.raises(ValueError, match="holds no frames"):
        open_archive(archive)


def test_no_name_in_a_file_leads_out_of_the_archive(tmp_path, archive):
    names = ["../../escape", "/etc/passwd", "a/../../b", "x" * 300, "", "naïve\\..\\c"]
    for number, name in enumerate(names):
        product = name.encode("ascii", "ignore").decode()
        end = f"2024-06-01T12:{number:02}"
        knmi_sample.write_knmi(
            tmp_path / f"{number}.h5", knmi_sample.rain(number), end, product=product
        )
    temperatures(tmp_path / "t.nc", frames=1, source="../../\n*:?")
    before = {path for path in tmp_path.rglob("*")}
    ingest([*tmp_path.glob("*.h5"), tmp_path / "t.nc"], archive)
    new = {path for path in tmp_path.rglob("*")} - before
    assert all(path.is_relative_to(archive) for path in new)
    assert len(contents(archive)) == 7


@pytest.mark.parametrize("name", ["..", "a/b", "Ä", "", "CON\0", "x" * 1000])
def test_path_parts_are_harmless(name):
    part = sanitise(name)
    assert set(part) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-")
    assert 0 < len(part) <= 64


def test_unfinished_files_are_ignored_and_swept(files, archive):
    ingest(files[:2], archive)
    folder = sorted(archive.rglob("*.nc"))[0].parent
    left = folder / ".tmp-0123456789ab-000000Z-00000000.nc"
    left.write_bytes(b"half")
    assert sweep(archive) == 1
    left.write_bytes(b"half")
    assert fsck(archive).frames == 2
    assert not left.exists()
    left.write_bytes(b"half")
    ingest(files[2:], archive)
    assert not left.exists()


def test_progress_is_told_per_batch(files, archive, monkeypatch):
    monkeypatch.setattr(archives, "FILES_PER_BATCH", 4)
    told = []
    ingest(files, archive, progress=lambda done, total: told.append((done, total)))
    assert told == [(4, 6), (6, 6)]


def test_ingest_runs_on_the_current_dask_client(files, archive):
    from dask.distributed import Client

    with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None):
        assert ingest(files, archive).added == 6
        assert open_archive(archive)["rain_rate"].load().shape == (6, 12, 10)


def test_an_archive_that_cannot_be_written_opens(files, archive, monkeypatch):
    ingest(files, archive)
    monkeypatch.setattr(os, "access", lambda *_args: False)
    assert open_archive(archive).sizes["time"] == 6


def test_fsck_finds_every_changed_byte_and_names_the_frame(files, archive):
    ingest(files[:1], archive)
    (path,) = archive.rglob("*.nc")
    whole = path.read_bytes()
    generator = np.random.default_rng(5)
    for at in generator.choice(len(whole), 40, replace=False):
        changed = bytearray(whole)
        changed[at] ^= 1 << int(generator.integers(8))
        path.write_bytes(changed)
        report = fsck(archive)
        assert report.frames == 0
        assert report.damaged[0][0] == path.relative_to(archive).as_posix()
        path.write_bytes(whole)
        assert fsck(archive).restored == 1


def test_a_damaged_frame_is_replaced_when_its_file_comes_again(files, archive):
    ingest(files, archive)
    whole = contents(archive)
    path = sorted(archive.rglob("*.nc"))[3]
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.write_bytes(changed)
    assert fsck(archive).frames == 5
    assert open_archive(archive).sizes["time"] == 5
    assert ingest(files, archive) == IngestReport(added=1, already_there=5)
    assert contents(archive) == whole


def test_fsck_tells_what_is_gone_and_what_came_back(files, archive):
    ingest(files, archive)
    path = sorted(archive.rglob("*.nc"))[2]
    content = path.read_bytes()
    path.unlink()
    assert fsck(archive) == Checked(frames=5, gone=(path.relative_to(archive).as_posix(),))
    path.write_bytes(content)
    assert fsck(archive) == Checked(frames=6, restored=1)


def test_fsck_refuses_a_folder_that_is_no_archive(tmp_path):
    with pytest.raises(ValueError, match="holds neither an index nor frames"):
        fsck(tmp_path)


def test_a_file_that_was_refused_is_not_decoded_again(files, archive, monkeypatch):
    cut = files[0].with_name("cut.h5")
    cut.write_bytes(files[0].read_bytes()[:-100])
    first = ingest(cut, archive)
    monkeypatch.setattr(archives, "decode", None)
    assert ingest(cut, archive) == first


def test_a_file_refused_for_its_name_is_taken_under_the_right_one(files, archive, monkeypatch):
    known = contract_of("KNMI", "RAD_NL25_RAU_H1.5_5mi")
    kept = replace(known, name="%Y%m%d%H%M", grid_ids=(), coverage=(), faintest=(), heavy=())
    monkeypatch.setattr(archives, "contract_of", lambda *_args: kept)
    wrong = files[0].with_name("201008260100.h5")
    shutil.copy(files[0], wrong)
    assert "in its file's name" in ingest(wrong, archive).refused[0][1]
    assert ingest(files[0], archive).added == 1
    assert not list((archive / "quarantine").iterdir())


def test_an_odd_attribute_costs_its_file_and_not_the_others(tmp_path, files, archive):
    dataset = temperatures(tmp_path / "t2m.nc", frames=2)
    dataset["t2m"].attrs["valid_min"] = [1.0, 2.0]
    dataset.to_netcdf(tmp_path / "t2m.nc")
    report = ingest([tmp_path / "t2m.nc", *files], archive)
    assert report.added == 6
    assert [path for path, _ in report.refused] == [str(tmp_path / "t2m.nc")]


def test_an_archive_and_a_file_that_has_no_flags_open_as_one(files, archive):
    ingest(files[:3], archive)
    assert open_observations([archive, files[3]]).sizes["time"] == 4


def test_what_was_refused_by_another_version_is_tried_again(files, archive, monkeypatch):
    monkeypatch.setattr(archives, "__version__", "0.0.1")
    monkeypatch.setattr(archives, "check_values", lambda _block: int("no rain"))
    assert len(ingest(files[0], archive).refused) == 1
    assert len(list((archive / "quarantine").iterdir())) == 2
    monkeypatch.undo()
    assert ingest(files[0], archive).added == 1
    assert not list((archive / "quarantine").iterdir())


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_file_must_keep_the_checksum_that_its_sender_gave(files, archive, kind):
    good, bad = files[:2]
    for file in (good, bad):
        digest = hashlib.new(kind, file.read_bytes()).hexdigest()
        file.with_name(f"{file.name}.{kind}").write_text(f"{digest}  {file.name}\n")
    content = bytearray(bad.read_bytes())
    content[-1] ^= 1
    bad.write_bytes(content)
    report = ingest(good.parent, archive)
    assert report.added == 5
    assert [(path, "fetch it again" in reason) for path, reason in report.refused] == [
        (str(bad), True)
    ]
    assert [what for _, what in report.skipped] == [
        f"checksum of {file.name}" for file in (good, bad)
    ]


def test_a_frame_from_the_future_is_refused(tmp_path, archive):
    soon = np.datetime64("now", "s") + np.timedelta64(10, "m")
    path = knmi_sample.write_knmi(tmp_path / "a.h5", np.ones((3, 3)), str(soon))
    assert "lies in the future" in ingest(path, archive).refused[0][1]
    assert not json.loads(next((archive / "quarantine").glob("*.json")).read_text())["judge"]


def versioned(path, value, **attributes):
    dataset = temperatures(path, frames=1)
    dataset["t2m"][:] = value
    dataset.assign_attrs(attributes).to_netcdf(path)
    return path


@pytest.mark.parametrize("name", ["product_time", "product_version"])
def test_the_senders_latest_version_counts_whatever_its_hash(tmp_path, archive, name):
    versions = {"product_time": ("2019-03-01T00:05", "2019-03-01T00:09", "2019-03-01T00:07")}
    told = versions.get(name, ("9", "11", "10"))
    for number, version in enumerate(told):
        path = versioned(tmp_path / f"{number}.nc", 280.0 + number, **{name: version})
        ingest(path, archive)
    assert open_archive(archive)["t2m"].values.max() == 281.0


def test_a_source_without_a_contract_is_flagged(files, archive):
    ingest(files, archive)
    flag = open_archive(archive)["quality_flag"]
    unproven = dict(zip(flag.attrs["flag_meanings"].split(), flag.attrs["flag_masks"], strict=True))
    assert (flag.values & unproven["unit_unproven"] > 0).all()


def test_frames_that_stand_still_are_flagged_and_stay_as_they_are(tmp_path, archive):
    rain = knmi_sample.rain(1)
    for minute in (0, 5, 10):
        path = tmp_path / f"{minute}.h5"
        knmi_sample.write_knmi(path, rain, f"2010-08-26T12:{minute:02}")
    ingest(list(tmp_path.glob("*.h5")), archive)
    observed = open_archive(archive)
    flags = [quality.flag_names(flag) for flag in observed["quality_flag"].values]
    assert all("frozen" in names for names in flags)
    np.testing.assert_allclose(observed["rain_rate"][0], rain * 12, rtol=1e-6)


def test_a_watched_folder_is_followed(files, archive, tmp_path):
    feed = tmp_path / "feed"
    feed.mkdir()
    rounds = archives.watch(feed, archive, every_seconds=0)
    assert next(rounds) == IngestReport()
    shutil.copy(files[0], feed / files[0].name)
    assert next(rounds).added == 0  # it may still grow
    assert next(rounds).added == 1
    (feed / ".part.h5").write_bytes(files[1].read_bytes())
    (feed / "notes.txt").write_text("it rained")
    (feed / "deeper").mkdir()
    shutil.copy(files[2], feed / "deeper")
    assert next(rounds) == IngestReport()
    report = next(rounds)
    assert (report.added, len(report.refused)) == (1, 1)
    assert next(rounds) == IngestReport()
    (feed / files[0].name).unlink()
    shutil.copy(files[3], feed / files[0].name)
    next(rounds)
    assert next(rounds).added == 1


INGEST = """
import sys
from nowcast.data import archive
archive.FILES_PER_BATCH = 3
archive.ingest(sys.argv[1] + "/*.h5", sys.argv[2])
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Twelve files, and the archive of an ingest that ran to its end."""
    folder = tmp_path_factory.mktemp("undisturbed")
    files = knmi_sample.write_series(folder / "radar", 12, shape=(80, 80))
    ingest(files, folder / "archive")
    return files, folder / "archive"


@pytest.mark.parametrize(
    "frames_before_the_kill", [1, *(pytest.param(one, marks=pytest.mark.proof) for one in (5, 9))]
)
def test_a_killed_ingest_is_completed_by_the_next(undisturbed, archive, frames_before_the_kill):
    files, reference = undisturbed
    process = subprocess.Popen([sys.executable, "-c", INGEST, files[0].parent, archive])
    deadline = time.monotonic() + 60
    while len(list(archive.rglob("*Z-*.nc"))) < frames_before_the_kill:
        assert time.monotonic() < deadline, "ingest wrote nothing"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    acknowledged = index_rows(archive)
    report = ingest(files, archive)
    assert report == IngestReport(12 - len(acknowledged), len(acknowledged))
    assert set(acknowledged) <= set(index_rows(archive))
    assert not [path for path in archive.rglob("*") if durable.is_temporary(path)]
    assert contents(archive) == contents(reference)
    xr.testing.assert_identical(open_archive(archive).load(), open_archive(reference).load())
    before = index_rows(archive)
    fsck(archive)
    assert index_rows(archive) == before
