import os
import sys
from pathlib import Path

import dask
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # for knmi_sample

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def shared_data():
    """The folder of real data, which not every computer has."""
    folder = Path(os.environ.get("NOWCAST_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set NOWCAST_SHARED_DATA")
    return folder


@pytest.fixture
def knmi_files(shared_data):
    return sorted((shared_data / "radar" / "knmi_hdf5").glob("*.h5"))


def _refuse(*_args, **_kwargs):
    raise AssertionError("values were computed, but must stay lazy")


@pytest.fixture
def computing_fails():
    """A context in which any Dask computation raises."""
    return lambda: dask.config.set(scheduler=_refuse)
