import json

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from nowcast.conventions import (
    RAIN_RATE,
    REFLECTIVITY,
    build_nowcast,
    with_exceedance,
    with_quantiles,
)
from nowcast.places import read_areas, read_points
from nowcast.verification.views import Accumulations, AtPlaces, Fields, accumulated

LEADS = pd.to_timedelta([10, 20, 30], unit="min")
TIMES = pd.date_range("2024-06-01", periods=12, freq="10min")
SHAPE = (6, 5)


@pytest.fixture
def observed():
    values = np.random.default_rng(0).gamma(1.0, 3.0, (12, *SHAPE)).astype(np.float32)
    values[7, 2, 2] = np.nan
    return xr.Dataset(
        {"rain_rate": (("time", "y", "x"), values, RAIN_RATE.attributes)},
        coords={
            "time": TIMES,
            "y": ("y", 53.0 - np.arange(6), {"units": "degrees_north"}),
            "x": ("x", 4.0 + np.arange(5), {"units": "degrees_east"}),
            "crs": ((), 0, {"grid_mapping_name": "latitude_longitude"}),
        },
    )


def _nowcast(observed, shape=(), *, variable=RAIN_RATE, leads=LEADS):
    size = (2, *shape, len(leads), *SHAPE)
    values = np.random.default_rng(1).gamma(1.0, 3.0, size).astype(np.float32)
    return build_nowcast(
        values, observed=observed, variable=variable, base_times=TIMES[4:6], lead_times=leads
    )


@pytest.fixture
def nowcast(observed):
    """With probabilities and quantiles."""
    field = _nowcast(observed)
    chances = np.repeat(np.array([0.7, 0.2])[None, :, None, None, None], 2, axis=0)
    chances = np.broadcast_to(chances, (2, 2, 3, *SHAPE))
    probable = with_exceedance(field, chances, thresholds=(1.0, 5.0))
    amounts = field["rain_rate"].values[:, None] * np.array([0.5, 2.0])[:, None, None, None]
    return with_quantiles(probable, amounts, quantiles=(0.1, 0.9))


@pytest.fixture
def points(tmp_path, observed):
    path = tmp_path / "points.csv"
    path.write_text("name,lon,lat\nA,6.1,51.2\nB,4.0,48.0\n")
    return read_points(path, observed)


@pytest.fixture
def areas(tmp_path, observed):
    rings = {"A": [[5, 50], [8, 50], [8, 52], [5, 52]], "B": [[4, 48], [5, 48], [4, 49]]}
    features = [
        {
            "type": "Feature",
            "properties": {"name": name},
            "geometry": {"type": "Polygon", "coordinates": [[*ring, ring[0]]]},
        }
        for name, ring in rings.items()
    ]
    path = tmp_path / "areas.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return read_areas(path, observed)


def truth(observed, nowcast):
    """What was observed at the valid times, as a verification has it."""
    valid = nowcast["valid_time"]
    frames = observed["rain_rate"].reindex(time=np.unique(valid))
    return frames.sel(time=valid).drop_vars("time")


def test_amounts_are_the_rates_times_the_step_added_from_the_base_time():
    rate = xr.DataArray(
        [[12.0, 0.0, 6.0], [3.0, np.nan, 6.0]],
        dims=("x", "lead_time"),
        coords={"lead_time": LEADS},
        name="rain_rate",
        attrs=RAIN_RATE.attributes,
    )
    amount = accumulated(rate)
    np.testing.assert_array_equal(amount.values, [[2.0, 2.0, 3.0], [0.5, np.nan, np.nan]])
    assert amount.attrs["units"] == "mm"
    assert amount.attrs["grid_mapping"] == "crs"
    assert rate.attrs["units"] == "mm h-1"


def test_amounts_of_many_small_rates_lose_nothing(observed):
    leads = pd.to_timedelta(np.arange(1, 289) * 5, unit="min")
    rate = _nowcast(observed, leads=leads)["rain_rate"]
    exact = rate.values.astype(np.float64).cumsum(axis=1) / 12
    np.testing.assert_allclose(accumulated(rate).values, exact, rtol=1e-7)
    lazy = accumulated(rate.chunk(lead_time=50, x=2))
    assert lazy.chunks is not None
    np.testing.assert_array_equal(lazy.values, accumulated(rate).values)


@pytest.mark.parametrize(
    ("minutes", "lacking"), [([20, 30], 10), ([10, 30], 10), ([5, 10, 30], 5), ([10, 25], 10)]
)
def test_amounts_over_lead_times_that_are_not_all_there_are_refused(observed, minutes, lacking):
    leads = pd.to_timedelta(minutes, unit="min")
    with pytest.raises(ValueError, match=rf"are {minutes[0]}, .* one step of {lacking} or more"):
        accumulated(_nowcast(observed, leads=leads)["rain_rate"])


def test_amounts_of_anything_but_rain_rate_are_refused_with_the_remedy(observed):
    dbz = _nowcast(observed, variable=REFLECTIVITY)
    for refused in (
        lambda: Accumulations().nowcast(dbz),
        lambda: Accumulations().units(REFLECTIVITY),
        lambda: accumulated(dbz["reflectivity"]),
    ):
        with pytest.raises(ValueError, match=r"received reflectivity in dBZ; .*to_rain_rate"):
            refused()


def test_the_plain_view_changes_nothing(nowcast):
    view = Fields()
    assert view.nowcast(nowcast) is nowcast
    fields = nowcast["rain_rate"]
    assert view.observed(fields) is fields
    assert (view.name, view.gridded, view.units(REFLECTIVITY)) == ("fields", True, "dBZ")


def test_amounts_keep_the_grid_and_drop_what_is_known_of_rates_alone(observed, nowcast):
    view = Accumulations()
    seen, found = view.nowcast(nowcast), view.observed(truth(observed, nowcast))
    assert set(seen) == {"rain_rate"}
    assert not {"threshold", "quantile"} & set(seen.coords)
    assert seen["rain_rate"].dims == found.dims == ("base_time", "lead_time", "y", "x")
    assert view.gridded
    expected = nowcast["rain_rate"].values.cumsum(axis=1) / 6
    np.testing.assert_allclose(seen["rain_rate"].values, expected, rtol=1e-6)
    # The frame of 01:10 lacks a pixel: the third lead time of 00:40, the second of 00:50.
    assert np.isnan(found.values[:, :, 2, 2]).tolist() == [
        [False, False, True],
        [False, True, True],
    ]
    assert np.isnan(found.values).sum() == 3


def test_points_keep_probabilities_and_quantiles_and_areas_do_not(nowcast, points, areas):
    at_points = AtPlaces(points).nowcast(nowcast)
    row, column = [2, 5], [2, 0]
    for name in ("rain_rate", "probability_of_exceedance", "value_at_quantile"):
        expected = nowcast[name].values[..., row, column][..., None, :]
        np.testing.assert_array_equal(at_points[name].values, expected)
        assert at_points[name].dims == nowcast[name].dims
    assert set(AtPlaces(areas).nowcast(nowcast)) == {"rain_rate"}
    assert set(AtPlaces(points, accumulated=True).nowcast(nowcast)) == {"rain_rate"}


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("members", [(), (4,)], ids=["one", "ensemble"])
def test_areas_are_reduced_member_by_member_and_the_observed_alike(
    observed, areas, accumulate, members
):
    nowcast = _nowcast(observed, members)
    view = AtPlaces(areas, accumulate)
    seen, found = view.nowcast(nowcast), view.observed(truth(observed, nowcast))
    assert seen["rain_rate"].dims == nowcast["rain_rate"].dims
    assert found.dims == ("base_time", "lead_time", "y", "x")
    assert found.sizes["y"] == 1
    assert found.sizes["x"] == 2
    whole = np.full((4, 6, 5), 0.0)[0]
    whole[1:4, 1:5] = np.outer([0.5, 1.0, 0.5], [0.5, 1.0, 1.0, 0.5])  # of A, 6 pixels large

    def by_hand(values):
        values = values.astype(np.float64)
        values = values.cumsum(axis=-3) / 6 if accumulate else values
        seen = ~np.isnan(values)
        total = (np.where(seen, values, 0.0) * whole).sum(axis=(-2, -1))
        return total / (seen * whole).sum(axis=(-2, -1))

    np.testing.assert_allclose(
        seen["rain_rate"].values[..., 0, 0], by_hand(nowcast["rain_rate"].values), rtol=1e-6
    )
    np.testing.assert_allclose(
        found.values[..., 0, 0], by_hand(truth(observed, nowcast).values), rtol=1e-6
    )
    xr.align(seen["rain_rate"], found, join="exact")


def test_units_and_names_tell_views_apart(points, areas):
    views = [
        Fields(),
        Accumulations(),
        AtPlaces(points),
        AtPlaces(points, accumulated=True),
        AtPlaces(areas),
        AtPlaces(areas, accumulated=True),
    ]
    assert len({view.name for view in views}) == 6
    units = [view.units(RAIN_RATE) for view in views]
    assert units == ["mm h-1", "mm", "mm h-1", "mm", "mm h-1", "mm"]
    assert [view.gridded for view in views] == [True, True, False, False, False, False]
    assert AtPlaces(points).name == f"points {points.sha256[:12]}"
    assert len(set(views)) == 6


def test_nowcasts_on_another_grid_than_the_places_are_refused(nowcast, points):
    moved = nowcast.assign_coords(x=nowcast["x"] + 0.5)
    moved["x"].attrs = nowcast["x"].attrs
    with pytest.raises(ValueError, match="the places are on the grid"):
        AtPlaces(points).nowcast(moved)


@pytest.mark.parametrize("accumulate", [False, True])
def test_verification_at_areas_scores_what_is_there(observed, areas, accumulate):
    """Persistence of two areas against brute force, of every base time with all its frames."""
    from nowcast.nowcasters import open_nowcaster
    from nowcast.verification import verify

    scores = verify(
        {"persistence": open_nowcaster("persistence")},
        observed,
        base_times=TIMES[2:8],
        lead_times=LEADS,
        thresholds=(1.0,),
        baselines=("persistence",),
        view=AtPlaces(areas, accumulate),
    )
    fields = observed["rain_rate"].values.astype(np.float64)
    errors = []
    for base in range(2, 8):
        held, frames = np.repeat(fields[[base]], 3, axis=0), fields[base + 1 : base + 4]
        if accumulate:
            held, frames = held.cumsum(axis=0) / 6, frames.cumsum(axis=0) / 6
        there = [areas.of(xr.DataArray(one, dims=("time", "y", "x"))) for one in (held, frames)]
        errors.append(there[0].values - there[1].values)
    rmse = np.sqrt((np.array(errors) ** 2).mean(axis=(0, 2)))
    found = scores["rmse"].sel(nowcaster="persistence").values
    np.testing.assert_allclose(found, rmse, rtol=1e-5)
    assert scores["rmse"].attrs["units"] == ("mm" if accumulate else "mm h-1")
    assert "fss" not in scores


def test_a_measure_of_neighbours_is_refused_where_there_are_none(tmp_path):
    from nowcast.data.synthetic import synthesise
    from nowcast.nowcasters import open_nowcaster
    from nowcast.places import read_points
    from nowcast.verification import verify
    from nowcast.verification.spectra import Spectra

    observed = synthesise(hours=1, size=16).load()
    points = tmp_path / "points.csv"
    points.write_text(f"name,x,y\nhere,{observed['x'].values[3]},{observed['y'].values[3]}\n")
    with pytest.raises(ValueError, match=r"spectra need neighbouring pixels, and points \w+ have"):
        verify(
            {name: open_nowcaster(name) for name in ("persistence", "extrapolation")},
            observed,
            base_times=observed["time"].to_index()[3:4],
            lead_times=pd.to_timedelta([10], unit="min"),
            thresholds=(1.0,),
            measures=[Spectra(1.0)],
            view=AtPlaces(read_points(points, observed)),
        )
