import h5py
import numpy as np
import pandas as pd
import pytest
from pyproj import CRS, Transformer
from sevir_sample import BOTTOM, FRAMES, LEFT, OFFSETS, PIXELS, row, write_catalog, write_sevir

from nowcast.conventions import check_observations, check_values, grid_id
from nowcast.data.archive import ingest, partitions
from nowcast.data.readers import READERS, sniff
from nowcast.data.readers.sevir import VIL, decode, read_events, read_sevir

NAME = "SEVIR_VIL_STORMEVENTS_2018_0101_0630.h5"
EVENT = "S728503"


@pytest.fixture
def folder(tmp_path):
    """A folder as SEVIR's: the catalog above the data."""
    (tmp_path / "data" / "vil" / "2018").mkdir(parents=True)
    return tmp_path / "data" / "vil" / "2018"


@pytest.fixture
def sevir_file(folder):
    counts = np.zeros((PIXELS, PIXELS, FRAMES))
    counts[0, 0] = np.arange(FRAMES)  # south-west
    counts[-1, 0] = 255  # north-west
    counts[0, -1] = 254
    return write_sevir(folder / NAME, [(EVENT, counts)])


@pytest.fixture
def catalog(folder, sevir_file):
    def write(**changes):
        return write_catalog(folder.parents[2], [row(EVENT, 0, sevir_file.name, **changes)])

    return write


def test_its_files_are_told_by_content_and_not_called_seen(sevir_file):
    assert sniff(sevir_file) == "sevir"
    assert not READERS["sevir"].seen


def test_counts_become_kg_per_square_metre():
    assert decode(np.array([0, 5])).tolist() == [0.0, 0.0]
    np.testing.assert_allclose(decode(np.array([6, 18])), [4 / 90.66, 16 / 90.66], rtol=1e-6)
    np.testing.assert_allclose(decode(np.array([84])), [np.exp(0.1 / 38.9)], rtol=1e-6)
    assert np.isnan(decode(np.array([255]))).all()
    # The parts meet: the step over the seam is about as large as those beside it.
    steps = np.diff(decode(np.arange(16, 22)))
    assert (steps > 0).all()
    assert steps.max() / steps.min() < 3
    assert np.nanmax(decode(np.arange(256))) < VIL.valid_max


def test_an_event_keeps_the_convention(sevir_file, catalog):
    catalog()
    observed = check_values(check_observations(read_sevir(sevir_file), VIL), VIL)
    values = observed["vertically_integrated_liquid"]
    assert values.shape == (FRAMES, PIXELS, PIXELS)
    assert values.attrs["units"] == "kg m-2"
    np.testing.assert_array_equal(values[:, 0, 0], decode(np.arange(FRAMES)))
    assert np.isnan(values[:, -1, 0]).all()
    assert (values[:, 200, 200] == 0).all()
    np.testing.assert_allclose(values[:, 0, -1], np.exp((254 - 83.9) / 38.9), rtol=1e-6)


def test_times_come_from_the_catalog(sevir_file, catalog):
    catalog()
    times = read_sevir(sevir_file)["time"].to_index()
    expected = pd.Timestamp("2018-06-01 05:05") + pd.to_timedelta(OFFSETS, unit="min")
    assert times.tolist() == expected.tolist()


def test_the_first_row_is_the_southernmost_of_the_events_own_grid(sevir_file, catalog):
    catalog()
    observed = read_sevir(sevir_file)
    np.testing.assert_allclose(observed["x"], LEFT + 500 + 1000 * np.arange(PIXELS))
    np.testing.assert_allclose(observed["y"], BOTTOM + 500 + 1000 * np.arange(PIXELS))
    crs = CRS.from_cf(observed["crs"].attrs)
    project = Transformer.from_crs(crs.geodetic_crs, crs, always_xy=True).transform
    assert project(-98.0, 38.0) == pytest.approx((0.0, 0.0), abs=1e-6)
    assert crs.ellipsoid.semi_minor_metre == 6370997.0


def test_a_frame_that_repeats_the_one_before_is_absent(sevir_file, catalog):
    offsets = list(OFFSETS)
    offsets[10] = offsets[11] = offsets[9]
    catalog(minute_offsets=":".join(map(str, offsets)))
    observed = read_sevir(sevir_file)
    expected = np.delete(np.arange(FRAMES), [10, 11])
    np.testing.assert_array_equal(
        observed["vertically_integrated_liquid"][:, 0, 0], decode(expected)
    )
    gap = np.diff(observed["time"].values)[9] / np.timedelta64(1, "m")
    assert gap == 15


def test_without_the_catalog_there_are_no_times(sevir_file):
    with pytest.raises(ValueError, match=r"has no times of its own; put SEVIR's CATALOG\.csv"):
        read_sevir(sevir_file)


def test_the_catalog_may_lie_beside_the_file_or_above(folder, sevir_file):
    for place in (folder, folder.parents[2]):
        path = write_catalog(place, [row(EVENT, 0, NAME)])
        assert read_sevir(sevir_file).attrs["catalog_sha256"]
        path.unlink()


def test_each_event_of_many_has_a_grid_of_its_own(folder):
    path = write_sevir(folder / NAME, [("S1", 10), ("R2", 20)])
    rows = [row("R2", 1, NAME, corner=(-300_000.0, 0.0)), row("S1", 0, NAME)]
    write_catalog(folder, [*rows, row("S1", 0, NAME, img_type="vis"), row("S1", 7, "other.h5")])
    events = list(read_events(path))
    assert [event.attrs["event"] for event in events] == ["S1", "R2"]
    assert len({grid_id(event) for event in events}) == 2
    assert len({event.attrs["input_sha256"] for event in events}) == 2
    for event, counts in zip(events, (10, 20), strict=True):
        check_values(check_observations(event, VIL), VIL)
        assert (event["vertically_integrated_liquid"] == decode(np.array(counts))).all()


def test_a_file_of_many_events_is_not_one_dataset(folder):
    path = write_sevir(folder / NAME, [("S1", 10), ("R2", 20)])
    with pytest.raises(
        ValueError, match=r"holds 2 events, each on a grid of its own; .*read_events"
    ):
        read_sevir(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"id": "S1"}, f"0 rows for the event '{EVENT}'"),
        ({"file_index": 3}, "file_index 0, is needed"),
        ({"file_name": "vil/2018/other.h5"}, "0 rows"),
        ({"img_type": "ir069"}, "0 rows"),
        ({"time_utc": "soon"}, "has no times"),
        ({"time_utc": ""}, "has no times|a UTC time and 49 are needed"),
        ({"time_utc": "2018-06-01 05:05:00+02:00"}, "a UTC time and 49 are needed"),
        ({"minute_offsets": "0:5:10"}, "has 3 offsets"),
        ({"minute_offsets": "a:b"}, "has no times"),
        ({"proj": "+proj=laea +lat_0=38 +lon_0=-98 +nadgrids=x"}, "not known"),
        ({"proj": "+proj=laea +lat_0=38 +lon_0=-90 +a=6370997.0"}, "not 384 pixels of 1000 m"),
        ({"urcrnrlon": -90.0}, "not 384 pixels"),
        ({"llcrnrlat": float("nan")}, "not 384 pixels"),
    ],
)
def test_a_catalog_that_disagrees_is_refused(sevir_file, catalog, changes, message):
    catalog(**changes)
    with pytest.raises(ValueError, match=message):
        read_sevir(sevir_file)


def test_a_catalog_without_the_columns_needed_is_refused(folder, sevir_file):
    (folder / "CATALOG.csv").write_text("id,file_name\nS1,x.h5\n")
    with pytest.raises(ValueError, match="is no catalog of SEVIR"):
        read_sevir(sevir_file)


def test_an_event_with_two_rows_is_refused(folder, sevir_file):
    write_catalog(folder, [row(EVENT, 0, NAME), row(EVENT, 0, NAME)])
    with pytest.raises(ValueError, match="2 rows for the event"):
        read_sevir(sevir_file)


@pytest.mark.parametrize(
    ("shape", "dtype"), [((1, 192, 192, 49), "u1"), ((1, 384, 384, 49), "i2"), ((1, 384), "u1")]
)
def test_images_that_are_not_sevirs_are_refused(folder, shape, dtype):
    with h5py.File(folder / NAME, "w") as file:
        file["id"] = np.array([b"S1"])
        file["vil"] = np.zeros(shape, dtype)
    with pytest.raises(ValueError, match=r"SEVIR's are \(384, 384, 49\) of uint8"):
        read_sevir(folder / NAME)


@pytest.mark.parametrize("ids", [None, np.array([1]), np.array([b"S1", b"S2"])])
def test_images_without_an_id_each_are_refused(sevir_file, ids):
    with h5py.File(sevir_file, "a") as file:
        del file["id"]
        if ids is not None:
            file["id"] = ids
    with pytest.raises(ValueError, match="the events lack an id each"):
        read_sevir(sevir_file)


def test_counts_that_were_never_written_are_not_dry(sevir_file, catalog):
    catalog()
    with h5py.File(sevir_file, "a") as file:
        del file["vil"]
        shape = (1, PIXELS, PIXELS, FRAMES)
        file.create_dataset("vil", shape, "u1", chunks=(1, PIXELS, PIXELS, 7))[..., :7] = 1
    with pytest.raises(ValueError, match="incomplete"):
        read_sevir(sevir_file)


def test_no_link_is_followed(sevir_file, catalog, tmp_path):
    catalog()
    other = tmp_path / "other.h5"
    other.write_bytes(sevir_file.read_bytes())
    with h5py.File(sevir_file, "a") as file:
        del file["vil"]
        file["vil"] = h5py.ExternalLink(str(other), "vil")
    with pytest.raises(ValueError, match="none is followed"):
        read_sevir(sevir_file)


def test_a_file_cut_short_anywhere_is_refused(sevir_file, catalog):
    catalog()
    content = sevir_file.read_bytes()
    for size in {*np.linspace(0, len(content) - 1, 200).astype(int), len(content) - 1}:
        sevir_file.write_bytes(content[:size])
        with pytest.raises((ValueError, OSError, RuntimeError, KeyError)):
            read_sevir(sevir_file)


def test_each_event_of_a_file_becomes_a_partition_of_its_own(tmp_path):
    path = write_sevir(tmp_path / "two.h5", [("S1", 30), ("S2", 60)])
    rows = [
        row("S1", 0, path.name),
        row("S2", 1, path.name, corner=(0.0, 0.0)),
    ]
    write_catalog(tmp_path, rows)
    report = ingest(path, tmp_path / "archive")
    assert (report.added, report.refused) == (98, ())
    held = partitions(tmp_path / "archive")
    assert [(part.rsplit("/", 1)[0], count) for part, (count, _, _) in held.items()] == [
        ("sevir/vil", 49),
        ("sevir/vil", 49),
    ]
