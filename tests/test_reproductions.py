import gzip
import json
import re
import struct
from pathlib import Path

import numpy as np
import pytest

from nowcast import training
from nowcast.cli import main
from nowcast.config import ConfigError, load
from nowcast.data.moving_mnist import FRAMES, moving_mnist, read_digits
from nowcast.frames import Window, base_times
from nowcast.networks import build
from nowcast.networks.heads import Head
from nowcast.nowcasters.neural import NeuralNowcaster
from nowcast.reproductions import (
    NETWORKS,
    PUBLISHED,
    Scores,
    blocks_of,
    counts_of,
    protocol,
    reproduce_moving_mnist,
    reproduce_tutorial,
    score,
    table,
    tutorial,
)

ROOT = Path(__file__).resolve().parents[1]
TINY = [
    "training.epochs=2",
    "training.batch_size=4",
    "network.settings={patch=16, filters=[2], kernel=3, multi_scale=false}",
]


@pytest.fixture(scope="module")
def digits():
    return np.random.default_rng(0).integers(0, 256, (4, 20, 20), np.uint8)


@pytest.fixture(scope="module")
def made(trained, digits):
    """A tiny reproduction in a store that is there."""
    tracking, _ = trained
    return tracking, reproduce_moving_mnist(
        protocol().replace(TINY), digits, sequences=8, tracking=tracking, verbose=0
    )


def test_the_settings_files_are_the_protocols():
    assert load(ROOT / "configs" / "moving_mnist.toml") == protocol()
    assert load(ROOT / "configs" / "cnn_lstm_textbook.toml") == tutorial()


def test_the_protocol_is_that_of_the_paper():
    config = protocol()
    section = config.training
    assert (section.optimizer, section.learning_rate, section.batch_size) == ("rmsprop", 1e-3, 16)
    assert (section.loss, section.schedule, config.network.head) == (
        "cross_entropy",
        "constant",
        "fraction",
    )
    assert counts_of(10_000) == {"train": 10_000, "validation": 2_000, "test": 3_000}


@pytest.mark.proof
@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_the_networks_of_the_protocol_have_the_published_sizes(name):
    published = {
        "convlstm": "ConvLSTM (5x5)-5x5-128-5x5-64-5x5-64",
        "fc_lstm": "FC-LSTM-2048-2048",
    }
    config = protocol(name)
    network = build(
        name,
        settings=config.network.settings,
        input_frames=10,
        lead_frames=10,
        grid=(64, 64),
        head=Head("fraction"),
        channels=config.network.channels,
    )
    assert network.count_params() == PUBLISHED[published[name]][0]


def test_no_sequence_is_trained_and_tested_on():
    counts = counts_of(10)
    blocks = blocks_of(counts)
    observed = moving_mnist(np.full((1, 1, 1), 255, np.uint8), sequences=sum(counts.values()))
    window = Window(10, 10, protocol().window.step)
    times = {name: base_times(observed, window, block) for name, block in blocks.items()}
    assert {name: len(found) for name, found in times.items()} == counts
    everything = np.concatenate([found.values for found in times.values()])
    assert len(set(everything)) == sum(counts.values())
    assert (everything == np.sort(everything)).all()


def test_a_reproduction_trains_scores_and_logs(made):
    tracking, result = made
    assert result.sequences == {"train": 8, "validation": 1, "test": 2}
    assert result.epochs == 2
    assert result.best_epoch in (1, 2)
    assert 0 < result.seconds < 600
    nowcaster = NeuralNowcaster.load(result.folder)
    assert result.parameters == sum(weight.size for weight in nowcaster.weights)
    client = tracking.connect().MlflowClient()
    run = client.get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test_cross_entropy"] == result.scores["network"].cross_entropy
    assert len(client.get_metric_history(result.run_id, "val_loss")) == 2
    assert run.data.params["network.channels"] == "1"
    files = {file.path for file in client.list_artifacts(result.run_id)}
    assert {"learning_curve.png", "reproduction.txt", "examples"} <= files
    examples = {file.path for file in client.list_artifacts(result.run_id, "examples")}
    assert examples == {"examples/test.png", "examples/validation.png"}


def test_the_scores_are_those_of_the_nowcasts_in_numpy(made, digits):
    _, result = made
    nowcaster = NeuralNowcaster.load(result.folder)
    frames = moving_mnist(digits, sequences=11)["intensity"].values[-2 * FRAMES :]
    frames = frames.reshape(2, FRAMES, 64, 64).astype(float)
    forecasts = nowcaster.forecast(frames[:, :10]).astype(float)
    targets = frames[:, 10:]
    entropy = -(targets * np.log(forecasts) + (1 - targets) * np.log1p(-forecasts))
    found = result.scores["network"]
    assert found.cross_entropy == pytest.approx(entropy.sum(axis=(1, 2, 3)).mean(), rel=1e-4)
    squares = np.square(targets - forecasts).sum(axis=(2, 3)).mean()
    assert found.mse == pytest.approx(squares, rel=1e-4)
    repeated = np.square(targets - frames[:, 9:10]).sum(axis=(2, 3)).mean()
    assert result.scores["persistence"].mse == pytest.approx(repeated, rel=1e-4)


def test_the_validation_loss_is_the_cross_entropy_by_pixels(made, digits):
    """What training minimises and what is printed are one quantity."""
    tracking, result = made
    nowcaster = NeuralNowcaster.load(result.folder)
    frames = moving_mnist(digits, sequences=11)["intensity"].values[8 * FRAMES : 9 * FRAMES]
    found = score(nowcaster, iter([frames.reshape(1, FRAMES, 64, 64)]))["network"]
    lines = (tracking.work / "runs" / result.run_id / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line).get("val_loss") for line in lines]
    best = min(loss for loss in losses if loss)
    assert found.cross_entropy / (10 * 64 * 64) == pytest.approx(best, rel=1e-4)


def test_frames_that_stand_still_make_persistence_perfect(made):
    _, result = made
    nowcaster = NeuralNowcaster.load(result.folder)
    still = np.zeros((3, FRAMES, 64, 64), np.float32)
    still[..., 20:40, 20:40] = 1.0
    found = score(nowcaster, iter([still[:2], still[2:]]))["persistence"]
    assert found.mse == pytest.approx(0.0, abs=1e-6)
    assert found.ssim == pytest.approx(1.0, abs=1e-6)
    assert found.cross_entropy == pytest.approx(10 * 64 * 64 * 1e-6, rel=0.1)


def test_the_same_again_trains_nothing_and_scores_the_same(made, digits, monkeypatch, caplog):
    tracking, result = made

    def refuse(*_, **__):
        raise AssertionError("it trains again")

    monkeypatch.setattr("nowcast.reproductions.train", refuse)
    caplog.set_level("WARNING", logger="nowcast")  # whatever another test asked for
    config = protocol().replace(TINY)
    again = reproduce_moving_mnist(config, digits, sequences=8, tracking=tracking, verbose=0)
    assert again == result
    assert "trained before" in caplog.text
    with pytest.raises(AssertionError, match="trains again"):
        reproduce_moving_mnist(config, digits[:3], sequences=8, tracking=tracking, verbose=0)


def test_the_table_says_by_what_protocol_and_puts_the_published_beside(made):
    _, result = made
    text = table(result)
    assert "trained on 8 sequences (the paper: 10,000) in 2 epochs" in text
    assert "7,585,296       3,670.85" in text
    assert f"{result.scores['network'].cross_entropy:,.2f}" in text
    assert "not to be compared" in text


def test_settings_of_something_else_are_refused(trained, digits):
    tracking, _ = trained
    for change in ("network.head=field", "window.lead_frames=12", "window.step_minutes=5"):
        config = protocol().replace([change, "training.loss=mse"])
        with pytest.raises(ConfigError, match="Moving MNIST is a variable 'intensity'"):
            reproduce_moving_mnist(config, digits, sequences=8, tracking=tracking)
    with pytest.raises(ConfigError, match="received 4"):
        reproduce_moving_mnist(protocol(), digits, sequences=4, tracking=tracking)


def test_a_network_of_one_channel_is_told_nothing_of_missing_pixels(
    made, small_config, small_observed, tmp_path
):
    _, result = made
    nowcaster = NeuralNowcaster.load(result.folder)
    frames = np.zeros((1, 10, 64, 64))
    frames[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="1 pixels are missing"):
        nowcaster.forecast(frames)
    holed = small_observed.copy(deep=True)
    holed["rain_rate"][3, 0, 0] = np.nan
    config = small_config.replace(["network.channels=1"])
    prepared = training.prepare(config, holed, work=tmp_path)
    with pytest.raises(ValueError, match="1 frames have missing pixels"):
        training.fit(config, prepared, verbose=0)


def _run(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main([str(one) for one in arguments])
    return end.value.code, capsys.readouterr()


@pytest.fixture
def images(digits, tmp_path):
    """The digits as an idx file in a folder."""
    header = struct.pack(">4I", 0x803, *digits.shape)
    path = tmp_path / "mnist" / "train-images-idx3-ubyte.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(header + digits.tobytes()))
    return path.parent


def test_the_command_prints_the_table(made, images, capsys):
    tracking, result = made
    asked = ["reproduce", "moving-mnist", "--images", images, "--sequences", 8, "--epochs", 2]
    settings = [part for setting in TINY[1:] for part in ("--set", setting)]
    code, said = _run([*asked, *settings, "--work", tracking.work], capsys)
    assert code == 0, said.err
    assert table(result) in said.out
    assert result.run_id in said.out
    code, said = _run([*asked, *settings, "--work", tracking.work, "--json"], capsys)
    assert json.loads(said.out)["scores"]["network"] == vars(result.scores["network"])


def test_the_command_refuses_a_damaged_file_before_anything_else(images, tmp_path, capsys):
    path = images / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-30])
    work = tmp_path / "work"
    asked = ["reproduce", "moving-mnist", "--images", images, "--work", work]
    code, said = _run(asked, capsys)
    assert code == 1
    assert "get it anew" in said.err
    assert not work.exists()


@pytest.mark.proof  # `test_predictors.py` has such a network learn which way lines go
def test_the_cnn_lstm_of_the_tutorials_tells_unseen_lines(trained, capsys):
    tracking, _ = trained
    code, said = _run(["reproduce", "cnn-lstm-tutorial", "--work", tracking.work], capsys)
    assert code == 0, said.err
    shapes = ["(None, 9, 10, 10, 1)", "(None, 9, 5, 5, 1)", "(None, 9, 25)", "(None, 2)"]
    places = [said.out.rindex(shape) for shape in shapes]
    assert places == sorted(places)
    told, most_frequent = re.search(r"([\d.]+)% told right, ([\d.]+)%", said.out).groups()
    assert float(told) >= 98.0
    assert 45.0 < float(most_frequent) < 55.0


def test_the_tutorial_is_of_moving_lines_alone(trained):
    tracking, _ = trained
    with pytest.raises(ConfigError, match="'brightness' with the head 'classes'"):
        reproduce_tutorial(protocol(), tracking=tracking)
    assert tutorial().network.settings["filters"] == [1]


@pytest.mark.proof
def test_the_real_digits_lower_the_loss(trained, shared_data):
    if not (shared_data / "mnist").is_dir():
        pytest.skip(f"no MNIST: {shared_data / 'mnist'} is absent")
    tracking, _ = trained
    config = protocol().replace([*TINY, "training.epochs=8", "training.learning_rate=0.01"])
    made = reproduce_moving_mnist(
        config, read_digits(shared_data / "mnist")[:500], sequences=16, tracking=tracking, verbose=0
    )
    assert made.scores["network"].cross_entropy < 0.8 * 10 * 64 * 64 * np.log(2)
    assert made.scores["network"] != Scores(0.0, 0.0, 1.0)
