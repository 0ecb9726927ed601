import numpy as np
import pytest
import xarray as xr
from issued_batches import batch_of, counted, measured, row_batch, some_weather

from nowcast.verification.probabilities import (
    BINS,
    CRPS,
    DEFINITIONS,
    Exceedance,
    blocks_in_bins,
)

THRESHOLDS = (5.0, 15.0, 25.0)
LEVELS = (5.0, 10.0, 20.0, 40.0)
TENTHS = tuple(np.arange(10) / 10)


@pytest.fixture
def rng():
    return np.random.default_rng(8)


def _ladder(rng, shape):
    """Give probabilities that fall along four levels, for (base_time, lead_time, y, x)."""
    told = -np.sort(-(rng.random((shape[0], len(LEVELS), *shape[1:])) ** 3), axis=1)
    return told.astype(np.float32)


def _without_holes(ensemble, observed):
    return np.nan_to_num(ensemble), np.nan_to_num(observed)


def test_the_brier_score_and_its_parts_by_hand():
    # at 10 dBZ half of the members reach it in the first three pixels, none in the other two
    members = [[12, 12, 0, 0, 0], [0, 0, 30, 0, 9.9]]
    scores = measured(Exceedance((10.0,), TENTHS), row_batch([10, 0, 40, 0, 20], members=members))
    assert scores["brier"].item() == pytest.approx((3 * 0.25 + 1) / 5)
    # of 3 that said 0.5, 2 came; of 2 that said 0, 1; of 5, 3
    reliability = (3 * (0.5 - 2 / 3) ** 2 + 2 * 0.5**2) / 5
    resolution = (3 * (2 / 3 - 3 / 5) ** 2 + 2 * (0.5 - 3 / 5) ** 2) / 5
    assert scores["brier_reliability"].item() == pytest.approx(reliability)
    assert scores["brier_resolution"].item() == pytest.approx(resolution)
    assert scores["brier_uncertainty"].item() == pytest.approx(0.24)
    assert scores["brier_skill"].item() == pytest.approx(1 - 0.35 / 0.24)
    by_bin = scores.isel(threshold=0, lead_time=0).sel(probability_bin=[0.0, 0.4, 0.5])
    assert by_bin["probability_count"].values.tolist() == [2, 0, 3]
    assert by_bin["observed_frequency"].values == pytest.approx([0.5, np.nan, 2 / 3], nan_ok=True)
    assert by_bin["forecast_probability"].values == pytest.approx([0, np.nan, 0.5], nan_ok=True)


def test_a_bin_has_as_many_blocks_as_had_a_pixel_in_it():
    measure = Exceedance((10.0,), (0.0, 0.5))
    storms = [
        measure.sums(row_batch([20, 0], members=[[12, 0], [12, 0]])),
        measure.sums(row_batch([0, 0], members=[[0, 0], [0, 0]])),
    ]
    found = blocks_in_bins(xr.concat([one.sum("base_time") for one in storms], "block"))
    assert found["probability_blocks"].values.ravel().tolist() == [2, 1]


def test_the_operating_characteristic_by_hand():
    # at 10 dBZ probabilities 0.5, 0.5, 0 where the event came, and 0.5, 0 where not
    members = [[12, 12, 0, 12, 0], [0, 0, 0, 0, 0]]
    scores = measured(Exceedance((10.0,)), row_batch([10, 20, 30, 0, 0], members=members))
    at = scores.isel(threshold=0, lead_time=0).sel(probability_bin=[0.0, 0.25, 0.5, 0.6])
    assert at["roc_hit_rate"].values == pytest.approx([1, 2 / 3, 2 / 3, 0])
    assert at["roc_false_alarm_rate"].values == pytest.approx([1, 1 / 2, 1 / 2, 0])
    # from (0, 0) to (1/2, 2/3) to (1, 1)
    assert scores["roc_area"].item() == pytest.approx(1 / 2 * 2 / 3 / 2 + 1 / 2 * (2 / 3 + 1) / 2)


def test_a_single_field_has_the_area_under_its_one_point():
    batch = row_batch([10, 20, 0, 0, 0, 0], field=[30, 0, 10, 0, 0, 0])
    scores = measured(Exceedance((10.0,)), batch)
    hit_rate, false_alarm_rate = 1 / 2, 1 / 4
    assert scores["roc_area"].item() == pytest.approx((1 + hit_rate - false_alarm_rate) / 2)
    assert scores["brier"].item() == pytest.approx(2 / 6)  # a miss and a false alarm


def test_a_probability_of_one_is_in_the_last_bin_and_an_edge_begins_its_bin():
    ladder = ((10.0,), [[1.0, 0.9, 0.1, 0.0999, 0.0]])
    scores = measured(Exceedance((10.0,), TENTHS), row_batch([0.0] * 5, ladder=ladder))
    assert scores["probability_count"].values.ravel().tolist() == [2, 1, 0, 0, 0, 0, 0, 0, 0, 2]


def test_what_is_not_defined_is_nan():
    dry = measured(Exceedance((10.0,)), row_batch([0.0, 0.0], field=[0.0, 0.0]))
    assert dry["brier"].item() == 0.0
    assert dry["brier_uncertainty"].item() == 0.0
    assert np.isnan([dry[name].item() for name in ("brier_skill", "roc_area")]).all()
    assert dry["roc_hit_rate"].isnull().all()
    assert dry["roc_false_alarm_rate"].values.ravel().tolist() == [1.0] + [0.0] * (len(BINS) - 1)
    alarmed = measured(Exceedance((10.0,)), row_batch([0.0, 0.0], field=[20.0, 0.0]))
    assert alarmed["brier"].item() == 0.5
    assert np.isnan(alarmed["brier_skill"].item())
    everywhere = measured(Exceedance((10.0,)), row_batch([20.0], field=[20.0]))
    assert everywhere["roc_false_alarm_rate"].isnull().all()
    assert np.isnan(everywhere["roc_area"].item())
    nothing = row_batch([np.nan, np.nan], field=[1.0, 2.0])
    for measure in (Exceedance((10.0,)), CRPS()):
        scores = measured(measure, nothing)
        assert all(scores[name].isnull().all() for name in scores if name != "probability_count")
        assert int(measure.sums(nothing).to_dataarray().isnull().sum()) == 0


def test_a_threshold_outside_the_ladder_has_no_scores_and_the_others_have_theirs():
    ladder = ((10.0, 20.0), [[0.5, 0.2], [0.25, 0.0]])
    batch = row_batch([15.0, 0.0], ladder=ladder)
    sums = Exceedance((5.0, 15.0, 25.0)).sums(batch)
    assert int(sums.to_dataarray().isnull().sum()) == 0
    scores = measured(Exceedance((5.0, 15.0, 25.0)), batch)
    expected = [np.nan, ((1 - 0.375) ** 2 + 0.1**2) / 2, np.nan]
    assert scores["brier"].values.ravel() == pytest.approx(expected, nan_ok=True)
    assert scores["probability_count"].sum("probability_bin").values.ravel().tolist() == [0, 2, 0]


def test_a_forecast_of_the_base_rate_has_no_skill_and_a_perfect_one_all():
    observed = [20.0, 0.0, 0.0, 0.0]
    climate = row_batch(observed, ladder=((10.0,), [[0.25] * 4]))
    scores = measured(Exceedance((10.0,)), climate)
    assert scores["brier_skill"].item() == pytest.approx(0.0)
    assert scores["brier_resolution"].item() == pytest.approx(0.0)
    assert scores["roc_area"].item() == pytest.approx(0.5)
    perfect = measured(Exceedance((10.0,)), row_batch(observed, field=observed))
    assert perfect["brier_skill"].item() == perfect["roc_area"].item() == 1.0


def test_missing_members_count_as_no_rain():
    holes = [[np.nan, 20.0], [20.0, 20.0]]
    filled = [[0.0, 20.0], [20.0, 20.0]]
    for measure in (Exceedance((10.0,)), CRPS()):
        xr.testing.assert_identical(
            measure.sums(row_batch([20.0, 20.0], members=holes)),
            measure.sums(row_batch([20.0, 20.0], members=filled)),
        )


@pytest.mark.parametrize("told", ["members", "ladder", "field"])
def test_exceedance_equals_a_brute_force_count(rng, told):
    ensemble, observed = some_weather(rng)
    ladder = _ladder(rng, observed.shape)
    batch = {
        "members": lambda: batch_of(observed, members=ensemble),
        "ladder": lambda: batch_of(observed, ladder=(LEVELS, ladder)),
        "field": lambda: batch_of(observed, field=ensemble[:, 0]),
    }[told]()
    scores = measured(Exceedance(THRESHOLDS), batch)
    for threshold in THRESHOLDS:
        for lead in range(observed.shape[1]):
            pairs = []
            for place in zip(*np.nonzero(np.isfinite(observed[:, lead])), strict=True):
                here = (place[0], slice(None), lead, *place[1:])
                members = np.nan_to_num(ensemble[here][: 1 if told == "field" else None])
                probability = float((members >= threshold).mean())
                if told == "ladder":
                    probability = float(np.interp(threshold, LEVELS, ladder[here]))
                pairs.append((probability, observed[place[0], lead][place[1:]] >= threshold))
            _check_pairs(scores.sel(threshold=threshold).isel(lead_time=lead), pairs)


def _check_pairs(scores, pairs):
    """Compare scores with what their definitions give for pairs of probability and event."""
    said, came = (np.array(part, float) for part in zip(*pairs, strict=True))
    edges = np.array([*BINS, 1.1])
    brier, base = ((said - came) ** 2).mean(), came.mean()
    reliability = resolution = within = 0.0
    for low, high, name in zip(edges, edges[1:], BINS, strict=False):
        inside = (said >= low) & (said < high)
        assert scores["probability_count"].sel(probability_bin=name).item() == inside.sum()
        if inside.any():
            mean_said, mean_came = said[inside].mean(), came[inside].mean()
            reliability += inside.sum() * (mean_said - mean_came) ** 2
            resolution += inside.sum() * (mean_came - base) ** 2
            spread = said[inside] - mean_said
            within += (spread**2 - 2 * spread * (came[inside] - mean_came)).sum()
    generalised = (resolution - within) / len(said)
    found = [scores[f"brier{part}"].item() for part in ("", "_reliability", "_resolution")]
    assert found == pytest.approx([brier, reliability / len(said), generalised], abs=1e-6)
    # Probability that an event was given more than a non-event, with ties and bins as halves.
    place = np.searchsorted(BINS, np.float32(said), side="right")
    events, others = place[came == 1], place[came == 0]
    if len(events) and len(others):
        more = events[:, None] > others
        area = more.mean() + (events[:, None] == others).mean() / 2
        assert scores["roc_area"].item() == pytest.approx(area, abs=1e-9)
    else:
        assert np.isnan(scores["roc_area"].item())


def test_brier_and_operating_characteristic_agree_with_scores(rng):
    from scores.probability import brier_score, roc_curve_data

    ensemble, observed = _without_holes(*some_weather(rng))
    ladder = _ladder(rng, observed.shape)
    for batch, probability in (
        (batch_of(observed, members=ensemble), (ensemble >= 10.0).mean(axis=1)),
        (batch_of(observed, ladder=(LEVELS, ladder)), ladder[:, 1]),
    ):
        found = measured(Exceedance((10.0,)), batch).isel(threshold=0)
        dims = ("base_time", "lead_time", "y", "x")
        pair = [xr.DataArray(p, dims=dims) for p in (probability, observed >= 10.0)]
        event = pair[1].astype(float)
        expected = brier_score(pair[0], event, preserve_dims="lead_time")
        assert found["brier"].values == pytest.approx(expected.values, abs=1e-6)
        # They compare with 64-bit thresholds, so a 32-bit 0.1 is moved to ours.
        curve = roc_curve_data(pair[0], event, BINS, preserve_dims="lead_time")
        inner = curve.isel(threshold=slice(None, -1))
        for ours, theirs in (("roc_hit_rate", "POD"), ("roc_false_alarm_rate", "POFD")):
            expected = inner[theirs].transpose("lead_time", "threshold").values
            assert found[ours].transpose("lead_time", ...).values == pytest.approx(
                expected, abs=1e-6
            )
        assert found["roc_area"].values == pytest.approx(curve["AUC"].values, abs=1e-6)


def test_the_reliability_diagram_agrees_with_pysteps(rng):
    from pysteps.verification.probscores import reldiag

    _, observed = _without_holes(*some_weather(rng, cases=8))
    ladder = _ladder(rng, observed.shape)
    batch = batch_of(observed, ladder=(LEVELS, ladder))
    sums = Exceedance((10.0,), TENTHS).sums(batch).sum(("base_time", "lead_time"))
    found = Exceedance((10.0,), TENTHS).scores(sums).isel(threshold=0)
    said, came = reldiag(ladder[:, 1], observed, 10.0, n_bins=10, min_count=1)
    assert found["forecast_probability"].values == pytest.approx(said, abs=1e-6)
    assert found["observed_frequency"].values == pytest.approx(came, abs=1e-6)


def test_crps_by_hand():
    members = [[0, 10, 5], [0, 14, np.nan]]
    scores = measured(CRPS(), row_batch([0, 16, np.nan], members=members))
    # (6 + 2) / 2 - 4 / 2 at the second pixel, 0 at the first
    assert scores["crps"].item() == pytest.approx((0 + 2) / 2)
    field = measured(CRPS(), row_batch([0, 12, np.nan], field=[3, 8, 50]))
    assert field["crps"].item() == pytest.approx((3 + 4) / 2)


def test_crps_equals_a_brute_force_mean_over_pairs_of_members(rng):
    ensemble, observed = some_weather(rng)
    scores = measured(CRPS(), batch_of(observed, members=ensemble))
    for lead in range(observed.shape[1]):
        seen, *members = counted(observed[:, lead], *np.moveaxis(ensemble[:, :, lead], 1, 0))
        total = 0.0
        for pixel in range(len(seen)):
            values = [member[pixel] for member in members]
            distance = np.mean([abs(value - seen[pixel]) for value in values])
            pairs = [abs(one - two) for one in values for two in values]
            total += distance - sum(pairs) / (2 * len(values) * (len(values) - 1))
        assert scores["crps"][lead].item() == pytest.approx(total / len(seen), abs=1e-6)


def test_crps_agrees_with_scores_by_lead_time(rng):
    from scores.probability import crps_for_ensemble

    ensemble, observed = _without_holes(*some_weather(rng))
    scores = measured(CRPS(), batch_of(observed, members=ensemble))
    dims = ("base_time", "lead_time", "y", "x")
    expected = crps_for_ensemble(
        xr.DataArray(ensemble, dims=(dims[0], "member", *dims[1:])),
        xr.DataArray(observed, dims=dims),
        "member",
        method="fair",
        preserve_dims="lead_time",
    )
    assert scores["crps"].values == pytest.approx(expected.values, abs=1e-6)


@pytest.mark.parametrize("measure", [Exceedance(THRESHOLDS), CRPS()], ids=["exceedance", "crps"])
@pytest.mark.parametrize("told", ["members", "ladder", "quantiles", "field"])
def test_sums_of_cases_alone_are_those_of_the_batch_to_the_last_bit(rng, measure, told):
    ensemble, observed = some_weather(rng)
    values = {
        "members": ensemble,
        "field": ensemble[:, 0],
        "ladder": _ladder(rng, observed.shape),
        "quantiles": np.sort(np.nan_to_num(ensemble), axis=1),
    }[told]

    def sums(cases):
        given = values[cases]
        if told == "ladder":
            given = (LEVELS, given)
        if told == "quantiles":
            given = ((0.1, 0.4, 0.6, 0.9), given)
        return measure.sums(batch_of(observed[cases], **{told: given})).drop_vars("base_time")

    whole = sums(slice(None))
    assert float(whole.to_dataarray().sum()) > 0
    alone = xr.concat([sums(slice(at, at + 1)) for at in range(3)], "base_time")
    xr.testing.assert_identical(alone, whole)


def test_scores_follow_from_sums_with_any_other_dims(rng):
    ensemble, observed = some_weather(rng)
    batch = batch_of(observed, members=ensemble)
    for measure in (Exceedance(THRESHOLDS), CRPS()):
        sums = measure.sums(batch)
        by_case = measure.scores(sums.rename(base_time="block"))
        first = measure.scores(sums.isel(base_time=0, drop=True))
        dims = tuple(first.to_dataarray().dims)
        xr.testing.assert_allclose(
            by_case.isel(block=0, drop=True).to_dataarray().transpose(*dims), first.to_dataarray()
        )
        pooled = measure.scores(sums.sum(("base_time", "lead_time")))
        assert "lead_time" not in pooled.dims
        assert set(pooled) <= set(DEFINITIONS)


def test_no_thresholds_are_no_scores_but_no_error():
    sums = Exceedance(()).sums(row_batch([0.0, 12.0], field=[0.0, 10.0]))
    assert sums.sizes["threshold"] == 0


@pytest.mark.parametrize("bins", [(), (0.1, 0.5), (0.0, 0.5, 0.5), (0.0, 1.0)])
def test_bins_that_do_not_rise_from_0_to_below_1_are_refused(bins):
    with pytest.raises(ValueError, match="must rise from 0"):
        Exceedance((10.0,), bins)
