"""What many tests need: small observations, a small trained nowcaster, a clean environment."""

import logging
import os
import shutil
import sys
from pathlib import Path

import pytest

# What processes begun by tests import is compiled once, not by each of them.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
if "PYTEST_XDIST_WORKER" in os.environ:  # a process for each core: more threads only wait
    for pool in ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS"):
        os.environ.setdefault(pool, "1")
os.environ.pop("MLFLOW_TRACKING_URI", None)
os.environ.pop("NOWCAST_WORK", None)

from nowcast.config import Config
from nowcast.data.synthetic import synthesise
from nowcast.tracking import Tracking

sys.dont_write_bytecode = False
LONGEST = (
    "test_cli.py", "test_notebooks.py", "test_training.py", "test_cycle.py", "test_decoding.py",
    "test_archive_crash.py", "test_other_variables.py", "test_studies.py",
)  # fmt: skip
SMALL = [
    "synthetic.events=3",
    "synthetic.hours=3",
    "synthetic.size=16",
    "window.input_frames=3",
    "window.lead_frames=2",
    "split.validation_fraction=0.3",
    "split.test_fraction=0.3",
    "promotion.first_lead_minutes=10",
    "network.settings={patch=4, filters=[8]}",
    "training.epochs=1",
]


@pytest.fixture(autouse=True)
def level_of_the_log():
    """A command line that was told to be quiet hushes no test after it."""
    logger = logging.getLogger("nowcast")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture(scope="session", autouse=True)
def empty_store(tmp_path_factory):
    """New MLflow stores are copies of one that MLflow made: its migrations take two seconds."""
    empty, connect = tmp_path_factory.mktemp("store") / "mlflow.db", Tracking.connect

    def connect_to_copy(tracking):
        mlflow, store = connect(tracking), tracking.work / "mlflow.db"
        if tracking.uri == f"sqlite:///{store.resolve()}" and not store.exists():
            if not empty.exists():
                mlflow.MlflowClient(f"sqlite:///{empty}").search_experiments()
            shutil.copy(empty, store)
        return mlflow

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracking, "connect", connect_to_copy)
        yield


def pytest_collection_modifyitems(items):
    """Begin with the files that take longest, so that the processes end together."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def small_config():
    """Settings of an experiment that trains in seconds."""
    return Config().replace(SMALL)


@pytest.fixture(scope="session")
def small_observed(small_config):
    """The synthetic observations of these settings, in memory."""
    return synthesise(
        step_minutes=small_config.window.step_minutes, **small_config.synthetic.model_dump()
    ).load()


@pytest.fixture(scope="session")
def trained(small_config, small_observed, tmp_path_factory):
    """A small convlstm trained, logged and registered in a work directory of its own."""
    from nowcast.training import train

    tracking = Tracking(tmp_path_factory.mktemp("work"))
    return tracking, train(small_config, small_observed, tracking=tracking, verbose=0)


@pytest.fixture(scope="session")
def doubtful(tmp_path_factory):
    """The folder of a network that was never fitted: it believes extrapolation, with doubt."""
    import pandas as pd

    from nowcast.conventions import RAIN_RATE
    from nowcast.frames import Window
    from nowcast.networks import build, version_of
    from nowcast.networks.heads import Head
    from nowcast.nowcasters.neural import NeuralNowcaster
    from nowcast.nowcasters.saved import NeuralSettings
    from nowcast.rainrate import Transform

    settings = NeuralSettings(
        network="lagrangian",
        network_version=version_of("lagrangian"),
        network_settings={"filters": (4, 8)},
        head=Head("exceedance", (0.2, 1.0, 5.0)),
        variable=RAIN_RATE,
        transform=Transform(),
        window=Window(3, 2, pd.Timedelta("10min")),
        grid=(16, 16),
        grid_spacing=2000.0,
        grid_units="m",
    )
    network = build(
        settings.network,
        settings=settings.network_settings,
        input_frames=settings.window.input_frames,
        lead_frames=settings.window.lead_frames,
        grid=settings.grid,
        head=settings.head,
        transform=settings.transform,
    )
    nowcaster = NeuralNowcaster(settings, network.get_weights())
    return nowcaster.save(tmp_path_factory.mktemp("doubtful") / "doubtful")


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real radar data; tests that need it skip where it is absent."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("NOWCAST_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"no real radar data: {folder} is absent; set NOWCAST_SHARED_DATA")
    return folder
