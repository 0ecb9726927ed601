"""A study: what is refused, what is killed and goes on, what is told."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import dask
import pytest

from nowcast import experiments, studies
from nowcast.cli import main
from nowcast.config import ConfigError
from nowcast.tracking import Tracking

SETTINGS = """
experiment = "of-studies"

[synthetic]
events = 4
hours = 3.0
size = 16

[window]
input_frames = 3
lead_frames = 2

[split]
validation_fraction = 0.25
test_fraction = 0.25

[network]
name = "unet"
settings = { filters = [4, 8] }
head = "exceedance"
levels = [0.1, 1.0]

[training]
epochs = 4
steps_per_epoch = 12
batch_size = 2
patience = 4
learning_rate = 0.03
loss = "cross_entropy"

[verification]
thresholds = [0.1]

[promotion]
threshold = 0.1
first_lead_minutes = 10
"""
STUDY = """
settings = "small.toml"

[variants]
longer = ["window.input_frames=4", "training.batch_size=4", "training.steps_per_epoch=6"]
"""
CHILD = "from nowcast.cli import main; main()"


def _written(folder, content=STUDY):
    folder.mkdir(exist_ok=True)
    (folder / "small.toml").write_text(SETTINGS)
    path = folder / "losses.toml"
    path.write_text(content)
    return path


def _refused(tmp_path, variants, *, head='settings = "small.toml"\n', settings=None):
    with pytest.raises(ConfigError) as refusal:
        studies.open_study(_written(tmp_path, f"{head}[variants]\n{variants}\n"), settings)
    return str(refusal.value)


def _cli(path, work, *more):
    return ["study", str(path), "--work", str(work), "--json", *more]


def _killed_in_the_second_run(path, work):
    """Run the command, and kill it when the second training has a checkpoint."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, *_cli(path, work)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as child:
        deadline = time.monotonic() + 600
        while child.poll() is None and time.monotonic() < deadline:
            first = list(work.glob("studies/*/reference.json"))
            if first and list(work.glob("checkpoints/[!.]*.npz")):
                break
            time.sleep(0.005)
        child.kill()
        complaint = child.stderr.read().decode()
    assert child.returncode == -signal.SIGKILL, complaint


def _scores(rows):
    return {row["name"]: row["scores"] for row in rows}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A study that nothing disturbed: its file, work directory and results."""
    folder = tmp_path_factory.mktemp("undisturbed")
    study = studies.open_study(_written(folder))
    observed = experiments.observations(study.reference)
    tracking = Tracking(folder / "work")
    return folder, studies.run(study, observed, tracking=tracking, say=print, verbose=0)


@pytest.mark.proof
def test_a_study_killed_with_signal_9_goes_on_and_ends_as_one_that_nothing_disturbed(
    undisturbed, tmp_path, capsys
):
    path, work = _written(tmp_path), tmp_path / "work"
    _killed_in_the_second_run(path, work)
    (folder,) = (work / "studies").iterdir()
    first = (folder / "reference.json").read_bytes()
    trained = set((work / "runs").iterdir())
    with pytest.raises(SystemExit) as ended:
        main(_cli(path, work))
    printed = capsys.readouterr()
    assert ended.value.code == 0, printed.err
    told = json.loads(printed.out)
    assert "reference: was done before" in printed.err
    assert (folder / "reference.json").read_bytes() == first
    assert [row["name"] for row in told["rows"]] == ["reference", "longer"]
    assert _scores(told["rows"]) == _scores(undisturbed[1].rows)
    assert set((work / "runs").iterdir()) == trained  # the killed training went on in its run
    client = Tracking(work).connect().MlflowClient()
    parent = client.get_run(told["run_id"])
    assert parent.info.status == "FINISHED"
    children = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{told['run_id']}'"
    )
    assert {one.info.run_name: one.info.run_id for one in children} == {
        row["name"]: row["run_id"] for row in told["rows"]
    }
    assert {one.info.status for one in children} == {"FINISHED"}
    with pytest.raises(SystemExit):  # and once more: nothing is done, the same is told
        main(_cli(path, work))
    again = capsys.readouterr()
    assert json.loads(again.out) == told
    assert "every run was done before" in again.err


@pytest.mark.slow
def test_each_row_has_scores_beside_the_better_baseline_and_what_the_run_took(undisturbed):
    _, results = undisturbed
    reference, longer = results.rows
    assert longer["changes"][0] == "window.input_frames=4"
    assert [row["epochs"] for row in results.rows] == [4, 4]
    assert min(row["seconds"] for row in results.rows) > 0
    assert reference["parameters"] < longer["parameters"]
    assert reference["protocol_sha256"] == longer["protocol_sha256"]
    figures = {
        (one["nowcaster"], one["score"], one["lead_minutes"]): one["value"]
        for one in longer["scores"]
    }
    assert {score for _, score, _ in figures} == {*studies.TOLD}
    assert {minutes for *_, minutes in figures} == {10, 20}
    for minutes in (10, 20):
        better = max(figures[name, "csi", minutes] for name in _baselines(results))
        mine = figures["longer", "csi", minutes]
        assert 0 < mine < 1
        assert figures["longer", "csi_ratio", minutes] == mine / better
    calibrated = Path(longer["folder"])
    assert (calibrated / "calibration.json").is_file()
    assert calibrated.is_relative_to(results.folder)


def _baselines(results):
    return results.study.reference.baselines


@pytest.mark.slow
def test_the_table_has_a_line_for_each_run_and_baseline(undisturbed):
    _, results = undisturbed
    lines = studies.table(results).splitlines()
    assert lines[0].startswith("losses, test: ")
    starts = [line.split()[0] for line in lines if line and not line.startswith(" ")]
    runs = ["reference", "longer"]
    block = [*_baselines(results), *runs]
    assert starts[1:] == [*runs, "at", *block, *block]
    (heading,) = (line for line in lines if "CSI / better baseline" in line)
    assert heading.split(maxsplit=1)[0] == "CSI"
    assert "Brier score" in heading


@pytest.mark.slow
def test_the_parent_run_has_the_table_and_the_figures(undisturbed):
    folder, results = undisturbed
    client = Tracking(folder / "work").connect().MlflowClient()
    names = {one.path for one in client.list_artifacts(results.run_id)}
    assert {"study.txt", "study.json", "variants.json", "config.json"} <= names
    metrics = client.get_metric_history(results.run_id, "csi/longer/0.1")
    scored = [
        one["value"]
        for one in results.rows[1]["scores"]
        if one["nowcaster"] == "longer" and one["score"] == "csi"
    ]
    assert [(one.step, one.value) for one in metrics] == [(10, scored[0]), (20, scored[1])]


@pytest.mark.proof
def test_a_variant_more_does_no_other_again_and_one_that_fails_stops_none(
    undisturbed, tmp_path, monkeypatch
):
    def diverging(config, observed, *, tracking, name, verbose):  # noqa: ARG001
        raise ValueError(f"the training of {name} diverged")

    folder, before = undisturbed
    monkeypatch.setattr(studies, "train", diverging)
    added = STUDY.replace("[variants]", '[variants]\nfast = ["training.learning_rate=1.0"]')
    study = studies.open_study(_written(tmp_path, added))
    observed, tracking = experiments.observations(study.reference), Tracking(folder / "work")
    said = []
    results = studies.run(study, observed, tracking=tracking, say=said.append)
    assert results.rows == before.rows
    assert results.folder == before.folder
    assert results.run_id == before.run_id
    assert results.failed == {"fast": "the training of fast diverged"}
    assert studies.table(results).endswith("fast FAILED: the training of fast diverged")
    assert sum("was done before" in line for line in said) == 2


@pytest.mark.slow
def test_children_that_nobody_runs_any_more_are_ended(undisturbed):
    tracking = Tracking(undisturbed[0] / "work")
    client = tracking.connect().MlflowClient()
    with tracking.run("of-children", "parent") as parent:
        within = client.get_run(parent.run_id).info.experiment_id
        with tracking.run("of-children", "whole") as whole:
            pass
        lost = client.create_run(within, tags={"mlflow.parentRunId": parent.run_id})
        alone = client.create_run(within)
        parent.end_children()
    status = {one.info.run_id: one.info.status for one in client.search_runs([within])}
    assert status == {
        parent.run_id: "FINISHED",
        whole.run_id: "FINISHED",
        lost.info.run_id: "KILLED",
        alone.info.run_id: "RUNNING",
    }
    assert client.get_run(whole.run_id).data.tags["mlflow.parentRunId"] == parent.run_id


def test_two_processes_are_never_at_one_study(tmp_path):
    with (
        studies._alone(tmp_path),
        pytest.raises(ConfigError, match="running already"),
        studies._alone(tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ('long = ["training.epochs=7"]', "long has 168 windows"),
        ('large = ["training.batch_size=8"]', "the reference has 96 windows"),
        ('clock = ["training.minutes=5"]', "clock: training.minutes=5"),
        ('every = ["training.steps_per_epoch=0"]', "every has 4 epochs of every window"),
        ('bars = ["verification.thresholds=[0.1, 2.0]"]', "bars: verification.thresholds must be"),
        ('leads = ["window.lead_frames=3"]', "window.lead_frames"),
        ('same = ["training.seed=0"]', "'same' has the same settings as 'reference'"),
        ('typo = ["training.los=crps"]', "typo: --set: unknown key 'training.los'"),
        ('mse = ["training.loss=mse"]', "mse: the loss 'mse' does not fit"),
        ('wide = ["network.settings.filter=[8]"]', "wide: network 'unet' has no setting filter"),
        ('one = ["network.head=classes", "network.levels=[]"]', "one: a study scores fields"),
        ('persistence = ["training.loss=crps"]', "cannot be called 'persistence'"),
        ('"a/b" = ["training.loss=crps"]', "cannot be called 'a/b'"),
        ('reference = ["training.loss=crps"]', "the settings unchanged"),
        ('text = "training.loss=crps"', "variants.text"),
        ("", "received 0"),
        ("\n".join(f's{n} = ["training.seed={n}"]' for n in range(1, 17)), "received 16"),
    ],
)
def test_what_could_not_be_compared_is_refused_by_name(tmp_path, variants, message):
    assert message in _refused(tmp_path, variants)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            f'{STUDY}odd = ["training.crop_pixels=3"]',
            "odd: network 'unet' needs sides in multiples of 2 pixels; training.crop_pixels is 3",
        ),
        (f'{STUDY}wide = ["network.settings.kernel=63"]', "wide: kernel of 63 cannot fit"),
        (
            STUDY.replace("[variants]", 'common = ["training.keep_lead_times=true"]\n[variants]'),
            "reference: training.keep_lead_times learns lead times beyond",
        ),
    ],
)
def test_a_run_that_does_not_fit_the_grid_is_refused_before_any_is_begun(
    small_observed, tmp_path, content, message
):
    def refuse(*_, **__):
        raise AssertionError("computed")

    study, tracking = studies.open_study(_written(tmp_path, content)), Tracking(tmp_path / "work")
    with dask.config.set(scheduler=refuse), pytest.raises(ConfigError) as refusal:
        studies.run(study, small_observed.chunk(time=1), tracking=tracking)
    assert message in str(refusal.value)
    assert not tracking.work.exists()


def test_what_is_no_study_file_is_refused(tmp_path):
    crps = 'crps = ["training.loss=crps"]'
    assert "small_.toml cannot be read" in _refused(tmp_path, crps, head='settings="small_.toml"\n')
    assert "steps: Extra inputs" in _refused(
        tmp_path, crps, head='settings = "small.toml"\nsteps = 3\n'
    )
    assert "received 'train'" in _refused(
        tmp_path, crps, head='settings = "small.toml"\nsplit = "train"\n'
    )
    assert "is not TOML" in _refused(tmp_path, "[[")
    with pytest.raises(ConfigError, match=r"absent\.toml cannot be read"):
        studies.open_study(tmp_path / "absent.toml")


def test_settings_of_the_command_line_are_of_every_run(tmp_path):
    study = studies.open_study(_written(tmp_path), ["training.epochs=2"])
    assert [config.training.epochs for config in study.runs.values()] == [2, 2]
    assert study.runs["longer"].training.batch_size == 4
    assert study.input_frames == 4
