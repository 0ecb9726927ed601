import knmi_sample
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nowcast.cache import build_cache, coding_of
from nowcast.conventions import RAIN_RATE, REFLECTIVITY, check_observations
from nowcast.data import grids
from nowcast.data.grids import coarsen, on_one_canvas
from nowcast.data.labels import with_labels
from nowcast.data.observations import fingerprint, open_by_grid, open_observations
from nowcast.data.synthetic import synthesise

STEP = pd.Timedelta("5min")
N = np.nan


@pytest.fixture
def observed(tmp_path):
    rain_mm = np.array(
        [
            [0.0, 0.1, np.nan, np.nan, 1.0],
            [0.2, 0.1, 0.3, np.nan, 1.0],
            [np.nan, np.nan, 0.0, 0.0, 1.0],
            [np.nan, np.nan, 0.0, np.nan, 1.0],
        ]
    )
    path = knmi_sample.write_knmi(tmp_path / "a.h5", rain_mm, "2024-06-01T12:00")
    return open_observations(path)


def test_a_coarse_pixel_is_the_mean_of_what_was_observed(observed):
    coarse = coarsen(observed, 2)
    expected = [[[1.2, np.nan], [np.nan, 0.0]]]
    np.testing.assert_allclose(coarse["rain_rate"], expected, rtol=1e-6)


def test_half_of_the_pixels_suffice(observed):
    half = observed.copy()
    half["rain_rate"] = half["rain_rate"].fillna(0.0).where(half["x"] > 1000.0)
    assert np.isfinite(coarsen(half, 2)["rain_rate"].values).all()


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_missing_never_becomes_dry(factor):
    generator = np.random.default_rng(1)
    values = generator.random((3, 24, 24)).astype("f4")
    values[generator.random(values.shape) < 0.5] = np.nan
    coords = {"y": np.arange(24.0), "x": np.arange(24.0)}
    fields = xr.Dataset({"rain_rate": (("time", "y", "x"), values)}, coords)
    coarse = coarsen(fields, factor)["rain_rate"].values
    blocks = values.reshape(3, 24 // factor, factor, 24 // factor, factor)
    observed_part = np.isfinite(blocks).mean(axis=(2, 4))
    np.testing.assert_array_equal(np.isnan(coarse), observed_part < 0.5)
    assert not (coarse == 0).any()


def test_coordinates_are_averaged_and_the_rest_is_kept(observed):
    coarse = check_observations(coarsen(observed, 2))
    np.testing.assert_allclose(coarse["x"], [1000.0, 3000.0])
    np.testing.assert_allclose(coarse["y"], [-3651000.0, -3653000.0])
    assert coarse["x"].attrs == observed["x"].attrs
    assert coarse["rain_rate"].attrs == observed["rain_rate"].attrs
    assert coarse["rain_rate"].dtype == np.float32
    assert coarse.attrs == observed.attrs
    xr.testing.assert_identical(coarse["time_bnds"], observed["time_bnds"])
    assert coarse["crs"].attrs == observed["crs"].attrs


def test_dask_and_numpy_give_the_same(observed, computing_fails):
    expected = coarsen(observed.compute(), 2)
    with computing_fails():
        lazy = coarsen(observed.chunk(y=3, x=2), 2)
    xr.testing.assert_allclose(lazy.compute(), expected)


def test_the_factor_1_gives_the_same(observed):
    assert coarsen(observed, 1) is observed


@pytest.mark.parametrize("factor", [0, -2, 5])
def test_an_unfit_factor_is_refused(observed, factor):
    with pytest.raises(ValueError, match=f"coarsened by {factor}; give 1 to 4 pixels"):
        coarsen(observed, factor)


def radar(values, *, start="2020-01-01T00:00", source="one", step=STEP, spacing=(2000.0, 2000.0)):
    """Frames as a radar of this name has them: y falling, x rising, far from the origin."""
    values = np.asarray(values, np.float32)
    times = pd.date_range(start, periods=len(values), freq=step)
    y, x = (along * np.arange(size) for along, size in zip(spacing, values.shape[1:], strict=True))
    return xr.Dataset(
        {"rain_rate": (("time", "y", "x"), values, RAIN_RATE.attributes)},
        {
            "time": times,
            "time_bnds": (("time", "bnds"), np.stack([times - step, times], axis=1)),
            "y": ("y", 7e5 - y, {"units": "m"}),
            "x": ("x", -3e5 + x, {"units": "m"}),
            "crs": ((), 0, {"grid_mapping_name": "stereographic", "false_easting": len(source)}),
        },
        {"source": source, "Conventions": "CF-1.11"},
    )


def low(**options):
    """Two frames of 2 by 3 pixels."""
    return radar([[[0, 1, N], [2, 3, 4]], [[5, 0, 0], [N, N, 6]]], **options)


def tall(**options):
    """A frame of 5 by 2 pixels, a day later."""
    frame = [[[1, 2], [3, 4], [5, N], [7, 0], [9, 10]]]
    return radar(frame, **{"start": "2020-01-02T00:00", "source": "two", **options})


ON_CANVAS = [  # 5 by 3 pixels
    [[N, N, N], [0, 1, N], [2, 3, 4], [N, N, N], [N, N, N]],
    [[N, N, N], [5, 0, 0], [N, N, 6], [N, N, N], [N, N, N]],
    [[1, 2, N], [3, 4, N], [5, N, N], [7, 0, N], [9, 10, N]],
]


def test_each_frame_lies_in_the_middle_of_the_canvas_and_beyond_it_is_missing():
    canvas = on_one_canvas([low(), tall()])
    np.testing.assert_array_equal(canvas["rain_rate"], ON_CANVAS)
    assert canvas["rain_rate"].dtype == np.float32
    np.testing.assert_array_equal(
        canvas["time"].to_index(), [*low()["time"].to_index(), *tall()["time"].to_index()]
    )
    np.testing.assert_array_equal(canvas["time_bnds"][:, 1], canvas["time"])
    assert canvas["time"].attrs["bounds"] == "time_bnds"


def test_the_coordinates_are_those_of_no_place_and_say_so():
    canvas = check_observations(on_one_canvas([low(), tall()]), RAIN_RATE)
    np.testing.assert_array_equal(canvas["y"], [8000.0, 6000.0, 4000.0, 2000.0, 0.0])
    np.testing.assert_array_equal(canvas["x"], [0.0, 2000.0, 4000.0])
    assert canvas["crs"].attrs["grid_mapping_name"] == "canvas"
    assert "of no place on earth" in canvas.attrs["comment"]
    assert canvas.attrs["source"] == "one; two"
    assert canvas.attrs["Conventions"] == "CF-1.11"
    assert canvas.attrs["parts"].split("\n") == [
        "part 1 (one): 2 frames of 2 x 3 pixels, from row 1 and column 0 on",
        "part 2 (two): 1 frames of 5 x 2 pixels, from row 0 and column 0 on",
    ]


@pytest.mark.parametrize("axes", [["y"], ["x"], ["y", "x"]])
def test_grids_that_run_the_other_way_are_turned_upright(axes):
    turned = tall().isel({axis: slice(None, None, -1) for axis in axes})
    for parts in ([low(), turned], [turned, low()]):
        np.testing.assert_array_equal(on_one_canvas(parts)["rain_rate"], ON_CANVAS)


def test_frames_come_in_the_order_of_time_whatever_the_order_of_the_parts():
    canvas = on_one_canvas([tall(start="2020-01-01T12:00"), low()])
    np.testing.assert_array_equal(canvas["rain_rate"], ON_CANVAS)
    early, late = low(), low(start="2021-01-01T00:00")
    around = xr.concat([early, late], dim="time", data_vars="minimal", coords="minimal")
    canvas = on_one_canvas([around, tall()])
    np.testing.assert_array_equal(canvas["rain_rate"], [*ON_CANVAS, *ON_CANVAS[:2]])
    assert canvas["time"].to_index().is_monotonic_increasing


@pytest.mark.parametrize("lazy", [True, False])
def test_the_canvas_is_lazy_and_the_same_every_time(lazy, computing_fails):
    parts = [part.chunk(time=1, x=1) if lazy else part for part in (low(), tall())]
    with computing_fails():
        canvas = on_one_canvas(parts)
        again = on_one_canvas(parts)
    assert canvas["rain_rate"].data.name == again["rain_rate"].data.name  # the cache goes by it
    assert canvas["rain_rate"].chunks[1:] == ((5,), (3,))
    np.testing.assert_array_equal(canvas["rain_rate"], ON_CANVAS)
    assert fingerprint(canvas) == fingerprint(again)


def test_counts_become_numbers_that_can_be_missing():
    counts = low()
    counts["rain_rate"] = counts["rain_rate"].fillna(0).astype(np.int16)
    canvas = on_one_canvas([counts, tall()])
    assert canvas["rain_rate"].dtype == np.float32
    assert int(canvas["rain_rate"][0].isnull().sum()) == 9


def test_what_not_all_parts_say_of_their_frames_is_left_out():
    canvas = on_one_canvas([low(), tall().drop_vars("time_bnds")])
    assert "time_bnds" not in canvas.variables
    assert "bounds" not in canvas["time"].attrs
    other = low()
    other["rain_rate"].attrs.update(cell_methods="time: mean", comment="from reflectivity")
    canvas = on_one_canvas([other, tall()])
    assert canvas["rain_rate"].attrs == RAIN_RATE.attributes
    assert canvas.attrs["parts"].split("\n")[0].endswith("column 0 on; from reflectivity")


def test_labels_are_kept_if_they_mean_the_same():
    one, two = with_labels(low(), [0, 1], ["dry", "wet"]), with_labels(tall(), [1], ["dry", "wet"])
    assert on_one_canvas([one, two])["label"].values.tolist() == [0, 1, 1]
    assert on_one_canvas([one, two])["label"].attrs["flag_meanings"] == "dry wet"
    other = with_labels(tall(), [1], ["wet", "dry"])
    assert "label" not in on_one_canvas([one, other]).coords


def test_pixels_may_differ_by_a_hundredth_as_for_a_trained_network():
    from nowcast.nowcasters import neural

    assert neural.SPACING_TOLERANCE == grids.SPACING_TOLERANCE
    canvas = on_one_canvas([low(), tall(spacing=(1999.26, 1999.35))])
    np.testing.assert_array_equal(canvas["rain_rate"], ON_CANVAS)
    np.testing.assert_array_equal(canvas["x"], [0.0, 2000.0, 4000.0])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "needs one or more parts"),
        (
            [low(), tall(spacing=(2000.0, 1000.0))],
            r"part 1 \(one\) has pixels of 2000 m along x, part 2 \(two\) of 1000 m",
        ),
        ([low(), tall(spacing=(2021.0, 2000.0))], "part 2 .two. of 2021 m; .* differ by 1% at"),
        ([low(), tall().isel(x=[0])], "part 2 .two. of nan m"),
        (
            [low(), low(start="2021-01-01", step=pd.Timedelta("6min"), source="two")],
            r"part 1 \(one\) has a frame every 5 min, part 2 \(two\) every 6 min",
        ),
        (
            [low(), tall(start="2020-01-01T00:10")],
            r"part 1 \(one\) has a frame at 2020-01-01T00:05:00 and part 2 \(two\) one at "
            "2020-01-01T00:10:00; .* more than 5 min apart",
        ),
        ([low(), tall(start="2020-01-01T00:05")], "part 2 .two. one at 2020-01-01T00:05:00"),
        ([low(), tall(start="2020-01-01T00:02")], "more than 5 min apart"),
    ],
)
def test_parts_that_do_not_fit_together_are_refused_by_name(parts, message):
    with pytest.raises(ValueError, match=message):
        on_one_canvas(parts)


def test_degrees_and_other_quantities_are_refused_by_name():
    degrees = tall()
    degrees["x"].attrs["units"] = "degrees_east"
    with pytest.raises(ValueError, match=r"grid of part 2 \(two\) is in degrees_east"):
        on_one_canvas([low(), degrees])
    other = tall().rename(rain_rate="reflectivity")
    other["reflectivity"].attrs = REFLECTIVITY.attributes
    with pytest.raises(ValueError, match=r"one\) holds rain_rate in mm h-1, part 2 .* in dBZ"):
        on_one_canvas([low(), other])


def test_windows_with_longer_steps_need_frames_further_apart():
    parts = [low(), tall(start="2020-01-01T00:15")]
    assert on_one_canvas(parts).sizes["time"] == 3
    with pytest.raises(ValueError, match="more than 10 min apart, so that no window holds both"):
        on_one_canvas(parts, apart=pd.Timedelta("10min"))


def test_a_cache_of_two_grids_keeps_runs_and_what_is_missing(tmp_path):
    small = synthesise(events=2, hours=1, size=8, step_minutes=5, seed=1)
    large = synthesise(events=1, hours=2, size=12, step_minutes=5, seed=2)
    large = large.assign_coords(time=large["time"] + np.timedelta64(1000, "D"))
    small["rain_rate"][3, 2, 1] = np.nan
    for name, part in (("large", large), ("small", small)):
        part.drop_vars("time_bnds").to_netcdf(tmp_path / f"{name}.nc")
    canvas = on_one_canvas(open_by_grid(tmp_path / "*.nc"), apart=STEP)
    cache = build_cache(
        canvas, tmp_path / "cache", variable=RAIN_RATE, coding=coding_of(RAIN_RATE), step=STEP
    )
    assert [run.length for run in cache.runs] == [13, 13, 25]
    assert cache.codes.shape == (51, 12, 12)
    decoded = cache.coding.decode(cache.codes)
    np.testing.assert_allclose(decoded[:26, 2:10, 2:10], small["rain_rate"], atol=0.0101)
    np.testing.assert_allclose(decoded[26:], large["rain_rate"], atol=0.0101)
    assert int(np.isnan(decoded).sum()) == 26 * (144 - 64) + 1
    assert cache.statistics["observed"][3] == pytest.approx(63 / 144, abs=1e-5)


def test_real_composites_of_three_radars_share_a_canvas(shared_data):
    folder = shared_data / "radar"
    patterns = ["knmi_hdf5/*0000.h5", "fmi_pgm/*1500_*.gz", "mch_gif/AQC170311000*.gif"]
    opened = open_by_grid([str(folder / each) for each in patterns], variable=RAIN_RATE)
    parts = [coarsen(part, 2) for part in opened]
    canvas = on_one_canvas(parts)
    assert canvas["rain_rate"].shape == (len(canvas["time"]), 613, 380)
    assert canvas.attrs["source"] == "KNMI; FMI; MeteoSwiss"
    corners = {"KNMI": (115, 15), "FMI": (0, 0), "MeteoSwiss": (146, 12)}
    for part in parts:
        (row, column), rows, columns = corners[part.attrs["source"]], *part["rain_rate"].shape[1:]
        whole = canvas["rain_rate"].sel(time=part["time"]).values
        inside = whole[:, row : row + rows, column : column + columns]
        np.testing.assert_array_equal(inside, part["rain_rate"])
        assert np.isfinite(whole).sum() == np.isfinite(inside).sum() > 10_000
