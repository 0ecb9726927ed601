import json
import subprocess
import sys

import dask
import dask.array
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nowcast.cache import build_cache, cached, coding_of, open_cache
from nowcast.conventions import RAIN_RATE, REFLECTIVITY, Variable
from nowcast.data.labels import with_labels
from nowcast.data.observations import fingerprint, open_observations
from nowcast.data.synthetic import synthesise

STEP = pd.Timedelta("10min")
TEMPERATURE = Variable("t2m", "K", "temperature", "air_temperature", 150.0, 350.0)
KNMI_QUANTUM, MCH_QUANTUM = 0.12, 0.1  # mm/h


def _build(observed, folder, step=STEP, coding=None):
    return build_cache(
        observed,
        folder / "cache",
        variable=RAIN_RATE,
        coding=coding or coding_of(RAIN_RATE),
        step=step,
    )


def _cached(observed, work):
    return cached(observed, work=work, variable=RAIN_RATE, coding=coding_of(RAIN_RATE), step=STEP)


def _bytes(cache):
    return {path.name: path.read_bytes() for path in cache.folder.iterdir()}


@pytest.fixture
def holed(small_observed):
    """Observations with missing pixels, a frame without any, and a gap inside an event."""
    observed = small_observed.copy(deep=True)
    observed["rain_rate"][2, 3:5, 7] = np.nan
    observed["rain_rate"][25] = np.nan
    return observed.isel(time=[index for index in range(observed.sizes["time"]) if index != 10])


@pytest.mark.parametrize(
    ("variable", "step"),
    [
        (RAIN_RATE, 0.0),
        (RAIN_RATE, 4.0),
        (REFLECTIVITY, 0.0),
        (REFLECTIVITY, 0.4),
        (TEMPERATURE, 0),
    ],
)
@given(st.floats(0, 1))
def test_a_value_is_half_a_step_off_at_most(variable, step, part):
    coding = coding_of(variable, step)
    value = variable.valid_min + part * (variable.valid_max - variable.valid_min)
    decoded = float(coding.decode(coding.encode(np.array([value])))[0])
    assert abs(decoded - value) <= coding.step / 2 + 1e-7 * variable.valid_max


@pytest.mark.parametrize("quantum", [KNMI_QUANTUM, MCH_QUANTUM, 0.5])
def test_radar_quanta_are_kept_exactly(quantum):
    values = (quantum * np.arange(0, 500)).astype(np.float32)
    coding = coding_of(RAIN_RATE)
    np.testing.assert_allclose(coding.decode(coding.encode(values)), values, rtol=3e-7)


def test_the_lowest_and_the_highest_value_can_be_coded():
    for variable in (RAIN_RATE, REFLECTIVITY, TEMPERATURE):
        coding = coding_of(variable)
        ends = np.array([variable.valid_min, variable.valid_max])
        codes = coding.encode(ends)
        assert codes.tolist() == [1, coding.codes - 1]
        np.testing.assert_allclose(coding.decode(codes), ends, rtol=1e-6)


def test_missing_and_dry_have_codes_of_their_own():
    coding = coding_of(RAIN_RATE)
    codes = coding.encode(np.array([np.nan, 0.0, -0.0]))
    assert codes.tolist() == [0, 1, 1]
    assert np.isnan(coding.decode(codes)).tolist() == [True, False, False]


@pytest.mark.parametrize("value", [-0.01, 1000.1, np.inf, -np.inf])
def test_a_value_outside_of_the_range_is_refused(value):
    with pytest.raises(ValueError, match=r"1 values lie outside of \[0, 1000\] mm h-1, such as"):
        coding_of(RAIN_RATE).encode(np.array([1.0, value, np.nan]))


def test_the_smallest_type_is_taken():
    assert coding_of(RAIN_RATE).dtype == "uint16"
    assert coding_of(REFLECTIVITY, 0.5).dtype == "uint8"


def test_steps_too_small_for_the_range_are_refused():
    with pytest.raises(ValueError, match="need 100002 codes; 65536 fit"):
        coding_of(RAIN_RATE, 0.01)


def test_an_endless_range_is_refused():
    endless = Variable("speed", "m s-1", "speed", "", 0.0, np.inf)
    with pytest.raises(ValueError, match="needs a finite valid range"):
        coding_of(endless)


def test_the_cache_holds_what_was_observed_and_where_nothing_was(holed, tmp_path):
    cache = _build(holed.chunk(time=7), tmp_path)
    values = holed["rain_rate"].sel(time=cache.times).values
    decoded = cache.coding.decode(cache.codes)
    np.testing.assert_array_equal(np.isnan(decoded), np.isnan(values))
    assert np.nanmax(np.abs(decoded - values)) <= 0.01 + 1e-6
    assert isinstance(cache.codes, np.memmap)


def test_frames_lie_in_runs_without_a_gap(holed, tmp_path):
    cache = _build(holed, tmp_path)
    assert [run.length for run in cache.runs] == [10, 8, 19, 19]
    assert [run.first for run in cache.runs] == [0, 10, 18, 37]
    assert list(cache.times) == list(holed["time"].to_index())


def test_a_coarser_step_than_the_data_gives_runs_that_interleave(small_observed, tmp_path):
    times = small_observed["time"].to_index()[:7]
    cache = _build(small_observed.isel(time=slice(7)), tmp_path, step=2 * STEP)
    assert list(cache.times) == list(times[[0, 2, 4, 6, 1, 3, 5]])
    np.testing.assert_array_equal(
        cache.codes[4], cache.coding.encode(small_observed["rain_rate"].values[1])
    )


def test_statistics_are_of_the_observed_pixels(small_observed, tmp_path):
    observed = small_observed.isel(time=slice(3)).copy(deep=True)
    field = np.zeros((16, 16), np.float32)
    field[:4] = 2.0
    field[4:8] = 0.08  # below the 0.1 mm/h of a wet pixel
    field[8:] = np.nan
    observed["rain_rate"][0] = field
    observed["rain_rate"][1] = np.nan
    statistics = _build(observed, tmp_path).statistics
    assert statistics.loc[0].tolist() == [0.5, 0.5, 1.04, 2.0]
    assert statistics.loc[1, "observed"] == 0.0
    assert statistics.loc[1, ["wet", "mean", "max"]].isna().all()


def test_wet_reflectivity_is_a_tenth_of_a_millimetre_an_hour(tmp_path):
    observed = synthesise(hours=1, size=16).isel(time=slice(1)).load()
    field = np.full((1, 16, 16), 7.0, np.float32)  # dBZ; 0.1 mm/h is 7.01
    field[0, :8] = 7.1
    attributes = {**REFLECTIVITY.attributes}
    observed = observed.drop_vars("rain_rate").assign(
        reflectivity=(("time", "y", "x"), field, attributes)
    )
    cache = build_cache(
        observed,
        tmp_path / "cache",
        variable=REFLECTIVITY,
        coding=coding_of(REFLECTIVITY),
        step=STEP,
    )
    assert cache.statistics.loc[0, "wet"] == 0.5


@pytest.mark.parametrize("chunks", [{"time": 1}, {"time": 5, "y": 3, "x": 7}, {"time": -1}])
@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_the_bytes_depend_on_neither_chunks_nor_threads(holed, tmp_path, chunks, scheduler):
    expected = _bytes(_build(holed, tmp_path / "expected"))
    with dask.config.set(scheduler=scheduler):
        made = _bytes(_build(holed.chunk(chunks), tmp_path / "made"))
    assert made == expected


@pytest.mark.slow
def test_the_bytes_are_the_same_from_a_cluster_of_processes(holed, tmp_path):
    from dask.distributed import Client, LocalCluster

    expected = _bytes(_build(holed, tmp_path / "expected"))
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        made = _bytes(_build(holed.chunk(time=4), tmp_path / "made"))
    assert made == expected


@pytest.mark.slow
def test_a_worker_that_dies_changes_no_byte(holed, tmp_path):
    """The task that kills its worker is run again by another, over what the first one wrote."""
    from dask.distributed import Client, LocalCluster

    expected = _bytes(_build(holed, tmp_path / "expected"))
    mark = tmp_path / "died"
    dying = holed.chunk(time=4)
    dying["rain_rate"] = dying["rain_rate"].copy(
        data=dying["rain_rate"].data.map_blocks(
            _die_once, str(mark), meta=np.empty((0, 0, 0), np.float32)
        )
    )
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
    ):
        made = _bytes(_build(dying, tmp_path / "made"))
    assert mark.exists()
    assert made == expected


def _die_once(values, mark):
    import os
    import signal

    try:
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return values
    os.kill(os.getpid(), signal.SIGKILL)


def test_the_fingerprint_is_that_of_the_observations(holed, tmp_path):
    assert _build(holed.chunk(time=4), tmp_path).fingerprint == fingerprint(holed)


def test_values_are_read_once(holed, tmp_path):
    reads = []

    def count(values):
        reads.append(len(values))
        return values

    lazy = holed.chunk(time=9)
    counted = dask.array.map_blocks(count, lazy["rain_rate"].data, meta=np.empty((0, 0, 0), "f4"))
    lazy["rain_rate"] = lazy["rain_rate"].copy(data=counted)
    _build(lazy, tmp_path)
    assert sum(reads) == holed.sizes["time"]


def test_a_cache_is_used_again_for_the_same_file_and_made_anew_for_another(holed, tmp_path):
    path = tmp_path / "rain.nc"
    holed["time"].encoding["units"] = "seconds since 1970-01-01"
    holed.to_netcdf(path)
    first = _cached(open_observations(path), tmp_path)
    written = first.path.stat().st_mtime_ns
    again = _cached(open_observations(path), tmp_path)
    assert again.folder == first.folder
    assert again.path.stat().st_mtime_ns == written
    holed["rain_rate"][0, 0, 0] = 3.0
    holed.to_netcdf(path)
    other = _cached(open_observations(path), tmp_path)
    assert other.folder != first.folder
    assert other.coding.decode(other.codes[0, 0, 0]) == 3.0


def test_a_lazy_array_that_cannot_be_told_from_another_is_never_mistaken(holed, tmp_path):
    import threading

    def observed(value):
        lock = threading.Lock()  # nothing that Dask can hash

        def fill(block):
            with lock:
                return np.full_like(block, value)

        lazy = holed.chunk(time=8)
        blocks = lazy["rain_rate"].data.map_blocks(fill, meta=np.empty((0, 0, 0), "f4"))
        return lazy.assign(rain_rate=lazy["rain_rate"].copy(data=blocks))

    first, second = (_cached(observed(value), tmp_path) for value in (1.0, 2.0))
    assert first.coding.decode(first.codes[0, 0, 0]) == 1.0
    assert second.coding.decode(second.codes[0, 0, 0]) == 2.0


@pytest.mark.parametrize("setting", ["step", "coding"])
def test_another_coding_or_step_has_a_cache_of_its_own(holed, tmp_path, setting):
    given = {"step": STEP, "coding": coding_of(RAIN_RATE)}
    other = {"step": 2 * STEP, "coding": coding_of(RAIN_RATE, 0.05)}
    folders = {
        cached(holed, work=tmp_path, variable=RAIN_RATE, **settings).folder
        for settings in (given, {**given, setting: other[setting]})
    }
    assert len(folders) == 2


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_a_damaged_cache_is_refused_and_made_again(holed, tmp_path, damage):
    cache = _cached(holed, tmp_path)
    expected = _bytes(cache)
    content = bytearray(expected["frames.npy"])
    content[len(content) // 2] ^= 1
    if damage == "remove":
        cache.path.unlink()
    else:
        cache.path.write_bytes(content if damage == "flip" else content[:-1])
    with pytest.raises(ValueError, match="holds no whole cache"):
        open_cache(cache.folder)
    assert _bytes(_cached(holed, tmp_path)) == expected


def test_a_file_that_does_not_hold_what_was_written_is_not_published(holed, tmp_path, monkeypatch):
    """As if a worker wrote to a folder of the same name on another machine."""
    import nowcast.cache

    preallocate = nowcast.cache._preallocate
    elsewhere = tmp_path / "elsewhere.npy"

    def diverted(path, shape, coding):
        preallocate(elsewhere, shape, coding)
        return preallocate(path, shape, coding)

    destination = nowcast.cache._Destination
    monkeypatch.setattr(nowcast.cache, "_preallocate", diverted)
    monkeypatch.setattr(
        nowcast.cache,
        "_Destination",
        lambda path, *rest: destination(str(elsewhere), *rest),  # noqa: ARG005
    )
    with pytest.raises(ValueError, match="is not what a worker says it wrote"):
        _build(holed, tmp_path)
    assert not (tmp_path / "cache").exists()


def test_no_unfinished_folder_stays_when_a_value_is_refused(holed, tmp_path):
    holed["rain_rate"][0, 0, 0] = 2000.0
    with pytest.raises(ValueError, match="such as 2000"):
        _build(holed, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_frames_are_refused(holed, tmp_path):
    with pytest.raises(ValueError, match="nothing to cache"):
        _build(holed.isel(time=slice(0)), tmp_path)


def test_a_cache_of_another_format_is_refused(holed, tmp_path):
    cache = _build(holed, tmp_path)
    page = cache.folder / "cache.json"
    page.write_text(json.dumps({**json.loads(page.read_text()), "format": 99}))
    with pytest.raises(ValueError, match="its format is 99"):
        open_cache(cache.folder)


def _labelled(observed, *, lazy=False):
    """Give observations labelled by turns, every seventh frame without a label."""
    labels = np.arange(observed.sizes["time"]) % 7
    labels = np.where(labels == 6, -1, labels % 3)
    return with_labels(observed, dask.array.from_array(labels) if lazy else labels, "abc")


def test_labels_lie_with_the_frames_they_are_of(holed, tmp_path):
    observed = _labelled(holed, lazy=True)
    cache = _build(observed, tmp_path, step=pd.Timedelta("20min"))  # runs that interleave
    flags = observed["label"].sel(time=cache.times).values
    np.testing.assert_array_equal(cache.statistics["label"], np.where(flags < 0, np.nan, flags))
    assert cache.classes == ("a", "b", "c")
    assert cache.fingerprint == fingerprint(observed)
    counts = [f"{(flags == at).sum()} {name}" for at, name in enumerate("abc")]
    assert cache.summary()["labels"] == ", ".join(counts)


def test_observations_without_labels_have_a_cache_without_classes(holed, tmp_path):
    cache = _build(holed, tmp_path)
    assert cache.classes == ()
    assert "label" not in cache.statistics
    assert "labels" not in cache.summary()


def test_other_labels_have_a_cache_of_their_own(holed, tmp_path):
    bare, one = holed, _labelled(holed)
    other = with_labels(holed, one["label"].values, ["a", "b", "d"])
    third = one.assign_coords(label=one["label"].copy(data=one["label"].values[::-1]))
    folders = {_cached(each, tmp_path).folder for each in (bare, one, other, third)}
    assert len(folders) == 4
    assert _cached(one, tmp_path).folder in folders


def test_the_grid_is_known_from_the_cache_alone(holed, tmp_path):
    cache = _build(holed, tmp_path)
    np.testing.assert_array_equal(cache.y, holed["y"])
    np.testing.assert_array_equal(cache.x, holed["x"])


def test_the_summary_says_what_is_there(holed, tmp_path):
    summary = _build(holed, tmp_path).summary()
    assert summary["frames"] == 56
    assert summary["runs"] == 4
    assert summary["longest_run"] == 19
    assert summary["first"] == "2024-01-01T00:00:00"
    json.dumps(summary)


def test_a_cache_is_read_without_dask_netcdf_mlflow_and_tensorflow(holed, tmp_path):
    cache = _build(holed, tmp_path)
    code = (
        "import sys\n"
        "for name in ('dask', 'netCDF4', 'h5py', 'mlflow', 'tensorflow', 'distributed'):\n"
        "    sys.modules[name] = None\n"
        "from nowcast.cache import open_cache\n"
        f"cache = open_cache({str(cache.folder)!r})\n"
        "print(int(cache.codes.astype(int).sum()), cache.fingerprint, len(cache.times))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [
        str(int(cache.codes.astype(int).sum())),
        cache.fingerprint,
        "56",
    ]


@pytest.mark.slow
def test_taasrad19_is_cached_as_it_was_observed(shared_data, tmp_path):
    path = shared_data / "taasrad19" / "validation.nc"
    observed = open_observations(path)
    cache = build_cache(
        observed,
        tmp_path / "cache",
        variable=REFLECTIVITY,
        coding=coding_of(REFLECTIVITY),
        step=pd.Timedelta("5min"),
    )
    assert len(cache.runs) == 15  # 14 gaps between events
    values = observed["reflectivity"].values
    assert np.abs(cache.coding.decode(cache.codes) - values).max() <= 0.05 + 1e-5
    assert cache.fingerprint == fingerprint(observed)
