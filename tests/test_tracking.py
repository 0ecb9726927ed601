import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nowcast import experiments
from nowcast.cli import main
from nowcast.nowcasters.neural import NeuralNowcaster
from nowcast.tracking import (
    Tracking,
    TrackingError,
    champion,
    open_nowcaster,
    pooled,
    promote,
    resolve,
    versions,
)

SMALL = Path(__file__).parent / "small.toml"
LEADS = pd.to_timedelta([10, 20], unit="min")


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start_server(folder, port):
    options = ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--workers", "1"]
    options += ["--artifacts-destination", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        env=environment,
    )
    for _ in range(300):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return server
        except OSError:
            time.sleep(0.2)
    raise AssertionError("the MLflow server did not start")


def _kill(server):
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def test_a_training_leaves_all_that_is_needed_to_repeat_it(trained):
    tracking, made = trained
    client = tracking.connect().MlflowClient()
    run = client.get_run(made.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["window.input_frames"] == "3"
    assert len(run.data.params["data.data_fingerprint"]) == 16
    assert run.data.tags["nowcast.version"]
    history = client.get_metric_history(made.run_id, "val_loss")
    assert [metric.step for metric in history] == [0]
    artifacts = {item.path for item in client.list_artifacts(made.run_id)}
    assert {"config.json", "examples"} <= artifacts
    assert [item.path for item in client.list_artifacts(made.run_id, "examples")] == [
        "examples/validation.png"
    ]
    lines = (tracking.work / "runs" / made.run_id / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["val_loss"] == pytest.approx(history[0].value)


def test_everything_lies_in_the_work_directory(trained):
    tracking, _ = trained
    assert {path.name for path in tracking.work.iterdir()} >= {"mlflow.db", "artifacts", "runs"}


def test_one_work_directory_knows_nothing_of_another(trained, tmp_path):
    tracking, made = trained
    tracking.connect()
    other = Tracking(tmp_path)
    assert other.uri.endswith(f"{tmp_path}/mlflow.db")
    assert versions("nowcast", other) == []
    assert made.uri in versions("nowcast", tracking)


def test_a_registered_nowcaster_is_the_trained_one(trained, small_observed):
    tracking, made = trained
    nowcaster, provenance = open_nowcaster(made.uri, tracking)
    times = small_observed["time"].to_index()[4:5]
    np.testing.assert_array_equal(
        nowcaster.nowcast(small_observed, base_times=times, lead_times=LEADS)["rain_rate"],
        made.nowcaster.nowcast(small_observed, base_times=times, lead_times=LEADS)["rain_rate"],
    )
    assert provenance == {
        "nowcaster": made.uri,
        "nowcaster_version": made.uri.rsplit("/", 1)[1],
        "nowcaster_sha256": made.nowcaster.sha256,
    }


def test_artifacts_that_were_exchanged_are_refused(trained):
    """Their own manifest fits; the registry keeps what it was when the model was registered."""
    tracking, made = trained
    mlflow = tracking.connect()
    (manifest,) = Path(mlflow.artifacts.download_artifacts(made.uri)).rglob("manifest.json")
    saved = manifest.parent
    assert saved.is_relative_to(tracking.work)
    before = {name: (saved / name).read_bytes() for name in ("settings.json", "manifest.json")}
    try:
        changed = before["settings.json"].replace(b'"provenance": {', b'"provenance": {"by": "x",')
        assert changed != before["settings.json"]
        (saved / "settings.json").write_bytes(changed)
        hashes = json.loads(before["manifest.json"])
        hashes["settings.json"] = hashlib.sha256(changed).hexdigest()
        (saved / "manifest.json").write_text(json.dumps(hashes))
        assert NeuralNowcaster.load(saved).settings.provenance["by"] == "x"
        with pytest.raises(TrackingError, match="holds another nowcaster than was registered"):
            open_nowcaster(made.uri, tracking)
    finally:
        for name, content in before.items():
            (saved / name).write_bytes(content)
    assert open_nowcaster(made.uri, tracking)[0].sha256 == made.nowcaster.sha256


def test_an_absent_model_is_named(trained):
    tracking, _ = trained
    with pytest.raises(TrackingError, match="no model 'nowcast' with the alias 'nobody'"):
        resolve("models:/nowcast@nobody", tracking)
    with pytest.raises(TrackingError, match="no model 'nowcast' of version '99'"):
        open_nowcaster("models:/nowcast/99", tracking)


def _scores(**values):
    leads = pd.to_timedelta([10, 30, 60], unit="min")
    names = [name.replace("_v", "/") for name in values]
    csi = xr.DataArray(
        [[[value] * 3] for value in values.values()],
        dims=("nowcaster", "threshold", "lead_time"),
        coords={"nowcaster": names, "threshold": [1.0], "lead_time": leads},
    )
    rmse = 1 - csi.isel(threshold=0, drop=True)
    baselines = {name: {"input_frames": 1} for name in names if "/" not in name}
    protocol = {"protocol": json.dumps({"baselines": baselines})}
    honest = xr.zeros_like(rmse.isel(lead_time=0, drop=True), dtype=bool)
    scores = {"csi": csi, "rmse": rmse, "mae": rmse, "sees_future": honest}
    return xr.Dataset(scores, attrs=protocol)


def _promote(tracking, uri, score="csi", peeking=False, **values):
    scores = _scores(**{uri: values["candidate"]}, persistence=0.3, extrapolation=0.4)
    scores["sees_future"].loc[{"nowcaster": uri}] = peeking
    return promote(
        scores,
        candidates=[uri],
        tracking=tracking,
        model_name="nowcast",
        score=score,
        threshold=1.0,
        first_lead_minutes=30,
    )


@pytest.mark.parametrize("score", ["csi", "rmse"])
def test_a_candidate_that_beats_both_baselines_becomes_champion(trained, score):
    tracking, made = trained
    decision = _promote(tracking, made.uri, score, candidate=0.5)
    assert decision.promoted
    assert "persistence by 0.200, extrapolation by 0.100" in decision.reason
    assert resolve("models:/nowcast@champion", tracking) == made.uri


def test_members_drawn_from_a_candidate_stand_for_no_candidate(trained):
    tracking, made = trained
    drawn = {f"{made.uri}, 24 members": 0.9}
    decision = promote(
        _scores(**{made.uri: 0.5}, **drawn, persistence=0.3, extrapolation=0.4),
        candidates=[made.uri],
        tracking=tracking,
        model_name="nowcast",
        score="csi",
        threshold=1.0,
        first_lead_minutes=30,
    )
    assert (decision.champion, decision.best) == (made.uri, made.uri)
    assert set(decision.scores) == {made.uri, "persistence", "extrapolation"}


@pytest.mark.parametrize(("yesterday", "promoted"), [(0.4, True), (0.6, False)])
def test_every_baseline_of_the_protocol_must_be_beaten(trained, yesterday, promoted):
    tracking, made = trained
    scores = _scores(**{made.uri: 0.5}, persistence=0.3, periodic=yesterday)
    decision = promote(
        scores.drop_vars(["csi", "threshold"]),
        candidates=[made.uri],
        tracking=tracking,
        model_name="nowcast",
        score="mae",
        threshold=1.0,
        first_lead_minutes=30,
    )
    assert decision.promoted is promoted
    assert set(decision.scores) == {made.uri, "persistence", "periodic"}
    assert "periodic by 0.100" in decision.reason
    assert "extrapolation" not in decision.reason


@pytest.mark.parametrize("candidate", [0.35, 0.4, 0.1])
def test_a_candidate_that_loses_or_draws_is_told_by_how_much_and_the_alias_stays(
    trained, candidate
):
    tracking, made = trained
    _promote(tracking, made.uri, candidate=0.9)
    decision = _promote(tracking, made.uri, candidate=candidate)
    assert not decision.promoted
    assert f"extrapolation by {0.4 - candidate:.3f}" in decision.reason
    assert decision.champion == resolve("models:/nowcast@champion", tracking) == made.uri


@pytest.fixture
def second(trained):
    """Another version of the same weights, beside the champion."""
    tracking, made = trained
    _promote(tracking, made.uri, candidate=0.9)
    client = tracking.connect().MlflowClient()
    first = client.get_model_version("nowcast", made.uri.rsplit("/", 1)[1])
    version = client.create_model_version(
        "nowcast", first.source, first.run_id, model_id=first.model_id, tags=first.tags
    ).version
    yield f"models:/nowcast/{version}"
    client.set_registered_model_alias("nowcast", "champion", first.version)
    client.delete_model_version("nowcast", version)


@pytest.mark.parametrize(("candidate", "promoted"), [(0.7, True), (0.6, False), (0.5, False)])
def test_the_champion_so_far_must_be_beaten_too(trained, second, candidate, promoted):
    tracking, made = trained
    decision = promote(
        _scores(**{second: candidate, made.uri: 0.6}, persistence=0.3),
        candidates=[second],
        tracking=tracking,
        model_name="nowcast",
        score="csi",
        threshold=1.0,
        first_lead_minutes=30,
        defender=made.uri,
    )
    assert decision.promoted is promoted
    assert f"{made.uri} by {abs(candidate - 0.6):.3f}" in decision.reason
    assert resolve("models:/nowcast@champion", tracking) == (second if promoted else made.uri)


def test_a_candidate_no_better_than_the_champion_does_not_replace_it(trained, second, capsys):
    tracking, made = trained
    with pytest.raises(SystemExit) as ended:
        main([
            "promote", "--candidate", second, "--config", str(SMALL), "--work", str(tracking.work),
            "--set", "verification.most_cases=2",
        ])  # fmt: skip
    assert ended.value.code == 1
    assert f"{made.uri} by 0.000" in capsys.readouterr().out
    assert resolve("models:/nowcast@champion", tracking) == made.uri


def test_no_champion_is_another_thing_than_one_that_cannot_be_read(trained):
    tracking, _ = trained
    tracking.connect().MlflowClient().create_registered_model("unled")
    assert champion("unled", tracking) == ""
    with pytest.raises(TrackingError, match="champion of 'nobody' cannot be read from sqlite"):
        champion("nobody", tracking)


def test_a_model_of_another_name_cannot_become_champion(trained):
    tracking, _ = trained
    with pytest.raises(TrackingError, match="cannot become the champion of 'nowcast'"):
        _promote(tracking, "models:/other/3", candidate=0.9)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("promotion.model_name=other", "cannot become the champion of 'other'"),
        ("promotion.first_lead_minutes=30", "no lead time is 30 min or longer"),
    ],
)
def test_what_could_not_be_promoted_is_told_before_anything_is_verified(
    trained, monkeypatch, capsys, setting, message
):
    def refuse(*_, **__):
        raise ValueError("observations are read")

    tracking, made = trained
    monkeypatch.setattr(experiments, "observations", refuse)
    settings = ["--config", str(SMALL), "--set", setting, "--work", str(tracking.work)]
    with pytest.raises(SystemExit) as ended:
        main(["promote", "--candidate", made.uri, *settings])
    assert ended.value.code == 1
    assert message in capsys.readouterr().err


def test_the_lead_times_of_scores_are_those_that_can_be_pooled():
    scores = _scores(one=0.5)
    assert pooled(scores, score="csi", threshold=1.0, first_lead_minutes=60) == {"one": 0.5}
    with pytest.raises(ValueError, match=r"no lead time is 61 min or longer.* longest is 60 min"):
        pooled(scores, score="csi", threshold=1.0, first_lead_minutes=61)


@pytest.mark.parametrize("uri", ["models:/nowcast", "models:/a/b/c", "models:nowcast@x"])
def test_a_uri_that_names_no_model_is_refused(trained, uri):
    with pytest.raises(TrackingError, match="names no model"):
        resolve(uri, trained[0])


def test_a_candidate_without_a_score_is_refused(trained):
    tracking, made = trained
    with pytest.raises(TrackingError, match="no candidate has a csi at 1"):
        _promote(tracking, made.uri, candidate=np.nan)


def test_versions_are_listed_in_order(trained):
    tracking, made = trained
    assert made.uri in versions("nowcast", tracking)
    assert versions("nobody", tracking) == []


def test_only_late_lead_times_are_pooled():
    scores = _scores(one=0.5)
    scores["csi"][0, 0] = [0.0, 0.2, 0.4]
    figures = pooled(scores, score="csi", threshold=1.0, first_lead_minutes=30)
    assert figures["one"] == pytest.approx(0.3)


def test_a_server_that_is_not_there_is_named_at_once(tmp_path, monkeypatch, free_port):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    started = time.monotonic()
    with pytest.raises(TrackingError, match=rf"127.0.0.1:{free_port} does not answer.*MLFLOW_TRA"):
        Tracking(tmp_path).connect()
    assert time.monotonic() - started < 10


def test_a_server_that_never_answers_is_named_within_seconds(tmp_path, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        started = time.monotonic()
        with pytest.raises(TrackingError, match="does not answer"):
            Tracking(tmp_path).connect()
    assert time.monotonic() - started < 10


def test_a_server_lost_during_training_stops_nothing_and_gets_the_metrics_later(
    tmp_path, monkeypatch, free_port, caplog
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port}")
    tracking = Tracking(tmp_path / "work")
    server = _start_server(tmp_path, free_port)
    try:
        with tracking.run("lost", "run") as run:
            run.metrics({"loss": 3.0}, step=0)
            _kill(server)
            started = time.monotonic()
            for step in (1, 2, 3):
                run.metrics({"loss": 3.0 - step}, step=step)
            run.parameters({"epochs": 4})
            assert time.monotonic() - started < 15
            assert run.lost
            server = _start_server(tmp_path, free_port)
        assert "training goes on, metrics are in" in caplog.text
        assert str(run.metrics_file) in caplog.text
        lines = [json.loads(line) for line in run.metrics_file.read_text().splitlines()]
        assert [line["loss"] for line in lines] == [3.0, 2.0, 1.0, 0.0]
        history = tracking.connect().MlflowClient().get_metric_history(run.run_id, "loss")
        assert sorted((one.step, one.value) for one in history) == [
            (0, 3.0),
            (1, 2.0),
            (2, 1.0),
            (3, 0.0),
        ]
    finally:
        _kill(server)


def test_a_failed_block_ends_its_run_as_failed(trained):
    tracking, _ = trained

    def fail():
        with tracking.run("nowcast", "fails") as run:
            identifiers.append(run.run_id)
            raise ZeroDivisionError

    identifiers = []
    with pytest.raises(ZeroDivisionError):
        fail()
    run = tracking.connect().MlflowClient().get_run(identifiers[0])
    assert run.info.status == "FAILED"


def test_a_candidate_that_saw_the_future_is_not_promoted(tmp_path):
    with pytest.raises(TrackingError, match="models:/nowcast/1 used frames after the base time"):
        _promote(Tracking(tmp_path), "models:/nowcast/1", peeking=True, candidate=0.9)


def test_dry_cases_have_no_smoothed_extrapolation_and_are_scored(
    trained, small_config, small_observed
):
    tracking, made = trained
    config = small_config.replace(["verification.steps_members=2", "verification.most_cases=3"])
    compared = experiments.comparables(config, [f"net={made.uri}"], tracking)
    wet = experiments.compare(config, compared, small_observed, block=None)
    assert "extrapolation, smooth as net" in wet["nowcaster"].values
    assert "extrapolation, smooth as net" in wet.attrs["references"]
    still = small_observed.copy(deep=True)
    still["rain_rate"][:] = 0.0
    dry = experiments.compare(config, compared, still, block=None)
    assert "extrapolation, smooth as net" not in dry["nowcaster"].values
    assert dry["rmse"].sel(nowcaster="persistence").max() == 0.0
