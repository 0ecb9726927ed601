import numpy as np
import pytest
import xarray as xr
from issued_batches import batch_of, row_batch, some_weather

from nowcast.verification.distributions import (
    Ladder,
    Members,
    Quantiles,
    distribution_of,
    rows_of,
)

LEVELS = np.array([5.0, 10.0, 20.0, 40.0])


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def _only(batch):
    row = rows_of(batch)[0]
    return distribution_of(batch, 0, row)


def _crps_by_steps(reaching, observed, top=100.0, steps=400_000):
    """Integrate (P(X >= x) - 1 where x was reached)² over x by the midpoint rule."""
    x = (np.arange(steps) + 0.5) * top / steps
    return float(((reaching(x) - (observed >= x)) ** 2).mean() * top)


def test_what_is_told_outright_comes_before_members_and_members_before_the_field():
    observed = [0.0, 12.0]
    members = [[0.0, 10.0], [0.0, 30.0]]
    ladder = ((5.0, 20.0), [[0.1, 0.9], [0.0, 0.4]])
    quantiles = ((0.25, 0.75), [[0.0, 11.0], [1.0, 19.0]])
    assert isinstance(_only(row_batch(observed, field=[1.0, 2.0])), Members)
    assert len(_only(row_batch(observed, members=members)).values) == 2
    both = row_batch(observed, members=members, quantiles=quantiles)
    assert isinstance(_only(both), Quantiles)
    every = row_batch(observed, members=members, ladder=ladder, quantiles=quantiles)
    assert isinstance(_only(every), Ladder)


def test_the_single_field_is_the_one_that_is_scored():
    batch = row_batch([0.0, 12.0], field=[np.nan, 20.0])
    assert _only(batch).values.tolist() == [[0.0, 20.0]]


def test_only_pixels_that_count_are_read_and_what_is_missing_there_is_no_rain():
    batch = row_batch([0.0, np.nan, 12.0], members=[[np.nan, 9.0, 10.0], [3.0, 9.0, np.nan]])
    assert _only(batch).values.tolist() == [[0.0, 10.0], [3.0, 0.0]]
    ladder = row_batch([0.0, 1.0], ladder=((5.0, 20.0), [[np.nan, 0.5], [np.nan, 0.25]]))
    assert _only(ladder).reaching(20.0).tolist() == [0.0, 0.25]
    quantiles = row_batch([0.0, 1.0], quantiles=((0.1, 0.9), [[np.nan, 5.0], [np.nan, 6.0]]))
    assert _only(quantiles).reaching(5.0).tolist() == [0.0, 1.0]


def test_the_share_of_members_counts_those_at_the_threshold():
    members = Members(np.array([[0.7, 0.0], [0.2, 0.0], [0.9, 3.0], [0.6, 0.0]], np.float32))
    assert members.reaching(0.7).tolist() == [0.5, 0.25]


def test_a_single_field_reaches_a_threshold_surely_or_not_at_all():
    field = Members(np.array([[0.0, 4.9, 5.0]], np.float32))
    assert field.reaching(5.0).tolist() == [0.0, 0.0, 1.0]
    assert field.crps(np.array([2.0, 5.0, 5.0])) == pytest.approx([2.0, 0.1, 0.0], abs=1e-6)


def test_the_fair_crps_by_hand():
    # mean distance to 1: (1 + 1 + 4) / 3; mean difference of two members: (2 + 5 + 3) / 3
    members = Members(np.array([[5.0], [0.0], [2.0]]))
    assert members.crps(np.array([1.0])) == pytest.approx(6 / 3 - 10 / 3 / 2)


def test_the_fair_crps_does_not_depend_on_how_many_members_are_drawn(rng):
    observed = rng.normal(size=50_000)
    means = [
        Members(rng.normal(size=(number, observed.size))).crps(observed).mean()
        for number in (2, 3, 24)
    ]
    assert means == pytest.approx([1.0 / np.sqrt(np.pi)] * 3, abs=0.015)  # of two normal values


def test_a_ladder_is_interpolated_between_its_levels_and_tells_nothing_outside():
    probabilities = np.array([[0.8], [0.6], [0.2], [0.0]])
    ladder = Ladder(LEVELS, probabilities, lowest=0.0)
    assert [ladder.reaching(at).item() for at in LEVELS] == [0.8, 0.6, 0.2, 0.0]
    assert ladder.reaching(12.5).item() == pytest.approx(0.5)
    assert ladder.reaching(4.9) is None
    assert ladder.reaching(40.1) is None
    one = Ladder(np.array([5.0]), np.array([[0.3]]), lowest=0.0)
    assert one.reaching(5.0).item() == 0.3
    assert one.reaching(6.0) is None


def test_the_crps_of_a_ladder_by_hand():
    ladder = Ladder(np.array([10.0, 20.0]), np.array([[0.5], [0.5]]), lowest=0.0)
    # half at 0, half at 20; the probability of reaching x is 0.5 from 0 to 20, and 0 above
    assert ladder.crps(np.array([0.0])) == pytest.approx(20 * 0.25)
    assert ladder.crps(np.array([10.0])) == pytest.approx(20 * 0.25)
    assert ladder.crps(np.array([26.0])) == pytest.approx(20 * 0.25 + 6)
    sure = Ladder(np.array([10.0, 20.0]), np.array([[0.0], [0.0]]), lowest=0.0)
    assert sure.crps(np.array([0.0])) == 0.0
    assert sure.crps(np.array([7.0])) == pytest.approx(7.0)


@pytest.mark.parametrize("observed", [0.0, 2.0, 5.0, 7.3, 19.0, 20.0, 33.0, 55.0])
def test_the_crps_of_ladder_and_quantiles_equals_an_integral_by_small_steps(observed):
    told = [0.9, 0.55, 0.3, 0.02]
    ladder = Ladder(LEVELS, np.array(told)[:, None], lowest=0.0)

    def reaching(x):
        return np.where(x > 40.0, 0.0, np.interp(x, LEVELS, told))

    found = ladder.crps(np.array([observed])).item()
    assert found == pytest.approx(_crps_by_steps(reaching, observed), abs=1e-3)

    values = np.array([0.0, 0.0, 12.0, 30.0])
    quantiles = Quantiles(np.array([0.1, 0.4, 0.5, 0.95]), values[:, None])

    def above(x):
        return np.where(x > 30.0, 0.0, 1.0 - np.interp(x, [0.0, 12.0, 30.0], [0.4, 0.5, 0.95]))

    found = quantiles.crps(np.array([observed])).item()
    assert found == pytest.approx(_crps_by_steps(above, observed), abs=1e-3)


def test_what_does_not_reach_the_ladder_is_dry_for_rain_and_at_the_first_level_otherwise():
    batch = row_batch([0.0, 0.0], ladder=((10.0, 20.0), [[0.0, 0.5], [0.0, 0.5]]))
    assert _only(batch).crps(np.zeros(2)) == pytest.approx([0.0, 5.0])
    other = batch.nowcast.rename(reflectivity="temperature")
    renamed = type(batch)(batch.forecast, batch.observed, other)
    assert _only(renamed).crps(np.array([10.0, 10.0])) == pytest.approx([0.0, 2.5])


def test_quantiles_at_one_value_are_that_much_probability_there():
    quantiles = Quantiles(np.array([0.2, 0.5, 0.9]), np.array([[0.0], [0.0], [8.0]]))
    told = {0.0: 1.0, 1e-9: 0.5, 4.0: 0.3, 8.0: 0.1, 8.1: 0.0}
    for threshold, probability in told.items():
        assert quantiles.reaching(threshold).item() == pytest.approx(probability, abs=1e-6)


def test_the_median_of_quantiles_reaches_a_threshold_where_its_probability_is_a_half(rng):
    values = np.sort(np.maximum(rng.normal(5, 10, (5, 500)), 0.0).round(), axis=0)
    quantiles = Quantiles(np.array([0.1, 0.3, 0.5, 0.7, 0.9]), values)
    for threshold in (3.0, 7.5, 15.0):
        probable = quantiles.reaching(threshold) >= 0.5
        assert (probable >= (values[2] >= threshold)).all()
        surely_not = quantiles.reaching(threshold) < 0.5
        assert (values[2][surely_not] < threshold).all()


@pytest.mark.filterwarnings("ignore:numba")
def test_the_crps_of_a_ladder_agrees_with_scores(rng):
    from scores.probability import crps_cdf

    told = -np.sort(-rng.random((4, 50)), axis=0)
    observed = np.concatenate([np.zeros(10), rng.uniform(0, 60, 40)])
    tiny = 1e-9  # where the probability jumps: at no rain, and at the last level
    x = [-tiny, 0.0, *LEVELS, 40.0 + tiny, 100.0]
    below = np.concatenate([np.zeros((1, 50)), 1 - told[:1], 1 - told, np.ones((2, 50))])
    expected = crps_cdf(
        xr.DataArray(below, dims=("x", "pixel"), coords={"x": x}),
        xr.DataArray(observed, dims="pixel"),
        threshold_dim="x",
        integration_method="exact",
        preserve_dims=["pixel"],
    )["total"]
    found = Ladder(LEVELS, told, lowest=0.0).crps(observed)
    assert found == pytest.approx(expected.values, abs=1e-6)


@pytest.mark.filterwarnings("ignore:numba")
def test_the_crps_of_quantiles_agrees_with_scores(rng):
    from scores.probability import crps_cdf

    told = np.array([0.1, 0.5, 0.9])
    values = np.sort(rng.uniform(0, 50, (3, 8)), axis=0)
    observed = rng.uniform(0, 60, 8)
    found = Quantiles(told, values).crps(observed)
    for pixel in range(8):
        first, *_, last = values[:, pixel]
        x = [-1.0, first - 1e-9, *values[:, pixel], last + 1e-9, 100.0]
        expected = crps_cdf(
            xr.DataArray([0.0, 0.0, *told, 1.0, 1.0], dims="x", coords={"x": x}),
            xr.DataArray(observed[pixel]),
            threshold_dim="x",
            integration_method="exact",
        )["total"]
        assert found[pixel] == pytest.approx(expected.item(), abs=1e-6)


def test_the_fair_crps_agrees_with_scores_and_with_pysteps(rng):
    from pysteps.verification.probscores import CRPS as PYSTEPS_CRPS
    from scores.probability import crps_for_ensemble

    values, observed = rng.gamma(0.5, 4.0, (6, 300)), rng.gamma(0.5, 4.0, 300)
    found = Members(values).crps(observed)
    expected = crps_for_ensemble(
        xr.DataArray(values, dims=("member", "pixel")),
        xr.DataArray(observed, dims="pixel"),
        "member",
        method="fair",
        preserve_dims="all",
    )
    assert found == pytest.approx(expected.values, abs=1e-6)
    distance = abs(values - observed).mean()
    half_difference = distance - PYSTEPS_CRPS(values, observed)  # theirs divides by m², not m(m-1)
    assert found.mean() == pytest.approx(distance - half_difference * 6 / 5, abs=1e-6)


def test_rows_are_found_once_and_hold_what_counts_alone(rng):
    ensemble, observed = some_weather(rng)
    batch = batch_of(observed, members=ensemble)
    rows = rows_of(batch)
    assert rows_of(batch) is rows
    for row, fields in zip(rows, observed, strict=True):
        assert row.observed.tolist() == fields[np.isfinite(fields)].astype(np.float32).tolist()
        assert (
            row.added(np.ones(len(row.lead))).tolist()
            == np.isfinite(fields).sum(axis=(1, 2)).tolist()
        )
