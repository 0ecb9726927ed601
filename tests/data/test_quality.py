import time
from dataclasses import asdict, replace

import dask.array as da
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nowcast.conventions import (
    RAIN_RATE,
    REFLECTIVITY,
    check_observations,
    known_variable,
    variable_of,
)
from nowcast.data.grids import coarsen
from nowcast.data.observations import open_observations
from nowcast.data.quality import (
    COVERAGE_JUMP,
    FAULTS,
    FLAGS,
    FROM_INGEST,
    FrameStatistics,
    clutter_map,
    flag_names,
    frame_statistics,
    mask_clutter,
    mask_speckle,
    open_clutter_map,
    quality_flags,
    quality_variable,
    save_clutter_map,
    without,
)
from nowcast.data.synthetic import synthesise

STEP = np.timedelta64(5, "m")
NOON = np.datetime64("2024-06-01T12:00", "ns")


def _statistics(frames, variable=RAIN_RATE):
    return [frame_statistics(np.asarray(frame, "f4"), variable) for frame in frames]


def _columns(statistics):
    return pd.DataFrame([asdict(each) for each in statistics])


def _flags(statistics, times=None):
    """Give the names of the flags of frames, five minutes apart unless times are given."""
    times = NOON + np.arange(len(statistics)) * STEP if times is None else times
    return [flag_names(each) for each in quality_flags(times, _columns(statistics))]


def _seen(**changes):
    """Give the statistics of an unremarkable frame, but for the changes."""
    usual = FrameStatistics(1.0, 0.2, 3.0, 0.0, 0.001, values_sha256="unlike any other")
    return replace(usual, **changes)


def _run(*digests, **changes):
    return [_seen(values_sha256=digest, **changes) for digest in digests]


def _observed(values, times=None, variable=RAIN_RATE):
    """Give observations of an array (time, y, x), NumPy or Dask, on a grid of 1 km."""
    steps = np.arange(values.shape[0]) * STEP
    coordinates = {
        "time": ("time", NOON + steps if times is None else times),
        "y": ("y", 1000.0 * np.arange(values.shape[1])[::-1], {"units": "m"}),
        "x": ("x", 1000.0 * np.arange(values.shape[2]), {"units": "m"}),
        "crs": ((), 0, {"grid_mapping_name": "stereographic", "latitude_of_projection_origin": 90}),
    }
    fields = {variable.name: (("time", "y", "x"), values, variable.attributes)}
    return check_observations(xr.Dataset(fields, coordinates, {"source": "test"}))


# --- statistics of one frame


def test_statistics_of_a_frame_by_hand():
    frame = [[5.0, 0.0, 0.0], [0.0, 0.0, np.nan], [0.0, 1.0, 2.0]]
    (found,) = _statistics([frame])
    assert found.coverage == 8 / 9
    assert found.wet == 3 / 8
    assert (found.minimum, found.maximum) == (0.0, 5.0)
    assert found.speckle == 1 / 3  # the 5 stands alone; 1 and 2 stand together


@pytest.mark.parametrize(
    ("frame", "speckle"),
    [
        ([[1, 0, 0], [0, 0, 0], [0, 0, 1]], 1.0),  # in corners
        ([[1, 0, 0], [0, 1, 0], [0, 0, 0]], 0.0),  # a diagonal neighbour is one
        ([[0, 0, 1], [0, 1, 0], [0, 0, 0]], 0.0),
        ([[1, 0, 1], [0, 0, 0], [1, 0, 1]], 1.0),  # two apart is none; borders do not meet
        ([[1, 1, 0], [0, 0, 0], [0, 0, 1]], 1 / 3),
        ([[np.nan, np.nan, np.nan], [np.nan, 1, np.nan], [np.nan, np.nan, np.nan]], 1.0),
        ([[np.nan, 1, 0], [0, 1, 0], [0, np.nan, 0]], 0.0),
        ([[0, 0, 0], [0, 0, 0], [0, 0, np.nan]], 0.0),
    ],
)
def test_speckle_is_the_part_of_wet_pixels_without_a_wet_neighbour(frame, speckle):
    assert _statistics([frame])[0].speckle == pytest.approx(speckle)


def test_speckle_agrees_with_looking_at_every_neighbour():
    generator = np.random.default_rng(0)
    for shape in [(1, 1), (1, 7), (7, 1), (2, 2), (12, 9)]:
        for density in (0.05, 0.2, 0.5):
            frame = np.where(generator.random(shape) < density, 1.0, 0.0)
            frame[generator.random(shape) < 0.2] = np.nan
            wet = {tuple(place) for place in np.argwhere(frame > 0)}
            around = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1) if i or j]
            alone = [(y, x) for y, x in wet if not any((y + i, x + j) in wet for i, j in around)]
            expected = len(alone) / len(wet) if wet else 0.0
            assert frame_statistics(frame, RAIN_RATE).speckle == pytest.approx(expected)


def test_a_frame_without_any_observation_has_no_extremes_and_nothing_wet():
    (found,) = _statistics([np.full((3, 4), np.nan)])
    assert (found.coverage, found.wet, found.speckle) == (0.0, 0.0, 0.0)
    assert found.maximum is None
    assert found.minimum is None


def test_equal_values_have_one_hash_however_nan_and_zero_are_written():
    frame = np.array([[0.0, np.nan], [1.5, 2.0]], "f4")
    other = np.array([[-0.0, 0.0], [1.5, 2.0]], "f4")
    other.view("u4")[0, 1] = 0xFFC12345  # another NaN
    wanted = frame_statistics(frame, RAIN_RATE).values_sha256
    assert len(wanted) == 16
    assert int(wanted, 16) >= 0
    for same in (other, frame.astype("f8"), np.asfortranarray(frame), frame.astype(">f4")):
        assert frame_statistics(same, RAIN_RATE).values_sha256 == wanted
    dry = np.nan_to_num(frame)  # missing is not dry
    assert frame_statistics(dry, RAIN_RATE).values_sha256 != wanted
    assert frame_statistics(frame.T, RAIN_RATE).values_sha256 != wanted


def test_of_a_quantity_without_a_lower_bound_all_that_is_observed_is_wet():
    temperature = replace(RAIN_RATE, name="t2m", units="K", valid_min=-np.inf, valid_max=np.inf)
    (found,) = _statistics([[[270.0, np.nan], [280.0, 0.0]]], temperature)
    assert found.wet == 1.0


def test_statistics_leave_the_frame_as_it_is():
    frame = np.array([[-0.0, np.nan], [1.0, 0.0]], "f4")
    before = frame.tobytes()
    frame_statistics(frame, RAIN_RATE)
    assert frame.tobytes() == before


# --- flags of many frames


def test_a_missing_and_a_dry_frame_are_told_apart():
    frames = [np.full((4, 4), 1.0), np.zeros((4, 4)), np.full((4, 4), np.nan)]
    assert _flags(_statistics(frames)) == [
        [],
        ["all_dry"],
        ["all_missing", "low_coverage", "coverage_jump"],
    ]


def test_only_information_is_no_fault():
    names = {name for name, flag in FLAGS.items() if not flag.mask & FAULTS}
    assert names == {"all_dry", "unit_unproven", "out_of_range"}
    masks = [flag.mask for flag in FLAGS.values()]
    assert masks == [1 << bit for bit in range(len(FLAGS))]


@pytest.mark.parametrize(
    ("digests", "frozen"),
    [
        ("aab", [0, 0, 0]),
        ("aaa", [1, 1, 1]),
        ("baaab", [0, 1, 1, 1, 0]),
        ("aaaaab", [1, 1, 1, 1, 1, 0]),
        ("aabaab", [0, 0, 0, 0, 0, 0]),
        ("aaabbb", [1, 1, 1, 1, 1, 1]),
        ("aaabb", [1, 1, 1, 0, 0]),
        ("a", [0]),
        ("", []),
    ],
)
def test_every_member_of_a_run_of_equal_frames_is_frozen(digests, frozen):
    found = ["frozen" in names for names in _flags(_run(*digests))] if digests else []
    assert found == [bool(each) for each in frozen]


def test_dry_or_missing_frames_are_never_frozen():
    dry, missing = np.zeros((4, 4)), np.full((4, 4), np.nan)
    for frame in (dry, missing):
        assert not any("frozen" in names for names in _flags(_statistics([frame] * 5)))


def test_a_feed_stays_frozen_over_an_absent_frame():
    times = NOON + np.array([0, 1, 3]) * STEP
    assert _flags(_run(*"aaa"), times) == [["frozen"]] * 3


def test_200_frozen_feeds_are_found_and_nothing_else():
    generator = np.random.default_rng(4)
    rain = synthesise(events=1, hours=8, size=16)["rain_rate"].values
    for _ in range(200):
        start, length = generator.integers(0, 40), generator.integers(3, 9)
        frames = rain.copy()
        frames[start : start + length] = frames[start]
        found = np.array(["frozen" in names for names in _flags(_statistics(frames))])
        expected = np.zeros(len(frames), bool)
        expected[start : start + length] = True
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("change", [-0.02, 0.02])
def test_coverage_that_changes_within_one_step_is_flagged_both_ways(change):
    # Coverage that grows may be missing pixels that became dry.
    statistics = [_seen(coverage=0.5, values_sha256=str(n)) for n in range(6)]
    statistics += [_seen(coverage=0.5 + change, values_sha256=str(n)) for n in range(6, 9)]
    assert [bool(names) for names in _flags(statistics)] == [False] * 6 + [True] + [False] * 2


def test_coverage_may_change_over_a_gap():
    steps = np.array([0, 1, 2, 3, 5, 6])
    coverages = [0.5, 0.5, 0.5, 0.5, 0.48, 0.48]
    statistics = [_seen(coverage=c, values_sha256=str(n)) for n, c in enumerate(coverages)]
    assert _flags(statistics, NOON + steps * STEP) == [[]] * 6


def test_low_coverage_is_relative_to_the_usual():
    coverages = [0.26] * 9 + [0.22]
    statistics = [_seen(coverage=c, values_sha256=str(n)) for n, c in enumerate(coverages)]
    assert _flags(statistics)[:9] == [[]] * 9
    assert "low_coverage" in _flags(statistics)[9]


def test_the_usual_coverage_is_that_of_frames_that_show_anything():
    coverages = [0.0] * 6 + [0.5, 0.5, 0.5, 0.4]
    statistics = [_seen(coverage=c, values_sha256=str(n)) for n, c in enumerate(coverages)]
    low = ["low_coverage" in names for names in _flags(statistics)]
    assert low == [True] * 6 + [False] * 3 + [True]


def _composite(generator):
    """Give which radar sees each pixel best, -1 beyond their reach, and each one's azimuths."""
    y, x = np.mgrid[:90, :90]
    radars = generator.uniform(18, 72, (6, 2))
    distance = np.stack([np.hypot(y - row, x - column) for row, column in radars])
    azimuth = np.stack([np.degrees(np.arctan2(y - row, x - column)) for row, column in radars])
    return np.where(distance.min(axis=0) < 30, distance.argmin(axis=0), -1), azimuth


def test_300_radars_and_sectors_that_drop_out_of_a_composite_are_flagged():
    generator = np.random.default_rng(5)
    counts = {True: 0, False: 0}  # of drop-outs larger than what is looked for, and smaller
    while counts[True] < 300:
        nearest, azimuth = _composite(generator)
        rain = np.where(nearest >= 0, generator.random((6, 90, 90)), np.nan)
        radar = generator.choice(nearest[nearest >= 0])
        lost = nearest == radar
        if sum(counts.values()) % 2:  # a sector only, around one of the radar's pixels
            apart = azimuth[radar] - generator.choice(azimuth[radar][lost])
            lost &= np.abs((apart + 180) % 360 - 180) < generator.uniform(5, 45)
        when = generator.integers(1, 6)
        rain[when, lost] = np.nan
        names = _flags(_statistics(rain))
        large = np.count_nonzero(lost) > COVERAGE_JUMP * np.count_nonzero(nearest >= 0)
        assert ("coverage_jump" in names[when]) == large
        assert not any((*names[:when], *names[when + 2 :]))
        counts[bool(large)] += 1
    assert 0 < counts[False] < 30


def test_ten_degrees_of_one_radar_are_enough():
    y, x = np.mgrid[-50:51, -50:51]
    rain = np.where(np.hypot(y, x) < 50, np.random.default_rng(0).random((4, 101, 101)), np.nan)
    rain[2:, (np.degrees(np.arctan2(y, x)) - 20) % 360 < 10] = np.nan
    assert _flags(_statistics(rain)) == [[], [], ["coverage_jump"], []]


def test_noise_is_flagged_and_rain_is_not():
    generator = np.random.default_rng(6)
    rain = synthesise(events=2, hours=4, size=64)["rain_rate"].values
    assert [names for names in _flags(_statistics(rain)) if "speckled" in names] == []
    for density in (0.05, 0.1, 0.2):
        noise = np.where(generator.random((20, 64, 64)) < density, 0.5, 0.0)
        assert _flags(_statistics(noise)) == [["speckled"]] * 20


def test_a_dry_frame_with_one_wet_pixel_is_not_speckled():
    frame = np.zeros((64, 64))
    frame[30, 30] = 0.2
    assert _flags(_statistics([frame])) == [[]]


def test_the_order_of_arrival_does_not_matter():
    generator = np.random.default_rng(7)
    rain = synthesise(events=1, hours=4, size=16)["rain_rate"].values
    rain[5:9] = rain[5]
    rain[12, :8] = np.nan
    rain[20] = 0.0
    times = NOON + np.arange(len(rain)) * STEP
    wanted = quality_flags(times, _columns(_statistics(rain)))
    assert (wanted & FAULTS).any()
    for _ in range(50):
        arrived = generator.permutation(len(rain))
        table = _columns(_statistics(rain[arrived])).assign(time=times[arrived])
        table = table.sort_values("time")
        np.testing.assert_array_equal(quality_flags(table["time"], table), wanted)


def test_flags_from_ingest_are_kept_and_others_refused():
    times = NOON + np.arange(2) * STEP
    columns = _columns([_seen(), _seen(values_sha256="b")])
    found = quality_flags(times, columns, ingested=np.array([FROM_INGEST, 0]))
    assert [flag_names(each) for each in found] == [["unit_unproven", "out_of_range"], []]
    assert not (found & FAULTS).any()
    for wrong in (FLAGS["frozen"].mask, np.array([1, 0])):
        with pytest.raises(ValueError, match="ingest brings only unit_unproven and out_of_range"):
            quality_flags(times, columns, ingested=wrong)


def test_times_out_of_order_and_columns_that_do_not_fit_are_refused():
    times = NOON + np.arange(2) * STEP
    columns = _columns([_seen(), _seen()])
    with pytest.raises(ValueError, match="strictly increasing"):
        quality_flags(times[::-1], columns)
    with pytest.raises(ValueError, match="there are 1 times"):
        quality_flags(times[:1], columns)


def test_no_frames_have_no_flags():
    empty = {name: [] for name in ("coverage", "wet", "speckle", "values_sha256")}
    assert quality_flags(np.array([], "datetime64[ns]"), empty).shape == (0,)


def test_100000_frames_are_flagged_in_less_than_a_second():
    generator = np.random.default_rng(8)
    count = 100_000
    digests = generator.integers(0, 3, count).astype(str)
    columns = {name: generator.random(count) for name in ("coverage", "wet", "speckle")}
    times = NOON + np.arange(count) * STEP
    start = time.perf_counter()
    flags = quality_flags(times, {**columns, "values_sha256": digests})
    assert time.perf_counter() - start < 1.0
    assert 0 < np.count_nonzero(flags & FLAGS["frozen"].mask) < count


def test_the_quality_variable_survives_a_file_and_goes_beside_observations(tmp_path):
    observed = _observed(np.ones((3, 4, 4), "f4"))
    flags = quality_variable(observed["time"].values, np.array([0, 8, 33]))
    observed = observed.assign_coords(quality_flag=flags)
    assert variable_of(check_observations(observed)) == "rain_rate"
    observed.to_netcdf(tmp_path / "flagged.nc")
    with xr.open_dataset(tmp_path / "flagged.nc") as stored:
        found = stored["quality_flag"].load()
    assert found.attrs["standard_name"] == "quality_flag"
    assert found.attrs["flag_masks"].dtype == found.dtype == np.int32
    names = np.array(found.attrs["flag_meanings"].split())
    assert names.tolist() == list(FLAGS)
    decoded = [names[(value & found.attrs["flag_masks"]) > 0].tolist() for value in found.values]
    assert decoded == [[], ["frozen"], ["all_missing", "all_dry"]]


# --- static clutter


@pytest.fixture(scope="module")
def showers():
    """Synthetic rain of ten days that covers one pixel in twenty, as observations in memory."""
    observed = synthesise(events=20, hours=6, size=48, seed=3).load()
    rain = observed["rain_rate"]
    least = float(rain.quantile(0.95))
    return observed.assign(rain_rate=(rain - least).clip(0.0).assign_attrs(rain.attrs))


@pytest.fixture(scope="module")
def injected():
    """Where clutter is put: thirty points and a noise ring, as of TAASRAD19."""
    y, x = np.mgrid[:48, :48] - 23.5
    ring = np.abs(np.hypot(y, x) - 20.0) < 0.6
    points = np.zeros(48 * 48, bool)
    points[np.random.default_rng(1).choice(48 * 48, 30, replace=False)] = True
    return ring | points.reshape(48, 48)


@pytest.fixture(scope="module")
def cluttered(showers, injected):
    """The showers with clutter that echoes in half of the frames."""
    generator = np.random.default_rng(2)
    rain = showers["rain_rate"]
    echo = injected & (generator.random(rain.shape) < 0.5)
    values = np.where(echo, generator.uniform(0.2, 3.0, rain.shape).astype("f4"), rain.values)
    return showers.assign(rain_rate=rain.copy(data=values))


def test_injected_clutter_is_found_and_rain_is_not(cluttered, injected):
    found = clutter_map(cluttered, scarce=0.2)["clutter"].values
    assert injected.sum() > 150
    assert (found & injected).sum() / injected.sum() >= 0.98
    assert (found & ~injected).sum() / (~injected).sum() <= 0.002


def test_showers_alone_leave_the_map_empty(showers):
    assert not clutter_map(showers)["clutter"].any()


@pytest.mark.parametrize("middle", [24.0, 0.0])
def test_a_mountain_where_it_often_rains_is_no_clutter_even_at_the_border(middle):
    generator = np.random.default_rng(9)
    y, x = np.mgrid[:48, :48]
    centres = generator.normal(middle, 4.0, (900, 2, 1, 1))
    rain = (np.hypot(y - centres[:, 0], x - centres[:, 1]) < 7.0).astype("f4")
    times = pd.date_range("2024-06-01", periods=900, freq="10min").to_numpy()
    found = clutter_map(_observed(rain, times))
    assert float(found["scarce_wet_frequency"].max()) > 0.6
    assert not found["clutter"].any()


def test_clutter_is_wet_more_often_than_its_surroundings_by_a_difference():
    rain = np.zeros((1000, 48, 48), "f4")
    rain[:120, 10:22, 10:22] = 1.0  # rain, 12 % of the time
    rain[:300, 15, 15] = 1.0  # 0.18 more
    rain[:330, 17, 17] = 1.0  # 0.21 more
    times = pd.date_range("2024-06-01", periods=1000, freq="10min").to_numpy()
    found = clutter_map(_observed(rain, times))["clutter"]
    assert np.argwhere(found.values).tolist() == [[17, 17]]


def test_frequencies_count_only_what_was_observed():
    rain = np.zeros((600, 12, 12), "f4")
    rain[:300, 5, 5] = 1.0  # wet in half
    rain[::10, 2, 2] = np.nan
    rain[60:, 8, 8] = np.nan  # observed too seldom
    rain[:60, 8, 8] = 1.0
    rain[:50] += 1.0  # rain everywhere, so not scarce
    times = pd.date_range("2024-06-01", periods=600, freq="10min").to_numpy()
    found = clutter_map(_observed(rain, times))
    assert found["scarce_frames"].values[5, 5] == 550
    assert found["frames"].values[2, 2] == 540
    assert found["scarce_frames"].values[2, 2] == 495
    assert found["scarce_wet_frequency"].values[5, 5] == np.float32(250 / 550)
    assert found["wet_frequency"].values[5, 5] == np.float32(300 / 600)
    assert found["wet_frequency"].values[0, 0] == np.float32(50 / 600)
    assert np.isnan(found["scarce_wet_frequency"].values[[2, 8], [2, 8]]).all()
    assert np.argwhere(found["clutter"].values).tolist() == [[5, 5]]


def test_a_map_is_the_same_for_numpy_and_for_dask_of_any_chunks(cluttered):
    wanted = clutter_map(cluttered, scarce=0.2)
    assert wanted["clutter"].any()
    for chunks in ({"time": 1}, {"time": 37, "y": 10}, {"time": 500, "x": 7, "y": 48}):
        assert clutter_map(cluttered.chunk(chunks), scarce=0.2).identical(wanted)


def test_a_map_is_learnt_in_one_pass_over_the_frames(cluttered):
    read = []

    def note(values, block_info):
        read.append(block_info[0]["chunk-location"])
        return values

    rain = cluttered["rain_rate"]
    lazy = da.from_array(rain.values, chunks=(37, 48, 48)).map_blocks(note, meta=np.empty(0, "f4"))
    clutter_map(cluttered.assign(rain_rate=rain.copy(data=lazy)), scarce=0.2)
    assert sorted(read) == [(block, 0, 0) for block in range(20)]


def test_too_few_frames_or_days_with_little_rain_are_refused(showers):
    with pytest.raises(ValueError, match=r"needs 500 frames on 3 days.* of 370 frames there are"):
        clutter_map(showers.isel(time=slice(370)))
    with pytest.raises(ValueError, match="there are 0 on 0 days"):
        clutter_map(showers.assign(rain_rate=showers["rain_rate"] + 1.0))
    minutes = pd.date_range("2024-06-01", periods=740, freq="1min")
    with pytest.raises(ValueError, match="on 1 days"):
        clutter_map(showers.drop_vars("time_bnds").assign_coords(time=minutes))


def test_a_frame_in_which_nothing_was_observed_is_not_scarce(showers):
    blind = showers.assign(rain_rate=showers["rain_rate"] * np.float32(np.nan))
    with pytest.raises(ValueError, match="there are 0 on 0 days"):
        clutter_map(blind)


def test_a_saved_map_is_the_same_when_opened(cluttered, tmp_path):
    learnt = clutter_map(cluttered, scarce=0.2)
    save_clutter_map(learnt, tmp_path / "maps" / "clutter.nc")
    opened = open_clutter_map(tmp_path / "maps" / "clutter.nc")
    xr.testing.assert_identical(opened, learnt)
    assert mask_clutter(cluttered, opened).identical(mask_clutter(cluttered, learnt))
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["clutter.nc"]


def test_what_is_no_clutter_map_is_refused(showers, tmp_path):
    with pytest.raises(FileNotFoundError, match="no clutter map"):
        open_clutter_map(tmp_path / "absent.nc")
    showers.to_netcdf(tmp_path / "rain.nc")
    with pytest.raises(ValueError, match=r"it holds .*rain_rate"):
        open_clutter_map(tmp_path / "rain.nc")
    (tmp_path / "notes.nc").write_text("rain at noon")
    with pytest.raises(ValueError, match="no clutter map, or damaged"):
        open_clutter_map(tmp_path / "notes.nc")


# --- filters


def _patchy(seed=0):
    """Give observations of rain, dry and missing pixels, mixed at random."""
    generator = np.random.default_rng(seed)
    values = np.where(generator.random((7, 24, 20)) < 0.2, generator.random((7, 24, 20)), 0.0)
    values[generator.random(values.shape) < 0.2] = np.nan
    return _observed(values.astype("f4"))


def _map_for(observed, share=0.1):
    """Give a clutter map with random clutter on the grid of the observations."""
    generator = np.random.default_rng(1)
    frames = np.zeros((600, observed.sizes["y"], observed.sizes["x"]), "f4")
    times = pd.date_range("2024-06-01", periods=600, freq="10min").to_numpy()
    learnt = clutter_map(_observed(frames, times))
    random = generator.random(learnt["clutter"].shape) < share
    return learnt.assign(clutter=learnt["clutter"].copy(data=random))


def _filters(observed):
    clutter = _map_for(observed)
    return [lambda ds: mask_clutter(ds, clutter), mask_speckle]


def test_the_speckle_filter_by_hand():
    rain = np.array([[[1, 0, 0, 2], [0, 0, 0, 2], [0, np.nan, 0, 0], [3, np.nan, 0, 0]]], "f4")
    expected = rain.copy()
    expected[0, 0, 0] = expected[0, 3, 0] = np.nan
    np.testing.assert_array_equal(mask_speckle(_observed(rain))["rain_rate"], expected)


def test_the_speckle_filter_does_not_look_at_other_frames():
    rain = np.zeros((3, 5, 5), "f4")
    rain[:, 2, 2] = 1.0
    assert np.isnan(mask_speckle(_observed(rain))["rain_rate"].values[:, 2, 2]).all()


def test_the_clutter_filter_takes_the_pixels_of_the_map_from_every_frame():
    observed = _patchy()
    clutter = _map_for(observed)
    there = clutter["clutter"].values
    found = mask_clutter(observed, clutter)["rain_rate"].values
    assert 0 < there.sum() < there.size
    assert np.isnan(found[:, there]).all()
    np.testing.assert_array_equal(found[:, ~there], observed["rain_rate"].values[:, ~there])


def test_no_filter_turns_a_value_into_anything_but_missing():
    for seed in range(20):
        observed = _patchy(seed)
        before = observed["rain_rate"].values
        for apply in _filters(observed):
            after = apply(observed)["rain_rate"].values
            same = (after == before) | (np.isnan(after) & np.isnan(before))
            assert np.isnan(after[~same]).all()
            assert np.isnan(after[np.isnan(before)]).all()
        speckle = mask_speckle(observed)["rain_rate"].values
        np.testing.assert_array_equal(speckle[before == 0.0], 0.0)  # dry stays dry
        assert frame_statistics(speckle[0], RAIN_RATE).speckle == 0.0


def test_filters_keep_everything_else_and_say_that_they_were_applied():
    observed = _patchy()
    for apply in _filters(observed):
        filtered = apply(observed)
        check_observations(filtered)
        assert filtered["rain_rate"].dtype == np.float32
        assert filtered.drop_vars("rain_rate").identical(observed.drop_vars("rain_rate"))
        attributes = dict(filtered["rain_rate"].attrs)
        assert attributes.pop("nowcast_filters")
        assert attributes == observed["rain_rate"].attrs
    assert "nowcast_filters" not in observed["rain_rate"].attrs
    both = mask_speckle(mask_clutter(observed, _map_for(observed)))["rain_rate"].attrs
    first, second = both["nowcast_filters"].split("; ")
    assert first.startswith("clutter: ")
    assert second.startswith("speckle: ")


def test_filters_are_the_same_for_numpy_and_for_dask_of_any_chunks_and_stay_lazy(computing_fails):
    observed = _patchy()
    for apply in _filters(observed):
        wanted = apply(observed)
        for chunks in ({"time": 1}, {"time": 3, "y": 5}, {"x": 7}):
            chunked = observed.chunk(chunks)
            with computing_fails():
                lazy = apply(chunked)
            assert lazy["rain_rate"].chunks
            assert lazy.compute().identical(wanted)


def test_a_map_of_another_grid_is_refused():
    observed = _patchy()
    clutter = _map_for(observed)
    others = (coarsen(observed, 2), observed.isel(y=slice(None, None, -1)), observed.isel(x=[0, 1]))
    for other in others:
        with pytest.raises(ValueError, match="clutter map is of the grid"):
            mask_clutter(other, clutter)


# --- real radar


def _real(path, frames=256):
    """Give times and statistics of all frames of a file or a pattern."""
    observed = open_observations(path)
    array, quantity = observed[variable_of(observed)], known_variable(observed)
    starts = range(0, observed.sizes["time"], frames)
    blocks = (array[start : start + frames].values for start in starts)
    statistics = [frame_statistics(frame, quantity) for block in blocks for frame in block]
    return observed["time"].values, statistics


def test_true_composites_of_knmi_have_no_fault(shared_data):
    times, statistics = _real(shared_data / "radar" / "knmi_hdf5" / "*.h5")
    assert len(times) == 92
    assert not quality_flags(times, _columns(statistics)).any()


def test_hardly_a_frame_of_taasrad_has_a_fault_despite_its_noise(shared_data):
    times, statistics = _real(shared_data / "taasrad19" / "validation.nc")
    flags = quality_flags(times, _columns(statistics))
    assert len(flags) == 7456
    assert np.count_nonzero(flags & FAULTS) / len(flags) < 0.001


def test_the_clutter_of_taasrad_is_found_twice_in_frames_of_different_weeks(shared_data):
    observed = open_observations(shared_data / "taasrad19" / "validation.nc")
    assert variable_of(observed) == REFLECTIVITY.name
    half = observed.sizes["time"] // 2
    first, second = (
        clutter_map(observed.isel(time=part)) for part in (slice(half), slice(half, None))
    )
    one, other = first["clutter"].values, second["clutter"].values
    assert 100 < one.sum() < 800  # of 4096
    assert (one & other).sum() / (one | other).sum() > 0.6
    distance = np.hypot(first["y"], first["x"]).values
    outer = (distance > 112e3) & (distance < 120e3)  # the outermost noise ring
    assert one[outer].mean() > 0.5
    assert one[(distance < 80e3)].mean() < 0.1  # single mountains


def test_one_wet_night_of_knmi_is_not_enough_for_a_clutter_map(shared_data):
    observed = open_observations(shared_data / "radar" / "knmi_hdf5" / "*.h5")
    with pytest.raises(ValueError, match="there are 0 on 0 days"):
        clutter_map(observed)


def test_flagged_frames_are_left_out_by_name():
    times = np.arange("2024-06-01T12:00", "2024-06-01T12:20", 5, dtype="datetime64[m]")
    times = times.astype("datetime64[ns]")
    flags = quality_variable(times, np.array([0, 8, 32, 9]))
    observed = xr.Dataset({"rain_rate": ("time", [0.0, 1, 2, 3])}, {"quality_flag": flags})
    kept = without(observed, ("frozen", "all_missing"))
    assert list(kept["rain_rate"].values) == [0, 2]
    with pytest.raises(ValueError, match="unknown quality flags ice; known: all_missing"):
        without(observed, ("ice",))
    with pytest.raises(ValueError, match="ingest the files"):
        without(observed.drop_vars("quality_flag"), ("frozen",))
