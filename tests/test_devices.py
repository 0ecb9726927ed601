"""What networks start from, and batches shared out to devices: virtual ones of a processor."""

import importlib.util
import os
import random
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from nowcast.devices import drawing_from, spread_over

TRAIN = textwrap.dedent(
    """
    import sys
    from pathlib import Path

    import numpy as np

    from nowcast.config import load
    from nowcast.data.synthetic import synthesise
    from nowcast.training import fit, prepare

    config = load("tests/small.toml").replace(
        ["training.batch_size=4", "training.epochs=2", "network.name=unet"]
    )
    observed = synthesise(events=4, hours=3, size=16)
    prepared = prepare(config, observed, work=Path(sys.argv[1]))
    one, two = (
        fit(config.replace([f"training.devices={devices}"]), prepared, verbose=0).weights
        for devices in (1, 2)
    )
    print(max(float(np.abs(a - b).max()) for a, b in zip(one, two, strict=True)))
    """
)


@pytest.mark.parametrize("disturb", [lambda: None, random.random], ids=["quiet", "disturbed"])
def test_what_a_network_starts_from_is_the_seeds_whatever_else_draws(disturb):
    """Prefect's thread of events draws from Python's global generator at any time, for one."""
    import keras

    def weights(seed, meanwhile=lambda: None):
        with drawing_from(seed):
            network = keras.Sequential([keras.Input((8, 8, 1))])
            for _ in range(3):
                network.add(keras.layers.Conv2D(2, 3))
                meanwhile()
        return network.get_weights()

    expected, other = weights(0), weights(1)
    for mine, its in zip(weights(0, disturb), expected, strict=True):
        np.testing.assert_array_equal(mine, its)
    assert any((mine != its).any() for mine, its in zip(other, expected, strict=True))


def test_building_a_network_leaves_the_global_generator_alone():
    import keras

    random.seed(7)
    expected = random.random()
    random.seed(7)
    with drawing_from(0):
        keras.layers.Conv2D(2, 3)
    assert random.random() == expected


def test_several_devices_need_a_backend_that_shares_batches_out():
    with pytest.raises(ValueError, match="KERAS_BACKEND=jax"), spread_over(2, batch_size=4):
        pass


@pytest.mark.proof
@pytest.mark.skipif(not importlib.util.find_spec("jax"), reason="JAX is not installed")
def test_two_devices_give_the_weights_of_one(tmp_path):
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    }
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert float(done.stdout.split()[-1]) < 1e-5
