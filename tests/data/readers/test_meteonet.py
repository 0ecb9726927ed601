import datetime
import io
import os
import pickle
import subprocess
import sys
import tracemalloc
import zipfile

import meteonet_sample as sample
import numpy as np
import pytest

from nowcast.conventions import check_observations, check_values, grid_id
from nowcast.data.readers import read
from nowcast.data.readers.meteonet import MOST_FRAMES, parse_dates


@pytest.fixture(scope="session")
def rain_file(tmp_path_factory):
    return sample.write_meteonet(tmp_path_factory.mktemp("rain") / "rain.npz", sample.rainfall())


@pytest.fixture(scope="session")
def meteonet_files(shared_data):
    folder = shared_data / "radar/meteonet_npz"
    return {
        "rain_rate": folder / "rainfall_NW_2016_08.3.npz",
        "reflectivity": folder / "reflectivity_old_NW_2016_08.3.npz",
        "grid": folder / "radar_coords_NW.npz",
    }


class Marking:
    """What a pickle can do to whoever loads it: here, leave a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_hundredths_of_a_millimetre_become_rain_rate(rain_file):
    observed = check_values(read(rain_file))
    counts = sample.rainfall()
    expected = np.where(counts < 0, np.nan, counts * 0.12)
    np.testing.assert_allclose(observed["rain_rate"].values, expected, rtol=1e-6)
    assert observed["rain_rate"].dtype == np.float32
    assert observed["rain_rate"].attrs["units"] == "mm h-1"


def test_missing_stays_missing_and_dry_stays_dry(rain_file):
    values = read(rain_file)["rain_rate"].values
    counts = sample.rainfall()
    np.testing.assert_array_equal(np.isnan(values), counts == -1)
    np.testing.assert_array_equal(values == 0, counts == 0)


def test_reflectivity_is_told_from_rain_by_its_missing_pixels(tmp_path):
    path = sample.write_meteonet(tmp_path / "z.npz", sample.reflectivity())
    values = check_values(read(path))["reflectivity"].values
    counts = sample.reflectivity()
    np.testing.assert_array_equal(np.isnan(values), counts == 255)
    np.testing.assert_array_equal(values[counts != 255], counts[counts != 255])
    assert "time_bnds" not in read(path).variables


def test_the_new_reflectivity_is_in_tenths_and_has_no_echo_below_zero(tmp_path):
    counts = np.full((1, *sample.SHAPE), -200, "<i2")
    counts[0, 0, :4] = -100, -90, 5, 455
    extra = {name: sample.npy(np.zeros(counts.shape, "i2")) for name in ("prob", "height")}
    observed = read(sample.write_meteonet(tmp_path / "new.npz", counts, **extra))
    values = observed["reflectivity"].values[0]
    np.testing.assert_allclose(values[0, :4], [0, 0, 0.5, 45.5])
    assert np.isnan(values[1:]).all()
    assert observed.attrs["product"] == "MeteoNet reflectivity new NW"


def test_the_accumulation_ends_at_its_time(rain_file):
    observed = read(rain_file)
    np.testing.assert_array_equal(observed["time"], np.array(sample.times(3), "datetime64[ns]"))
    lengths = np.diff(observed["time_bnds"].values, axis=1)
    assert (lengths == np.timedelta64(5, "m")).all()
    np.testing.assert_array_equal(observed["time_bnds"][:, 1], observed["time"])


def test_frames_that_are_missing_are_absent(tmp_path):
    there = sample.times(3, minutes=30)
    missing = [time for time in sample.times(13) if time not in there]
    path = sample.write_meteonet(
        tmp_path / "gaps.npz", sample.rainfall(), at=there, missing=missing
    )
    assert read(path).sizes["time"] == 3


def test_the_grid_is_that_of_the_coordinates_beside_the_frames(tmp_path):
    path = sample.write_meteonet(tmp_path / "rain.npz", sample.rainfall(1))
    alone = read(path)
    sample.write_coordinates(tmp_path / "radar_coords_NW.npz")
    assert grid_id(read(path)) == grid_id(alone)
    sample.write_coordinates(tmp_path / "radar_coords_NW.npz", shift=0.005)
    with pytest.raises(ValueError, match="gives other lons than those known of the zone NW"):
        read(path)


def test_frames_are_lazy(rain_file, computing_fails):
    with computing_fails():
        observed = check_observations(read(rain_file))
    assert observed["rain_rate"].chunks is not None


def test_blocks_of_frames_may_be_read_in_any_order(tmp_path):
    counts = sample.rainfall(70)
    observed = read(sample.write_meteonet(tmp_path / "many.npz", counts))["rain_rate"]
    assert observed.chunks[0] == (32, 32, 6)
    for position in (69, 0, 40, 31, 32, 1):
        expected = np.where(counts[position] < 0, np.nan, counts[position] * 0.12)
        np.testing.assert_allclose(observed[position].values, expected, rtol=1e-6)


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_dates_are_read_as_numpy_wrote_them(protocol):
    dates = [
        datetime.datetime(2016, 8, 21, 0, 10),
        datetime.datetime(1999, 12, 31, 23, 59, 58, 999_999),
        datetime.datetime(2024, 2, 29),
    ]
    raw = pickle.dumps(np.array(dates, dtype=object), protocol=protocol)
    assert parse_dates(raw) == dates
    assert parse_dates(pickle.dumps(np.array([], dtype=object), protocol=protocol)) == []


@pytest.mark.parametrize(
    "content",
    [
        [datetime.datetime(2016, 8, 21, tzinfo=datetime.UTC)],
        [datetime.date(2016, 8, 21)],
        ["2016-08-21"],
        [b"2016-08-21"[:9]],
        [1.5],
        [{"a": 1}],
    ],
)
def test_what_are_no_dates_without_a_zone_is_refused(content):
    with pytest.raises(ValueError, match="date"):
        parse_dates(pickle.dumps(np.array(content, dtype=object), protocol=4))


@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
@pytest.mark.parametrize("member", ["dates", "miss_dates"])
def test_a_pickle_that_would_run_is_refused_and_does_not(tmp_path, protocol, member):
    marker = tmp_path / "marker"
    raw = sample.pickled([Marking(marker)], protocol=protocol)
    path = sample.write_meteonet(tmp_path / "evil.npz", sample.rainfall(1), **{member: raw})
    with pytest.raises(ValueError, match="no plain array of dates"):
        read(path)
    assert not marker.exists()
    with np.load(path, allow_pickle=True) as loaded:
        _ = loaded[member]
    assert marker.exists()  # so the pickle does run where it is loaded


def test_a_frame_that_is_there_and_missing_is_refused(tmp_path):
    path = sample.write_meteonet(
        tmp_path / "odd.npz", sample.rainfall(), missing=sample.times(3)[1:2]
    )
    with pytest.raises(ValueError, match="1 frames, that of 2016-08-21 00:15:00 first, are both"):
        read(path)


def broken(name):
    counts = sample.rainfall(2)
    if name == "below -1":
        counts[0, 300, 300] = -2
    if name == "none missing":
        counts[counts == -1] = 0
    if name == "too heavy":
        counts[0, 300, 300] = 8334
    if name == "quality code":
        counts = np.where(counts == -1, 255, counts % 101).astype("<i2")
    if name == "floats":
        counts = counts.astype("<f4")
    if name == "another zone":
        counts = counts[:, :515]
    if name == "columns first":
        counts = np.asfortranarray(counts)
    return counts


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("below -1", "values from -2 to"),
        ("none missing", "is neither rainfall"),
        ("too heavy", "to 8334, is neither rainfall"),
        ("quality code", "is neither rainfall"),
        ("floats", "whole numbers of up to 32 bits"),
        ("another zone", "only those of the zone NW"),
        ("columns first", "is declared, in"),
    ],
)
def test_frames_that_are_not_those_described_are_refused(tmp_path, name, message):
    path = sample.write_meteonet(tmp_path / "odd.npz", broken(name))
    with pytest.raises(ValueError, match=message):
        read(path)


def test_later_frames_are_held_against_the_description_too(tmp_path):
    counts = sample.rainfall(40)
    counts[39, 300, 300] = -7
    observed = read(sample.write_meteonet(tmp_path / "odd.npz", counts))["rain_rate"]
    assert float(observed[0].max()) > 0
    with pytest.raises(ValueError, match="values from -7 to"):
        observed[39].load()


@pytest.mark.parametrize("member", ["data", "dates", "miss_dates"])
def test_a_file_without_a_member_is_refused(tmp_path, member):
    path = sample.write_meteonet(tmp_path / "odd.npz", sample.rainfall(1), **{member: None})
    with pytest.raises(ValueError, match=f"holds no {member}.npy, but"):
        read(path, reader="meteonet")


def test_as_many_dates_as_frames_are_needed(tmp_path):
    path = sample.write_meteonet(tmp_path / "odd.npz", sample.rainfall(2), at=sample.times(3))
    with pytest.raises(ValueError, match="there are 2 frames, but 3 dates"):
        read(path)


@pytest.mark.parametrize("count", [0, MOST_FRAMES + 1])
def test_a_number_of_frames_that_no_file_has_is_refused(tmp_path, count):
    stream = io.BytesIO()
    header = {"descr": "<i2", "fortran_order": False, "shape": (count, *sample.SHAPE)}
    np.lib.format.write_array_header_1_0(stream, header)
    path = tmp_path / "bomb.npz"
    sample.write_meteonet(path, sample.rainfall(1), data=stream.getvalue())
    with pytest.raises(ValueError, match=r"frames are declared|is declared, in 0 bytes"):
        read(path)


def test_a_bomb_is_refused_before_memory_is_taken(tmp_path):
    """Three hundred megabytes of zeros in a third of one, among the dates and the frames."""
    zeros = bytes(10_000_000)
    for member in ("data", "dates"):
        path = sample.write_meteonet(tmp_path / "bomb.npz", sample.rainfall(1), **{member: None})
        with (
            zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
            archive.open(f"{member}.npy", "w", force_zip64=True) as stream,
        ):
            stream.write(sample.npy(np.zeros((3, *sample.SHAPE), "<i2"))[:128])
            for _ in range(30):
                stream.write(zeros)
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"300,000,\d\d\d bytes"):
            read(path)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
        tracemalloc.stop()


def test_a_truncated_file_is_refused_wherever_it_ends(rain_file, tmp_path):
    content = rain_file.read_bytes()
    ends = {*np.linspace(0, len(content) - 1, 200, dtype=int), len(content) - 1, len(content) - 2}
    path = tmp_path / "cut.npz"
    for end in ends:
        path.write_bytes(content[:end])
        with pytest.raises(ValueError, match=r"cut\.npz"):
            read(path, reader="meteonet")


def test_damage_among_the_frames_is_found_by_their_checksum(tmp_path):
    counts = sample.rainfall(2)
    path = tmp_path / "stored.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("data.npy", sample.npy(counts))
        archive.writestr("dates.npy", sample.pickled(sample.times(2)))
        archive.writestr("miss_dates.npy", sample.pickled([]))
    content = bytearray(path.read_bytes())
    content[1_700_000] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        read(path)["rain_rate"].load()


def test_a_forked_process_reads_on_its_own(tmp_path):
    """A stream that two processes share would give each the frames of the other."""
    path = sample.write_meteonet(tmp_path / "many.npz", sample.rainfall(66))
    script = f"""
import os, dask, numpy as np
from nowcast.data.readers import read
dask.config.set(scheduler="synchronous")
rain = read({str(path)!r})["rain_rate"]
first = rain[0].values
if os.fork():
    sums = [float(rain[place].sum()) for place in (65, 35, 0) * 2]
    assert os.wait()[1] == 0
else:
    sums = [float(rain[place].sum()) for place in (0, 65, 35) * 2]
    assert sums[0] == float(np.nansum(first)) and sums[:3] == sums[3:6]
    os._exit(0)
assert sums[2] == float(np.nansum(first)) and sums[:3] == sums[3:6]
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("variable", "missing"), [("rain_rate", -1), ("reflectivity", 255)])
def test_real_frames_are_those_that_numpy_decodes(meteonet_files, variable, missing):
    with np.load(meteonet_files[variable], allow_pickle=True) as stored:
        counts, dates = stored["data"], stored["dates"]
    factor = {"rain_rate": 0.12, "reflectivity": 1.0}[variable]
    expected = (counts * factor).astype(np.float32)
    expected[counts == missing] = np.nan
    observed = check_values(read(meteonet_files[variable]))
    np.testing.assert_array_equal(observed[variable].values, expected)
    np.testing.assert_array_equal(observed["time"].values, dates.astype("datetime64[ns]"))


def test_the_real_grid_is_the_known_one(meteonet_files):
    observed = read(meteonet_files["rain_rate"])
    with np.load(meteonet_files["grid"]) as stored:
        np.testing.assert_allclose(observed["y"], stored["lats"][:, 0], atol=1e-9)
        np.testing.assert_allclose(observed["x"], stored["lons"][0], atol=1e-9)
        assert (np.ptp(stored["lats"], axis=1) == 0).all()


def test_radars_of_the_north_west_lie_where_the_real_mask_says(meteonet_files):
    """Within reach: Trappes near Paris and Plabennec in Brittany; beyond: the south-west corner."""
    rain = read(meteonet_files["rain_rate"])["rain_rate"][0].load()
    for latitude, longitude in ((48.77, 2.0), (48.46, -4.43)):
        assert rain.sel(y=latitude, x=longitude, method="nearest") >= 0
    assert np.isnan(rain.sel(y=51.8, x=-5.8, method="nearest"))
    assert np.isnan(rain.sel(y=46.3, x=-5.8, method="nearest"))


def test_real_rain_falls_where_there_are_echoes(meteonet_files):
    at = "2016-08-21T01:00"
    rain = read(meteonet_files["rain_rate"])["rain_rate"].sel(time=at).values[0]
    echo = read(meteonet_files["reflectivity"])["reflectivity"].sel(time=at).values[0]
    assert (echo[rain > 0.5] >= 8).mean() > 0.9
    assert (echo[rain == 0] >= 8).mean() < 0.001
