"""The same networks, weights and trainings under each backend, in one process each."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from test_networks import LEAD_FRAMES, LOSSES, SMALL, head_of, inputs_of

from nowcast.networks import NETWORKS
from nowcast.nowcasters.neural import NeuralNowcaster
from nowcast.training import prepare

ROOT = Path(__file__).resolve().parents[2]
BACKENDS = ("tensorflow", "jax", "torch")
QUICKLY = "--xla_backend_optimization_level=0"  # JAX then compiles in half the time
ABSENT = ("tensorflow", "mlflow", "dask", "distributed", "netCDF4", "h5netcdf")
pytestmark = pytest.mark.proof

# What both of the next begin with: `networks()` builds each network, and gives it with what it sees
# and with its loss.
BEGINNING = """
import json, sys
from pathlib import Path
import keras, numpy as np
from nowcast.conventions import RAIN_RATE
from nowcast.networks import build
from nowcast.networks.heads import Head
from nowcast.networks.losses import loss_of
from nowcast.rainrate import Transform
backend, folder = keras.backend.backend(), Path(sys.argv[1])
def networks():
    told = json.loads((folder / "networks.json").read_text())
    for number, (name, one) in enumerate(told.items()):
        keras.utils.set_random_seed(100 * len(backend) + number)
        inputs = [np.array(each, "f4") for each in one["inputs"]]
        head = Head(one["head"], tuple(one["levels"]))
        loss = loss_of(one["loss"], head=head, variable=RAIN_RATE, transform=Transform())
        _, frames, *grid, _ = inputs[0].shape
        network = build(name, settings=one["settings"], input_frames=frames,
                        lead_frames=one["lead_frames"], grid=tuple(grid), head=head)
        yield name, network, inputs if len(inputs) > 1 else inputs[0], loss
"""

# Builds each network, compiled as trainings are; saves its weights and what it makes of them.
WRITING = """
losses = {}
for name, network, inputs, loss in networks():
    network.compile(keras.optimizers.Adam(1e-2), loss,
                    jit_compile=False if backend == "tensorflow" else "auto")
    frames = inputs[0] if isinstance(inputs, list) else inputs
    targets = np.repeat(frames[:, -1:, ..., :1], network.output_shape[1], axis=1)
    losses[name] = [float(network.train_on_batch(inputs, targets)) for _ in range(8)]
    network.save_weights(folder / f"{name}.{backend}.weights.h5")
    np.save(folder / f"{name}.{backend}.npy", keras.ops.convert_to_numpy(network(inputs)))
(folder / f"{backend}.json").write_text(json.dumps(losses))
"""

# Loads the weights that every backend wrote and compares what it makes of them with what they did.
READING = """
off = {}
for name, network, inputs, _ in networks():
    for weights in sorted(folder.glob(f"{name}.*.weights.h5")):
        network.load_weights(weights)
        theirs = np.load(folder / (weights.name.removesuffix(".weights.h5") + ".npy"))
        ours = keras.ops.convert_to_numpy(network(inputs))
        off[f"{name} {weights.name.split('.')[1]}"] = float(np.abs(ours - theirs).max())
(folder / f"{backend}.off.json").write_text(json.dumps(off))
"""

# A training from a prepared cache where nothing but Keras, its backend and the cache is to be had.
FITTING = """
import sys
for absent in sys.argv[3:]:
    sys.modules[absent] = None  # importing it, or a part of it, fails
import numpy as np
from nowcast.cache import open_cache
from nowcast.config import Config
from nowcast.training import fit, prepared_of
cache, out = sys.argv[1:3]
config = Config.model_validate_json(sys.stdin.read())
figures = []
nowcaster = fit(config, prepared_of(config, open_cache(cache)), verbose=0,
                on_epoch=lambda _, values: figures.append(values["loss"]))
assert len(figures) == 3 and figures[-1] < figures[0], figures
nowcaster.save(out)
frames = np.random.default_rng(0).gamma(0.5, 2.0, (2, 3, 16, 16)).astype("f4")
frames[:, :, :2] = np.nan
np.savez(out + ".npz", frames=frames, nowcast=nowcaster.forecast(frames))
"""


def _installed(backend):
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed; make proof installs it (.[dev,backends])")


def _run(backend, *command, text=""):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        input=text,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend, "XLA_FLAGS": QUICKLY},
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory):
    """A folder with what every installed backend wrote, and what each read of all."""
    folder = tmp_path_factory.mktemp("exchanged")
    installed = [backend for backend in BACKENDS if find_spec(backend)]
    told = {name: _told(name) for name in sorted(NETWORKS)}
    (folder / "networks.json").write_text(json.dumps(told))  # an argument may have 128 KiB
    for script in (WRITING, READING):
        for backend in installed:
            _run(backend, "-c", BEGINNING + script, folder)
    return folder


def _told(name):
    """Give what the scripts need to know of a network, as JSON types."""
    head, inputs = head_of(name), inputs_of(name, 2)
    return {
        "settings": SMALL[name],
        "head": head.kind,
        "levels": head.levels,
        "loss": LOSSES[head.kind],
        "lead_frames": LEAD_FRAMES,
        "inputs": [one.tolist() for one in (inputs if isinstance(inputs, list) else [inputs])],
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_steps_lower_the_loss(exchanged, backend):
    _installed(backend)
    losses = json.loads((exchanged / f"{backend}.json").read_text())
    assert set(losses) == set(NETWORKS)
    assert {name for name, of_one in losses.items() if not of_one[-1] < 0.9 * of_one[0]} == set()


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_of_any_backend_give_the_same_under_another(exchanged, backend):
    _installed(backend)
    off = json.loads((exchanged / f"{backend}.off.json").read_text())
    written = len(list(exchanged.glob("*.weights.h5")))
    assert len(off) == written >= len(NETWORKS)
    print(f"\n{backend}, greatest difference: {max(off.values()):.1e}", end="")
    assert {case: value for case, value in off.items() if not value < 1e-4} == {}


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_network_keeps_its_contract(backend):
    _installed(backend)
    files = [f"tests/networks/test_{name}.py" for name in ("networks", "advection", "lagrangian")]
    report = _run(backend, "-m", "pytest", "-q", "-m", "", *files)
    assert " passed" in report
    assert "skipped" not in report


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_a_training_needs_one_backend_and_a_prepared_cache_alone(
    small_config, small_observed, tmp_path, backend
):
    _installed(backend)
    config = small_config.replace(["training.epochs=3", "training.patience=3"])
    cache = prepare(config, small_observed, work=tmp_path).cache.folder
    _run(backend, "-c", FITTING, cache, tmp_path / "saved", *ABSENT, text=config.model_dump_json())
    written = np.load(tmp_path / "saved.npz")
    here = NeuralNowcaster.load(tmp_path / "saved").forecast(written["frames"])
    assert np.isfinite(here).any()
    np.testing.assert_allclose(here, written["nowcast"], atol=1e-3)  # mm/h; NaN where it was
    print(f"\n{backend}, greatest difference: {np.nanmax(abs(here - written['nowcast'])):.1e}")
