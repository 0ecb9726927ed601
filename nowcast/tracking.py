"""MLflow: runs, the registry, and which nowcaster is the champion.

Without a server everything stays in one work directory: an SQLite store and an artifact folder.
A tracking URI that the user has set wins. Metrics are always written to a local file first, so a
lost server costs no number and never stops a training.
"""

import contextlib
import io
import json
import logging
import os
import re
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast import __version__
from nowcast.durable import sha256
from nowcast.nowcasters import Nowcaster
from nowcast.nowcasters import open_nowcaster as open_local_nowcaster
from nowcast.nowcasters.neural import NeuralNowcaster
from nowcast.nowcasters.saved import MANIFEST
from nowcast.predictors import SequencePredictor, open_trained
from nowcast.verification import save_scores
from nowcast.verification.protocol import commit
from nowcast.verification.scores import DEFINITIONS
from nowcast.verification.sequences import CLASS_DEFINITIONS

LOGGER = logging.getLogger(__name__)
CHAMPION = "champion"
LOGGED = (*DEFINITIONS, "crps", "brier", "effective_resolution", "ssim")  # as metrics
SCORES = "scores.nc"  # of a verification, in its run
METRICS = "metrics.jsonl"  # in the folder of a run
URI_VARIABLE = "MLFLOW_TRACKING_URI"
MANIFEST_TAG = "manifest_sha256"  # of a version: what its saved files hash to
ARTIFACT = "nowcaster"  # name of the saved folder inside a logged model
SERVER_TIMEOUT_SECONDS = 5
SYSTEM_METRICS_SECONDS = 5
SERVED_MODEL = Path(__file__).with_name("served_model.py")
PINNED = ("mlflow", "tensorflow", "keras", "numpy", "xarray", "pandas", "h5py")
# A few short tries: the defaults wait four minutes for a server that is down.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(SERVER_TIMEOUT_SECONDS),
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class TrackingError(RuntimeError):
    """The tracking server or the registry cannot do what was asked."""


@dataclass(frozen=True)
class Tracking:
    """Where runs and models are kept.

    Parameters
    ----------
    work
        Folder of everything that nowcast keeps.
    """

    work: Path

    @property
    def uri(self) -> str:
        """The user's ``MLFLOW_TRACKING_URI``, or an SQLite store in the work directory."""
        return os.environ.get(URI_VARIABLE) or f"sqlite:///{self.work.resolve()}/mlflow.db"

    def connect(self) -> Any:
        """Give the MLflow module, pointed at the store.

        Raises
        ------
        TrackingError
            If a server is configured and does not answer within a few seconds.
        """
        for name, value in ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        check_reachable(self.uri)
        self.work.mkdir(parents=True, exist_ok=True)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        import mlflow

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        for name in ("mlflow.system_metrics", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.ERROR)  # a lost server is told once, by `Run`
        uri, given = self.uri, os.environ.get(URI_VARIABLE)
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        # MLflow puts the address into the environment, where it would pass for the user's own.
        os.environ.pop(URI_VARIABLE, None)
        if given:
            os.environ[URI_VARIABLE] = given
        return mlflow

    @contextlib.contextmanager
    def run(
        self,
        experiment: str,
        name: str,
        *,
        tags: dict[str, str] | None = None,
        going_on: str = "",
    ) -> Iterator["Run"]:
        """Open a run, with system metrics, for the length of the block.

        A block that raises ends the run as failed. If the server is lost meanwhile the block goes
        on; `Run.lost` then says why. The run `going_on` is opened again, if the store has it: what
        was killed and goes on is one run. A run that begins within the block of another is its
        child.
        """
        mlflow = self.connect()
        mlflow.set_system_metrics_sampling_interval(SYSTEM_METRICS_SECONDS)
        experiment_id = self._experiment(mlflow, experiment)
        active = mlflow.start_run(
            run_id=_known_run(mlflow, going_on),
            experiment_id=experiment_id,
            run_name=name,
            tags={"nowcast.version": __version__, **code_version(), **(tags or {})},
            log_system_metrics=True,
            nested=True,
        )
        run = Run(mlflow, active.info.run_id, self.work / "runs" / active.info.run_id)
        status = "FAILED"
        try:
            yield run
            status = "FINISHED"
        finally:
            run.close(status)

    def _experiment(self, mlflow: Any, name: str) -> str:
        found = mlflow.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        local = self.uri.startswith("sqlite:")
        artifacts = (self.work.resolve() / "artifacts").as_uri() if local else None
        return str(mlflow.create_experiment(name, artifact_location=artifacts))


class Run:
    """One MLflow run; every metric also goes to ``metrics.jsonl`` in the run's local folder."""

    def __init__(self, mlflow: Any, run_id: str, folder: Path) -> None:
        self._mlflow = mlflow
        self.run_id = run_id
        self.folder = folder
        self.lost = ""
        self._unsent: list[tuple[dict[str, float], int]] = []
        folder.mkdir(parents=True, exist_ok=True)

    @property
    def metrics_file(self) -> Path:
        """The local copy of every metric, one JSON object per line."""
        return self.folder / METRICS

    def parameters(self, values: dict[str, Any]) -> None:
        """Log settings; nested ones get dotted names."""
        self._send("parameters", lambda: self._mlflow.log_params(flatten(values)))

    def metrics(self, values: dict[str, float], *, step: int) -> None:
        """Log numbers of one epoch: to the local file, then to the store if it answers."""
        plain = {name: float(value) for name, value in values.items()}
        with self.metrics_file.open("a", encoding="utf-8") as file:
            # JSON knows no NaN, which a diverging loss is.
            known = {name: value if value == value else None for name, value in plain.items()}
            file.write(json.dumps({"step": step, **known}) + "\n")
        if self.lost or not self._send("metrics", lambda: self._log(plain, step)):
            self._unsent.append((plain, step))

    def file(self, path: Path, folder: str = "") -> None:
        """Log a file as an artifact."""
        self._send(path.name, lambda: self._mlflow.log_artifact(str(path), folder or None))

    def text(self, content: str, name: str) -> None:
        """Log a text as an artifact."""
        self._send(name, lambda: self._mlflow.log_text(content, name))

    def tags(self, values: dict[str, str]) -> None:
        """Set tags."""
        self._send("tags", lambda: self._mlflow.set_tags(values))

    def end_children(self) -> None:
        """End as killed the children that stand as running, when nobody runs them any more."""
        self._send("what was killed", self._end_children)

    def _end_children(self) -> None:
        client = self._mlflow.MlflowClient()
        within = client.get_run(self.run_id).info.experiment_id
        asked = f"tags.`mlflow.parentRunId` = '{self.run_id}' and attributes.status = 'RUNNING'"
        for child in client.search_runs([within], asked):
            client.set_terminated(child.info.run_id, "KILLED")

    def scores(self, scores: xr.Dataset) -> None:
        """Log verification scores: the netCDF file, curves, figures and the protocol's hash."""
        from nowcast.plots import score_curves

        self.file(save_scores(scores, self.folder / SCORES))
        self.tags({"protocol_sha256": scores.attrs["protocol_sha256"]})
        if "lead_time" not in scores.dims:  # of labels
            self.metrics(_figures(scores), step=0)
            return
        self.file(score_curves(scores, path=self.folder / "scores.png"))
        for lead_time in scores["lead_time"].values:
            minutes = int(lead_time / np.timedelta64(1, "m"))
            self.metrics(_figures(scores.sel(lead_time=lead_time)), step=minutes)

    def report(self, path: Path) -> None:
        """Log a report and the figures that lie beside it."""
        from nowcast.report import figures_of

        self.file(path)
        folder = str(figures_of(path))
        self._send("the figures", lambda: self._mlflow.log_artifacts(folder, "figures"))

    def model(
        self, folder: Path, nowcaster: NeuralNowcaster | SequencePredictor, *, register_as: str
    ) -> str:
        """Log a saved nowcaster or predictor as a pyfunc model and register it.

        Returns
        -------
        str
            The version in the registry; empty if the server was lost.
        """
        versions: list[str] = []
        self._send(
            "the model", lambda: versions.append(self._model(folder, nowcaster, register_as))
        )
        return versions[0] if versions else ""

    def close(self, status: str) -> None:
        """End the run; what a lost server has missed is sent now if it is back."""
        if self.lost and self._unsent:
            self._resend()
        with contextlib.suppress(Exception):
            self._mlflow.end_run(status)

    def _resend(self) -> None:
        try:
            check_reachable(self._mlflow.get_tracking_uri())
            for values, step in self._unsent:
                self._log(values, step)
        except Exception as error:
            LOGGER.debug("still lost: %s", error)
            return
        self._unsent.clear()

    def _model(
        self, folder: Path, nowcaster: NeuralNowcaster | SequencePredictor, register_as: str
    ) -> str:
        tags = {
            "sha256": nowcaster.sha256,
            MANIFEST_TAG: sha256(folder / MANIFEST),
            "run_id": self.run_id,
        }
        with _quiet():
            info = self._mlflow.pyfunc.log_model(
                name=ARTIFACT,
                python_model=str(SERVED_MODEL),
                artifacts={ARTIFACT: str(folder)},
                signature=signature(nowcaster),
                pip_requirements=requirements(),
                metadata={"sha256": nowcaster.sha256, "network": nowcaster.settings.network},
            )
            version = self._mlflow.register_model(info.model_uri, register_as, tags=tags)
        return str(version.version)

    def _log(self, values: dict[str, float], step: int) -> None:
        self._mlflow.log_metrics(values, step=step, run_id=self.run_id)

    def _send(self, what: str, call: Any) -> bool:
        """Make one call of the store; when it fails, remember that the store is lost."""
        if self.lost:
            return False
        try:
            call()
        except Exception as error:  # any fault of the store: none may stop a training
            first_line = next(iter(str(error).splitlines()), "")
            self.lost = f"{type(error).__name__}: {first_line[:200]}"
            LOGGER.warning(
                "the tracking server was lost while logging %s (%s); training goes on, metrics are "
                "in %s",
                what,
                self.lost,
                self.metrics_file,
            )
            return False
        return True


def read_metrics(path: Path) -> pd.DataFrame:
    """Read a run's local copy of its metrics: a row per step, the last value of each metric.

    Parameters
    ----------
    path
        See `Run.metrics_file`.
    """
    lines = path.read_text(encoding="utf-8").splitlines()
    return pd.DataFrame([json.loads(line) for line in lines]).groupby("step").last()


def _known_run(mlflow: Any, run_id: str) -> str | None:
    if not run_id:
        return None
    try:
        mlflow.MlflowClient().get_run(run_id)
    except mlflow.MlflowException as error:
        LOGGER.warning("run %s is not in the store (%s); a new one goes on", run_id, error)
        return None
    return run_id


def check_reachable(uri: str) -> None:
    """Refuse a tracking server that does not answer its health check within a few seconds.

    Raises
    ------
    TrackingError
        Naming the server and what to do.
    """
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=SERVER_TIMEOUT_SECONDS):
            return
    except urllib.error.HTTPError:
        return  # it answers: a server behind a guard, or an older one without /health
    except (OSError, ValueError) as error:
        raise TrackingError(
            f"the tracking server {uri} does not answer ({error}); start it, correct "
            "MLFLOW_TRACKING_URI, or unset it to use the local store"
        ) from error


def open_nowcaster(
    uri: str, tracking: Tracking, **settings: Any
) -> tuple[Nowcaster, dict[str, str]]:
    """Open any nowcaster: by name, folder, or as a model of the registry.

    Parameters
    ----------
    uri
        ``persistence``, a folder, ``models:/nowcast@champion``, ``models:/nowcast/3``, ``runs:/…``.
    tracking
        Where the registry is.
    settings
        Passed to a named nowcaster.

    Returns
    -------
    nowcaster, provenance
        The second names the nowcaster, its version and the hash of its weights.

    Raises
    ------
    ValueError
        If there is no such nowcaster, or it is a predictor, which issues no frames.
    TrackingError
        If the registry has no such model or does not answer.
    """
    opened, provenance = open_any(uri, tracking, **settings)
    if isinstance(opened, SequencePredictor):
        raise ValueError(
            f"{uri} is a predictor of {opened.settings.head.kind}: it gives no frames to issue or "
            "promote; score it with `nowcast verify`, or call its predict, see nowcast.predictors"
        )
    return opened, provenance


def open_any(
    uri: str, tracking: Tracking, **settings: Any
) -> tuple[Nowcaster | SequencePredictor, dict[str, str]]:
    """Open whatever can be scored: a nowcaster, or a predictor of a series or a label.

    Parameters, returns and raises as `open_nowcaster`, which refuses predictors.
    """
    if uri.startswith(("models:/", "runs:/")):
        return _open_registered(uri, tracking)
    folder = Path(uri)
    nowcaster = open_trained(folder) if folder.is_dir() else open_local_nowcaster(uri, **settings)
    digest = getattr(nowcaster, "sha256", "")
    name = Path(uri).name if digest else uri
    return nowcaster, _provenance(name, version=digest[:12] or __version__, digest=digest)


def open_scores(run: str, tracking: Tracking) -> xr.Dataset:
    """Open the scores of a verification.

    Parameters
    ----------
    run
        An MLflow run, by its id, or a file that `nowcast.verification.save_scores` wrote.
    tracking
        Where the runs are.

    Raises
    ------
    TrackingError
        If there is no such file, and no such run with scores.
    """
    path = Path(run)
    if not path.is_file():
        mlflow = tracking.connect()
        try:
            with _quiet():
                path = Path(mlflow.artifacts.download_artifacts(run_id=run, artifact_path=SCORES))
        except Exception as error:
            raise TrackingError(
                f"{run!r} is neither a file of scores nor a run with scores in {tracking.uri} "
                f"({str(error).splitlines()[0]}); `nowcast verify` makes both"
            ) from error
    with xr.open_dataset(path, engine="netcdf4") as scores:
        return scores.load()


def resolve(uri: str, tracking: Tracking) -> str:
    """Give ``models:/name/version`` for a model of the registry, so that it can be named.

    Parameters
    ----------
    uri
        ``models:/name@alias`` or ``models:/name/version``.
    tracking
        Where the registry is.

    Raises
    ------
    TrackingError
        If the registry has no such model.
    """
    name, alias, wanted = _parts(uri)
    mlflow = tracking.connect()
    client = mlflow.MlflowClient()
    find = client.get_model_version_by_alias if alias else client.get_model_version
    try:
        version = find(name, wanted)
    except mlflow.MlflowException as error:
        which = f"with the alias {wanted!r}" if alias else f"of version {wanted!r}"
        raise TrackingError(
            f"the registry has no model {name!r} {which} ({tracking.uri}); train one and run "
            "`nowcast promote`, or name a version that is there as models:/NAME/VERSION"
        ) from error
    return f"models:/{name}/{version.version}"


def _parts(uri: str) -> tuple[str, bool, str]:
    """Split the URI of a model: its name, whether by alias, and the alias or version."""
    found = re.fullmatch(r"models:/([^/@]+)([/@])([^/@]+)", uri)
    if not found:
        raise TrackingError(
            f"{uri!r} names no model; write models:/NAME@ALIAS or models:/NAME/VERSION"
        )
    return found[1], found[2] == "@", found[3]


def versions(name: str, tracking: Tracking) -> list[str]:
    """Give ``models:/name/version`` of every version in the registry, oldest first."""
    mlflow = tracking.connect()
    found = mlflow.MlflowClient().search_model_versions(f"name = '{name}'")
    numbers = sorted(int(version.version) for version in found)
    return [f"models:/{name}/{number}" for number in numbers]


@dataclass(frozen=True)
class Decision:
    """What `promote` decided, and the figures it decided by.

    Parameters
    ----------
    champion
        URI of the version that carries the alias after the decision; empty if none does.
    promoted
        Whether the alias now points to the best candidate because it beat every baseline.
    best
        The candidate with the best score.
    score
        Name of the score, with threshold and lead times.
    scores
        Score of each candidate and baseline.
    reason
        One sentence that says why.
    """

    champion: str
    promoted: bool
    best: str
    score: str
    scores: dict[str, float]
    reason: str


def promote(
    scores: xr.Dataset,
    *,
    candidates: list[str],
    tracking: Tracking,
    model_name: str,
    score: str,
    threshold: float,
    first_lead_minutes: int,
    defender: str = "",
) -> Decision:
    """Give the alias ``champion`` to the best candidate if it beats every baseline.

    Parameters
    ----------
    scores
        From `nowcast.verification.verify`, of every candidate and the defender on one test block;
        the baselines are those that its protocol names.
    candidates
        ``models:/name/version`` as they are named in `scores`.
    tracking
        Where the registry is.
    model_name
        In the registry.
    score, threshold, first_lead_minutes
        ``csi`` at a threshold (higher is better), ``rmse`` or ``mae`` (lower is better), averaged
        over lead times from the first one on.
    defender
        The champion so far, if it is no candidate: it must be beaten too. Without one, it has no
        say.

    Raises
    ------
    TrackingError
        If there is no candidate with a score, or one used frames after the base time.
    """
    check_candidates(candidates, model_name=model_name)
    peeking = [one for one in candidates if scores["sees_future"].sel(nowcaster=one)]
    if peeking:
        raise TrackingError(
            f"{', '.join(peeking)} used frames after the base time, so the scores mean nothing; "
            "promote others"
        )
    values = pooled(scores, score=score, threshold=threshold, first_lead_minutes=first_lead_minutes)
    sign = 1.0 if score == "csi" else -1.0
    ranked = sorted(
        (one for one in candidates if values[one] == values[one]),
        key=lambda one: -sign * values[one],
    )
    at = f" at {threshold:g}" if score == "csi" else ""
    label = f"{score}{at}, mean of lead times from {first_lead_minutes} min"
    if not ranked:
        raise TrackingError(f"no candidate has a {label}; train one, or verify more cases")
    best = ranked[0]
    rivals = list(json.loads(scores.attrs["protocol"])["baselines"])
    rivals += [defender] if defender else []
    lost = [name for name in rivals if not sign * values[best] > sign * values[name]]
    figures = {name: values[name] for name in (*candidates, *rivals)}
    if lost:
        by = ", ".join(f"{name} by {abs(values[best] - values[name]):.3f}" for name in lost)
        current = champion(model_name, tracking)
        reason = f"{best} lost to {by}; the alias stays where it was ({current or 'nowhere'})"
        return Decision(current, False, best, label, figures, reason)
    client = tracking.connect().MlflowClient()
    client.set_registered_model_alias(model_name, CHAMPION, best.rsplit("/", 1)[1])
    margins = ", ".join(f"{name} by {abs(values[best] - values[name]):.3f}" for name in rivals)
    return Decision(best, True, best, label, figures, f"{best} beat {margins}")


def champion(model_name: str, tracking: Tracking) -> str:
    """Give the version that has the alias ``champion``, ``models:/name/version``; "" if none.

    Raises
    ------
    TrackingError
        If the registry has no such model, or does not tell.
    """
    mlflow = tracking.connect()
    try:
        aliases = mlflow.MlflowClient().get_registered_model(model_name).aliases
    except mlflow.MlflowException as error:
        line = str(error).splitlines()[0]
        raise TrackingError(
            f"the champion of {model_name!r} cannot be read from {tracking.uri}: {line}"
        ) from error
    return f"models:/{model_name}/{aliases[CHAMPION]}" if CHAMPION in aliases else ""


def check_candidates(candidates: list[str], *, model_name: str) -> None:
    """Refuse candidates that are no versions of a model, before they are verified.

    Parameters
    ----------
    candidates
        ``models:/name/version``.
    model_name
        In the registry.

    Raises
    ------
    TrackingError
        With those of another model.
    """
    foreign = [one for one in candidates if not one.startswith(f"models:/{model_name}/")]
    if foreign:
        raise TrackingError(
            f"{', '.join(foreign)} cannot become the champion of {model_name!r}: a candidate is "
            f"named models:/{model_name}/VERSION"
        )


def check_lead_times(lead_times: pd.TimedeltaIndex, *, first_lead_minutes: int) -> None:
    """Refuse lead times of which none is to be averaged, before anything is verified.

    Parameters
    ----------
    lead_times
        Of the scores.
    first_lead_minutes
        From which on a score is averaged.

    Raises
    ------
    ValueError
        If all are shorter.

    Examples
    --------
    >>> check_lead_times(pd.to_timedelta([10, 20], unit="min"), first_lead_minutes=30)
    Traceback (most recent call last):
    ValueError: no lead time is 30 min or longer, and the longest is 20 min; ...
    """
    longest = lead_times.max() // pd.Timedelta(minutes=1)
    if longest < first_lead_minutes:
        raise ValueError(
            f"no lead time is {first_lead_minutes} min or longer, and the longest is {longest} "
            "min; lower promotion.first_lead_minutes, or set more window.lead_frames"
        )


def pooled(
    scores: xr.Dataset, *, score: str, threshold: float, first_lead_minutes: int
) -> dict[str, float]:
    """Give one number per nowcaster: the mean of a score over lead times from the first one on."""
    values = scores[score]
    if "threshold" in values.dims:
        values = values.sel(threshold=threshold)
    check_lead_times(scores["lead_time"].to_index(), first_lead_minutes=first_lead_minutes)
    minutes = scores["lead_time"].values.astype("timedelta64[m]").astype(int)
    means = values.isel(lead_time=minutes >= first_lead_minutes).mean("lead_time", skipna=False)
    return {str(name): float(means.sel(nowcaster=name)) for name in scores["nowcaster"].values}


def signature(nowcaster: NeuralNowcaster | SequencePredictor) -> Any:
    """Give the tensor signature: input frames to what is given, any batch, the grid's rule."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    window, head = nowcaster.settings.window, nowcaster.settings.head
    grid = (-1, -1) if nowcaster.settings.takes_any_grid else nowcaster.settings.grid
    float32 = np.dtype(np.float32)
    outputs = {"series": (window.lead_frames, head.outputs), "classes": (head.outputs,)}
    given = outputs.get(head.kind, (window.lead_frames, *grid))
    return ModelSignature(
        inputs=Schema([TensorSpec(float32, (-1, window.input_frames, *grid))]),
        outputs=Schema([TensorSpec(float32, (-1, *given))]),
    )


def requirements() -> list[str]:
    """Give what a logged model needs, with the versions at hand."""
    from importlib.metadata import version

    return [f"nowcast=={__version__}", *(f"{name}=={version(name)}" for name in PINNED)]


def code_version() -> dict[str, str]:
    """Give the commit of the code, if it runs from a checkout."""
    at = commit()
    return {"mlflow.source.git.commit": at} if at else {}


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Give nested settings under dotted names.

    Examples
    --------
    >>> flatten({"window": {"step_minutes": 10}})
    {'window.step_minutes': 10}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _open_registered(
    uri: str, tracking: Tracking
) -> tuple[Nowcaster | SequencePredictor, dict[str, str]]:
    exact = resolve(uri, tracking) if uri.startswith("models:/") else uri
    mlflow = tracking.connect()
    try:
        folder = Path(mlflow.artifacts.download_artifacts(exact))
    except (mlflow.MlflowException, OSError) as error:
        line = str(error).splitlines()[0]
        raise TrackingError(f"{exact} cannot be read from {tracking.uri}: {line}") from error
    found = sorted(folder.rglob("manifest.json"))
    if not found:
        raise TrackingError(f"{exact} holds no nowcaster saved by nowcast; train one with nowcast")
    registered = _manifest_of(mlflow, exact)
    if registered not in ("", sha256(found[0])):
        raise TrackingError(
            f"{exact} holds another nowcaster than was registered: the hash of its manifest is "
            f"{sha256(found[0])[:12]}, and the registry has {registered[:12]}; restore the "
            "artifacts, or train it again"
        )
    nowcaster = open_trained(found[0].parent)
    return nowcaster, _provenance(exact, version=exact.rsplit("/", 1)[1], digest=nowcaster.sha256)


def _manifest_of(mlflow: Any, uri: str) -> str:
    """Give the hash of the manifest that the registry keeps of a version; "" if it keeps none."""
    if not uri.startswith("models:/"):
        return ""
    name, version = uri.removeprefix("models:/").rsplit("/", 1)
    tags = mlflow.MlflowClient().get_model_version(name, version).tags
    return str(tags.get(MANIFEST_TAG, ""))


def _provenance(name: str, *, version: str, digest: str) -> dict[str, str]:
    return {"nowcaster": name, "nowcaster_version": version, "nowcaster_sha256": digest}


def _figures(scores: xr.Dataset) -> dict[str, float]:
    """Give scores by names that MLflow takes; undefined ones are left out."""
    figures = {}
    for score in (*LOGGED, *CLASS_DEFINITIONS):
        if score not in scores:
            continue
        flat = scores[score].to_series() if scores[score].ndim else scores[score]
        for key, value in flat.items():
            parts = key if isinstance(key, tuple) else (key,)
            name = "/".join([score, *(re.sub(r"[^\w.@-]+", "_", str(part)) for part in parts)])
            figures[name] = float(value)
    return {name: value for name, value in figures.items() if value == value}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep MLflow from printing what it does; its errors are raised as ever."""
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as: a signature was given instead of an example
        yield
