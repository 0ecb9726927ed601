"""Windows and a network become a saved nowcaster.

`fit` needs NumPy, Keras with any backend and a prepared cache; `train` prepares the cache with
Dask, logs to MLflow and saves. Batches hold the cache's codes, which become values on the device.
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
from nowcast.cache import Cache, Coding, cached, coding_of
from nowcast.config import Config, TrainingSection
from nowcast.conventions import VARIABLES, Variable
from nowcast.frames import Batches, Block, Plan, Window, check_apart, plan, split
from nowcast.networks import build, load_keras, settings_of, version_of
from nowcast.nowcasters.neural import NeuralNowcaster, NeuralSettings
from nowcast.rainrate import MARSHALL_PALMER, Transform
from nowcast.tracking import Tracking

LOGGER = logging.getLogger(__name__)

QUARTER = math.pi / 2
HEAVIEST_WEIGHT = 24.0  # of a pixel in the balanced loss; Ravuri et al. (2021), see masked_loss


@dataclass(frozen=True, eq=False)
class Prepared:
    """An open training cache, and how an experiment divides it.

    Parameters
    ----------
    cache
        The frames as codes, and all that is known of them.
    blocks
        ``train``, ``validation``, ``test``.
    """

    cache: Cache
    blocks: dict[str, Block]

    @property
    def provenance(self) -> dict[str, str]:
        """Fingerprint, grid and periods, for the record of a training."""
        return {
            "data_fingerprint": self.cache.fingerprint,
            "grid_id": self.cache.grid_id,
            **{f"{name}_block": str(block) for name, block in self.blocks.items()},
        }


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
        sampled = plan_of(config, prepared, "train")
        sampling = {"kind": config.training.sampling, **sampled.summary()}
        about = {"data": prepared.provenance, "sampled": sampling}
        run.parameters({**config.model_dump(), **about})
        run.text(config.model_dump_json(indent=2), "config.json")
        run.text(sampled.table(), "windows.csv")
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

    cases = plan_of(config, prepared, "validation").base_times
    of_cases = prepared.cache.statistics["mean"].iloc[prepared.cache.times.get_indexer(cases)]
    wettest = cases[int(of_cases.fillna(-np.inf).to_numpy().argmax())]
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


def plan_of(config: Config, prepared: Prepared, block: str) -> Plan:
    """Give the windows of a block that the settings ask for; all alike in the validation.

    Raises
    ------
    ValueError
        If there is none, or the sampling does not fit the variable.
    """
    sampling = config.training.sampling if block == "train" else "uniform"
    if sampling != "uniform" and config.variable.name not in VARIABLES:
        raise ValueError(
            f"training.sampling={sampling!r} is for rain, not {config.variable.name!r}; use uniform"
        )
    try:
        return plan(prepared.cache, window_of(config), prepared.blocks[block], sampling=sampling)
    except ValueError as error:
        raise ValueError(f"{block}: {error}") from error


def prepare(config: Config, observed: xr.Dataset, *, work: Path) -> Prepared:
    """Give the training cache of observations, made now or before.

    Where the settings name periods, no frame outside of them is read.

    Parameters
    ----------
    config
        Of the experiment.
    observed
        That keep the convention; only the configured variable is read.
    work
        Work directory; the cache lies in its ``cache`` folder and may be deleted.
    """
    variable = config.variable.variable
    if config.split.train:
        observed = _within(observed, list(blocks_of(config, observed).values()))
    cache = cached(
        observed,
        work=work,
        variable=variable,
        coding=coding_of(variable, config.data.step),
        step=config.window.step,
    )
    return prepared_of(config, cache)


def prepared_of(config: Config, cache: Cache) -> Prepared:
    """Divide an open cache as the settings ask, such as one that another machine made.

    Parameters
    ----------
    config
        Of the experiment for which the cache was made.
    cache
        See `nowcast.cache.open_cache`.

    Raises
    ------
    ValueError
        If the cache holds another variable or another coding of it.
    """
    coding = coding_of(config.variable.variable, config.data.step)
    if (cache.variable, cache.coding) != (config.variable.name, coding):
        raise ValueError(
            f"{cache.folder} holds {cache.variable} as {cache.coding}; the settings ask for "
            f"{config.variable.name} as {coding}; prepare the data again"
        )
    times = xr.Dataset(coords={"time": cache.times.sort_values()})
    return Prepared(cache, blocks_of(config, times))


def _within(observed: xr.Dataset, blocks: list[Block]) -> xr.Dataset:
    times = observed["time"].to_index()
    inside = [(times >= block.start) & (times <= block.end) for block in blocks]
    return observed.isel(time=np.flatnonzero(np.any(inside, axis=0)))


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
    training = _batches(config, prepared, "train", seed=section.seed)
    validation = _batches(config, prepared, "validation", seed=None)
    settings = NeuralSettings(
        network=config.network.name,
        network_version=version_of(config.network.name),
        network_settings=_as_json(settings_of(config.network.name, config.network.settings)),
        variable=variable,
        transform=transform,
        window=window,
        grid=training.grid,
        grid_spacing=prepared.cache.grid_spacing,
        grid_units=prepared.cache.grid_units,
        provenance={"nowcast_version": __version__, **prepared.provenance},
    )
    network = build(
        settings.network,
        settings=settings.network_settings,
        input_frames=window.input_frames,
        lead_frames=window.lead_frames,
        grid=settings.grid,
    )
    loss = masked_loss(section.loss, variable, transform)
    model = on_codes(network, loss, coding=prepared.cache.coding, transform=transform)
    model.compile(
        optimizer=keras.optimizers.Adam(section.learning_rate, clipnorm=1.0),
        steps_per_execution=section.steps_per_execution,
        jit_compile="auto" if _has_gpu() else False,  # XLA on a CPU is far slower here
    )
    steps = min(section.steps_per_epoch or len(training), len(training))
    model.fit(
        feed(training, workers=section.workers, limit=steps),
        validation_data=feed(validation, workers=section.workers),
        epochs=section.epochs,
        callbacks=_callbacks(section, on_epoch, steps=section.epochs * steps),
        shuffle=False,  # the batches are; Keras would draw their order once more by a global seed
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
    multiple = settings_of(config.network.name, config.network.settings).grid_multiple
    height, width = prepared.cache.codes.shape[1:]
    crop = config.training.crop_pixels or max(height, width)
    side = min(crop, height - height % multiple, width - width % multiple)
    whole = height % multiple == 0 and width % multiple == 0 and crop >= max(height, width)
    return Batches(
        prepared.cache,
        plan_of(config, prepared, block),
        window=window_of(config),
        batch_size=config.training.batch_size,
        crop_pixels=0 if whole else side - side % multiple,
        augment=config.training.augment and seed is not None,
        seed=seed,
    )


def on_codes(
    network: Any, loss: Callable[[Any, Any], Any], *, coding: Coding, transform: Transform
) -> Any:
    """Give a model that is fitted on codes: they become values on the device.

    Codes are a quarter of the bytes to move there. The model shares the network's weights and has
    none of its own, so that the network fitted inside it is saved alone.

    Parameters
    ----------
    network
        From values and where they were observed; see `nowcast.networks`.
    loss
        Of targets on the network's scale, NaN where missing, and forecasts; see `masked_loss`.
    coding, transform
        Of the codes; the scale the network sees.

    Returns
    -------
    keras.Model
        ``(batch, frame, y, x)`` of codes to what the network gives. Compile it without a loss.
    """
    import keras
    from keras import ops

    scaled = _scaled(coding, transform)
    zeroed = np.nan_to_num(scaled, nan=0.0)

    class Decoding(keras.layers.Layer):  # type: ignore[misc]
        """Channel 0 the value on the network's scale, 0 where missing; channel 1 observed."""

        def call(self, codes: Any) -> Any:
            values = ops.take(zeroed, ops.cast(codes, "int32"), axis=0)
            return ops.stack([values, ops.cast(codes > 0, values.dtype)], axis=-1)

    class OnCodes(keras.Model):  # type: ignore[misc]
        """Takes targets as they come: a loss given to `compile` gets them as 32-bit floats."""

        def compute_loss(self, _: Any, y: Any, y_pred: Any, __: Any = None) -> Any:
            return loss(ops.take(scaled, ops.cast(y, "int32"), axis=0), y_pred)

    _, *shape, _ = network.input_shape
    codes = keras.Input(shape, dtype=coding.dtype, name="codes")
    return OnCodes(codes, network(Decoding(name="decoding")(codes)))


def _scaled(coding: Coding, transform: Transform) -> np.ndarray:
    """Give the value of each code on the network's scale, NaN for missing."""
    scaled: np.ndarray = transform.forward(coding.table).astype(np.float32)
    return scaled


def feed(batches: Batches, *, workers: int = 1, limit: int = 0) -> Any:
    """Give what Keras reads batches from, with any backend.

    Parameters
    ----------
    batches
        Drawn anew after each epoch.
    workers
        Threads that read them; the batches and their order do not depend on it.
    limit
        Batches in an epoch; 0 for all.
    """
    import keras

    class Feed(keras.utils.PyDataset):  # type: ignore[misc]
        """Batches by their number."""

        def __len__(self) -> int:
            return min(limit or len(batches), len(batches))

        def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
            return batches[index]

        def on_epoch_end(self) -> None:
            batches.next_epoch()

    # Each batch that waits is memory that is not in the processor's cache when it is written.
    return Feed(workers=workers, max_queue_size=workers)


def feed_tf_data(batches: Batches, *, workers: int = 1, limit: int = 0) -> Any:
    """Give the same batches in the same order as a `tf.data.Dataset`; needs TensorFlow.

    For pipelines of one's own: `fit` reads by `feed`, the faster of the two where ``python -m
    benchmarks.data feed`` was run. Batches are drawn anew at the start of each iteration, so only
    one may be under way.

    Parameters
    ----------
    batches, workers, limit
        See `feed`.
    """
    import tensorflow as tf

    count = min(limit or len(batches), len(batches))
    likes = batches[0]

    def numbers() -> range:
        # Not at the end: an iteration's last numbers are handed out before they are read. Keras
        # ends an epoch of `feed` before the first one too, so that both draw the same.
        batches.next_epoch()
        return range(count)

    def read(number: Any) -> tuple[Any, ...]:
        arrays = tf.numpy_function(batches.__getitem__, [number], [like.dtype for like in likes])
        return tuple(
            tf.ensure_shape(array, (None, *like.shape[1:]))  # the last batch may be smaller
            for array, like in zip(arrays, likes, strict=True)
        )

    numbered = tf.data.Dataset.from_generator(numbers, output_signature=tf.TensorSpec((), tf.int64))
    read_ahead = numbered.map(read, num_parallel_calls=workers, deterministic=True).prefetch(1)
    return read_ahead.apply(tf.data.experimental.assert_cardinality(count))


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

        done = before = 0  # steps; before this epoch

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            self.before = self.done

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            part = min(1.0, max(self.done / steps, self._time_used()))
            self.model.optimizer.learning_rate = (
                section.learning_rate * math.cos(part * QUARTER) ** 2
            )

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            # Keras counts what an execution could have held, beyond the end of an epoch.
            self.done = self.before + min(batch + 1, self.params["steps"])
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
