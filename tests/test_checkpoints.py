import signal
import subprocess
import sys

import numpy as np
import pytest

from nowcast.checkpoints import Checkpoint
from nowcast.nowcasters.neural import NeuralNowcaster
from nowcast.tracking import Run
from nowcast.training import checkpoint_of, fit, plan_of, prepare, train

SETTINGS = [
    "training.epochs=4",
    "training.patience=2",
    "training.augment=true",
    "network.settings={patch=4, filters=[4]}",
]

STOPPING_EARLY = [
    "training.epochs=9",
    "training.optimizer=rmsprop",
    "training.schedule=constant",
    "training.learning_rate=0.3",
]

LAGRANGIAN = [
    "network.name=lagrangian",
    "network.settings={filters=[4, 8], dropout=0.2}",
    "network.head=exceedance",
    "network.levels=[0.2, 1.0, 5.0]",
    "training.loss=ordinal",
    "training.precision=mixed_bfloat16",
    "training.sampling=intense",
    "training.batch_size=4",
    "training.steps_per_epoch=6",  # in which windows come again
]

CHILD = """
import os, signal
from pathlib import Path
from nowcast import training
from nowcast.cache import open_cache
from nowcast.config import Config
config = Config.model_validate_json({settings!r})
prepared = training.prepared_of(config, open_cache({folder!r}))
def killed(epoch, figures):
    print(epoch, flush=True)
    if epoch == {last}:
        os.kill(os.getpid(), signal.SIGKILL)
training.fit(config, prepared, on_epoch=killed, verbose=0,
             checkpoint=training.checkpoint_of(config, prepared, work=Path({work!r})))
"""


class LostPowerError(Exception):
    """A training that ends where it should not."""


def _assert_same(one, other):
    assert len(one.weights) == len(other.weights)
    for mine, its in zip(one.weights, other.weights, strict=True):
        np.testing.assert_array_equal(mine, its)


@pytest.mark.proof
@pytest.mark.parametrize("more", [[], LAGRANGIAN], ids=["convlstm", "lagrangian"])
def test_a_training_killed_with_signal_9_ends_with_the_weights_of_an_undisturbed_one(
    small_config, small_observed, tmp_path, more
):
    config = small_config.replace([*SETTINGS, *more])
    prepared = prepare(config, small_observed, work=tmp_path)
    code = CHILD.format(
        settings=config.model_dump_json(),
        folder=str(prepared.cache.folder),
        work=str(tmp_path),
        last=2,  # before its checkpoint is written
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert done.stdout.split() == ["0", "1", "2"]
    checkpoint = checkpoint_of(config, prepared, work=tmp_path)
    assert checkpoint.progress.epochs == 2
    epochs = []
    resumed = fit(
        config,
        prepared,
        on_epoch=lambda epoch, _: epochs.append(epoch),
        checkpoint=checkpoint,
        verbose=0,
    )
    assert epochs == [2, 3]
    _assert_same(resumed, fit(config, prepared, verbose=0))


@pytest.mark.proof
def test_a_training_that_sees_motion_goes_on_after_each_of_its_epochs(
    small_config, small_observed, tmp_path, doubtful
):
    """Interrupted before each checkpoint in turn, and begun from the weights of another."""
    config = small_config.replace([*SETTINGS, *LAGRANGIAN, "network.settings={filters=[4, 8]}"])
    epochs, start = config.training.epochs, NeuralNowcaster.load(doubtful)
    prepared = prepare(config, small_observed, work=tmp_path)
    assert len(plan_of(config, prepared, "train")) < 24
    whole, pieces = [], []
    undisturbed = fit(
        config,
        prepared,
        start=start,
        on_epoch=lambda _, figures: whole.append((figures["loss"], figures["val_loss"])),
        verbose=0,
    )
    assert len(whole) == epochs

    def piece(last):
        def on_epoch(epoch, figures):
            pieces.append((epoch, figures["loss"], figures["val_loss"]))
            if epoch == last:
                raise LostPowerError

        checkpoint = checkpoint_of(config, prepared, work=tmp_path, start=start)
        assert checkpoint.progress.epochs == last - 1
        return fit(
            config, prepared, start=start, on_epoch=on_epoch, checkpoint=checkpoint, verbose=0
        )

    for last in range(1, epochs):
        with pytest.raises(LostPowerError):
            piece(last)
    _assert_same(piece(epochs), undisturbed)
    # Each epoch that was lost is done again, and alike.
    assert [epoch for epoch, *_ in pieces] == [0, *np.repeat(range(1, epochs), 2)]
    assert [tuple(figures) for _, *figures in pieces] == [whole[epoch] for epoch, *_ in pieces]


def test_an_interrupted_training_stops_early_as_the_undisturbed_one_does(
    small_config, small_observed, tmp_path
):
    config = small_config.replace([*SETTINGS, *STOPPING_EARLY])
    prepared = prepare(config, small_observed, work=tmp_path)
    whole = []
    undisturbed = fit(
        config, prepared, on_epoch=lambda _, figures: whole.append(figures), verbose=0
    )
    assert 3 < len(whole) < config.training.epochs
    pieces = {}

    def piece(last):
        def on_epoch(epoch, figures):
            pieces[epoch] = figures
            if epoch == last:
                raise LostPowerError

        checkpoint = checkpoint_of(config, prepared, work=tmp_path)
        return fit(config, prepared, on_epoch=on_epoch, checkpoint=checkpoint, verbose=0)

    with pytest.raises(LostPowerError):
        piece(len(whole) - 1)
    _assert_same(piece(None), undisturbed)
    assert [(figures["loss"], figures["val_loss"]) for figures in pieces.values()] == [
        (figures["loss"], figures["val_loss"]) for figures in whole
    ]
    assert min(np.diff([figures["seconds"] for figures in pieces.values()])) > 0
    assert checkpoint_of(config, prepared, work=tmp_path).progress.stopped
    pieces.clear()
    _assert_same(piece(None), undisturbed)  # it was over: only its saving was left to do
    assert pieces == {}


def test_another_experiment_never_goes_on_with_it(small_config, small_observed, tmp_path):
    prepared = prepare(small_config, small_observed, work=tmp_path)
    other = prepare(small_config, small_observed.isel(time=slice(1, None)), work=tmp_path)
    mine = checkpoint_of(small_config, prepared, work=tmp_path).path
    assert mine == checkpoint_of(small_config, prepared, work=tmp_path).path
    seeded = small_config.replace(["training.seed=1"])
    assert checkpoint_of(seeded, prepared, work=tmp_path).path != mine
    assert checkpoint_of(small_config, other, work=tmp_path).path != mine


def test_what_was_killed_and_goes_on_is_one_run_and_leaves_no_checkpoint(
    small_config, small_observed, trained, monkeypatch
):
    tracking, _ = trained
    folder = tracking.work / "checkpoints"
    config = small_config.replace(["training.epochs=2", "experiment=killed"])
    log = Run.metrics

    def interrupted(self, values, *, step):
        log(self, values, step=step)
        if step == 1:
            raise LostPowerError

    monkeypatch.setattr(Run, "metrics", interrupted)
    with pytest.raises(LostPowerError):
        train(config, small_observed, tracking=tracking, verbose=0)
    monkeypatch.undo()
    assert len(list(folder.iterdir())) == 1
    made = train(config, small_observed, tracking=tracking, verbose=0)
    assert list(folder.iterdir()) == []
    client = tracking.connect().MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name("killed").experiment_id])
    assert [run.info.run_id for run in runs] == [made.run_id]
    assert runs[0].info.status == "FINISHED"
    logged = client.get_metric_history(made.run_id, "val_loss")
    assert [figure.step for figure in logged] == [0, 1, 1]
    assert logged[1].value == logged[2].value


def test_a_run_that_the_store_has_lost_goes_on_as_a_new_one(trained, caplog):
    tracking, _ = trained
    with tracking.run("killed", "again", going_on="0" * 32) as run:
        assert run.run_id != "0" * 32
    assert "is not in the store" in caplog.text


def test_a_damaged_checkpoint_is_told_and_begun_anew(tmp_path, caplog):
    checkpoint = Checkpoint(tmp_path, {"seed": 1})
    checkpoint.path.write_bytes(b"half a file")
    assert Checkpoint(tmp_path, {"seed": 1}).progress.epochs == 0
    assert "is damaged" in caplog.text


def _model():
    import keras

    model = keras.Sequential(
        [keras.Input((2,)), keras.layers.Dense(1), keras.layers.Dropout(0.5, seed=1)]
    )
    model.compile("adam", "mse")
    return model


def _after_an_epoch(checkpoint, model):
    import keras

    stopping = keras.callbacks.EarlyStopping("loss")
    callbacks = [stopping, checkpoint.callback(stopping)]
    model.fit(np.ones((4, 2)), np.ones((4, 1)), callbacks=callbacks, verbose=0)


def test_a_full_disk_costs_the_checkpoint_and_not_the_training(tmp_path, caplog):
    (tmp_path / "no-folder").write_text("a file where a folder should be")
    _after_an_epoch(Checkpoint(tmp_path / "no-folder", {}), _model())
    assert "epoch 1 has no checkpoint" in caplog.text


def test_states_of_random_numbers_and_of_the_optimiser_come_back(tmp_path):
    import keras

    model = _model()
    _after_an_epoch(Checkpoint(tmp_path, {}), model)
    other = _model()
    Checkpoint(tmp_path, {}).restore(other)
    one, another = (keras.ops.convert_to_numpy(both(np.ones((8, 2)), training=True))
                    for both in (model, other))  # fmt: skip
    np.testing.assert_array_equal(one, another)
    assert 0 < np.count_nonzero(one) < 8  # some were dropped
    mine, its = model.optimizer.variables, other.optimizer.variables
    assert len(mine) == len(its) > 5
    for one, another in zip(mine, its, strict=True):
        np.testing.assert_array_equal(one, another)


def test_the_checkpoint_of_another_network_is_refused(tmp_path):
    import keras

    _after_an_epoch(Checkpoint(tmp_path, {}), _model())
    other = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    other.compile("adam", "mse")
    with pytest.raises(ValueError, match="delete it to begin anew"):
        Checkpoint(tmp_path, {}).restore(other)
