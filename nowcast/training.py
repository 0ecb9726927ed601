"""Windows and a network become a saved nowcaster.

`fit` needs NumPy, Keras with any backend and a prepared cache; `train` prepares the cache with
Dask, logs to MLflow and saves. Batches hold the cache's codes, which become values on the device.
"""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast import __version__
from nowcast.cache import Cache, cached, coding_of
from nowcast.checkpoints import Checkpoint, Progress
from nowcast.config import Config, TrainingSection
from nowcast.conventions import VARIABLES
from nowcast.data.labels import classes_of
from nowcast.data.series import LEAST_OBSERVED, names_of, pixels_of
from nowcast.devices import computing_in, drawing_from, feed, has_gpu, on_codes, spread_over
from nowcast.frames import Batches, Block, Plan, Window, check_apart, deal, plan, split
from nowcast.networks import (
    build,
    check_head,
    for_leads,
    grid_multiples,
    initialise,
    keep_lead_times,
    load_keras,
    sees_motion,
    settings_of,
    version_of,
)
from nowcast.networks.heads import SEQUENCE_HEADS, Head
from nowcast.networks.losses import Loss, loss_of
from nowcast.nowcasters.motions import motions_of
from nowcast.nowcasters.neural import NeuralNowcaster
from nowcast.nowcasters.saved import NeuralSettings
from nowcast.plots import learning_curve
from nowcast.predictors import FREQUENCIES, SequencePredictor
from nowcast.tracking import Tracking, read_metrics

LOGGER = logging.getLogger(__name__)

QUARTER = math.pi / 2
RMSPROP_DECAY = 0.9  # of the mean of squared gradients; Shi et al. (2015), arXiv:1506.04214
# Added to that mean. Losses are means over pixels here, sums over a sequence in the literature: a
# sequence of 10 frames of 64 x 64 makes squared gradients 1.7e9 times smaller than Keras's 1e-7 is
# meant for, which would turn RMSProp into plain gradient descent.
RMSPROP_EPSILON = 1e-16


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
        Ready to issue; a predictor where the head is ``series`` or ``classes``.
    folder
        Where it is saved.
    run_id
        Of the MLflow run.
    uri
        ``models:/name/version``; empty if the tracking server was lost.
    """

    nowcaster: NeuralNowcaster | SequencePredictor
    folder: Path
    run_id: str
    uri: str


def train(
    config: Config,
    observed: xr.Dataset,
    *,
    tracking: Tracking,
    name: str = "",
    start: NeuralNowcaster | None = None,
    verbose: int = 1,
) -> Trained:
    """Train the configured network, log everything to MLflow, save and register the nowcaster.

    A training that was killed goes on from its last whole epoch, in the same run, when the same is
    asked for again: same settings, data, versions and work directory.

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
    start
        Whose weights the network starts from; its calibration is not taken over. It must be of the
        same network, window, head and scale.
    verbose
        0 silent, 1 progress bar, 2 a line per epoch.

    Returns
    -------
    Trained
        The nowcaster is saved locally even where the tracking server was lost.
    """
    check_trainable(config, observed, start=start)
    tracking.connect()  # a server that does not answer is refused before anything is computed
    prepared = prepare(config, observed, work=tracking.work)
    checkpoint = checkpoint_of(config, prepared, work=tracking.work, start=start)
    name = name or config.network.name
    with tracking.run(config.experiment, name, going_on=checkpoint.run_id) as run:
        checkpoint.run_id = run.run_id
        sampled = plan_of(config, prepared, "train")
        sampling = {"kind": config.training.sampling, **sampled.summary()}
        about: dict[str, Any] = {"data": prepared.provenance, "sampled": sampling}
        if start:
            about["start"] = {"sha256": start.sha256}
        run.parameters({**config.model_dump(), **about})
        run.text(config.model_dump_json(indent=2), "config.json")
        run.text(sampled.table(), "windows.csv")
        nowcaster = fit(
            config,
            prepared,
            start=start,
            on_epoch=lambda epoch, figures: run.metrics(figures, step=epoch),
            checkpoint=checkpoint,
            verbose=verbose,
        )
        folder = nowcaster.save(tracking.work / "nowcasters" / run.run_id)
        if isinstance(nowcaster, NeuralNowcaster):
            for picture in _pictures(config, nowcaster, prepared, observed, run.folder):
                run.file(picture, "examples")
        if run.metrics_file.exists():
            history = read_metrics(run.metrics_file)
            run.file(learning_curve(history, path=run.folder / "learning_curve.png"))
        version = run.model(folder, nowcaster, register_as=config.promotion.model_name)
        run.tags({"nowcaster.sha256": nowcaster.sha256, "nowcaster.folder": str(folder)})
    checkpoint.clear()
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


def check_trainable(
    config: Config, observed: xr.Dataset, *, start: NeuralNowcaster | None = None
) -> None:
    """Refuse what cannot be trained as far as settings, grid and devices tell; no frame is read.

    The network is built for it once and let go, which takes about a second.

    Parameters
    ----------
    config
        Of the experiment.
    observed
        That keep the convention.
    start
        See `train`.

    Raises
    ------
    ValueError
        If settings do not fit one another, the grid or the devices, or there are no more lead
        times than those to be kept.
    """
    classes, grid = classes_of(observed), (observed.sizes["y"], observed.sizes["x"])
    section = config.training
    config.check_scale()
    _check_more_lead_times(config, start)
    settings_of(config.network.name, config.network.settings)
    check_head(config.network.name, head_of(config, classes))
    _loss(config, classes)
    crop = _crop_pixels(config, grid)
    trained_on = (min(crop or grid[0], grid[0]), min(crop or grid[1], grid[1]))
    with (
        spread_over(section.devices, batch_size=section.batch_size),
        computing_in(section.precision),
    ):
        _built(_settings(config, classes, trained_on))


def blocks_of(config: Config, observed: xr.Dataset) -> dict[str, Block]:
    """Give the blocks of time for training, validation and test that the settings ask for."""
    section = config.split
    if section.train:
        names = ("train", "validation", "test")
        return check_apart({name: Block.parse(getattr(section, name)) for name in names})
    shares: dict[str, Any] = {
        "validation_fraction": section.validation_fraction,
        "test_fraction": section.test_fraction,
        "guard": pd.Timedelta(minutes=section.guard_minutes),
    }
    if section.stretch_hours:
        return deal(observed, length=pd.Timedelta(hours=section.stretch_hours), **shares)
    return split(observed, **shares)


def window_of(config: Config) -> Window:
    """Give the window that the settings ask for."""
    section = config.window
    return Window(section.input_frames, section.lead_frames, section.step)


def head_of(config: Config, classes: tuple[str, ...]) -> Head:
    """Give what the settings want the network's outputs to mean.

    Parameters
    ----------
    config
        Of the experiment.
    classes
        That the observations are labelled with; may be none.

    Raises
    ------
    ValueError
        If classes are wanted and the observations have none, or the levels do not fit.
    """
    section = config.network
    if section.head == "classes" and not classes:
        raise ValueError(
            "network.head='classes' learns from labels, and the observations have none; give "
            "observations with the coordinate 'label(time)' and its flag_values and flag_meanings, "
            "or another head"
        )
    labels = {"series": names_of(section.points), "classes": classes}.get(section.head, ())
    return Head(section.head, section.levels, labels)


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
        planned = plan(
            prepared.cache,
            window_of(config),
            prepared.blocks[block],
            sampling=sampling,
            least_leads=config.training.least_lead_frames,
        )
    except ValueError as error:
        raise ValueError(f"{block}: {error}") from error
    most = config.training.validation_windows if block == "validation" else 0
    return planned.thinned(most) if most else planned


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
    inside = [block.holds(times, times) for block in blocks]
    return observed.isel(time=np.flatnonzero(np.any(inside, axis=0)))


def fit(
    config: Config,
    prepared: Prepared,
    *,
    start: NeuralNowcaster | None = None,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
    checkpoint: Checkpoint | None = None,
    verbose: int = 1,
) -> NeuralNowcaster | SequencePredictor:
    """Fit the configured network and give the nowcaster of its best epoch by validation loss.

    With a head ``series`` or ``classes`` it is a predictor.

    Parameters
    ----------
    config
        Of the experiment.
    prepared
        The frames.
    start
        See `train`.
    on_epoch
        Called after each epoch with its number and figures.
    checkpoint
        Where the training goes on if it was killed, and what it writes after each epoch; clear it
        once the nowcaster is saved. See `checkpoint_of`.
    verbose
        0 silent, 1 progress bar, 2 a line per epoch.

    Raises
    ------
    ValueError
        If the loss does not fit the head, the data hold no window for a block, `start` is of
        another network, lead times are to be kept and there are no more, or the training diverges.
    """
    config.check_scale()
    _check_more_lead_times(config, start)
    with spread_over(config.training.devices, batch_size=config.training.batch_size):
        return _fit(config, prepared, start, on_epoch, checkpoint, verbose)


def _fit(
    config: Config,
    prepared: Prepared,
    start: NeuralNowcaster | None,
    on_epoch: Callable[[int, dict[str, float]], None] | None,
    checkpoint: Checkpoint | None,
    verbose: int,
) -> NeuralNowcaster | SequencePredictor:
    section, window = config.training, window_of(config)
    loss = _loss(config, prepared.cache.classes)
    training = _batches(config, prepared, "train", seed=section.seed)
    validation = _batches(config, prepared, "validation", seed=None)
    settings = replace(
        _settings(config, prepared.cache.classes, training.grid),
        grid_spacing=prepared.cache.grid_spacing,
        grid_units=prepared.cache.grid_units,
        provenance=_provenance(config, prepared, training, start),
    )
    _check_channels(settings.channels, prepared.cache)
    with computing_in(section.precision), drawing_from(section.seed):
        network = _built(settings)
        # It is of the same precision, by which Keras knows that gradients of 16 bits need scaling.
        model = on_codes(
            network,
            loss,
            coding=prepared.cache.coding,
            transform=settings.transform,
            grid=settings.grid,
        )
    if start is None:
        initialise(settings.network, network, settings.network_settings)
    else:
        begun = for_leads(
            settings.network,
            settings.network_settings,
            _weights_for(settings, start),
            known=start.settings.window.lead_frames,
            wanted=window.lead_frames,
        )
        network.set_weights(begun)
        if section.keep_lead_times:
            keep_lead_times(settings.network, network, known=start.settings.window.lead_frames)
    model.compile(
        optimizer=_optimizer(section),
        steps_per_execution=section.steps_per_execution,
        jit_compile="auto" if has_gpu() else False,  # XLA on a CPU is far slower here
    )
    model.optimizer.build(model.trainable_variables)  # else Keras traces each step twice
    steps = min(section.steps_per_epoch or len(training), len(training))
    progress = checkpoint.progress if checkpoint else Progress()
    if checkpoint:
        checkpoint.restore(model)
    for _ in range(progress.epochs):
        training.next_epoch()
    model.fit(
        feed(training, workers=section.workers, limit=steps),
        validation_data=feed(
            validation, workers=section.workers, limit=_whole(validation, section)
        ),
        epochs=section.epochs,
        initial_epoch=section.epochs if progress.stopped else progress.epochs,
        callbacks=_callbacks(section, on_epoch, steps_in_epoch=steps, checkpoint=checkpoint),
        shuffle=False,  # the batches are; Keras would draw their order once more by a global seed
        verbose=verbose,
    )
    weights = network.get_weights()
    if not all(np.isfinite(weight).all() for weight in weights):
        if checkpoint:
            checkpoint.clear()
        raise ValueError(
            "the training diverged: its weights are not finite, so nothing is saved; lower "
            f"training.learning_rate, which is {section.learning_rate:g}"
        )
    kind = SequencePredictor if settings.head.kind in SEQUENCE_HEADS else NeuralNowcaster
    return kind(settings, weights)


def _settings(config: Config, classes: tuple[str, ...], grid: tuple[int, int]) -> NeuralSettings:
    """Give what the settings say of the network: all but the data's spacing and provenance."""
    name, section = config.network.name, config.network
    return NeuralSettings(
        network=name,
        network_version=version_of(name),
        network_settings=_as_json(settings_of(name, section.settings)),
        head=head_of(config, classes),
        variable=config.variable.variable,
        transform=config.transform.transform,
        window=window_of(config),
        grid=grid,
        grid_spacing=math.nan,
        grid_units="",
        channels=section.channels,
        views=section.views,
        points=section.points,
    )


def _built(settings: NeuralSettings) -> Any:
    """Build the network for the grid that is trained on, padded to what it takes."""
    return build(
        settings.network,
        settings=settings.network_settings,
        input_frames=settings.window.input_frames,
        lead_frames=settings.window.lead_frames,
        grid=settings.padded(settings.grid),
        head=settings.head,
        channels=settings.channels,
        transform=settings.transform,
    )


def _weights_for(settings: NeuralSettings, start: NeuralNowcaster) -> list[np.ndarray]:
    """Give the weights of a nowcaster, if they mean the same in these settings.

    They may be for another number of lead frames.
    """
    leads = settings.window.lead_frames
    given = replace(start.settings, window=replace(start.settings.window, lead_frames=leads))
    names = (
        "network",
        "network_version",
        "network_settings",
        "head",
        "variable",
        "transform",
        "window",
        "channels",
    )
    for name in names:
        wanted, found = (_complete(name, one) for one in (settings, given))
        if wanted != found:
            raise ValueError(
                f"a training goes on from weights of the same {name}; the settings have {wanted}, "
                f"the nowcaster {found}; take its settings, or train anew"
            )
    if not settings.takes_any_grid and settings.grid != start.settings.grid:
        raise ValueError(
            f"network {settings.network!r} takes grids of {start.settings.grid} alone, on which it "
            f"was trained; the observations have {settings.grid}; train anew"
        )
    return start.weights


def _check_more_lead_times(config: Config, start: NeuralNowcaster | None) -> None:
    if not config.training.keep_lead_times:
        return
    known = start.settings.window.lead_frames if start else 0
    wanted = config.window.lead_frames
    if not known or wanted <= known:
        begun = f"a nowcaster of {known} lead frames" if known else "nothing"
        raise ValueError(
            f"training.keep_lead_times learns lead times beyond those of a nowcaster; received "
            f"{begun} to go on from, and window.lead_frames={wanted}; give one (--from) and more "
            "lead frames than it has, or set training.keep_lead_times=false"
        )


def _complete(name: str, settings: NeuralSettings) -> Any:
    """Give a field of settings; of those of a network, with its defaults for what is not said."""
    if name == "network_settings":
        return settings_of(settings.network, settings.network_settings)
    return getattr(settings, name)


def checkpoint_of(
    config: Config, prepared: Prepared, *, work: Path, start: NeuralNowcaster | None = None
) -> Checkpoint:
    """Give the checkpoint of this training and no other: of its settings, data and versions.

    Parameters
    ----------
    config
        Of the experiment.
    prepared
        The frames.
    work
        Work directory; checkpoints lie in its ``checkpoints`` folder.
    start
        See `train`.
    """
    keras = load_keras()
    identity = {
        "config": config.model_dump(mode="json", exclude={"verification"}),
        "frames": prepared.cache.sha256,
        "data": prepared.provenance,
        "network_version": version_of(config.network.name),
        "versions": [__version__, keras.__version__, keras.backend.backend()],
        **({"start": start.sha256} if start else {}),
    }
    return Checkpoint(work / "checkpoints", identity)


def _check_channels(channels: int, cache: Cache) -> None:
    holed = int((cache.statistics["observed"] < 1.0).sum())
    if channels == 1 and holed:
        raise ValueError(
            f"with network.channels=1 a network sees values alone, and {holed} frames have missing "
            "pixels, which it would take for the lowest value; set network.channels=2"
        )


def _whole(batches: Batches, section: TrainingSection) -> int:
    """Give how many batches there are; with several devices, how many that can be shared out."""
    if section.devices == 1 or len(batches) == 1:
        return len(batches)
    return len(batches) - 1


def _optimizer(section: TrainingSection) -> Any:
    import keras

    if section.optimizer == "rmsprop":
        return keras.optimizers.RMSprop(
            section.learning_rate, rho=RMSPROP_DECAY, epsilon=RMSPROP_EPSILON
        )
    return keras.optimizers.Adam(section.learning_rate, clipnorm=1.0)


def _loss(config: Config, classes: tuple[str, ...]) -> Loss:
    return loss_of(
        config.training.loss,
        head=head_of(config, classes),
        variable=config.variable.variable,
        transform=config.transform.transform,
    )


def _as_json(settings: Any) -> dict[str, Any]:
    """Give a network's complete settings as JSON types, as they will be read again."""
    content: dict[str, Any] = json.loads(json.dumps(vars(settings)))
    return content


def _provenance(
    config: Config, prepared: Prepared, training: Batches, start: NeuralNowcaster | None
) -> dict[str, str]:
    told = {"nowcast_version": __version__, **prepared.provenance}
    if start:
        told["started_from_sha256"] = start.sha256
    if config.network.head != "classes":
        return told
    labels = pd.Series(training.targets).dropna()
    shares = {name: float((labels == at).mean()) for at, name in enumerate(prepared.cache.classes)}
    return {**told, FREQUENCIES: json.dumps(shares)}


def _batches(config: Config, prepared: Prepared, block: str, *, seed: int | None) -> Batches:
    planned = plan_of(config, prepared, block)
    return Batches(
        prepared.cache,
        planned,
        window=window_of(config),
        batch_size=config.training.batch_size,
        crop_pixels=_crop_pixels(config, _grid_of(prepared.cache)),
        augment=config.training.augment and seed is not None,
        seed=seed,
        targets=_targets(config, prepared.cache, planned),
        motions=_motions(config, prepared.cache),
        least=config.training.steps_per_epoch * config.training.batch_size,
    )


def _motions(config: Config, cache: Cache) -> np.ndarray | None:
    """Give the motion of every frame, found now or before, where the network sees it."""
    if not sees_motion(settings_of(config.network.name, config.network.settings)):
        return None
    return motions_of(cache, config.variable.variable, input_frames=config.window.input_frames)


def _crop_pixels(config: Config, grid: tuple[int, int]) -> int:
    """Give the side of the squares that are trained on; 0 for the whole grid."""
    if config.network.head in SEQUENCE_HEADS:
        return 0  # what is predicted is of the whole grid, which is padded to fit the network
    multiples = grid_multiples(settings_of(config.network.name, config.network.settings), grid)
    crop, multiple = config.training.crop_pixels, max(multiples)
    fitting = [side - side % by for side, by in zip(grid, multiples, strict=True) if side > 1]
    largest = min(fitting, default=0)  # of a grid of one pixel there is nothing to cut
    needs = f"network {config.network.name!r} needs sides in multiples of {multiple} pixels"
    if crop % multiple:
        raise ValueError(
            f"{needs}; training.crop_pixels is {crop}; set it to {-(-crop // multiple) * multiple}"
        )
    if crop < max(grid) and crop:
        return min(crop, largest)
    if np.mod(grid, multiples).any():
        raise ValueError(
            f"{needs}, by its patches and strides; the grid has {grid[0]} x {grid[1]}; set "
            + (f"training.crop_pixels={largest}, or " if largest else "")
            + "network.settings that divide the grid"
        )
    return 0


def _grid_of(cache: Cache) -> tuple[int, int]:
    height, width = cache.codes.shape[1:]
    return height, width


def _targets(config: Config, cache: Cache, planned: Plan) -> np.ndarray | None:
    """Give what is predicted from each window instead of frames; None where frames are.

    Of a series, its values at the lead times on the network's scale; of classes, the number of the
    base time's. NaN where not observed, or without a label.
    """
    window = window_of(config)
    if config.network.head == "series":
        values = config.transform.transform.forward(_series(cache, config.network.points))
        leads = window.input_frames + np.arange(window.lead_frames)
        return np.asarray(values[planned.first[:, None] + leads], np.float32)
    if config.network.head == "classes":
        labels = cache.statistics["label"].to_numpy(np.float32)
        of_windows = labels[planned.first + window.input_frames - 1]
        if np.isnan(of_windows).all():
            raise ValueError(
                f"none of the base times from {planned.base_times[0]} to {planned.base_times[-1]} "
                "has a label; label some of them, or choose another split"
            )
        return np.asarray(of_windows)
    return None


def _series(cache: Cache, points: tuple[tuple[float, float], ...]) -> np.ndarray:
    """Give the areal mean of every frame, or its values at points, in physical units.

    As `nowcast.data.series.series_of` defines it; the cache knows the means already.
    """
    if not points:
        enough = cache.statistics["observed"] >= LEAST_OBSERVED
        return np.asarray(cache.statistics["mean"].where(enough))[:, None]
    rows, columns = pixels_of(points, y=cache.y, x=cache.x)
    return cache.coding.decode(cache.codes[:, rows, columns])


def _callbacks(
    section: TrainingSection,
    on_epoch: Callable[[int, dict[str, float]], None] | None,
    *,
    steps_in_epoch: int,
    checkpoint: Checkpoint | None,
) -> list[Any]:
    import keras

    progress = checkpoint.progress if checkpoint else Progress()
    started = time.monotonic() - progress.seconds
    steps = section.epochs * steps_in_epoch

    class Schedule(keras.callbacks.Callback):  # type: ignore[misc]
        """Lets the learning rate fall to 0 at the last step or the time limit, which it keeps."""

        done = before = progress.epochs * steps_in_epoch  # steps; before this epoch

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002
            self.before = self.done

        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:  # noqa: ARG002
            if section.schedule == "constant":
                return
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
    callbacks = [keras.callbacks.TerminateOnNaN(), stopping, Schedule(), Report()]
    return [*callbacks, checkpoint.callback(stopping)] if checkpoint else callbacks
