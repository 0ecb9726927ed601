"""Batches shared out to several devices: JAX on virtual devices of a processor."""

import importlib.util
import os
import subprocess
import sys
import textwrap

import pytest

from nowcast.devices import spread_over

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
