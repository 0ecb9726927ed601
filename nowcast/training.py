"""Windows and a network become a saved nowcaster.

`fit` needs NumPy, Keras and a prepared cache; `train` prepares the cache with Dask, logs to MLflow
and saves.
"""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast import __version__
from nowcast.config import Config, TrainingSection
from nowcast.conventions import VARIABLES, Variable, grid_id, grid_spacing
from nowcast.frames import Batches, Block, Window, base_times, check_apart, split, store
from nowcast.networks import build, load_keras, settings_of, version_of
from nowcast.nowcasters.neural import NeuralNowcaster, NeuralSettings
from nowcast.rainrate import MARSHALL_PALMER, Transform
from nowcast.tracking import Tracking

LOGGER = logging.getLogger(__name__)

QUARTER = math.pi / 2
HEAVIEST_WEIGHT = 24.0  # of a pixel in the balanced loss; Ravuri et al. (2021), see masked_loss


@dataclass(frozen=True)
class Prepared:
    """Frames in a memory-mapped cache, and all that a training needs to know of them.

    Parameters
    ----------
    frames : (time, y, x)
        Physical units, NaN where not observed.
    times
        Of the frames.
    blocks
        ``train``, ``validation``, ``test``.
    grid_spacing, grid_units
        Of the grid.
    provenance
        Fingerprint, grid and periods.
    """

    frames: np.ndarray
    times: pd.DatetimeIndex
    blocks: dict[str, Block]
    grid_spacing: float
    grid_units: str
    provenance: dict[str, str]

    def base_times(self, window: Window, block: str) -> pd.DatetimeIndex:
        """Give the base times of the windows that lie in a block.

        Raises
        ------
        ValueError
            If there is none.
        """
        times = base_times(xr.Dataset(coords={"time": self.times}), window, self.blocks[block])
        if not len(times):
            raise ValueError(
                f"the {block} block {self.blocks[block]} holds no whole window of "
                f"{len(window.offsets)} frames; give more data, another split or a shorter window"
            )
        return times


@dataclass(frozen=True)
class Trained:
    """A trained nowcaster and where it is kept.

    Parameters
    ----------
    nowcaster
        Ready to issue.
    folder
        Where it is saved.
    run_id
        Of the MLflow run.
    uri
        ``models:/name/version``; empty if the tracking server was lost.
    """

    nowcaster: NeuralNowcaster
    folder: Path
    run_id: str
    uri: str


def train(
    config: Config, observed: xr.Dataset, *, tracking: Tracking, name: str = "", verbose: int = 1
) -> Trained:
    """Train the configured network, log everything to MLflow, save and register the nowcaster.

    Parameters
    ----------
    config
        Of the experiment.
    observed
        That keep the convention.
    tracking
        Where runs and models go.
    name
        Of the run; by default the network's.
    verbose
        0 silent, 1 progress bar, 2 a line per epoch.

    Returns
    -------
    Trained
        The nowcaster is saved locally even where the tracking server was lost.
    """
    with tracking.run(config.experiment, name or config.network.name) as run:
        prepared = prepare(config, observed, work=tracking.work)
        run.parameters({**config.model_dump(), "data": prepared.provenance})
        run.text(config.model_dump_json(indent=2), "config.json")
        nowcaster = fit(
            config,
            prepared,
            on_epoch=lambda epoch, figures: run.metrics(figures, step=epoch),
            verbose=verbose,
        )
        folder = nowcaster.save(tracking.work / "nowcasters" / run.run_id)
        for picture in _pictures(config, nowcaster, prepared, observed, run.folder):
            run.file(picture, "examples")
        version = run.model(folder, nowcaster, register_as=config.promotion.model_name)
        run.tags({"nowcaster.sha256": nowcaster.sha256, "nowcaster.folder": str(folder)})
    uri = f"models:/{config.promotion.model_name}/{version}" if version else ""
    return Trained(nowcaster, folder, run.run_id, uri)


def _pictures(
    config: Config,
    nowcaster: NeuralNowcaster,
    prepared: Prepared,
    observed: xr.Dataset,
    folder: Path,
) -> list[Path]:
    """Draw the nowcast of the wettest validation case beside what was observed."""
    from nowcast.plots import panel

    window = window_of(config)
    candidates = prepared.base_times(window, "validation")
    positions = prepared.times.get_indexer(candidates)
    wettest = candidates[int(np.argmax([np.nanmean(prepared.frames[at]) for at in positions]))]
    nowcast = nowcaster.nowcast(
        observed,
        base_times=pd.DatetimeIndex([wettest]),
        lead_times=config.window.lead_times,
    )
    return [panel(observed, nowcast.isel(base_time=[0]), path=folder / "validation.png")]


def blocks_of(config: Config, observed: xr.Dataset) -> dict[str, Block]:
    """Give the blocks of time for training, validation and test that the settings ask for."""
    section = config.split
    if section.train:
        names = ("train", "validation", "test")
        return check_apart({name: Block.parse(getattr(section, name)) for name in names})
    return split(
        observed,
        validation_fraction=section.validation_fraction,
        test_fraction=section.test_fraction,
        guard=pd.Timedelta(minutes=section.guard_minutes),
    )


def window_of(config: Config) -> Window:
    """Give the window that the settings ask for."""
    section = config.window
    return Window(section.input_frames, section.lead_frames, section.step)


def prepare(config: Config, observed: xr.Dataset, *, work: Path) -> Prepared:
    """Write the frames to a cache for training.

    Parameters
    ----------
    config
        Of the experiment.
    observed
        That keep the convention; only the configured variable.
    work
        Work directory; the cache lies in its ``cache`` folder and may be deleted.
    """
    from nowcast.data.observations import fingerprint

    blocks = blocks_of(config, observed)
    digest = fingerprint(observed)
    return Prepared(
        frames=store(observed, work / "cache" / f"{digest}.npy"),
        times=observed["time"].to_index(),
        blocks=blocks,
        grid_spacing=grid_spacing(observed),
        grid_units=str(observed["x"].attrs["units"]),
        provenance={
            "data_fingerprint": digest,
            "grid_id": grid_id(observed),
            **{f"{name}_block": str(block) for name, block in blocks.items()},
        },
    )


def fit(
    config: Config,
    prepared: Prepared,
    *,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    verbose: int = 1,
) -> NeuralNowcaster:
    """Fit the configured network and give the nowcaster of its best epoch by validation loss.

    Parameters
    ----------
    config
        Of the experiment.
    prepared
        The frames.
    on_epoch
        Called after each epoch with its number and figures.
    verbose
        0 silent, 1 progress bar, 2 a line per epoch.

    Raises
    ------
    ValueError
        If the data hold no window for a block, or the training diverges.
    """
    keras = load_keras()
    section, window = config.training, window_of(config)
    transform, variable = config.transform.transform, config.variable.variable
    keras.utils.set_random_seed(section.seed)
    batches = {
        block: _batches(config, prepared, block, seed=section.seed if block == "train" else None)
        for block in ("train", "validation")
    }
    example, _ = batches["train"][0]
    settings = NeuralSettings(
        network=config.network.name,
        network_version=version_of(config.network.name),
        network_settings=_as_json(settings_of(config.network.name, config.network.settings)),
        variable=variable,
        transform=transform,
        window=window,
        grid=(example.shape[2], example.shape[3]),
        grid_spacing=prepared.grid_spacing,
        grid_units=prepared.grid_units,
        provenance={"nowcast_version": __version__, **prepared.provenance},
    )
    network = build(
        settings.network,
        settings=settings.network_settings,
        input_frames=window.input_frames,
        lead_frames=window.lead_frames,
        grid=settings.grid,
    )
    training = _dataset(batches["train"], limit=section.steps_per_epoch)
    network.compile(
        optimizer=keras.optimizers.Adam(section.learning_rate, clipnorm=1.0),
        loss=masked_loss(section.loss, variable, transform),
        jit_compile="auto" if _has_gpu() else False,  # XLA on a CPU is far slower here
    )
    network.fit(
        training,
        validation_data=_dataset(batches["validation"]),
        epochs=section.epochs,
        callbacks=_callbacks(section, on_epoch, steps=section.epochs * len(training)),
        verbose=verbose,
    )
    weights = network.get_weights()
    if not all(np.isfinite(weight).all() for weight in weights):
        raise ValueError(
            "the training diverged: its weights are not finite, so nothing is saved; lower "
            f"training.learning_rate, which is {section.learning_rate:g}"
        )
    return NeuralNowcaster(settings, weights)


def masked_loss(kind: str, variable: Variable, transform: Transform) -> Callable[[Any, Any], Any]:
    """Give a loss to which missing pixels contribute nothing, neither value nor gradient.

    Parameters
    ----------
    kind
        ``mse``; ``mae``; or ``balanced``, a squared error in which a pixel weighs one more than
        its rain rate in mm/h, so that the rare heavy rain is not averaged away.
    variable, transform
        What the targets are: the balance is by rain rate.

    Returns
    -------
    callable
        ``loss(targets, forecasts)``, mean over observed pixels; targets NaN where missing.

    References
    ----------
    Ravuri et al. (2021), the weights of the grid cell term, doi:10.1038/s41586-021-03854-z
    """
    from keras import ops

    if kind == "balanced" and variable.name not in VARIABLES:
        raise ValueError(f"the balanced loss is for rain, not {variable.name!r}; use mse or mae")

    def loss(targets: Any, forecasts: Any) -> Any:
        seen = ops.isfinite(targets)
        targets = ops.where(seen, targets, ops.zeros_like(targets))
        observed = ops.cast(seen, forecasts.dtype)
        error = ops.abs(forecasts - targets) if kind == "mae" else ops.square(forecasts - targets)
        if kind == "balanced":
            rain_rate = _rain_rate(targets, variable, transform)
            error = error * ops.minimum(1.0 + rain_rate, HEAVIEST_WEIGHT)
        return ops.sum(observed * error) / ops.maximum(ops.sum(observed), 1.0)

    return loss


def _rain_rate(scaled: Any, variable: Variable, transform: Transform) -> Any:
    """Give rain rate in mm/h, as a tensor, for values on the network's scale."""
    from keras import ops

    if transform.name == "log":
        top = float(np.log1p((transform.top - transform.offset) / transform.reference))
        physical = transform.offset + transform.reference * ops.expm1(scaled * top)
    else:
        physical = transform.inverse(scaled)
    if variable.name == "rain_rate":
        return ops.maximum(physical, 0.0)
    a, b = MARSHALL_PALMER
    return ops.power(ops.power(10.0, physical / 10.0) / a, 1.0 / b)


def _as_json(settings: Any) -> dict[str, Any]:
    """Give a network's complete settings as JSON types, as they will be read again."""
    content: dict[str, Any] = json.loads(json.dumps(vars(settings)))
    return content


def _batches(config: Config, prepared: Prepared, block: str, *, seed: int | None) -> Batches:
    window = window_of(config)
    multiple = settings_of(config.network.name, config.network.settings).grid_multiple
    height, width = prepared.frames.shape[1:]
    crop = config.training.crop_pixels or max(height, width)
    side = min(crop, height - height % multiple, width - width % multiple)
    whole = height % multiple == 0 and width % multiple == 0 and crop >= max(height, width)
    return Batches(
        prepared.frames,
        times=prepared.times,
        base_times=prepared.base_times(window, block),
        window=window,
        transform=config.transform.transform,
        batch_size=config.training.batch_size,
        crop_pixels=0 if whole else side - side % multiple,
        seed=seed,
    )


def _dataset(batches: Batches, limit: int = 0) -> Any:
    import keras

    class BatchDataset(keras.utils.PyDataset):  # type: ignore[misc]
        """What Keras reads batches from."""

        def __len__(self) -> int:
            return min(limit or len(batches), len(batches))

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            return batches[index]

        def on_epoch_end(self) -> None:
            batches.next_epoch()

    return BatchDataset(workers=1)


def _callbacks(
    section: TrainingSection,
    on_epoch: Callable[[int, dict[str, float]], None] | None,
    *,
    steps: int,
) -> list[Any]:
    import keras

    started = time.monotonic()

    class Schedule(keras.callbacks.Callback):  # type: ignore[misc]
        """Lets the learning rate fall as a cosine to 0 at the last step or the time limit."""

        done = 0

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            part = min(1.0, max(self.done / steps, self._time_used()))
            self.model.optimizer.learning_rate = (
                section.learning_rate * math.cos(part * QUARTER) ** 2
            )

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            self.done += 1
            if self._time_used() >= 1.0:
                self.model.stop_training = True

        def _time_used(self) -> float:
            if not section.minutes:
                return 0.0
            return (time.monotonic() - started) / (60 * section.minutes)

    class Report(keras.callbacks.Callback):  # type: ignore[misc]
        """Hands each epoch's figures on."""

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if on_epoch:
                seconds = {"seconds": time.monotonic() - started}
                on_epoch(epoch, {**(logs or {}), **seconds})

    stopping = keras.callbacks.EarlyStopping(
        patience=section.patience, restore_best_weights=True, start_from_epoch=0
    )
    return [keras.callbacks.TerminateOnNaN(), stopping, Schedule(), Report()]


def _has_gpu() -> bool:
    import keras

    if keras.backend.backend() != "tensorflow":
        return True
    import tensorflow

    return bool(tensorflow.config.list_physical_devices("GPU"))
