import contextlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import h5py
import knmi_sample
import numpy as np
import psutil
import pytest
import xarray as xr

from nowcast.data import decoding
from nowcast.data.decoding import LIMITS, Limits, Undecodable, decode
from nowcast.data.readers import read

HERE = Path(__file__).parent
# Others than the default ones, so that the decoders started for them are those of these tests.
HOSTILE = replace(LIMITS, seconds=3.0, memory_bytes=1_500_000_000)


@pytest.fixture(autouse=True)
def few_processes():
    yield
    assert len(decoding._IDLE) <= decoding._MOST_IDLE
    assert len(decoding._DECODERS) == len(decoding._IDLE)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """A package with a reader that does what a file says, installed for the decoders alone."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(HERE / "hostile_reader.py", folder)
    info = folder / "hostile_reader-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile-reader\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[nowcast.readers]\nhostile = hostile_reader:read\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield folder
    decoding._end_all()
    decoding._IDLE.clear()


@pytest.fixture
def order(tmp_path, plugin):  # noqa: ARG001, it must be there
    """Write a file that makes its reader do something."""

    def write(deed):
        path = tmp_path / "order.txt"
        path.write_text(deed)
        return path

    return write


def frames_of(path, *, limits=HOSTILE):
    return list(decode(path, reader="hostile", limits=limits))


def decoder_of(limits=LIMITS):
    """Give the process of the idle decoder that will be used next."""
    (decoder,) = [each for each in decoding._IDLE if each.limits == limits][-1:]
    return psutil.Process(decoder._process.pid)


def most_memory(process):
    """Give the most memory that a process has ever had, in bytes."""
    text = Path(f"/proc/{process.pid}/status").read_text()
    return int(text.split("VmHWM:")[1].split()[0]) * 1024


def knmi(path, seed=0, shape=(12, 10)):
    rain = knmi_sample.rain(seed, shape)
    return knmi_sample.write_knmi(path, rain, "2010-08-26T00:05")


def cf_file(path, *, frames=100, shape=(4, 5), chunk=None, engine="netcdf4"):
    """Write two variables of many frames."""
    generator = np.random.default_rng(3)
    coords = {
        "time": np.datetime64("2019-03-01", "ns") + np.arange(frames) * np.timedelta64(1, "h"),
        "lat": ("lat", np.arange(float(shape[0])), {"units": "degrees_north"}),
        "lon": ("lon", np.arange(float(shape[1])), {"units": "degrees_east"}),
    }
    dims = ("time", "lat", "lon")
    rain = generator.gamma(1, 1, (frames, *shape)).astype("f4")
    rain[generator.random(rain.shape) < 0.2] = np.nan
    temperature = generator.normal(280, 5, (frames, *shape)).astype("f4")
    dataset = xr.Dataset(
        {
            "rain_rate": (dims, rain, {"units": "mm/h", "standard_name": "rainfall_rate"}),
            "t2m": (dims, temperature, {"units": "K", "valid_range": np.array([200, 350], "i2")}),
        },
        coords,
        {"source": "test", "history": "made\nfor a test"},
    )
    if str(path).endswith(".zarr"):
        dataset.to_zarr(path, consolidated=False)
        return path
    encoding = {"chunksizes": (chunk, *shape), "zlib": True} if chunk else {}
    dataset.to_netcdf(path, engine=engine, encoding={n: dict(encoding) for n in dataset})
    return path


def assert_as_read(path, **settings):
    """Check that the blocks are what reading directly gives, bit for bit."""
    expected = read(path).load()
    blocks = list(decode(path, **settings))
    names = [name for block in blocks for name in block]
    # Each in one piece. A Zarr store lists its variables in another order each time.
    assert sorted(name for name, _ in itertools.groupby(names)) == sorted(expected)
    for name in expected:
        parts = [block for block in blocks if name in block]
        assert all(part.sizes["time"] <= 32 for part in parts)
        joined = xr.concat(parts, "time", data_vars="minimal", coords="minimal", join="exact")
        alone = expected.drop_vars([other for other in expected if other != name])
        xr.testing.assert_identical(joined, alone)
        bits = [np.asarray(each[name]).view("u4") for each in (joined, alone)]
        np.testing.assert_array_equal(*bits)
        for part in parts:
            assert part.attrs == expected.attrs


# What is decoded


def test_a_knmi_frame_is_as_read_directly(tmp_path):
    assert_as_read(knmi(tmp_path / "a.h5", shape=(765, 700)))


@pytest.mark.parametrize("chunk", [None, 1, 7, 100])
def test_many_frames_of_two_variables_come_in_blocks_and_in_order(tmp_path, chunk):
    assert_as_read(cf_file(tmp_path / "a.nc", chunk=chunk))


def test_a_classic_netcdf_file_is_as_read_directly(tmp_path):
    assert_as_read(cf_file(tmp_path / "a.nc", engine="scipy"))


def test_a_zarr_store_is_as_read_directly(tmp_path):
    assert_as_read(cf_file(tmp_path / "a.zarr"))


def test_large_frames_make_small_blocks(order):
    sizes = [dict(block.sizes) for block in frames_of(order("shape 4x3000x3000"))]
    assert sizes == [{"time": 1, "y": 3000, "x": 3000}] * 4


def test_a_reader_of_another_package_is_found_and_its_quality_comes_along(order):
    (block,) = frames_of(order("nothing"))
    assert list(block) == ["rain_rate", "quality"]
    assert block["rain_rate"].shape == (2, 8, 9)
    assert float(block["rain_rate"][1, 0, 0]) == np.float32(0.72)
    assert np.isnan(block["rain_rate"][0, 0, 0])
    assert block["rain_rate"].attrs["ancillary_variables"] == "quality"
    assert float(block["quality"].max()) == 0.5


def test_a_name_that_is_no_text_is_decoded(tmp_path):
    good = knmi(tmp_path / "a.h5")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe\n \"'.h5")
    shutil.copy(good, odd)
    (block,) = decode(odd)
    xr.testing.assert_identical(block, next(decode(good)))


def test_a_relative_path_and_a_link_are_followed(tmp_path, monkeypatch):
    knmi(tmp_path / "a.h5")
    (tmp_path / "b.h5").symlink_to("a.h5")
    monkeypatch.chdir(tmp_path)
    (block,) = decode("b.h5")
    assert block.sizes["time"] == 1


def test_a_module_in_the_current_folder_is_never_imported(tmp_path, monkeypatch):
    for name in ("numpy", "h5py", "nowcast"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", "")
    (block,) = decode(knmi(tmp_path / "a.h5"), limits=replace(LIMITS, frames=999))
    assert block.sizes["time"] == 1


# What is refused


def refused(path, match, *, limits=LIMITS, reader=""):
    started = time.monotonic()
    with pytest.raises(Undecodable, match=match) as caught:
        list(decode(path, limits=limits, reader=reader))
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value).splitlines()) == 1
    return time.monotonic() - started


def test_a_file_that_is_not_there_is_said_not_to_be_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="gone"):
        list(decode(tmp_path / "gone.h5"))


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may read everything")
def test_a_file_that_may_not_be_read_is_said_so(tmp_path):
    path = knmi(tmp_path / "a.h5")
    path.chmod(0)
    with pytest.raises(PermissionError, match=r"a\.h5"):
        list(decode(path))


def test_what_is_no_file_is_not_even_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "socket"))
        for name in ("pipe", "link", "socket"):
            refused(tmp_path / name, "is neither a regular file nor a folder")
    refused(Path("/dev/zero"), "is neither a regular file nor a folder")


def test_a_store_that_holds_a_pipe_is_refused(tmp_path):
    path = cf_file(tmp_path / "a.zarr")
    os.mkfifo(path / "pipe")
    refused(path, "which is no regular file")


def test_a_text_and_an_empty_file_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("it rained")
    refused(tmp_path / "a.txt", "is not a radar file nowcast knows")
    (tmp_path / "b.h5").write_bytes(b"")
    refused(tmp_path / "b.h5", "it is empty")
    refused(tmp_path, "is a folder and no Zarr store")
    refused(tmp_path / "b.h5", "no reader 'knmj'", reader="knmj")


def test_files_frames_and_pixels_beyond_the_limits_are_refused(tmp_path):
    path = cf_file(tmp_path / "a.nc")
    size = path.stat().st_size
    few = Limits(largest_file=size - 1)
    refused(path, rf"is too large: {size:,} bytes, and {size - 1:,} is the limit", limits=few)
    refused(path, "claims 200 frames; 199 is the limit", limits=Limits(frames=199))
    refused(path, "claims 20 pixels; 19 is the limit", limits=Limits(largest_frame=19))
    store = cf_file(tmp_path / "a.zarr")
    refused(store, "is too large", limits=Limits(largest_file=5000))


def declares_160_gb(path, form):
    """Write a small file that says that it holds 160 GB."""
    if form == "knmi":
        knmi(path)
        with h5py.File(path, "r+") as file:
            del file["image1/image_data"]
            shape = (400_000, 200_000)
            file["image1"].create_dataset("image_data", shape, "u2", chunks=(1000, 1000))
            for name, size in zip(("rows", "columns"), shape, strict=True):
                file["geographic"].attrs[f"geo_number_{name}"] = np.array([size], "i4")
        return path
    shape = {"frame": (1, 200_000, 200_000), "axis": (1, 40_000_000_000, 1)}[form]
    with h5py.File(path, "w") as file:
        for name, size in zip(("time", "lat", "lon"), shape, strict=True):
            file.create_dataset(name, (size,), "f8" if form == "frame" else "f4").make_scale(name)
        for name, units in (("lat", "degrees_north"), ("lon", "degrees_east")):
            file[name].attrs["units"] = units
        file["time"].attrs["units"] = "hours since 2020-01-01"
        file["time"].attrs["standard_name"] = "time"
        rain = file.create_dataset("rain_rate", shape, "f4")
        rain.attrs["units"] = "mm h-1"
        for axis, name in enumerate(("time", "lat", "lon")):
            rain.dims[axis].attach_scale(file[name])
    return path


@pytest.mark.parametrize("form", ["knmi", "frame", "axis"])
def test_a_small_file_that_declares_160_gigabytes_is_refused_at_once(tmp_path, form):
    list(decode(knmi(tmp_path / "good.h5")))
    path = declares_160_gb(tmp_path / "a.h5", form)
    assert path.stat().st_size < 30_000
    process = decoder_of()
    before = most_memory(process)
    took = refused(path, "claims|needs more memory|MemoryError|[Uu]nable to allocate|damaged")
    if process.is_running():
        assert most_memory(process) - before < 256_000_000
    assert took < 2  # a second on a machine that does nothing else


def test_a_chunk_that_would_unpack_to_gigabytes_is_refused_before_it_is(tmp_path):
    path = knmi(tmp_path / "a.h5")
    shape = (20_000, 15_000)  # 600 MB, and much less on disk
    with h5py.File(path, "r+") as file:
        del file["image1/image_data"]
        data = file["image1"].create_dataset(
            "image_data", shape, "u2", chunks=shape, compression="gzip", compression_opts=1
        )
        data[...] = 0
        for name, size in zip(("rows", "columns"), shape, strict=True):
            file["geographic"].attrs[f"geo_number_{name}"] = np.array([size], "i4")
    assert path.stat().st_size < 5_000_000
    list(decode(knmi(tmp_path / "good.h5")))
    process = decoder_of()
    before = most_memory(process)
    assert refused(path, "a chunk of 'image1/image_data' claims 600,000,000 bytes") < 2
    assert most_memory(process) - before < 100_000_000


def test_a_bomb_that_needs_more_memory_than_allowed_hurts_nothing_else(order):
    refused(order("shape 1x30000x30000"), "needs more memory", limits=HOSTILE, reader="hostile")
    assert len(frames_of(order("nothing"))) == 1


@pytest.mark.parametrize("kind", ["link", "virtual", "external"])
def test_hdf5_that_points_into_another_file_is_refused(tmp_path, kind):
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["t2m"] = np.ones((3, 4, 5), "f4")
    path = cf_file(tmp_path / "a.nc", frames=3)
    with h5py.File(path, "r+") as file:
        group = file.create_group("deep/er")
        if kind == "link":
            group["other"] = h5py.ExternalLink(str(secret), "/t2m")
        if kind == "virtual":
            layout = h5py.VirtualLayout((3, 4, 5), "f4")
            layout[...] = h5py.VirtualSource(str(secret), "t2m", (3, 4, 5))
            group.create_virtual_dataset("other", layout)
        if kind == "external":
            group.create_dataset("other", (60,), "f4", external=[(str(secret), 0, 240)])
    refused(path, "'deep/er/other' lies in another file, which is not followed")


# What a decoder may do, and what becomes of it


@pytest.mark.parametrize(
    ("deed", "reason"),
    [
        pytest.param("sleep 600", "took longer than 3 s to decode", marks=pytest.mark.proof),
        pytest.param("spin", "took longer than 3 s to decode", marks=pytest.mark.proof),
        ("spin_in_c", "took longer than 3 s to decode"),
        ("allocate", "needs more memory to be decoded than 1,500,000,000 bytes, the limit"),
        ("segfault", r"its decoder crashed \(SIGSEGV\)"),
        ("abort", r"its decoder crashed \(SIGABRT\)"),
        ("exit 0", "SystemExit"),
        ("exit_at_once 0", r"its decoder ended \(exit status 0\)"),
        ("close_all", "its decoder"),
        ("fork_and_crash 600", r"its decoder crashed \(SIGSEGV\)"),
        ("lie", "its decoder gave no valid answer"),
        ("lie {}", "its decoder gave no valid answer"),
        ("lie [[[", "its decoder gave no valid answer"),
        ('lie {"refused": "x"}', "its decoder gave no valid answer"),
        ('lie {"attrs": {}, "variables": [], "last": true}', "its decoder gave no valid answer"),
        ("open_many", "OSError"),
        ("raise x", "damaged or cut short: KeyError"),
    ],
)
def test_a_reader_that_misbehaves_costs_its_file_and_nothing_else(order, deed, reason):
    frames_of(order("nothing"))
    took = refused(order(deed), reason, limits=HOSTILE, reader="hostile")
    assert took < 10
    assert len(frames_of(order("nothing"))) == 1


@pytest.mark.parametrize("deed", ["print 2000", "fork 600", "read_input"])
def test_a_reader_that_prints_forks_or_reads_does_not_disturb_the_answer(order, deed):
    (block,) = frames_of(order(deed))
    assert block["rain_rate"].shape == (2, 8, 9)
    assert len(frames_of(order("nothing"))) == 1


def test_a_reader_cannot_write_to_the_disk(order, tmp_path):
    refused(order(f"write {tmp_path / 'out'}"), "OSError", limits=HOSTILE, reader="hostile")
    assert not (tmp_path / "out").exists() or not (tmp_path / "out").stat().st_size


def test_a_package_that_is_not_there_is_no_fault_of_the_file(order):
    with pytest.raises(ImportError, match="absent_package"):
        frames_of(order("import absent_package"))


def test_processor_time_is_limited_for_each_file(order):
    limits = replace(HOSTILE, seconds=60.0, cpu_seconds=1)
    reason = "took longer than 1 s of processor time to decode"
    assert refused(order("spin"), reason, limits=limits, reader="hostile") < 30


def test_what_a_reader_has_forked_ends_with_the_decoder(order):
    frames_of(order("nothing"))
    before = set(decoder_of(HOSTILE).children())
    frames_of(order("fork 600"))
    (forked,) = set(decoder_of(HOSTILE).children()) - before
    refused(order("segfault"), "crashed", limits=HOSTILE, reader="hostile")
    assert is_gone(forked, within=2)


def is_gone(process, *, within):
    end = time.monotonic() + within
    while time.monotonic() < end:
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):
            tasks = Path(f"/proc/{process.pid}/task").iterdir()  # which may outlive the first
            if process.status() != psutil.STATUS_ZOMBIE or len(list(tasks)) > 1:
                time.sleep(0.02)
                continue
        return True
    return False


def test_a_decoder_killed_during_a_file_costs_this_file_alone(order):
    frames_of(order("nothing"))
    process = decoder_of(HOSTILE)
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(frames_of, order("sleep 600"))
        time.sleep(0.5)
        process.kill()
        with pytest.raises(Undecodable, match=r"its decoder crashed \(SIGKILL\)"):
            slow.result(timeout=5)
    assert len(frames_of(order("nothing"))) == 1


def test_a_decoder_killed_while_it_is_idle_costs_no_file(order):
    frames_of(order("nothing"))
    process = decoder_of(HOSTILE)
    process.kill()
    assert is_gone(process, within=2)
    assert len(frames_of(order("nothing"))) == 1


def test_a_caller_that_stops_early_leaves_no_process(tmp_path):
    before = set(decoding._DECODERS)
    blocks = decode(cf_file(tmp_path / "a.nc"), limits=replace(LIMITS, frames=1000))
    next(blocks)
    (decoder,) = decoding._DECODERS - before
    process = psutil.Process(decoder._process.pid)
    blocks.close()
    assert is_gone(process, within=2)


def test_the_time_of_the_caller_does_not_count(tmp_path):
    path = cf_file(tmp_path / "a.nc", shape=(50, 50))
    count = 0
    for _ in decode(path, limits=HOSTILE):
        time.sleep(HOSTILE.seconds + 0.1 if not count else 0)
        count += 1
    assert count == 8


def test_a_decoder_serves_many_files_and_is_then_replaced(tmp_path, monkeypatch):
    limits = replace(LIMITS, frames=3)
    monkeypatch.setattr(decoding, "FILES_PER_DECODER", 3)
    path = knmi(tmp_path / "a.h5")
    list(decode(path, limits=limits))
    first = decoder_of(limits)
    list(decode(path, limits=limits))
    assert decoder_of(limits) == first
    list(decode(path, limits=limits))
    assert is_gone(first, within=2)


def test_a_decoder_that_cannot_start_is_no_fault_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RuntimeError, match="the decoder does not start"):
        list(decode(knmi(tmp_path / "a.h5"), limits=replace(LIMITS, frames=4)))


# Threads, forks and processes


def test_eight_threads_decode_at_once(tmp_path):
    paths = [knmi(tmp_path / f"{n}.h5", seed=n, shape=(50, 40)) for n in range(20)]
    with ThreadPoolExecutor(8) as pool:
        blocks = list(pool.map(lambda path: next(decode(path)), paths))
    for path, block in zip(paths, blocks, strict=True):
        xr.testing.assert_identical(block, read(path).load())


def test_two_files_are_decoded_in_turns_by_one_thread(tmp_path):
    paths = [cf_file(tmp_path / f"{n}.nc", frames=40 + n) for n in range(2)]
    pairs = list(zip(decode(paths[0]), decode(paths[1]), strict=True))
    assert [block.sizes["time"] for block, _ in pairs] == [32, 8, 32, 8]
    assert [block.sizes["time"] for _, block in pairs] == [32, 9, 32, 9]


def test_a_fork_has_decoders_of_its_own(tmp_path):
    path = cf_file(tmp_path / "a.nc")
    expected = [block.sizes["time"] for block in decode(path)]
    blocks = decode(path)
    seen = [next(blocks).sizes["time"]]
    pid = os.fork()
    if pid == 0:
        code = 1
        with contextlib.suppress(BaseException):
            empty = not decoding._DECODERS and not decoding._IDLE
            code = 0 if empty and [b.sizes["time"] for b in decode(path)] == expected else 2
            blocks.close()
            decoding._end_all()
        os._exit(code)
    seen += [block.sizes["time"] for block in blocks]
    assert seen == expected
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert [block.sizes["time"] for block in decode(path)] == expected


PARENT = """
import sys
from nowcast.data.decoding import Limits, decode
limits = Limits(seconds=300)
list(decode(sys.argv[1], reader="hostile", limits=limits))
print("decoded", flush=True)
if sys.argv[2:]:
    list(decode(sys.argv[2], reader="hostile", limits=limits))
sys.stdin.read()
"""


def parent_of_a_decoder(tmp_path, *orders):
    """Start a process that decodes, and give it and its decoder."""
    paths = [tmp_path / str(number) for number, _ in enumerate(orders)]
    for path, deed in zip(paths, orders, strict=True):
        path.write_text(deed)
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, *map(str, paths)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert parent.stdout.readline() == b"decoded\n"
    time.sleep(0.5)
    (decoder,) = psutil.Process(parent.pid).children()
    return parent, decoder


@pytest.mark.parametrize(
    "busy",
    [
        [],
        ["spin_in_c"],
        ["fork 600"],
        *(pytest.param([deed], marks=pytest.mark.proof) for deed in ("sleep 600", "spin")),
    ],
)
def test_a_decoder_ends_with_its_parent_even_if_that_is_killed(plugin, tmp_path, busy):
    assert plugin
    parent, decoder = parent_of_a_decoder(tmp_path, "nothing", *busy)
    with parent:
        parent.kill()
    assert is_gone(decoder, within=2)


def test_a_parent_that_ends_leaves_no_decoder_and_does_not_wait(plugin, tmp_path):
    assert plugin
    parent, decoder = parent_of_a_decoder(tmp_path, "nothing")
    with parent:
        parent.stdin.close()
        assert parent.wait(timeout=10) == 0
    assert is_gone(decoder, within=0.5)


def _sizes(path):
    return [block.sizes["time"] for block in decode(path)], os.getpid()


@pytest.mark.proof  # `test_clusters.py` has frames decoded by workers in every run
def test_the_workers_of_a_dask_cluster_decode(tmp_path):
    from dask.distributed import Client, LocalCluster

    paths = [cf_file(tmp_path / f"{n}.nc", frames=40) for n in range(6)]
    with (
        LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        results = client.gather(client.map(_sizes, paths))
        workers = [psutil.Process(pid) for _, pid in results]
        children = [child for worker in workers for child in worker.children(recursive=True)]
    assert [sizes for sizes, _ in results] == [[32, 8, 32, 8]] * 6
    assert os.getpid() not in {pid for _, pid in results}
    assert all(is_gone(child, within=2) for child in children)


# Damage


@pytest.mark.slow
def test_truncated_and_damaged_files_are_refused_or_read_and_never_hang(tmp_path):
    content = knmi(tmp_path / "a.h5", shape=(200, 180)).read_bytes()
    generator = np.random.default_rng(7)
    mutants = [content[:length] for length in range(0, len(content), 997)]
    for _ in range(300):
        mutant = bytearray(content)
        mutant[generator.integers(len(content))] ^= 1 << int(generator.integers(8))
        mutants.append(bytes(mutant))
    counts = {"accepted": 0, "refused": 0}
    for mutant in mutants:
        path = tmp_path / "mutant.h5"
        path.write_bytes(mutant)
        started = time.monotonic()
        try:
            blocks = list(decode(path, limits=HOSTILE))
        except Undecodable:
            counts["refused"] += 1
        else:
            counts["accepted"] += 1
            assert len(blocks) == 1
            assert len(mutant) == len(content)  # no truncated file is accepted
        assert time.monotonic() - started < 2 * HOSTILE.seconds
    print(json.dumps(counts))
    assert counts["refused"] >= len(content) // 997
