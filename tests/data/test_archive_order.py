"""Whatever the order of arrival, with duplicates and corrections, the archive is the same."""

import contextlib
import itertools
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path

import knmi_sample
import numpy as np
import pytest
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nowcast import durable
from nowcast.data.archive import fsck, ingest, open_archive

EXAMPLES = int(os.environ.get("NOWCAST_EXAMPLES", "12"))


@pytest.fixture(scope="module")
def arrivals(tmp_path_factory):
    """Nine inputs for six slots: two corrections, a duplicate, a damaged file, two of one file."""
    return feed(tmp_path_factory.mktemp("feed"))


@pytest.fixture(scope="module")
def reference(arrivals, tmp_path_factory):
    archive = tmp_path_factory.mktemp("reference") / "archive"
    ingest(arrivals, archive)
    return state(archive)


def feed(folder):
    """Write the files of a feed that had everything go wrong."""
    files = knmi_sample.write_series(folder, 4)
    again = [
        knmi_sample.write_knmi(folder / f"again-{n}.h5", knmi_sample.rain(50 + n), "2010-08-26")
        for n in (1, 2)
    ]
    shutil.copy(files[1], folder / "copy.h5")
    (folder / "cut.h5").write_bytes(files[2].read_bytes()[:-200])
    hours = np.datetime64("2019-03-01", "ns") + np.arange(2) * np.timedelta64(1, "h")
    axes = {"lat": [1.0, 0.0], "lon": [0.0, 1.0]}
    values = np.arange(8.0, dtype="f4").reshape(2, 2, 2)
    two = xr.Dataset({"t2m": (("time", "lat", "lon"), values, {"units": "K"})}, axes)
    two = two.assign_coords(time=hours)
    for name, unit in (("lat", "degrees_north"), ("lon", "degrees_east")):
        two[name].attrs["units"] = unit
    two.to_netcdf(folder / "two.nc")
    return [*files, *again, folder / "copy.h5", folder / "cut.h5", folder / "two.nc"]


def state(archive):
    """Give all that must be the same: each frame's bytes, the index but for arrival, the values."""
    files = {p.relative_to(archive).as_posix(): durable.sha256(p) for p in archive.rglob("*.nc")}
    with contextlib.closing(sqlite3.connect(archive / "index.sqlite")) as index:
        index.row_factory = sqlite3.Row
        rows = [dict(row) for row in index.execute("SELECT * FROM frames")]
    for row in rows:
        del row["arrived"]
    values = open_archive(archive, source="knmi")["rain_rate"].values.tobytes()
    return files, sorted(rows, key=str), values


def orders(count):
    """Draw an order of all arrivals with some of them twice, cut into calls of ingest."""
    twice = st.lists(st.integers(0, count - 1), max_size=4)
    return twice.flatmap(lambda more: st.permutations([*range(count), *more])).flatmap(
        lambda order: st.tuples(
            st.just(order), st.sets(st.integers(1, len(order) - 1), max_size=4).map(sorted)
        )
    )


def archived(arrivals, order, cuts, folder):
    """Ingest in this order, a call for each piece between two cuts."""
    archive = Path(folder) / "archive"
    for start, end in itertools.pairwise([0, *cuts, len(order)]):
        ingest([arrivals[n] for n in order[start:end]], archive)
    return archive


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(drawn=orders(9))
def test_the_order_of_arrival_does_not_matter(arrivals, reference, drawn):
    with tempfile.TemporaryDirectory() as folder:
        archive = archived(arrivals, *drawn, folder)
        assert state(archive) == reference
        assert fsck(archive).damaged == ()
        assert state(archive) == reference
