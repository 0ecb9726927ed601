"""What a training leaves behind after each epoch, so that one that was killed can go on.

One file, whole or not there: the network's and the optimiser's variables, the best weights so far,
and how far the training came. It goes on to the same weights, bit by bit, as if nothing had been.
"""

import hashlib
import json
import logging
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nowcast.durable import replacing

FORMAT = 1
LOGGER = logging.getLogger(__name__)

_PROGRESS = "progress"  # name of the JSON among the arrays
_GROUPS = ("model", "optimizer", "best")


@dataclass(frozen=True)
class Progress:
    """How far a training came.

    Parameters
    ----------
    epochs
        Whole ones.
    stopped
        Whether it was over: no better epoch came, or the time had passed.
    seconds
        That it took.
    best, best_epoch
        Lowest validation loss, and the number of its epoch.
    wait
        Epochs since.
    run_id
        Of the MLflow run that it belongs to.
    """

    epochs: int = 0
    stopped: bool = False
    seconds: float = 0.0
    best: float | None = None
    best_epoch: int = 0
    wait: int = 0
    run_id: str = ""


class Checkpoint:
    """The checkpoint of one training: where it lies, and what is read from it.

    Parameters
    ----------
    folder
        Of all checkpoints.
    identity
        All that the weights depend on, as JSON types: settings, data, versions. A training with
        another identity has another checkpoint.

    Examples
    --------
    >>> import tempfile
    >>> checkpoint = Checkpoint(Path(tempfile.mkdtemp()), {"seed": 1})
    >>> checkpoint.progress.epochs
    0
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.path = folder / f"{digest_of({'format': FORMAT, **identity})}.npz"
        self.progress, self._arrays = self._read()
        self.run_id = self.progress.run_id  # of the MLflow run that the next ones are written for

    def restore(self, model: Any) -> None:
        """Put a compiled model and its optimiser where the killed training was.

        Raises
        ------
        ValueError
            If the checkpoint is of another network.
        """
        if not self.progress.epochs:
            return
        model.optimizer.build(model.trainable_variables)
        for name, variables in _variables(model).items():
            saved = self._arrays[name]
            if [one.shape for one in saved] != [tuple(one.shape) for one in variables]:
                raise ValueError(
                    f"{self.path} was written for another {name}; delete it to begin anew"
                )
            for variable, value in zip(variables, saved, strict=True):
                variable.assign(value)
        LOGGER.warning(
            "the training goes on after epoch %d; delete %s to begin anew",
            self.progress.epochs,
            self.path,
        )

    def callback(self, stopping: Any) -> Any:
        """Give the Keras callback that writes after each epoch; it comes after all others.

        Parameters
        ----------
        stopping
            The ``EarlyStopping`` of the same training: its state goes on as well.
        """
        import keras

        checkpoint, before, started = self, self.progress, time.monotonic()

        class Saving(keras.callbacks.Callback):  # type: ignore[misc]
            """Writes what is needed to go on."""

            def on_train_begin(self, logs: Any = None) -> None:  # noqa: ARG002
                # Here, since the callbacks before this one forget what they knew as they begin.
                if before.epochs:
                    stopping.best, stopping.best_epoch = before.best, before.best_epoch
                    stopping.wait = before.wait
                    stopping.best_weights = checkpoint._arrays["best"] or None

            def on_epoch_end(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
                progress = Progress(
                    epochs=epoch + 1,
                    stopped=bool(self.model.stop_training),
                    seconds=before.seconds + time.monotonic() - started,
                    best=None if stopping.best is None else float(stopping.best),
                    best_epoch=stopping.best_epoch,
                    wait=stopping.wait,
                    run_id=checkpoint.run_id,
                )
                checkpoint._write(progress, self.model, stopping.best_weights or [])

        return Saving()

    def clear(self) -> None:
        """Delete the file: the training is done."""
        self.path.unlink(missing_ok=True)

    def _write(self, progress: Progress, model: Any, best: list[np.ndarray]) -> None:
        from keras import ops

        groups: dict[str, list[Any]] = {"best": best}
        for group, variables in _variables(model).items():
            groups[group] = [variable.value for variable in variables]
        arrays = {
            f"{group}_{number}": ops.convert_to_numpy(value)
            for group, values in groups.items()
            for number, value in enumerate(values)
        }
        lengths = {group: len(values) for group, values in groups.items()}
        text = json.dumps({"progress": asdict(progress), "lengths": lengths})
        try:
            with replacing(self.path) as temporary:
                np.savez(temporary, allow_pickle=False, **{_PROGRESS: np.array(text)}, **arrays)
        except OSError as error:  # a full disk costs the way back, not the training
            LOGGER.warning("epoch %d has no checkpoint: %s", progress.epochs, error)

    def _read(self) -> tuple[Progress, dict[str, list[np.ndarray]]]:
        if not self.path.exists():
            return Progress(), {}
        try:
            with np.load(self.path, allow_pickle=False) as file:
                content = json.loads(str(file[_PROGRESS]))
                arrays = {
                    group: [file[f"{group}_{n}"] for n in range(content["lengths"][group])]
                    for group in _GROUPS
                }
            return Progress(**content["progress"]), arrays
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            LOGGER.warning("%s is damaged (%s); the training begins anew", self.path, error)
            return Progress(), {}


def digest_of(identity: dict[str, Any]) -> str:
    """Give a short hash of JSON types, such as a file's name for what they identify."""
    text = json.dumps(identity, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _variables(model: Any) -> dict[str, list[Any]]:
    """Give what changes in a training: weights, states of random numbers, the optimiser's own."""
    figures = {id(variable) for variable in model.metrics_variables}
    own = [variable for variable in model.variables if id(variable) not in figures]
    return {"model": own, "optimizer": list(model.optimizer.variables)}
