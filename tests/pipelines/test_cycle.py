import doctest
import fcntl
import hashlib
import importlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import psutil
import pytest
import xarray as xr

from nowcast.data.synthetic import synthesise
from nowcast.issuing import open_nowcast, write_nowcast
from pipelines.running import main

SETTINGS = "[window]\nlead_frames = 3\n"  # 10 minutes each; extrapolation uses 3 frames
COMMAND = [sys.executable, "-m", "pipelines.cycle"]
SCHEDULED_SECONDS = 300  # start of a server, up to a minute until the cron is due, a cycle


class Place:
    """A feed to which frames can be delivered, and the folders of a cycle."""

    def __init__(self, folder: Path, observed: xr.Dataset) -> None:
        self.folder, self._observed = folder, observed
        self.feed, self.out = folder / "feed", folder / "out"
        self.feed.mkdir(parents=True, exist_ok=True)
        (folder / "settings.toml").write_text(SETTINGS)

    @property
    def parameters(self) -> dict[str, str]:
        names = {"feed": "feed", "archive": "archive", "out": "out", "work": "work"}
        paths = {**names, "config": "settings.toml"}
        return {name: str(self.folder / path) for name, path in paths.items()}

    @property
    def options(self) -> list[str]:
        return [f"--{name}={value}" for name, value in self.parameters.items()]

    def deliver(self, *frames: int) -> None:
        for frame in frames:
            one = self._observed.isel(time=[frame])
            for time_variable in ("time", "time_bnds"):
                one[time_variable].encoding = {"units": "seconds since 1970-01-01"}
            one.to_netcdf(self.feed / f"{frame:03}.nc")

    def hashes(self) -> dict[str, str]:
        files = sorted(path for path in self.out.rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def verdict(self, slot: str) -> dict:
        return json.loads((self.out / "verdicts" / f"{slot}.json").read_text())

    def scores(self) -> xr.Dataset:
        return xr.load_dataset(self.out / "scores.nc", engine="netcdf4")


@pytest.fixture(scope="session")
def cycle(tmp_path_factory):
    """The flow, and a server of the test's own; Prefect writes nothing to the user's home."""
    pytest.importorskip("prefect")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PREFECT")]:
            patch.delenv(name)
        patch.setenv("PREFECT_HOME", str(tmp_path_factory.mktemp("prefect")))
        patch.setenv("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
        patch.setenv("DO_NOT_TRACK", "1")
        from prefect.testing.utilities import prefect_test_harness

        flow = importlib.import_module("pipelines.cycle").cycle
        with prefect_test_harness(server_startup_timeout=180):
            yield flow


@pytest.fixture(scope="session")
def rain():
    return synthesise(hours=2, size=16, seed=3).load()


@pytest.fixture
def place(tmp_path, rain):
    return Place(tmp_path / "place", rain)


@pytest.fixture(scope="session")
def first(cycle, rain, tmp_path_factory):
    """A place after the cycle of three frames, and what that told: to be copied, not changed."""
    place = Place(tmp_path_factory.mktemp("first") / "place", rain)
    place.deliver(0, 1, 2)
    return place, cycle(**place.parameters)


@pytest.fixture
def begun(first, rain, tmp_path):
    """A copy of that place, in which the cycle goes on."""
    shutil.copytree(first[0].folder, tmp_path / "begun")
    return Place(tmp_path / "begun", rain)


@pytest.fixture
def environment(tmp_path):
    """An environment without Prefect's settings, in which the home is a folder of the test."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT")}
    return {**kept, "HOME": str(tmp_path / "home")}


def command(place, environment, *more):
    return subprocess.run(
        [*COMMAND, *place.options, *more],
        env=environment,
        cwd=place.folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def refusal(capsys, place, *more):
    """Run the command in this process, which it must end in one line; give status and line."""
    with pytest.raises(SystemExit) as exit_:
        main([*place.options, *more])
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("nowcast: error: ")
    assert told.err.count("\n") == 1
    return exit_.value.code, told.err


def test_the_first_cycle_ingests_and_issues(first):
    place, told = first
    stem = "nowcast-20240101T0020Z"
    assert told == {
        "slot": "20240101T0020Z",
        "verdict": "forecast",
        "files": [f"{stem}.nc", f"{stem}.png", f"{stem}.gif"],
        "ingested": 3,
        "refused": [],
        "verified": 0,
    }
    assert all((place.out / name).stat().st_size for name in told["files"])
    assert place.verdict("20240101T0020Z") == told


def test_a_second_cycle_without_new_frames_changes_nothing(cycle, begun):
    before = begun.hashes()
    told = cycle(**begun.parameters)
    assert (told["verdict"], told["ingested"]) == ("already_done", 0)
    assert begun.hashes() == before


def test_new_frames_bring_a_nowcast_and_verify_the_one_that_came_true(cycle, begun):
    before = begun.hashes()
    begun.deliver(3, 4, 5)
    told = cycle(**begun.parameters)
    assert (told["slot"], told["verdict"]) == ("20240101T0050Z", "forecast")
    assert told["verified"] == 1
    assert {path: begun.hashes()[path] for path in before} == before
    scores = begun.scores()
    assert scores.attrs["issued_base_times"] == "20240101T0020Z"
    assert list(scores["nowcaster"].values) == ["persistence", "extrapolation", "issued"]
    # It was issued by extrapolation, so both must have the same scores.
    rmse = scores["rmse"].sel(nowcaster=["extrapolation", "issued"]).values
    assert np.isfinite(rmse).all()
    assert rmse[0] == pytest.approx(rmse[1])
    assert cycle(**begun.parameters)["verified"] == 0


def test_a_saved_network_can_be_a_baseline_of_the_cycle(cycle, place, doubtful):
    """As it can of `nowcast verify`."""
    settings = f'{SETTINGS}[verification]\nbaselines = ["persistence", "{doubtful}"]\n'
    settings = settings.replace("lead_frames = 3", "lead_frames = 2")
    (place.folder / "settings.toml").write_text(settings)
    place.deliver(0, 1, 2)
    cycle(**place.parameters)
    place.deliver(3, 4)
    assert cycle(**place.parameters)["verified"] == 1
    assert list(place.scores()["nowcaster"].values) == ["persistence", str(doubtful), "issued"]


def test_what_was_published_is_verified_and_not_computed_anew(cycle, first, begun):
    path = begun.out / first[1]["files"][0]
    published = open_nowcast(path)
    published["rain_rate"] = published["rain_rate"] + 7.0
    write_nowcast(published, path)
    begun.deliver(3, 4, 5)
    cycle(**begun.parameters)
    errors = begun.scores()["me"]
    difference = errors.sel(nowcaster="issued") - errors.sel(nowcaster="extrapolation")
    assert difference.values == pytest.approx(7.0, abs=1e-4)


def test_a_bad_file_is_quarantined_and_the_cycle_goes_on(cycle, place):
    place.deliver(0, 1, 2)
    (place.feed / "notes.txt").write_text("no radar here")
    told = cycle(**place.parameters)
    assert (told["verdict"], told["ingested"]) == ("forecast", 3)
    (refused,) = told["refused"]
    assert refused["file"].endswith("notes.txt")
    assert "radar file" in refused["reason"]
    assert len(list((place.folder / "archive" / "quarantine").glob("*.json"))) == 1


def test_a_gap_is_refused_by_name_until_the_late_frame_fills_it(cycle, begun):
    begun.deliver(4)
    told = cycle(**begun.parameters)
    assert told["slot"] == "20240101T0040Z"
    assert told["verdict"].startswith("refused:gap: ")
    assert "2024-01-01T00:30:00 is absent (a gap)" in told["verdict"]
    assert begun.verdict("20240101T0040Z") == told
    never_came = begun.verdict("20240101T0030Z")["verdict"]
    assert never_came.startswith("refused:gap: base time 2024-01-01T00:30:00 is not in the data")
    begun.deliver(3)
    assert cycle(**begun.parameters)["verdict"] == "forecast"
    assert begun.verdict("20240101T0040Z")["verdict"] == "forecast"


def test_after_a_gap_the_last_whole_window_is_used_if_it_was_not(cycle, place):
    place.deliver(0, 1, 2, 4)
    told = cycle(**place.parameters)
    assert (told["slot"], told["verdict"]) == ("20240101T0020Z", "forecast")
    assert "a gap" in place.verdict("20240101T0040Z")["verdict"]


def test_a_base_time_whose_nowcast_is_over_is_not_used(cycle, place):
    place.deliver(0, 1, 2, 6)
    told = cycle(**place.parameters)
    assert told["slot"] == "20240101T0100Z"
    assert told["verdict"].startswith("refused:gap: ")
    assert not list(place.out.glob("*.nc"))


def test_each_slot_has_a_verdict_though_its_scan_never_came(cycle, begun):
    begun.deliver(7, 8, 9)
    assert cycle(**begun.parameters)["verdict"] == "forecast"
    verdicts = {path.stem[9:13]: path for path in (begun.out / "verdicts").iterdir()}
    words = {slot: json.loads(path.read_text())["verdict"] for slot, path in verdicts.items()}
    assert {slot: word.split(": ")[0] for slot, word in words.items()} == {
        "0020": "forecast",
        **dict.fromkeys(["0030", "0040", "0050", "0100", "0110", "0120"], "refused:gap"),
        "0130": "forecast",
    }


def test_a_feed_of_another_cadence_is_unfit_and_no_gap(cycle, place, doubtful):
    place.deliver(0, 2, 4)
    told = cycle(**place.parameters, nowcaster=str(doubtful))
    assert told["slot"] == "20240101T0040Z"
    assert told["verdict"].startswith("refused:unfit: frames every 10 min are needed")
    place.deliver(10)
    cycle(**place.parameters, nowcaster=str(doubtful))
    slots = sorted(path.stem[9:13] for path in (place.out / "verdicts").iterdir())
    assert slots == ["0040", "0100", "0120", "0140"]  # every 20 min, as the feed comes


def test_slots_that_a_newer_one_overtook_are_refused_as_late(cycle, begun):
    begun.deliver(3, 4)
    cycle(**begun.parameters)
    assert begun.verdict("20240101T0030Z")["verdict"].startswith("refused:late")
    assert begun.verdict("20240101T0040Z")["verdict"] == "forecast"


def test_an_empty_feed_is_refused(cycle, place):
    told = cycle(**place.parameters)
    assert told["verdict"].startswith("refused:unfit: ")
    assert told["slot"] == ""
    assert "no frames" in told["verdict"]


def test_what_a_crash_left_out_is_made_and_the_issued_file_stays(cycle, first, begun):
    files = first[1]["files"]
    before = begun.hashes()
    (begun.out / "verdicts" / "20240101T0020Z.json").unlink()
    (begun.out / files[2]).unlink()
    told = cycle(**begun.parameters)
    assert told["verdict"] == "forecast"
    assert begun.verdict("20240101T0020Z") == told
    assert (begun.out / files[2]).stat().st_size
    netcdf = str(begun.out / files[0])
    assert begun.hashes()[netcdf] == before[netcdf]


@pytest.mark.parametrize("recorded", [None, "refused:late: of an older cycle"])
def test_what_was_issued_before_a_crash_stays_issued_though_a_newer_frame_came(
    cycle, first, begun, recorded
):
    files = first[1]["files"]
    netcdf = str(begun.out / files[0])
    before = begun.hashes()[netcdf]
    verdict = begun.out / "verdicts" / "20240101T0020Z.json"
    verdict.unlink()
    if recorded:
        verdict.write_text(json.dumps({**first[1], "verdict": recorded}))
    (begun.out / files[1]).unlink()
    begun.deliver(3)
    assert cycle(**begun.parameters)["slot"] == "20240101T0030Z"
    assert begun.verdict("20240101T0020Z")["verdict"] == "forecast"
    assert begun.verdict("20240101T0030Z")["verdict"] == "forecast"
    assert (begun.out / files[1]).stat().st_size
    assert begun.hashes()[netcdf] == before


def test_a_cycle_leaves_at_once_while_another_runs(cycle, place):
    place.deliver(0, 1, 2)
    place.out.mkdir()
    with (place.out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cycle(**place.parameters)["verdict"] == "already_running"
        assert [path.name for path in place.out.iterdir()] == [".lock"]
        assert not (place.folder / "archive").exists()
    assert cycle(**place.parameters)["verdict"] == "forecast"


@pytest.mark.parametrize(("error", "tries"), [(OSError("stale handle"), 2), (TypeError("bug"), 1)])
def test_only_faults_that_may_pass_are_tried_again(cycle, place, monkeypatch, error, tries):
    from pipelines import steps

    place.deliver(0, 1, 2)
    calls, ingest = [], steps.ingest

    def fails_once(*arguments):
        calls.append(arguments)
        if len(calls) == 1:
            raise error
        return ingest(*arguments)

    monkeypatch.setattr(steps, "ingest", fails_once)
    monkeypatch.setattr(
        importlib.import_module("pipelines.cycle")._ingest, "retry_delay_seconds", 0
    )
    if tries == 1:
        with pytest.raises(TypeError, match="bug"):
            cycle(**place.parameters)
    else:
        assert cycle(**place.parameters)["verdict"] == "forecast"
    assert len(calls) == tries


def test_a_number_that_is_no_port_is_one_line(capsys, place):
    status, line = refusal(capsys, place, "--cron", "* * * * *", "--port", "99999")
    assert status == 2
    assert "a port is from 1 to 65535; received 99999" in line


def test_the_examples_are_right():
    from pipelines import issued

    assert doctest.testmod(issued).attempted
    assert not doctest.testmod(issued).failed


def test_a_nowcast_on_another_grid_is_not_verified(begun, rain):
    from pipelines.issued import Issued

    issued = Issued(begun.out, newest=5)
    (base_time,) = issued.base_times
    lead_times = issued.lead_times(base_time)
    assert issued.fits(base_time, rain, lead_times=lead_times)
    assert not issued.fits(base_time, rain.isel(x=slice(8)), lead_times=lead_times)
    assert not issued.fits(base_time, rain, lead_times=lead_times * 3)
    asked = {"base_times": issued.base_times, "lead_times": lead_times}
    with pytest.raises(ValueError, match="another grid"):
        issued.nowcast(rain.isel(x=slice(8)), **asked)


@pytest.mark.parametrize(
    ("frames", "status", "expected"),
    [((0, 1, 2), 0, ("20240101T0020Z", "forecast")), ((), 1, ("", "refused"))],
)
def test_the_command_prints_what_came_of_a_cycle(
    cycle, capsys, place, monkeypatch, frames, status, expected
):
    assert cycle  # what Prefect needs is there
    monkeypatch.setattr(os, "environ", dict(os.environ))  # into which the command writes
    place.deliver(*frames)
    with pytest.raises(SystemExit) as exit_:
        main(place.options)
    told = json.loads(capsys.readouterr().out)
    assert exit_.value.code == status
    assert (told["slot"], told["verdict"].split(":")[0]) == expected


@pytest.mark.proof
def test_of_two_processes_at_once_exactly_one_publishes(place, environment):
    place.deliver(0, 1, 2)
    processes = [
        subprocess.Popen(
            [*COMMAND, *place.options],
            env=environment,
            cwd=place.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    verdicts = sorted(json.loads(out)["verdict"] for out, _ in printed)
    assert verdicts[1] == "forecast"
    assert verdicts[0] in ("already_done", "already_running")
    assert not (place.folder.parent / "home" / ".prefect").exists()


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--cron=*/5 * * *", "is no cron; write five fields"),
        ("--colour=red", "--colour"),
    ],
)
def test_wrong_use_is_one_line(capsys, place, option, message):
    status, line = refusal(capsys, place, option)
    assert status == 2
    assert message in line


def test_an_unknown_nowcaster_is_refused_by_its_name(cycle, place):
    with pytest.raises(ValueError, match="no nowcaster 'oracle'"):
        cycle(**place.parameters, nowcaster="oracle")


@pytest.mark.proof
def test_an_unknown_nowcaster_is_one_line(place, environment):
    done = command(place, environment, "--nowcaster=oracle")
    assert done.returncode == 1
    assert done.stderr.startswith("nowcast: error: no nowcaster 'oracle'")
    assert done.stderr.count("\n") == 1


def test_an_absent_settings_file_is_one_line(capsys, place):
    (place.folder / "settings.toml").unlink()
    status, line = refusal(capsys, place)
    assert status == 2
    assert "settings.toml cannot be read" in line


def test_a_taken_port_is_one_line(place, environment):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = command(place, environment, "--cron=* * * * *", f"--port={port}")
    assert done.returncode == 1
    assert f"port {port} is taken" in done.stderr
    assert done.stderr.count("\n") == 1


def test_without_prefect_the_message_says_what_to_install(place, environment):
    code = (
        "import sys; sys.modules['prefect'] = None; from pipelines.running import main;"
        f"main({place.options!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "install nowcast[pipelines]" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.proof
def test_one_command_serves_a_cron_that_fires_and_ends_with_sigterm(place, environment):
    place.deliver(0, 1, 2)
    port = _free_port()
    log = place.folder / "log.txt"
    with log.open("w") as output:
        served = subprocess.Popen(
            [*COMMAND, *place.options, "--cron=* * * * *", f"--port={port}"],
            env=environment,
            cwd=place.folder,
            stdout=output,
            stderr=output,
        )
    family = []
    try:
        run = _wait_for_scheduled_run(served, port, log)
        family = [psutil.Process(served.pid), *psutil.Process(served.pid).children(recursive=True)]
        assert run["auto_scheduled"]
        assert run["expected_start_time"][17:19] == "00"  # on the minute: by the cron
        assert sorted(path.name for path in place.out.glob("nowcast-*")) == [
            f"nowcast-20240101T0020Z.{suffix}" for suffix in ("gif", "nc", "png")
        ]
        assert place.verdict("20240101T0020Z")["verdict"] == "forecast"
        served.send_signal(signal.SIGTERM)
        assert served.wait(timeout=120) == 0, log.read_text()
        assert not [process for process in family if _is_alive(process)]
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
        assert not (place.folder.parent / "home" / ".prefect").exists()
    finally:
        if served.poll() is None:
            family = psutil.Process(served.pid).children(recursive=True)
            served.kill()
        for process in family:
            if process.is_running():
                process.kill()
        served.wait()


def _is_alive(process: psutil.Process) -> bool:
    """Whether it still runs: one that has ended, and that nobody waits for, is a zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for_scheduled_run(served, port: int, log: Path) -> dict:
    deadline = time.monotonic() + SCHEDULED_SECONDS
    while time.monotonic() < deadline:
        assert served.poll() is None, log.read_text()
        for run in _completed_runs(port):
            return run
        time.sleep(1)
    pytest.fail(f"no scheduled run has finished in {SCHEDULED_SECONDS} s: {log.read_text()}")


def _completed_runs(port: int) -> list[dict]:
    body = {"flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}}}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/api/flow_runs/filter",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)
    except OSError:
        return []
