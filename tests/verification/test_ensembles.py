import numpy as np
import pytest
import xarray as xr
from issued_batches import batch_of, counted, measured, row_batch, some_weather

from nowcast.verification.ensembles import DEFINITIONS, Ranks


@pytest.fixture
def rng():
    return np.random.default_rng(9)


def test_ranks_by_hand():
    members = [[1, 1, 5, 0], [2, 2, 5, 0], [3, 3, 7, 0]]
    scores = measured(Ranks(3), row_batch([2.5, 9, 5, 0], members=members))
    # the third pixel may have the ranks 0, 1, 2, the dry one any
    expected = [1 / 3 + 1 / 4, 1 / 3 + 1 / 4, 1 + 1 / 3 + 1 / 4, 1 + 1 / 4]
    assert scores["rank_count"].values.ravel() == pytest.approx(expected)
    assert scores["rank_tied"].item() == 1


def test_spread_and_skill_by_hand():
    scores = measured(Ranks(2), row_batch([4.0, 1.0], members=[[0.0, 1.0], [2.0, 5.0]]))
    variance = (2.0 + 8.0) / 2  # unbiased, of 0 and 2, and of 1 and 5
    assert scores["spread"].item() == pytest.approx(np.sqrt(variance * 3 / 2))
    error = np.sqrt((3.0**2 + 2.0**2) / 2)  # of the means 1 and 3
    assert scores["spread_skill"].item() == pytest.approx(np.sqrt(variance * 3 / 2) / error)


def test_a_smaller_ensemble_has_no_ranks_beyond_its_own():
    scores = measured(Ranks(5), row_batch([4.0, 9.0], members=[[3.0, 1.0], [5.0, 2.0]]))
    found = scores["rank_count"].values.ravel()
    assert found == pytest.approx([0, 1, 1, np.nan, np.nan, np.nan], nan_ok=True)
    assert scores["rank"].values.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("issued", [{"field": [1.0, 2.0]}, {"members": [[1.0, 2.0]]}])
def test_a_nowcaster_without_two_members_has_nan_and_its_sums_are_0(issued):
    batch = row_batch([1.0, 5.0], **issued)
    assert float(Ranks(3).sums(batch).to_dataarray().sum()) == 0.0
    scores = measured(Ranks(3), batch)
    assert scores["rank_count"].shape[-1] == 4
    assert all(scores[name].isnull().all() for name in DEFINITIONS)


def test_what_is_not_defined_is_nan():
    dry = measured(Ranks(2), row_batch([0.0, 0.0], members=[[0.0, 0.0], [0.0, 0.0]]))
    assert dry["spread"].item() == 0.0
    assert np.isnan(dry["spread_skill"].item())
    assert dry["rank_count"].values.ravel() == pytest.approx([2 / 3] * 3)
    exact = measured(Ranks(2), row_batch([1.0], members=[[0.0], [2.0]]))
    assert exact["spread"].item() == pytest.approx(np.sqrt(2 * 3 / 2))
    assert np.isnan(exact["spread_skill"].item())
    nothing = measured(Ranks(2), row_batch([np.nan], members=[[1.0], [2.0]]))
    assert all(nothing[name].isnull().all() for name in DEFINITIONS)


def test_an_ensemble_too_large_is_refused():
    with pytest.raises(ValueError, match="has 3 members, and room was made for 2"):
        Ranks(2).sums(row_batch([1.0], members=[[1.0], [2.0], [3.0]]))
    with pytest.raises(ValueError, match="1 or more"):
        Ranks(0)


def test_a_missing_member_counts_as_no_rain():
    xr.testing.assert_identical(
        Ranks(2).sums(row_batch([3.0, 1.0], members=[[np.nan, 1.0], [5.0, 2.0]])),
        Ranks(2).sums(row_batch([3.0, 1.0], members=[[0.0, 1.0], [5.0, 2.0]])),
    )


def test_a_reliable_ensemble_fills_its_ranks_alike_and_has_the_spread_of_its_error(rng):
    shape = (40, 1, 16, 16)
    expected = rng.normal(40.0, 5.0, shape)  # dBZ
    members = expected[:, None] + rng.normal(0.0, 2.0, (40, 5, 1, 16, 16))
    observed = expected + rng.normal(0.0, 2.0, shape)
    scores = measured(Ranks(5), batch_of(observed, members=members))
    assert scores["rank_count"].values.ravel() / observed.size == pytest.approx(1 / 6, abs=0.02)
    assert scores["spread_skill"].item() == pytest.approx(1.0, abs=0.02)
    timid = measured(Ranks(5), batch_of(observed, members=np.stack([expected] * 5, axis=1)))
    assert timid["spread"].item() == pytest.approx(0.0, abs=1e-5)
    assert timid["rank_count"].values.ravel()[[0, -1]].sum() > 0.9 * observed.size


def test_ranks_and_spread_equal_brute_force(rng):
    ensemble, observed = some_weather(rng)
    scores = measured(Ranks(4), batch_of(observed, members=ensemble))
    for lead in range(observed.shape[1]):
        seen, *members = counted(observed[:, lead], *np.moveaxis(ensemble[:, :, lead], 1, 0))
        ranks, variance, squared, tied = np.zeros(5), 0.0, 0.0, 0
        for pixel in range(len(seen)):
            values = [member[pixel] for member in members]
            lowest = sum(value < seen[pixel] for value in values)
            highest = sum(value <= seen[pixel] for value in values)
            ranks[lowest : highest + 1] += 1 / (highest + 1 - lowest)
            tied += (lowest, highest) == (0, 4)
            mean = sum(values) / 4
            variance += sum((value - mean) ** 2 for value in values) / 3 * 5 / 4
            squared += (mean - seen[pixel]) ** 2
        one = scores.isel(lead_time=lead)
        assert tied > 0
        assert one["rank_count"].values == pytest.approx(ranks)
        assert one["rank_tied"].item() == tied
        assert one["spread"].item() == pytest.approx(np.sqrt(variance / len(seen)), abs=1e-6)
        assert one["spread_skill"].item() == pytest.approx(np.sqrt(variance / squared), abs=1e-6)


def test_ranks_agree_with_scores_where_there_are_ties(rng):
    from scores.probability import rank_histogram

    ensemble, observed = (np.nan_to_num(part) for part in some_weather(rng))
    found = measured(Ranks(4), batch_of(observed, members=ensemble))["rank_count"]
    dims = ("base_time", "lead_time", "y", "x")
    expected = rank_histogram(
        xr.DataArray(ensemble, dims=(dims[0], "member", *dims[1:])),
        xr.DataArray(observed, dims=dims),
        "member",
        preserve_dims="lead_time",
    ).transpose("lead_time", "rank")
    assert (found / found.sum("rank")).values == pytest.approx(expected.values, abs=1e-6)


def test_ranks_and_spread_agree_with_pysteps_where_there_are_no_ties(rng):
    from pysteps.verification.ensscores import ensemble_spread, rankhist

    ensemble = rng.gamma(2.0, 5.0, (1, 2, 1, 16, 16)).astype(np.float32)
    observed = rng.gamma(2.0, 5.0, (1, 1, 16, 16)).astype(np.float32)
    scores = measured(Ranks(2), batch_of(observed, members=ensemble))
    expected = rankhist(ensemble[0, :, 0], observed[0, 0], normalize=False)
    assert scores["rank_count"].values.ravel().tolist() == expected.tolist()
    # Of two members the unbiased variance is half their squared difference.
    apart = ensemble_spread(ensemble[0, :, 0].astype(float), "RMSE")
    assert scores["spread"].item() == pytest.approx(apart * np.sqrt(1 / 2 * 3 / 2), abs=1e-6)


def test_sums_of_cases_alone_are_those_of_the_batch_to_the_last_bit(rng):
    ensemble, observed = some_weather(rng)
    whole = Ranks(6).sums(batch_of(observed, members=ensemble)).drop_vars("base_time")
    alone = [
        Ranks(6).sums(batch_of(observed[at : at + 1], members=ensemble[at : at + 1]))
        for at in range(3)
    ]
    xr.testing.assert_identical(xr.concat(alone, "base_time").drop_vars("base_time"), whole)


def test_scores_follow_from_sums_with_any_other_dims(rng):
    ensemble, observed = some_weather(rng)
    sums = Ranks(4).sums(batch_of(observed, members=ensemble))
    by_case = Ranks(4).scores(sums.rename(base_time="sample"))
    first = Ranks(4).scores(sums.isel(base_time=0, drop=True))
    for name in DEFINITIONS:
        alone = by_case[name].isel(sample=0, drop=True).transpose(*first[name].dims)
        xr.testing.assert_allclose(alone, first[name])
    pooled = Ranks(4).scores(sums.sum(("base_time", "lead_time")))
    assert pooled["spread"].dims == ()
    assert pooled["rank_count"].sum().item() == pytest.approx(np.isfinite(observed).sum())
