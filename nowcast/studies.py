"""Studies: runs that differ from a reference in one thing each, at an equal budget of steps.

A study is a list that a person wrote, not a search. Each run is trained, its probabilities are
calibrated, and it is scored beside the baselines; its row is then a file, and is never made again.
So a study that was killed goes on when the same is asked for again.
"""

import contextlib
import fcntl
import json
import logging
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr
from pydantic import Field, ValidationError

from nowcast import __version__, experiments
from nowcast.checkpoints import digest_of
from nowcast.config import Config, ConfigError, Section, load
from nowcast.data.observations import fingerprint
from nowcast.decisions import Decisions
from nowcast.durable import make_folder, write_json
from nowcast.networks import check_head, settings_of, version_of
from nowcast.networks.heads import SEQUENCE_HEADS
from nowcast.networks.losses import loss_of
from nowcast.nowcasters import Nowcaster
from nowcast.nowcasters.neural import NeuralNowcaster
from nowcast.tables import plain
from nowcast.tracking import METRICS, Run, Tracking, flatten, read_metrics
from nowcast.training import check_trainable, head_of, train
from nowcast.verification.protocol import SCORING_VERSION

LOGGER = logging.getLogger(__name__)

REFERENCE = "reference"  # the run with the settings unchanged
MOST_RUNS = 16
FOLDER = "studies"  # in the work directory
RATIO = "csi_ratio"  # CSI over that of the better baseline, threshold by threshold, lead by lead
TOLD = ("csi", RATIO, "frequency_bias", "brier", "crps")
CALIBRATED_ON = "validation"
# A name of a run is one of a file, of a metric and of a row.
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")
# What a variant may change; with anything else changed, rows would not compare.
FREE = ("transform.", "network.", "training.", "window.input_frames", "data.step")

Row = dict[str, Any]


class StudyFile(Section):
    """What a study file holds."""

    settings: str  # TOML file of an experiment, from the folder of the study file
    split: Literal["validation", "test"] = "test"  # the block that runs are scored on
    most_bias: float = Field(Decisions.most_bias, gt=0)  # of fields; see `nowcast calibrate`
    common: tuple[str, ...] = ()  # settings of every run, as section.field=value
    variants: dict[str, tuple[str, ...]]  # by name: settings of one run


@dataclass(frozen=True)
class Study:
    """Runs that are compared.

    Parameters
    ----------
    name
        Of the study file.
    split
        The block that runs are scored on.
    most_bias
        Frequency bias of calibrated fields at most, on the block that they are calibrated on.
    changes
        What each run has otherwise than the reference, as ``section.field=value``.
    runs
        The settings of each run by its name; `REFERENCE` first.
    """

    name: str
    split: str
    most_bias: float
    changes: dict[str, tuple[str, ...]]
    runs: dict[str, Config]

    @property
    def reference(self) -> Config:
        """The settings unchanged."""
        return self.runs[REFERENCE]

    @property
    def input_frames(self) -> int:
        """Most frames that a run sees: all are scored on the cases that have as many."""
        return max(config.window.input_frames for config in self.runs.values())


@dataclass(frozen=True)
class Results:
    """What came of a study.

    Parameters
    ----------
    study
        That was run.
    folder
        Where the rows are kept.
    run_id
        Of the MLflow run that those of the rows are children of.
    rows
        In the order of the study, of the runs that are done. Scores are of the run and of the
        baselines, as JSON types: name of the score, nowcaster, threshold, lead time, value.
    failed
        By name, why a run has no row.
    """

    study: Study
    folder: Path
    run_id: str
    rows: tuple[Row, ...]
    failed: dict[str, str]


def open_study(path: Path | str, settings: list[str] | None = None) -> Study:
    """Read a study from a TOML file, and refuse one whose rows could not be compared.

    Parameters
    ----------
    path
        Of the study file; see docs/studies.md.
    settings
        Changed in every run, the reference too, as ``section.field=value``.

    Raises
    ------
    ConfigError
        Naming the run and what is wrong with it.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"the study file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    file = validate(content, source=str(path))
    where = path.parent / file.settings
    try:
        reference = load(where).replace([*file.common, *(settings or [])])
    except OSError as error:
        raise ConfigError(
            f"{path}: its settings file {where} cannot be read: {error.strerror}; name it from the "
            "folder of the study file"
        ) from error
    runs = {REFERENCE: reference}
    for name, changes in file.variants.items():
        with _told_of(name):
            runs[name] = reference.replace(list(changes))
    study = Study(path.stem, file.split, file.most_bias, {REFERENCE: (), **file.variants}, runs)
    _check(study)
    return study


def validate(content: dict[str, Any], *, source: str) -> StudyFile:
    """Give the study file of a nested dictionary, or one line that names what is wrong in it.

    Examples
    --------
    >>> validate(
    ...     {"settings": "a.toml", "variants": {"mae": ["training.loss=mae"]}}, source="x"
    ... ).split
    'test'
    """
    try:
        return StudyFile.model_validate(content)
    except ValidationError as error:
        wrong = "; ".join(
            f"{'.'.join(map(str, one['loc']))}: {one['msg']}, received {one['input']!r}"
            for one in error.errors()
        )
        raise ConfigError(
            f"{source}: {wrong}; a study file has {', '.join(StudyFile.model_fields)}, such as "
            'settings = "taasrad19.toml" and, under [variants], mae = ["training.loss=mae"]'
        ) from error


def _check(study: Study) -> None:
    _check_names(study)
    if not 1 < len(study.runs) <= MOST_RUNS:
        raise ConfigError(
            f"a study has one to {MOST_RUNS - 1} variants beside the reference; received "
            f"{len(study.runs) - 1}; write another study file for more"
        )
    budgets = {name: _budget(name, config) for name, config in study.runs.items()}
    off = {name: told for name, told in budgets.items() if told != budgets[REFERENCE]}
    if off:
        told = "; ".join(f"{name} has {budget}" for name, budget in off.items())
        raise ConfigError(
            f"runs are compared at an equal budget, and the reference has {budgets[REFERENCE]}: "
            f"{told}; with another training.batch_size change training.steps_per_epoch with it"
        )
    for name, config in study.runs.items():
        with _told_of(name):
            _check_fits(config)
    known: dict[str, str] = {}
    for name, config in study.runs.items():
        twin = known.setdefault(config.model_dump_json(), name)
        if twin != name:
            raise ConfigError(
                f"{name!r} has the same settings as {twin!r}: {list(study.changes[name])}; change "
                "one thing, or leave it out"
            )
    for name, config in study.runs.items():
        _check_comparable(name, config, study.reference)


def _check_names(study: Study) -> None:
    taken = {"study", *study.reference.baselines}
    for name in study.changes:
        if not NAME.fullmatch(name) or name in taken:
            raise ConfigError(
                f"a variant cannot be called {name!r}; take up to 40 letters, digits, '_', '-' and "
                f"'.', and none of {', '.join((REFERENCE, *sorted(taken)))}"
            )
        if name == REFERENCE and study.changes[name]:
            raise ConfigError(f"{REFERENCE!r} are the settings unchanged; name the variant anew")


def _budget(name: str, config: Config) -> str:
    """Give what a training may take, in words that are equal where it is."""
    section = config.training
    if section.minutes:
        raise ConfigError(
            f"{name}: training.minutes={section.minutes:g} makes the budget depend on the machine; "
            "set training.minutes=0 and training.steps_per_epoch instead"
        )
    if not section.steps_per_epoch:
        return f"{section.epochs} epochs of every window (training.steps_per_epoch=0)"
    windows = section.epochs * section.steps_per_epoch * section.batch_size
    return f"{windows} windows (training.epochs * steps_per_epoch * batch_size)"


def _check_fits(config: Config) -> None:
    """Refuse now what a training would refuse hours later."""
    if config.network.head in SEQUENCE_HEADS:
        raise ConfigError(
            f"a study scores fields, and network.head={config.network.head!r} gives none"
        )
    head = head_of(config, ())
    settings_of(config.network.name, config.network.settings)
    check_head(config.network.name, head)
    loss_of(
        config.training.loss,
        head=head,
        variable=config.variable.variable,
        transform=config.transform.transform,
    )


def _check_comparable(name: str, config: Config, reference: Config) -> None:
    mine, others = flatten(config.model_dump()), flatten(reference.model_dump())
    changed = [key for key in dict.fromkeys([*mine, *others]) if mine.get(key) != others.get(key)]
    fixed = [key for key in changed if not key.startswith(FREE)]
    if fixed:
        raise ConfigError(
            f"{name}: {', '.join(fixed)} must be as in the reference, or the rows would not "
            "compare; a variant changes transform, network, training, window.input_frames or "
            "data.step"
        )


@contextlib.contextmanager
def _told_of(name: str) -> Iterator[None]:
    """Have what is wrong with a run told with its name."""
    try:
        yield
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def run(
    study: Study,
    observed: xr.Dataset,
    *,
    tracking: Tracking,
    say: Callable[[str], None] = LOGGER.info,
    verbose: int = 1,
) -> Results:
    """Train, calibrate and score the runs of a study that have no row yet.

    A study that was killed goes on when the same is asked for again: rows that are there are read,
    a training goes on from its last whole epoch, and all of it in the same MLflow runs. A run that
    cannot be done, such as one that diverges, stops no other; one whose settings do not fit the
    grid or the devices is told before any begins.

    Parameters
    ----------
    study
        See `open_study`.
    observed
        That keep the convention.
    tracking
        Where runs and models go.
    say
        Told what is done.
    verbose
        Of the trainings: 0 silent, 1 progress bar, 2 a line per epoch.

    Raises
    ------
    ConfigError
        If a run could not be trained, or the same study is running already.
    """
    for name, config in study.runs.items():
        with _told_of(name):
            check_trainable(config, observed)
    identity = {
        "settings": study.reference.model_dump(mode="json"),
        "split": study.split,
        "most_bias": study.most_bias,
        "data": fingerprint(observed),
        "versions": [__version__, SCORING_VERSION],
    }
    folder = tracking.work / FOLDER / digest_of(identity)
    make_folder(folder)
    with _alone(folder):
        return _Runs(study, observed, tracking, folder, say, verbose).results()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuse a study that another process is at; the lock ends with its process."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"this study is running already (it holds {folder / 'lock'}); wait for it, or end "
                "it and give the same command again"
            ) from error
        yield


@dataclass(frozen=True)
class _Reaching:
    """A nowcaster with the cases of one that sees more frames, so that rows have the same cases."""

    nowcaster: Nowcaster
    input_frames: int

    @property
    def step(self) -> pd.Timedelta | None:
        return self.nowcaster.step

    def nowcast(self, observed: xr.Dataset, **asked: Any) -> xr.Dataset:
        return self.nowcaster.nowcast(observed, **asked)


@dataclass(frozen=True)
class _Trained:
    """What is kept of a training until its row is there."""

    run_id: str
    folder: str
    epochs: int
    seconds: float


@dataclass(frozen=True)
class _Runs:
    """The runs of a study, and where they are done."""

    study: Study
    observed: xr.Dataset
    tracking: Tracking
    folder: Path
    say: Callable[[str], None]
    verbose: int

    def results(self) -> Results:
        note = _read(self.folder / "study.json")
        rows = {name: self._kept(name) for name in self.study.runs}
        if all(rows.values()) and note.get("logged") == self._digest_of_all():
            self.say(f"every run was done before; delete {self.folder} to begin anew")
            return self._results(note["run_id"], {n: row for n, row in rows.items() if row}, {})
        experiment = self.study.reference.experiment
        going_on = note.get("run_id", "")
        with self.tracking.run(experiment, self.study.name, going_on=going_on) as parent:
            write_json(self.folder / "study.json", {"run_id": parent.run_id})
            parent.end_children()
            self._tell_settings(parent)
            done, failed = self._done()
            results = self._results(parent.run_id, done, failed)
            _tell_results(parent, results)
        if not failed:
            logged = {"run_id": parent.run_id, "logged": self._digest_of_all()}
            write_json(self.folder / "study.json", logged)
        return results

    def _results(self, run_id: str, rows: dict[str, Row], failed: dict[str, str]) -> Results:
        return Results(self.study, self.folder, run_id, tuple(rows.values()), failed)

    def _done(self) -> tuple[dict[str, Row], dict[str, str]]:
        rows, failed = {}, {}
        for number, name in enumerate(self.study.runs, start=1):
            row = self._kept(name)
            before = "was done before" if row else ", ".join(self.study.changes[name])
            self.say(f"run {number} of {len(self.study.runs)}, {name}: {before or 'unchanged'}")
            try:
                rows[name] = row or self._made(name)
            except ValueError as error:  # such as a training that diverged
                failed[name] = str(error)
                self.say(f"run {name} failed: {error}")
        return rows, failed

    def _kept(self, name: str) -> Row | None:
        row = _read(self._file(name))
        return row if row.get("digest") == self._digest(name) else None

    def _made(self, name: str) -> Row:
        kept = self._trained(name)
        experiment = self.study.reference.experiment
        with self.tracking.run(experiment, name, going_on=kept.run_id) as run:
            nowcaster, folder = self._calibrated(name, Path(kept.folder))
            scores = self._scored(name, nowcaster)
            run.scores(scores)
            row = {
                "name": name,
                "changes": list(self.study.changes[name]),
                "digest": self._digest(name),
                "run_id": run.run_id,
                "folder": str(folder),
                "epochs": kept.epochs,
                "seconds": kept.seconds,
                "parameters": sum(weight.size for weight in nowcaster.weights),
                "protocol_sha256": scores.attrs["protocol_sha256"],
                **plain(_told(scores, self.study.reference.baselines)),
            }
            run.text(json.dumps(row, indent=2), "row.json")
        write_json(self._file(name), row)
        return row

    def _trained(self, name: str) -> _Trained:
        """Train, or give what was trained before: a kill while it was scored costs no training."""
        config = self.study.runs[name]
        path, digest = self.folder / "trained" / f"{name}.json", self._digest_of_training(config)
        note = _read(path)
        if note.get("digest") == digest and Path(note["trained"]["folder"]).is_dir():
            return _Trained(**note["trained"])
        made = train(config, self.observed, tracking=self.tracking, name=name, verbose=self.verbose)
        history = read_metrics(self.tracking.work / "runs" / made.run_id / METRICS)
        history = history.dropna(subset="val_loss")  # of whole epochs
        seconds = float(history["seconds"].iloc[-1])
        trained = _Trained(made.run_id, str(made.folder), len(history), seconds)
        write_json(path, {"digest": digest, "trained": asdict(trained)})
        return trained

    def _calibrated(self, name: str, folder: Path) -> tuple[NeuralNowcaster, Path]:
        config = self.study.runs[name]
        if config.network.head == "exceedance":
            self.say(f"calibrating {name} on the {CALIBRATED_ON} block")
            block = experiments.block(config, self.observed, split=CALIBRATED_ON)
            made = experiments.calibrated(
                config,
                str(folder),
                self.observed,
                self.tracking,
                block=block,
                decisions=Decisions(self.study.most_bias),
            )
            folder = self.folder / "calibrated" / name
            made.save(folder)
        return NeuralNowcaster.load(folder), folder

    def _scored(self, name: str, nowcaster: NeuralNowcaster) -> xr.Dataset:
        """Score by the settings of the reference, whatever the run's own are."""
        study = self.study
        self.say(f"scoring {name} on the {study.split} block")
        config = study.reference.replace(["verification.references=[]"])
        baselines = experiments.nowcasters(config, [], self.tracking)
        return experiments.compare(
            config,
            {
                **baselines,
                name: _Reaching(nowcaster, max(study.input_frames, nowcaster.input_frames)),
            },
            self.observed,
            block=experiments.block(config, self.observed, split=study.split),
            split=study.split,
        )

    def _tell_settings(self, parent: Run) -> None:
        study = self.study
        parent.text(study.reference.model_dump_json(indent=2), "config.json")
        parent.text(json.dumps(study.changes, indent=2), "variants.json")
        parent.tags({"nowcast.study": study.name, "nowcast.study.folder": str(self.folder)})

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _digest_of_training(self, config: Config) -> str:
        version = version_of(config.network.name)
        return digest_of({"config": config.model_dump(mode="json"), "network_version": version})

    def _digest(self, name: str) -> str:
        training = self._digest_of_training(self.study.runs[name])
        return digest_of({"training": training, "input_frames": self.study.input_frames})

    def _digest_of_all(self) -> str:
        return digest_of({name: self._digest(name) for name in self.study.runs})


def _read(path: Path) -> dict[str, Any]:
    """Read what a study wrote; nothing if it is not there or not JSON."""
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        LOGGER.warning("%s is damaged (%s); what it was of is done anew", path, error)
        return {}
    return content


def _told(scores: xr.Dataset, baselines: tuple[str, ...]) -> xr.Dataset:
    """Give the scores of a row: a few lead times, and the CSI over that of the better baseline."""
    if "csi" in scores:
        better = scores["csi"].sel(nowcaster=list(baselines)).max("nowcaster")
        scores = scores.assign({RATIO: scores["csi"] / better.where(better > 0)})
    kept = [name for name in TOLD if name in scores]
    return scores[kept].isel(lead_time=leads_told(scores.sizes["lead_time"]))


def leads_told(leads: int) -> list[int]:
    """Give the places of the first lead time, those at a quarter and at half of all, and the last.

    Examples
    --------
    >>> leads_told(12), leads_told(2)
    ([0, 2, 5, 11], [0, 1])
    """
    return sorted({0, -(-leads // 4) - 1, -(-leads // 2) - 1, leads - 1})


def _tell_results(parent: Run, results: Results) -> None:
    parent.text(table(results), "study.txt")
    parent.text(json.dumps(as_json(results), indent=2), "study.json")
    frame = _frame(results)
    if frame.empty:
        return
    own = frame[(frame["nowcaster"] == frame["run"]) & frame["value"].notna()]
    at = own["threshold"].map(lambda level: f"/{level:g}" if level == level else "")
    named = own.assign(metric=own["score"] + "/" + own["run"] + at)
    for minutes, of_lead in named.groupby("lead_minutes"):
        figures = dict(zip(of_lead["metric"], of_lead["value"], strict=True))
        parent.metrics(figures, step=int(minutes))


def _frame(results: Results) -> pd.DataFrame:
    """Give every figure in a row of its own, with the run that it was scored in."""
    figures = [{"run": row["name"], **one} for row in results.rows for one in row["scores"]]
    columns = ["run", "nowcaster", "score", "threshold", "lead_minutes", "value"]
    return pd.DataFrame(figures, columns=columns).astype({"threshold": float, "value": float})


def as_json(results: Results) -> dict[str, Any]:
    """Give the rows and what failed as JSON types."""
    return {
        "study": results.study.name,
        "split": results.study.split,
        "folder": str(results.folder),
        "run_id": results.run_id,
        "rows": list(results.rows),
        "failed": results.failed,
    }


def table(results: Results) -> str:
    """Give the rows as tables: a line per run, a column per lead time in minutes.

    First what each run took, then what it has otherwise than the reference, then scores; those of
    the baselines stand above.
    """
    lines = []
    if results.rows:
        lines = [*_heading(results), *_costs(results), *_scores(results)]
    for name, reason in results.failed.items():
        lines += ["", f"{name} FAILED: {reason}"]
    return "\n".join(lines)


def _heading(results: Results) -> list[str]:
    protocol = results.rows[0]["protocol"]
    lines = [
        f"{results.study.name}, {results.study.split}: {protocol['cases']} cases, base times "
        f"{protocol['period']}; protocol {results.rows[0]['protocol_sha256'][:12]}; columns are "
        "lead times in minutes"
    ]
    heads = {config.network.head for config in results.study.runs.values()}
    if results.study.split == CALIBRATED_ON and "exceedance" in heads:
        lines += ["calibrated on the same block: compare runs with one another, not with baselines"]
    return lines


def _width(results: Results) -> int:
    return max(map(len, [*results.study.reference.baselines, *results.study.runs])) + 2


def _costs(results: Results) -> list[str]:
    width = _width(results)
    lines = ["", f"{'':{width}}{'epochs':>8}{'seconds':>9}{'parameters':>12}  changed"]
    for row in results.rows:
        lines.append(
            f"{row['name']:{width}}{row['epochs']:8d}{row['seconds']:9.0f}"
            f"{row['parameters']:12,d}  {', '.join(row['changes']) or '-'}"
        )
    return lines


def _scores(results: Results) -> list[str]:
    frame, units = _frame(results), results.rows[0]["protocol"]["units"]
    lines = []
    at_all = {"crps": (f"CRPS ({units})", 3)}
    at_each = {
        "csi": ("CSI", 2),
        RATIO: ("CSI / better baseline", 2),
        "frequency_bias": ("frequency bias", 2),
        "brier": ("Brier score", 3),
    }
    for level, of_level in frame.groupby("threshold"):
        lines += ["", f"at {level:g} {units}", *_block(results, of_level, at_each)]
    lines += ["", *_block(results, frame[frame["threshold"].isna()], at_all)]
    return lines


def _block(results: Results, frame: pd.DataFrame, shown: dict[str, tuple[str, int]]) -> list[str]:
    """Give a line per nowcaster with groups of columns, one group per score."""
    width, minutes = _width(results), sorted(frame["lead_minutes"].unique())
    wide = max(7 * len(minutes), 24)
    shown = {score: how for score, how in shown.items() if (frame["score"] == score).any()}
    names = [f"{label:>{wide}}" for label, _ in shown.values()]
    heading = f"{''.join(f'{minute:7d}' for minute in minutes):>{wide}}"
    lines = ["".join([" " * width, *names]), " " * width + heading * len(shown)]
    first = results.rows[0]["name"]
    whose = [(first, one) for one in results.study.reference.baselines]
    for run_name, nowcaster in [*whose, *((row["name"], row["name"]) for row in results.rows)]:
        mine = frame[(frame["run"] == run_name) & (frame["nowcaster"] == nowcaster)]
        figures = mine.set_index(["score", "lead_minutes"])["value"]
        groups = [
            "".join(_cell(figures.get((score, minute), np.nan), digits) for minute in minutes)
            for score, (_, digits) in shown.items()
        ]
        lines.append("".join([f"{nowcaster:{width}}", *(f"{one:>{wide}}" for one in groups)]))
    return lines


def _cell(figure: float, digits: int) -> str:
    return f"{figure:7.{digits}f}" if figure == figure else f"{'-':>7}"
