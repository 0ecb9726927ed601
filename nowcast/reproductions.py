"""Experiments of the literature, made again by their protocol and put beside what was published.

Moving MNIST: ten frames in, ten frames out, cross-entropy summed over a sequence, as by Shi et al.
(2015), arXiv:1506.04214. The CNN LSTM of the tutorials: to which side does a line cross small
frames, as by Brownlee (2017), Long Short-Term Memory Networks with Python, chapter 8. Training,
saving and logging are those of any other experiment.
"""

import hashlib
import json
import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast import __version__
from nowcast.checkpoints import digest_of
from nowcast.config import Config, ConfigError, validate
from nowcast.data.moving_line import BRIGHTNESS, moving_lines
from nowcast.data.moving_mnist import (
    FRAMES,
    INTENSITY,
    LEVELS,
    SIZE,
    STEP,
    block_of,
    moving_mnist,
)
from nowcast.durable import write_json
from nowcast.frames import Block
from nowcast.networks.losses import cross_entropy_per_sequence
from nowcast.nowcasters.neural import NeuralNowcaster
from nowcast.nowcasters.saved import network_inputs, network_with
from nowcast.predictors import SequencePredictor
from nowcast.tracking import METRICS, Tracking, read_metrics
from nowcast.training import train
from nowcast.verification.sequences import CLIMATOLOGY, labelled_times, verify_classes

LOGGER = logging.getLogger(__name__)

PUBLISHED_SEQUENCES = 10_000  # to train on
PUBLISHED_FRAMES = (10, 10)
BATCH = 16  # sequences
# A forecast of 0 that comes to 1 costs infinitely much; persistence forecasts little else.
CERTAIN = 1e-6

# (k x k) is the input-to-state kernel of every layer, then state-to-state kernel and channels.
PUBLISHED = {  # parameters, test cross-entropy per sequence; Shi et al. (2015), table 1
    "ConvLSTM (5x5)-5x5-256": (13_524_496, 3887.94),
    "ConvLSTM (5x5)-5x5-128-5x5-128": (10_042_896, 3733.56),
    "ConvLSTM (5x5)-5x5-128-5x5-64-5x5-64": (7_585_296, 3670.85),
    "ConvLSTM (9x9)-1x1-128-1x1-128": (11_550_224, 4782.84),
    "ConvLSTM (9x9)-1x1-128-1x1-64-1x1-64": (8_830_480, 4231.50),
    "FC-LSTM-2048-2048": (142_667_776, 4832.49),
}
NETWORKS: dict[str, dict[str, Any]] = {  # as in the paper; of any other, its defaults
    "convlstm": {
        "patch": 4,
        "filters": [128, 64, 64],
        "kernel": 5,
        "peepholes": True,
        "multi_scale": False,
    },
    "fc_lstm": {"units": [2048, 2048]},
}


LINES = {"train": 1000, "validation": 200, "test": 500}  # sequences of the tutorial
LINE_FRAMES = 10  # of a sequence; the last one, which a window keeps for its lead, is not seen


@dataclass(frozen=True)
class Scores:
    """What is told of forecasts of Moving MNIST.

    Parameters
    ----------
    cross_entropy
        In nats, summed over frames and pixels of a sequence, mean over sequences.
    mse
        Squared error summed over the pixels of a frame, mean over frames and sequences.
    ssim
        Structural similarity, mean over frames, by scikit-image: a uniform window of 7 x 7 pixels,
        data range 1.
    """

    cross_entropy: float
    mse: float
    ssim: float


@dataclass(frozen=True)
class MovingMnist:
    """A reproduction of the Moving MNIST experiment.

    Parameters
    ----------
    network
        Its name and settings.
    frames
        Of input, and forecast.
    sequences
        How many there were to train, to validate and to test on.
    epochs, best_epoch
        That were run, and the one whose weights were kept; from 1.
    seconds
        Of training.
    parameters
        Of the network.
    scores
        Of the network and of persistence, on the test sequences.
    run_id, folder
        Of the MLflow run; where the nowcaster is saved.
    """

    network: str
    frames: tuple[int, int]
    sequences: dict[str, int]
    epochs: int
    best_epoch: int
    seconds: float
    parameters: int
    scores: dict[str, Scores]
    run_id: str
    folder: str


def protocol(network: str = "convlstm") -> Config:
    """Give the settings of the paper's experiment for a network.

    Examples
    --------
    >>> protocol().training.optimizer
    'rmsprop'
    """
    variable = {**vars(INTENSITY)}
    content = {
        "experiment": "moving-mnist",
        "variable": variable,
        "transform": {"name": "linear", "offset": 0.0, "top": 1.0},
        "data": {"observations": "moving_mnist", "step": 1 / LEVELS},
        "window": {"input_frames": 10, "lead_frames": 10, "step_minutes": 1},
        "network": {
            "name": network,
            "settings": NETWORKS.get(network, {}),
            "channels": 1,
            "head": "fraction",
        },
        "training": {
            "epochs": 100,
            "batch_size": BATCH,
            "optimizer": "rmsprop",
            "learning_rate": 1e-3,
            "schedule": "constant",
            "loss": "cross_entropy",
            "patience": 10,
        },
        "verification": {"baselines": ["persistence"], "thresholds": [], "every_minutes": 1},
        "promotion": {"model_name": "moving-mnist", "score": "rmse", "first_lead_minutes": 1},
    }
    return validate(content, source="moving-mnist")


def reproduce_moving_mnist(
    config: Config, digits: np.ndarray, *, sequences: int, tracking: Tracking, verbose: int = 1
) -> MovingMnist:
    """Train by the settings, score sequences that were never seen, and log it all.

    What was killed goes on when the same is asked for again: the training from its last whole
    epoch, and after it the scoring alone.

    Parameters
    ----------
    config
        See `protocol`.
    digits : (digit, y, x)
        From 0 to 255; the paper took 500. See `nowcast.data.moving_mnist.read_digits`.
    sequences
        To train on; a fifth as many to validate and three tenths to test on, as in the paper.
    tracking
        Where the run goes.
    verbose
        0 silent, 1 progress bar, 2 a line per epoch.

    Raises
    ------
    ValueError
        If the settings are not of this experiment.
    """
    _check(config)
    counts = counts_of(sequences)
    observed = moving_mnist(digits, sequences=sum(counts.values()))
    config = config.replace([f"split.{name}={block}" for name, block in blocks_of(counts).items()])
    nowcaster, run_id, folder = _trained(config, digits, observed, tracking, verbose)
    with tracking.run(config.experiment, config.network.name, going_on=run_id) as run:
        history = read_metrics(_metrics(tracking, run_id)).dropna(subset="val_loss")
        tested = _sequences(observed, first=sequences + counts["validation"])
        scores = score(nowcaster, tested)
        last = int(history.index[-1])
        run.metrics({f"test_{name}": value for name, value in asdict(scores["network"]).items()},
                    step=last)  # fmt: skip
        run.file(_example(nowcaster, observed, counts, run.folder), "examples")
        made = MovingMnist(
            network=f"{config.network.name} {json.dumps(config.network.settings)}",
            frames=(config.window.input_frames, config.window.lead_frames),
            sequences=counts,
            epochs=len(history),
            best_epoch=int(history["val_loss"].idxmin()) + 1,
            seconds=float(history["seconds"].iloc[-1]),
            parameters=sum(weight.size for weight in nowcaster.weights),
            scores=scores,
            run_id=run.run_id,
            folder=str(folder),
        )
        run.text(table(made), "reproduction.txt")
    return made


def _check(config: Config) -> None:
    asked = (config.variable.variable, config.network.head, config.window.step)
    window = config.window.input_frames + config.window.lead_frames
    if asked != (INTENSITY, "fraction", STEP) or window > FRAMES:
        raise ConfigError(
            "Moving MNIST is a variable 'intensity', forecast as a fraction, in windows of "
            f"{FRAMES} frames at most, one minute apart; the settings say "
            f"{config.variable.name!r}, {config.network.head!r}, {window} frames, "
            f"{config.window.step_minutes} min; take those of configs/moving_mnist.toml"
        )


def counts_of(sequences: int) -> dict[str, int]:
    """Give how many sequences there are to train, to validate and to test on.

    Examples
    --------
    >>> counts_of(10_000)
    {'train': 10000, 'validation': 2000, 'test': 3000}
    """
    if sequences < 5:
        raise ConfigError(f"five sequences or more are trained on; received {sequences}")
    return {"train": sequences, "validation": sequences // 5, "test": 3 * sequences // 10}


def blocks_of(counts: dict[str, int]) -> dict[str, Block]:
    """Give the blocks of time of sequences that follow each other."""
    starts = np.cumsum([0, *counts.values()])
    return {
        name: Block(*block_of(int(start), count))
        for start, (name, count) in zip(starts, counts.items(), strict=False)
    }


def _trained(
    config: Config, digits: np.ndarray, observed: xr.Dataset, tracking: Tracking, verbose: int
) -> tuple[NeuralNowcaster, str, Path]:
    """Train, or load what was trained before by the same settings on the same digits."""
    identity = {
        "config": config.model_dump(mode="json"),
        "digits": hashlib.sha256(digits.tobytes()).hexdigest(),
        "version": __version__,
    }
    note = tracking.work / "reproductions" / f"moving-mnist-{digest_of(identity)}.json"
    if note.exists():
        run_id = str(json.loads(note.read_text())["run_id"])
        folder = tracking.work / "nowcasters" / run_id
        if folder.is_dir() and _metrics(tracking, run_id).exists():
            LOGGER.warning("trained before, as run %s; delete %s to train anew", run_id, note)
            return NeuralNowcaster.load(folder), run_id, folder
    trained = train(config, observed, tracking=tracking, verbose=verbose)
    write_json(note, {"run_id": trained.run_id})
    return NeuralNowcaster.load(trained.folder), trained.run_id, trained.folder


def _metrics(tracking: Tracking, run_id: str) -> Path:
    return tracking.work / "runs" / run_id / METRICS


def _sequences(observed: xr.Dataset, *, first: int) -> Iterator[np.ndarray]:
    """Give the frames of sequences from one on, in batches; dims ``(sequence, frame, y, x)``."""
    frames = observed[INTENSITY.name].isel(time=slice(first * FRAMES, None))
    for start in range(0, frames.sizes["time"], BATCH * FRAMES):
        batch = frames.isel(time=slice(start, start + BATCH * FRAMES)).values
        yield batch.reshape(-1, FRAMES, SIZE, SIZE)


def score(nowcaster: NeuralNowcaster, batches: Iterator[np.ndarray]) -> dict[str, Scores]:
    """Score the forecasts of a network and, beside them, of its last input frame repeated.

    Parameters
    ----------
    nowcaster
        Of fractions.
    batches : (sequence, frame, y, x)
        Intensities.

    Returns
    -------
    dict
        ``network`` and ``persistence``, which has its forecasts held between `CERTAIN` and 1 less
        than that, or its cross-entropy would be infinite.
    """
    from keras import ops

    settings = nowcaster.settings
    network = network_with(settings, nowcaster.weights, settings.grid)
    window = settings.window
    sums = {name: np.zeros(3) for name in ("network", "persistence")}
    total = 0
    for frames in batches:
        inputs = frames[:, : window.input_frames]
        targets = frames[:, window.input_frames :][:, : window.lead_frames, ..., np.newaxis]
        last = np.clip(inputs[:, -1:, ..., np.newaxis], CERTAIN, 1.0 - CERTAIN)
        repeated = np.repeat(np.log(last / (1.0 - last)), window.lead_frames, axis=1)
        raws = {
            "network": network(network_inputs(settings, inputs), training=False),
            "persistence": ops.convert_to_tensor(repeated, dtype="float32"),
        }
        for name, raw in raws.items():
            forecasts = ops.convert_to_numpy(settings.head.values(raw))
            entropy = float(cross_entropy_per_sequence(ops.convert_to_tensor(targets), raw))
            sums[name] += len(frames) * np.array([entropy, *_of_frames(targets, forecasts)])
        total += len(frames)
    return {name: Scores(*(added / total).tolist()) for name, added in sums.items()}


def _of_frames(targets: np.ndarray, forecasts: np.ndarray) -> tuple[float, float]:
    """Give the mean over frames of squared error, summed over pixels, and of SSIM."""
    from skimage.metrics import structural_similarity

    similarity: Any = structural_similarity  # which is not typed
    squares = np.square(forecasts - targets, dtype=float).sum(axis=(2, 3, 4))
    shape = (-1, *targets.shape[2:4])
    pairs = zip(targets.reshape(shape), forecasts.reshape(shape), strict=True)
    similar = [similarity(mine, its, data_range=1.0) for mine, its in pairs]
    return float(squares.mean()), float(np.mean(similar))


def _example(
    nowcaster: NeuralNowcaster, observed: xr.Dataset, counts: dict[str, int], folder: Path
) -> Path:
    """Draw the nowcast of the first test sequence."""
    from nowcast.plots import panel

    window = nowcaster.settings.window
    start = blocks_of(counts)["test"].start
    base_times = pd.DatetimeIndex([start + (window.input_frames - 1) * window.step])
    lead_times = pd.TimedeltaIndex([window.step * (n + 1) for n in range(window.lead_frames)])
    frames = observed.sel(time=slice(start, start + (FRAMES - 1) * STEP)).compute()
    nowcast = nowcaster.nowcast(frames, base_times=base_times, lead_times=lead_times)
    return panel(frames, nowcast, path=folder / "test.png")


def table(made: MovingMnist) -> str:
    """Give the scores beside the published ones, and by which protocol they came."""
    counts = made.sequences
    lines = [
        f"Moving MNIST, {made.frames[0]} frames to {made.frames[1]}: {made.network}",
        f"trained on {counts['train']:,} sequences (the paper: {PUBLISHED_SEQUENCES:,}) in "
        f"{made.epochs} epochs (the best was number {made.best_epoch}), {made.seconds:,.0f} s; "
        f"chosen on {counts['validation']:,}, tested on {counts['test']:,} others",
        "cross-entropy: nats per sequence; MSE: summed over a frame's pixels; SSIM: 7 x 7 pixels",
        "",
        f"{'':38}{'parameters':>13}{'cross-entropy':>15}{'MSE':>9}{'SSIM':>8}",
    ]
    for name, parameters in (("network", f"{made.parameters:,}"), ("persistence", "0")):
        one = made.scores[name]
        label = "this network" if name == "network" else "last frame repeated"
        lines.append(f"{label:38}{parameters:>13}{one.cross_entropy:>15,.2f}{one.mse:>9.2f}"
                     f"{one.ssim:>8.3f}")  # fmt: skip
    for name, (size, entropy) in PUBLISHED.items():
        lines.append(f"{name:38}{size:>13,}{entropy:>15,.2f}{'-':>9}{'-':>8}  published")
    if (counts["train"], made.frames) != (PUBLISHED_SEQUENCES, PUBLISHED_FRAMES):
        lines += ["", "of other data than the paper's: not to be compared with the published"]
    return "\n".join(lines)


@dataclass(frozen=True)
class Tutorial:
    """A reproduction of the CNN LSTM of the tutorials.

    Parameters
    ----------
    summary
        Of the network, layer by layer.
    sequences
        How many there were to train, to validate and to test on.
    accuracy, most_frequent
        Part of the test sequences told right; by always saying the class most frequent in training.
    seconds
        Of training.
    run_id, folder
        Of the MLflow run; where the predictor is saved.
    """

    summary: str
    sequences: dict[str, int]
    accuracy: float
    most_frequent: float
    seconds: float
    run_id: str
    folder: str


def tutorial() -> Config:
    """Give the settings of the CNN LSTM of the tutorials.

    Examples
    --------
    >>> tutorial().network.settings["filters"]
    [1]
    """
    content = {
        "experiment": "cnn-lstm-tutorial",
        "variable": {**vars(BRIGHTNESS)},
        "transform": {"name": "linear", "offset": 0.0, "top": 1.0},
        "data": {"observations": "moving_lines", "step": 1.0},
        "window": {"input_frames": LINE_FRAMES - 1, "lead_frames": 1, "step_minutes": 1},
        "network": {
            "name": "cnn_lstm",
            "settings": {"filters": [1], "kernel": 2, "stride": 1, "pool": 2, "units": 50},
            "channels": 1,
            "head": "classes",
        },
        "training": {
            "epochs": 8,
            "batch_size": 32,
            "learning_rate": 1e-2,
            "loss": "cross_entropy",
        },
        "verification": {"baselines": ["persistence"], "thresholds": [], "every_minutes": 10},
        "promotion": {"model_name": "cnn-lstm-tutorial", "score": "rmse"},
    }
    return validate(content, source="cnn-lstm-tutorial")


def reproduce_tutorial(config: Config, *, tracking: Tracking, verbose: int = 1) -> Tutorial:
    """Train on moving lines, and tell how many of those never seen are told right.

    Parameters
    ----------
    config
        See `tutorial`.
    tracking
        Where the run goes.
    verbose
        0 silent, 1 progress bar, 2 a line per epoch.

    Raises
    ------
    ValueError
        If the settings are not of this experiment.
    """
    if (config.variable.variable, config.network.head) != (BRIGHTNESS, "classes"):
        raise ConfigError(
            "moving lines are a variable 'brightness' with the head 'classes'; the settings say "
            f"{config.variable.name!r}, {config.network.head!r}"
        )
    observed = moving_lines(sequences=sum(LINES.values()), size=LINE_FRAMES)
    blocks = _blocks_of_lines(observed["time"].to_index())
    config = config.replace([f"split.{name}={block}" for name, block in blocks.items()])
    trained = train(config, observed, tracking=tracking, verbose=verbose)
    predictor = SequencePredictor.load(trained.folder)
    named = {config.network.name: predictor}
    every = pd.Timedelta(minutes=config.verification.every_minutes)
    cases = labelled_times(observed, predictors=named, every=every, block=blocks["test"])
    scores = verify_classes(named, observed, base_times=cases, batch_cases=len(cases))
    accuracy = scores["accuracy"].to_series()
    history = read_metrics(_metrics(tracking, trained.run_id))
    with tracking.run(config.experiment, config.network.name, going_on=trained.run_id) as run:
        run.metrics({"test_accuracy": accuracy[config.network.name]}, step=int(history.index[-1]))
    return Tutorial(
        summary=_summary(predictor),
        sequences=dict(LINES),
        accuracy=float(accuracy[config.network.name]),
        most_frequent=float(accuracy[CLIMATOLOGY]),
        seconds=float(history["seconds"].iloc[-1]),
        run_id=trained.run_id,
        folder=str(trained.folder),
    )


def _blocks_of_lines(times: pd.DatetimeIndex) -> dict[str, Block]:
    ends = LINE_FRAMES * np.cumsum([0, *LINES.values()])
    pairs = zip(LINES, ends[:-1], ends[1:], strict=True)
    return {name: Block(times[start], times[end - 1]) for name, start, end in pairs}


def _summary(predictor: SequencePredictor) -> str:
    settings = predictor.settings
    lines: list[str] = []
    network = network_with(settings, predictor.weights, settings.padded(settings.grid))
    network.summary(print_fn=lines.append)
    return "\n".join(lines)
