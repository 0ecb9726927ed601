import dask
import pytest


@pytest.fixture
def knmi_files(shared_data):
    return sorted((shared_data / "radar" / "knmi_hdf5").glob("*.h5"))


def _refuse(*_args, **_kwargs):
    raise AssertionError("values were computed, but must stay lazy")


@pytest.fixture
def computing_fails():
    """A context in which any Dask computation raises."""
    return lambda: dask.config.set(scheduler=_refuse)
