import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import xarray as xr

from nowcast.cli import app, main
from nowcast.data.synthetic import synthesise
from nowcast.issuing import open_nowcast

VERBS = (
    "demo", "ingest", "train", "verify", "compare", "promote", "serve", "issue", "extract",
    "export", "calibrate", "study", "list",
)  # fmt: skip
SMALL = Path(__file__).parent / "small.toml"


def _run(capsys, *arguments):
    """Run the command line in this process; give status, what it printed and what it complained."""
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return exit_.value.code, printed.out, printed.err


def _refusal(capsys, *arguments):
    """Run a command that must fail in one line without a traceback; give status and line."""
    status, _, complaint = _run(capsys, *arguments)
    lines = [line for line in complaint.splitlines() if line.strip()]
    assert len(lines) == 1, complaint
    assert lines[0].startswith("nowcast: error: ")
    return status, lines[0]


@pytest.fixture(scope="module")
def rain(tmp_path_factory):
    """A netCDF file of synthetic rain."""
    path = tmp_path_factory.mktemp("rain") / "rain.nc"
    synthesise(hours=3, size=32, seed=4).to_netcdf(path)
    return path


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(capsys, verb):
    status, printed, _ = _run(capsys, verb, "--help")
    assert status == 0
    assert f"Example: nowcast {verb}" in printed


def test_list_and_help_answer_without_anything_heavy():
    code = (
        "import sys\n"
        "from nowcast.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "print('LOADED', *{m.split('.')[0] for m in sys.modules})"
    )
    for arguments in (["list"], ["train", "--help"], ["verify", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
        )
        loaded = set(done.stdout.splitlines()[-1].split())
        assert not loaded & {"tensorflow", "keras", "mlflow", "matplotlib", "pysteps"}
        assert not loaded & {"numpy", "xarray", "pandas", "scipy"}


def test_prepare_takes_observations_of_several_grids(capsys, tmp_path):
    for size in (16, 24):
        made = synthesise(events=2, hours=3, size=size, seed=size)
        later = {"time": made["time"] + pd.Timedelta(days=size)}
        made.drop_vars("time_bnds").assign_coords(later).to_netcdf(tmp_path / f"{size}.nc")
    arguments = ("prepare", SMALL, "--work", tmp_path, "--json", "--observations")
    status, printed, complaint = _run(capsys, *arguments, tmp_path / "16.nc", tmp_path / "24.nc")
    assert status == 0, complaint
    held = json.loads(printed)
    assert (held["frames"], held["grid"], held["runs"]) == (76, [24, 24], 4)
    assert held["observed"] == pytest.approx((1 + 16**2 / 24**2) / 2, abs=1e-5)
    again = ("--observations", tmp_path / "24.nc")  # given twice, the order is another
    _, printed, _ = _run(capsys, *arguments, tmp_path / "16.nc", *again)
    assert json.loads(printed) == held  # the cache that is there
    status, printed, _ = _run(capsys, *arguments, tmp_path / "16.nc")
    assert json.loads(printed)["grid"] == [16, 16]


def test_list_names_what_there_is(capsys):
    status, printed, _ = _run(capsys, "list", "--json")
    assert status == 0
    known = json.loads(printed)
    assert {"convlstm", "cnn_lstm"} <= set(known["networks"])
    assert {"persistence", "extrapolation"} <= set(known["nowcasters"])
    assert {"knmi", "cf"} <= set(known["readers"])


def test_an_unknown_verb_and_a_missing_argument_are_usage_errors(capsys):
    assert _refusal(capsys, "forecast")[0] == 2
    assert _refusal(capsys, "train")[0] == 2
    assert _refusal(capsys, "verify", "--every", "3")[0] == 2


def test_an_unknown_config_key_is_a_usage_error(capsys, tmp_path):
    path = tmp_path / "broken.toml"
    path.write_text("[training]\nepoch = 3\n")
    status, line = _refusal(capsys, "train", path, "--work", tmp_path / "work")
    assert status == 2
    assert "unknown key 'training.epoch'" in line
    assert "epochs" in line
    assert not (tmp_path / "work").exists()


def test_an_absent_config_is_a_usage_error(capsys, tmp_path):
    status, line = _refusal(capsys, "train", tmp_path / "absent.toml")
    assert status == 2
    assert "absent.toml" in line


def test_a_text_file_given_as_radar_is_refused_by_name(capsys, tmp_path):
    path = tmp_path / "notes.h5"
    path.write_text("no radar here\n")
    status, line = _refusal(
        capsys, "issue", "--nowcaster", "persistence", "--observations", path,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert status == 1
    assert "notes.h5" in line
    assert not (tmp_path / "out").exists()


def test_a_truncated_file_is_refused_by_name(capsys, tmp_path, rain):
    path = tmp_path / "half.nc"
    content = rain.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    status, line = _refusal(
        capsys, "issue", "--nowcaster", "persistence", "--observations", path,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert status == 1
    assert "half.nc" in line
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_there_is_named(capsys, tmp_path):
    status, line = _refusal(
        capsys, "issue", "--nowcaster", "persistence", "--observations", "absent.nc",
        "--out", tmp_path,
    )  # fmt: skip
    assert status == 1
    assert "absent.nc" in line


def test_ingest_goes_on_after_a_bad_file(capsys, tmp_path, rain):
    bad = tmp_path / "bad.nc"
    bad.write_text("text")
    status, printed, complaint = _run(
        capsys, "ingest", bad, rain, "--archive", tmp_path / "archive", "--json"
    )
    assert status == 1
    report = json.loads(printed)
    assert report["added"] == 19
    assert "bad.nc" in report["refused"][0]["file"]
    assert "Traceback" not in complaint
    status, printed, _ = _run(capsys, "ingest", rain, "--archive", tmp_path / "archive")
    assert status == 0
    assert printed.startswith("0 frames added, 19 already there")


def test_a_base_time_not_in_the_data_is_refused(capsys, tmp_path, rain):
    status, line = _refusal(
        capsys, "issue", "--nowcaster", "extrapolation", "--observations", rain,
        "--base-time", "2031-01-01T00:00", "--out", tmp_path / "out",
    )  # fmt: skip
    assert status == 1
    assert "2031-01-01T00:00:00 is not in the data" in line
    assert not list(tmp_path.glob("out/*"))


def test_a_gap_in_the_window_is_refused(capsys, tmp_path, rain):
    gappy = tmp_path / "gappy.nc"
    xr.open_dataset(rain).drop_isel(time=8).to_netcdf(gappy)
    status, line = _refusal(
        capsys, "issue", "--nowcaster", "extrapolation", "--observations", gappy,
        "--base-time", "2024-01-01T01:30", "--out", tmp_path / "out",
    )  # fmt: skip
    assert status == 1
    assert "2024-01-01T01:20:00 is absent (a gap)" in line
    assert not list(tmp_path.glob("out/*"))


def test_an_unreachable_tracking_server_is_named_within_ten_seconds(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    started = time.monotonic()
    status, line = _refusal(capsys, "train", SMALL, "--work", tmp_path / "work")
    assert time.monotonic() - started < 10
    assert status == 1
    assert "http://127.0.0.1:9 does not answer" in line
    assert "MLFLOW_TRACKING_URI" in line


def test_no_champion_is_told_with_the_remedy(capsys, tmp_path, rain):
    status, line = _refusal(
        capsys, "issue", "--nowcaster", "models:/nowcast@champion", "--observations", rain,
        "--out", tmp_path / "out", "--work", tmp_path / "work",
    )  # fmt: skip
    assert status == 1
    assert "nowcast promote" in line


def test_promote_with_an_empty_registry_is_told(capsys, tmp_path):
    status, line = _refusal(capsys, "promote", "--config", SMALL, "--work", tmp_path / "work")
    assert status == 1
    assert "nowcast train" in line


def test_issue_writes_a_forecast_a_panel_and_an_animation(capsys, tmp_path, rain):
    status, printed, complaint = _run(
        capsys, "issue", "--nowcaster", "extrapolation", "--observations", rain,
        "--base-time", "2024-01-01T01:00", "--lead-times", 10, 30, "--out", tmp_path / "out",
    )  # fmt: skip
    assert (status, complaint) == (0, "")
    files = [Path(line) for line in printed.splitlines()]
    assert sorted(file.suffix for file in files) == [".gif", ".nc", ".png"]
    nowcast = open_nowcast(next(file for file in files if file.suffix == ".nc"))
    assert nowcast["lead_time"].values.astype("timedelta64[m]").astype(int).tolist() == [10, 30]
    assert nowcast.attrs["nowcaster"] == "extrapolation"
    assert nowcast.attrs["input_frames"].split()[-1].startswith("2024-01-01T01:00")


@pytest.mark.parametrize("minutes", [(-10, 10), (0,), (99_999_999_999_999,)])
@pytest.mark.parametrize("verb", ["issue", "verify"])
def test_lead_times_that_are_none_are_refused_before_anything_is_read(
    capsys, tmp_path, verb, minutes
):
    status, line = _refusal(
        capsys, verb, "--nowcaster", "persistence", "--observations", tmp_path / "absent.nc",
        "--lead-times", *minutes, "--out", tmp_path / "out.nc",
    )  # fmt: skip
    assert status == 2
    assert f"from 1 to 14400 (ten days); received {minutes[0]}" in line


def test_a_source_is_of_an_archive(capsys, tmp_path, rain):
    status, line = _refusal(
        capsys, "issue", "--nowcaster", "persistence", "--observations", rain, "--source", "other",
        "--out", tmp_path,
    )  # fmt: skip
    assert status == 1
    assert "only an archive has sources" in line
    assert "leave the source 'other' out" in line


def test_issue_gives_members_drawn_from_probabilities(capsys, tmp_path, rain, doubtful):
    common = (
        "issue", "--nowcaster", doubtful, "--observations", rain,
        "--base-time", "2024-01-01T01:00", "--out",
    )  # fmt: skip
    status, printed, complaint = _run(capsys, *common, tmp_path / "drawn", "--members", 3)
    assert (status, complaint) == (0, "")
    files = [Path(line) for line in printed.splitlines()]
    assert [file.suffix for file in files] == [".nc", ".png", ".gif"]
    assert min(file.stat().st_size for file in files[1:]) > 10_000
    drawn = open_nowcast(files[0])
    _run(capsys, *common, tmp_path / "plain")
    plain = open_nowcast(tmp_path / "plain" / files[0].name)
    assert drawn["rain_rate"].dims == ("base_time", "member", "lead_time", "y", "x")
    assert drawn.sizes["member"] == 3
    assert drawn.attrs["nowcaster"] == plain.attrs["nowcaster"] == "doubtful"
    assert drawn.attrs["member_rule"].startswith("drawn from probability_of_exceedance")
    xr.testing.assert_identical(
        drawn["probability_of_exceedance"], plain["probability_of_exceedance"]
    )
    chances = drawn["probability_of_exceedance"].sel(threshold=1.0)
    wet = drawn["rain_rate"] >= 1.0
    assert bool(wet.where(chances > 0.999, True).all())
    assert not bool(wet.where(chances < 0.001, False).any())
    assert float(drawn["rain_rate"].std("member").max()) > 0.1


def test_issue_gives_the_mean_of_probabilities(capsys, tmp_path, rain, doubtful):
    common = (
        "issue", "--nowcaster", doubtful, "--observations", rain,
        "--base-time", "2024-01-01T01:00", "--out",
    )  # fmt: skip
    status, printed, complaint = _run(capsys, *common, tmp_path / "mean", "--field", "mean")
    assert (status, complaint) == (0, "")
    mean = open_nowcast(printed.split()[0])
    assert mean.attrs["field_rule"].startswith("mean of probability_of_exceedance")
    assert mean.attrs["nowcaster"] == "doubtful"
    low = float(mean["threshold"][0])
    chance = mean["probability_of_exceedance"].isel(threshold=0)
    assert bool((mean["rain_rate"] >= low * chance - 1e-5).where(chance.notnull(), True).all())
    status, line = _refusal(capsys, *common, tmp_path / "both", "--field", "mean", "--members", 3)
    assert status == 1
    assert "leave one of them out" in line


@pytest.mark.parametrize("name", ["extrapolation", "steps"])
def test_members_are_not_drawn_where_there_are_no_probabilities(capsys, tmp_path, rain, name):
    common = (
        "issue", "--nowcaster", name, "--observations", rain, "--lead-times", 10,
        "--out", tmp_path / "out", "--members",
    )  # fmt: skip
    status, line = _refusal(capsys, *common, 3)
    assert status == 1
    assert "members, mean and median are of 'probability_of_exceedance'" in line
    assert "network.head='exceedance'" in line
    status, line = _refusal(capsys, *common, 0)
    assert status == 1
    assert "members=0" in line
    assert not (tmp_path / "out").exists()


def test_members_are_not_drawn_behind_an_endpoint(capsys, tmp_path, rain, doubtful):
    status, line = _refusal(
        capsys, "issue", "--nowcaster", doubtful, "--observations", rain, "--members", 3,
        "--endpoint", "http://127.0.0.1:9", "--out", tmp_path / "out",
    )  # fmt: skip
    assert status == 1
    assert "leave --endpoint out" in line


@pytest.mark.parametrize(
    "amounts",
    [pytest.param(False, id="fields"), pytest.param(True, id="amounts", marks=pytest.mark.proof)],
)
def test_verify_scores_members_beside_the_network(
    capsys, monkeypatch, tmp_path, rain, doubtful, amounts
):
    from nowcast import experiments

    monkeypatch.setattr(experiments, "report", lambda *_, path, **__: path)  # drawn by other tests
    status, printed, complaint = _run(
        capsys, "verify", "--nowcaster", f"net={doubtful}", "--members", 5, "--field", "mean",
        "--observations", rain,
        "--thresholds", 0.4, "--lead-times", 10, 20, "--out", tmp_path / "scores.nc",
        "--work", tmp_path / "work", "--set", "verification.steps_members=3",
        "--set", "verification.most_cases=3", *(["--accumulate"] if amounts else []),
    )  # fmt: skip
    assert (status, complaint) == (0, "")
    assert "net, 5 members" in printed
    with xr.open_dataset(tmp_path / "scores.nc") as scores:
        scores.load()
    assert scores["nowcaster"].values.tolist() == [
        "persistence", "extrapolation", "steps", "extrapolation, smooth as net", "net",
        "net, mean", "net, 5 members",
    ]  # fmt: skip
    assert "members" not in scores.attrs["references"]
    assert scores["sees_future"].values.tolist() == [False] * 7
    ranks = scores["rank_count"].isel(lead_time=0).notnull().sum("rank")
    assert ranks.values.tolist() == [0, 0, 4, 0, 0, 0, 6]
    net, mean, drawn = (
        scores.sel(nowcaster=name) for name in ("net", "net, mean", "net, 5 members")
    )
    assert (mean["rmse"] != net["rmse"]).all()
    assert (drawn["spread"] > 0).all()
    assert net["spread"].isnull().all()
    # Probabilities are scored as told, members or not; amounts have members alone.
    same = (drawn["crps"] == net["crps"]).values
    assert same.tolist() == [not amounts] * 2
    if amounts:
        assert (drawn["crps"] < net["crps"]).all()


def test_verify_refuses_members_of_what_gives_no_probabilities(capsys, tmp_path, rain):
    status, line = _refusal(
        capsys, "verify", "--nowcaster", "steps", "--members", 5, "--observations", rain,
        "--work", tmp_path / "work",
    )  # fmt: skip
    assert status == 2
    assert "none of persistence, extrapolation, steps" in line
    assert "leave --members and --field out" in line


def test_verify_always_shows_the_baselines_and_the_protocol(capsys, tmp_path, rain):
    status, printed, _ = _run(
        capsys, "verify", "--nowcaster", "persistence", "--observations", rain,
        "--thresholds", 1, "--lead-times", 10, 20, "--out", tmp_path / "scores.nc",
        "--work", tmp_path / "work", "--set", "verification.references=[]",
        "--set", "verification.most_cases=3",
    )  # fmt: skip
    assert status == 0
    assert "protocol " in printed
    assert "extrapolation" in printed
    with xr.open_dataset(tmp_path / "scores.nc") as scores:
        assert scores.attrs["protocol_sha256"][:12] in printed
        assert scores["threshold"].values.tolist() == [1.0]
    report = (tmp_path / "scores.html").read_text()
    assert scores.attrs["protocol_sha256"][:12] in report
    assert (tmp_path / "scores_figures" / "csi-1.png").stat().st_size > 10_000
    logged = tmp_path / "work" / "artifacts"
    assert len(list(logged.rglob("scores.html"))) == 1
    assert len(list(logged.rglob("figures/csi-1.png"))) == 1
    again = _run(capsys, "compare", tmp_path / "scores.nc", tmp_path / "scores.nc")
    assert again[0] == 0
    assert again[1].splitlines()[:4] == printed.splitlines()[:4]


@pytest.mark.parametrize("name", ["scores.html", "scores", "folder.nc"])
@pytest.mark.parametrize("verb", ["verify", "compare"])
def test_a_file_for_scores_that_is_none_is_refused_before_anything_is_read(
    capsys, tmp_path, verb, name
):
    (tmp_path / "folder.nc").mkdir()
    absent = ["--observations", tmp_path / "absent.nc"] if verb == "verify" else ["absent.nc"]
    status, line = _refusal(capsys, verb, *absent, "--out", tmp_path / name)
    assert status == 2
    assert f"received {tmp_path / name}" in line
    assert "ends in .nc" in line


@pytest.mark.parametrize("verb", ["calibrate", "retrain"])
def test_nothing_but_a_saved_nowcaster_is_replaced(capsys, tmp_path, monkeypatch, verb):
    """It is told before anything is read, and what was there stays."""
    mine = tmp_path / "mine"
    (mine / "sub").mkdir(parents=True)
    (mine / "sub" / "thesis.txt").write_text("years of work")
    config = Path(__file__).parents[1] / "configs" / "lagrangian-taasrad19.toml"
    absent = tmp_path / "absent"
    what = ("--nowcaster", absent) if verb == "calibrate" else (config,)
    common = (verb, *what, "--observations", absent)
    status, line = _refusal(capsys, *common, "--out", mine)
    assert status == 1
    assert f"a saved nowcaster would replace {mine}, which holds sub; give a folder" in line
    assert (mine / "sub" / "thesis.txt").read_text() == "years of work"
    (tmp_path / "note.txt").write_text("mine too")
    assert "which is a file" in _refusal(capsys, *common, "--out", tmp_path / "note.txt")[1]
    monkeypatch.chdir(mine)
    assert "which is the folder in which this runs" in _refusal(capsys, *common, "--out", ".")[1]


def test_compare_refuses_another_protocol_by_the_name_of_the_field(capsys, tmp_path, rain):
    from nowcast.tracking import Tracking
    from nowcast.verification import save_scores

    files = []
    for threshold in (0.5, 1.0):
        files.append(tmp_path / f"{threshold}.nc")
        scores = _quick_scores(rain, threshold)
        save_scores(scores, files[-1])
    with Tracking(tmp_path / "work").run("verification", "one") as run:
        run.scores(scores)
    status, printed, _ = _run(
        capsys, "compare", files[1], run.run_id, "--work", tmp_path / "work", "--out",
        tmp_path / "both.nc",
    )  # fmt: skip
    assert status == 0
    assert "CSI at 1 mm h-1" in printed
    assert (tmp_path / "both.html").exists()
    status, _, complaint = _run(capsys, "compare", *files, "--work", tmp_path / "work")
    assert status == 1
    assert "differ in thresholds: [0.5] and [1.0]" in complaint
    status, _, complaint = _run(capsys, "compare", "nothing.nc", "--work", tmp_path / "work")
    assert status == 1
    assert "'nothing.nc' is neither a file of scores nor a run" in complaint


def _quick_scores(path, threshold):
    from nowcast.data.observations import open_observations
    from nowcast.nowcasters import open_nowcaster
    from nowcast.verification import standard_measures, verify
    from nowcast.verification.views import Fields

    observed = open_observations(str(path))
    return verify(
        {name: open_nowcaster(name) for name in ("persistence", "extrapolation")},
        observed,
        base_times=observed["time"].to_index()[3:6],
        lead_times=pd.to_timedelta([10, 20], unit="min"),
        thresholds=(threshold,),
        measures=standard_measures(observed, (threshold,), view=Fields(), basic=True),
    )


def test_verify_in_a_period_is_json_without_nan(capsys, tmp_path, rain):
    status, printed, _ = _run(
        capsys, "verify", "--observations", rain, "--period", "2024-01-01T00:30/2024-01-01T02:30",
        "--thresholds", 900, "--lead-times", 10, "--work", tmp_path / "work", "--json",
        "--set", "verification.references=[]",
    )  # fmt: skip
    assert status == 0
    content = json.loads(printed, parse_constant=lambda name: pytest.fail(name))
    assert content["protocol"]["thresholds"] == [900.0]
    csi = [row for row in content["scores"] if row["score"] == "csi"]
    assert {row["value"] for row in csi} == {None}


def test_train_goes_on_from_a_nowcaster_and_takes_its_network(capsys, tmp_path, doubtful, rain):
    """Of settings that ask for a convlstm; one epoch with next to no learning.

    It was calibrated by views, and is asked by them again.

    What it prints is JSON alone.
    """
    from nowcast.nowcasters.neural import NeuralNowcaster
    from nowcast.tracking import Tracking

    seen, work = tmp_path / "seen", tmp_path / "work"
    status, _, complaint = _run(
        capsys, "calibrate", "--nowcaster", doubtful, "--observations", rain, "--views", 4,
        "--set", "verification.every_minutes=60", "--work", work, "--out", seen,
    )  # fmt: skip
    assert status == 0, complaint
    begun = NeuralNowcaster.load(seen)
    settings = ["loss=ordinal", "learning_rate=1e-7", "precision=mixed_bfloat16", "augment=true"]
    more = [f"--set=training.{setting}" for setting in settings]
    arguments = ("train", SMALL, "--work", work, "--json", *more, "--from")
    status, printed, complaint = _run(capsys, *arguments, seen)
    assert status == 0, complaint
    made = json.loads(printed)
    trained = NeuralNowcaster.load(made["folder"])
    assert trained.settings.views == 4
    for name in ("network", "head", "variable", "transform", "window", "channels"):
        assert getattr(trained.settings, name) == getattr(begun.settings, name)
    moved = [abs(a - b).max() for a, b in zip(trained.weights, begun.weights, strict=True)]
    assert 0.0 < max(moved) < 1e-5
    assert trained.settings.provenance["started_from_sha256"] == begun.sha256
    client = Tracking(work).connect().MlflowClient()
    assert client.get_run(made["run_id"]).data.params["start.sha256"] == begun.sha256
    assert client.get_run(made["run_id"]).data.params["network.name"] == "lagrangian"
    status, line = _refusal(capsys, *arguments, "persistence")
    assert status == 2
    assert "'persistence' has no weights to go on from; give a trained nowcaster" in line
    status, line = _refusal(capsys, *arguments, tmp_path / "absent")
    assert status == 1
    assert "absent" in line


@pytest.mark.proof
def test_serve_ends_with_all_its_processes_when_told_to(trained):
    import signal
    import urllib.request

    from nowcast.serving import _free_port

    tracking, made = trained
    port = _free_port()
    code = "from nowcast.cli import main; main()"
    options = ["serve", "--model", made.uri, "--port", str(port), "--work", str(tracking.work)]
    server = subprocess.Popen(
        [sys.executable, "-c", code, *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2).close()
            break
        except OSError:
            time.sleep(0.2)
    server.send_signal(signal.SIGTERM)
    assert server.wait(30) == 130
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2)


def test_the_demo_refuses_settings_that_it_would_not_follow(capsys, tmp_path, rain):
    for setting in ("network.name=unet", f"data.observations={rain}"):
        _, line = _refusal(capsys, "demo", "--set", setting, "--work", tmp_path)
        assert "leave data.observations and network.name out" in line


def test_serving_an_absent_model_is_one_line(capsys, tmp_path):
    status, line = _refusal(
        capsys, "serve", "--model", "models:/nowcast/99", "--work", tmp_path / "work"
    )
    assert status == 1
    assert "no model 'nowcast' of version '99'" in line


def test_an_unforeseen_error_is_one_line_too(capsys, monkeypatch):
    monkeypatch.setattr("nowcast.experiments.observations", lambda *_, **__: {}["absent"])
    status, line = _refusal(capsys, "issue", "--nowcaster", "persistence", "--out", "x")
    assert status == 1
    assert "KeyError: 'absent' (-v shows where)" in line


def test_quiet_says_nothing_but_the_result(capsys, tmp_path):
    status, printed, complaint = _run(
        capsys, "train", SMALL, "-q", "--work", tmp_path / "work", "--json"
    )
    assert (status, complaint) == (0, "")
    assert json.loads(printed)["uri"] == "models:/nowcast/1"


@pytest.mark.proof  # `test_temperature_goes_the_whole_road` goes it too, and the demo
def test_the_whole_line_by_hand(capsys, tmp_path):
    """Train, verify by URI, promote, issue: each by its own command, in one work directory."""
    work = tmp_path / "work"
    assert _run(capsys, "train", SMALL, "--work", work)[0] == 0
    status, printed, _ = _run(
        capsys, "verify", "--nowcaster", "models:/nowcast/1", "--config", SMALL,
        "--split", "test", "--work", work,
    )  # fmt: skip
    assert status == 0
    assert "models:/nowcast/1" in printed
    status, printed, _ = _run(capsys, "promote", "--config", SMALL, "--work", work, "--json")
    decision = json.loads(printed)
    assert status == (0 if decision["promoted"] else 1)
    best = max(decision["scores"], key=lambda name: decision["scores"][name])
    assert decision["promoted"] == (best == "models:/nowcast/1")
    status, printed, _ = _run(
        capsys, "issue", "--nowcaster", "models:/nowcast/1", "--config", SMALL,
        "--out", tmp_path / "out", "--work", work, "--json",
    )  # fmt: skip
    assert status == 0
    nowcast = open_nowcast(json.loads(printed)["files"][0])
    assert nowcast.attrs["nowcaster_version"] == "1"
    assert len(nowcast.attrs["nowcaster_sha256"]) == 64


@pytest.mark.slow
def test_the_demo_runs_to_its_end(tmp_path):
    """As a newcomer runs it, with small settings: another process, nothing but its output."""
    import tomllib

    from nowcast.tracking import flatten

    settings = flatten(tomllib.loads(SMALL.read_text()))
    options = [
        f"--set={name}={value!r}" for name, value in settings.items() if "network" not in name
    ]
    options.append("--set=verification.references=['smoothed']")  # other tests verify with STEPS
    done = subprocess.run(
        [sys.executable, "-c", "from nowcast.cli import main; main()", "demo", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NOWCAST_WORK": str(tmp_path / "work")},
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "CSI at 1 mm h-1" in done.stdout
    assert "champion: " in done.stdout
    assert "extrapolation, smooth as models:/nowcast/1" in done.stdout
    assert "ui --backend-store-uri sqlite:///" in done.stdout
    files = {path.suffix for path in (tmp_path / "work" / "demo").iterdir() if path.is_file()}
    assert files == {".nc", ".png", ".gif", ".log", ".html"}


def test_the_app_lists_its_verbs():
    assert set(VERBS) <= set(app)
