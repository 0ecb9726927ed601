import tracemalloc

import numpy as np
import pytest
import xarray as xr
from scipy.stats import norm, t

from nowcast.verification import bootstrap
from nowcast.verification.bootstrap import _holm as holm
from nowcast.verification.bootstrap import bands, paired, resampled

LEADS = np.array([10, 20], "timedelta64[m]")


def _mean(total):
    return xr.Dataset({"mean": total["value"] / total["number"]})


def _of_means(values, *dims):
    """Sums of which the score is a mean; ``(block, case, ...)``."""
    value = xr.DataArray(values.sum(axis=1), dims=("block", *dims))
    return xr.Dataset({"value": value, "number": xr.full_like(value, values.shape[1])})


def _csi(total):
    said = total["hits"] + total["misses"] + total["alarms"]
    return xr.Dataset({"csi": (total["hits"] / said).where(said > 0)})


def _of_counts(generator, *, blocks, nowcasters=("one", "two"), highest=50):
    dims = {"block": blocks, "nowcaster": len(nowcasters), "threshold": 2, "lead_time": 2}
    names = ("hits", "misses", "alarms")
    counts = {
        name: (tuple(dims), generator.integers(0, highest, list(dims.values()))) for name in names
    }
    coords = {"nowcaster": list(nowcasters), "threshold": [1.0, 5.0], "lead_time": LEADS}
    return xr.Dataset(counts, coords=coords)


def _weights(*, blocks, samples, seed):
    """How often each block is in each sample, found from the totals alone."""
    eye = xr.Dataset({"which": (("block", "number"), np.eye(blocks, dtype=int))})
    return resampled(eye, samples=samples, seed=seed)["which"].values.astype(int)


def test_each_sample_is_as_many_whole_blocks_drawn_with_replacement():
    weights = _weights(blocks=7, samples=500, seed=1)
    assert (weights.sum(axis=1) == 7).all()
    # Of 7 blocks one is not drawn with a chance of (6/7)^7, and once with one of (6/7)^6.
    assert (weights == 0).mean() == pytest.approx((6 / 7) ** 7, abs=0.03)
    assert (weights == 1).mean() == pytest.approx((6 / 7) ** 6, abs=0.03)


def test_totals_equal_a_loop_over_the_blocks_that_were_drawn():
    sums = _of_counts(np.random.default_rng(0), blocks=6)
    sums["error"] = sums["hits"] * 0.1
    totals = resampled(sums, samples=20, seed=3)
    for sample, weights in enumerate(_weights(blocks=6, samples=20, seed=3)):
        drawn = sums.isel(block=np.repeat(np.arange(6), weights))
        xr.testing.assert_allclose(totals.isel(sample=sample), drawn.sum("block").astype(float))
    assert totals["hits"].dims == ("sample", "nowcaster", "threshold", "lead_time")


def test_a_seed_decides_the_draws_and_memory_does_not(monkeypatch):
    sums = _of_counts(np.random.default_rng(0), blocks=6)
    first = bands(sums, _csi, ["csi"], samples=50, seed=1)
    assert not first.equals(bands(sums, _csi, ["csi"], samples=50, seed=2))
    monkeypatch.setattr(bootstrap, "SAMPLES_BYTES", 500)
    assert first.equals(bands(sums, _csi, ["csi"], samples=50, seed=1))


@pytest.mark.parametrize("blocks", [8, 200])
def test_the_band_of_a_mean_is_that_of_students_t(blocks):
    values = np.random.default_rng(5).normal(10.0, 2.0, (blocks, 1))
    band = bands(_of_means(values), _mean, ["mean"], samples=20_000)["mean_band"]
    half = t.ppf(0.95, blocks - 1) * values.std(ddof=1) / np.sqrt(blocks)
    assert band.sel(bound="low").item() == pytest.approx(values.mean() - half, abs=0.08 * half)
    assert band.sel(bound="high").item() == pytest.approx(values.mean() + half, abs=0.08 * half)


def test_bands_from_blocks_cover_and_bands_from_single_cases_do_not():
    repeats, blocks, cases = 600, 24, 12
    generator = np.random.default_rng(6)
    noise = generator.standard_normal((blocks, cases, repeats))
    for case in range(1, cases):  # within a block, what was stays by nine tenths
        noise[:, case] = 0.9 * noise[:, case - 1] + np.sqrt(1 - 0.9**2) * noise[:, case]

    def covered(values):
        band = bands(_of_means(values, "repeat"), _mean, ["mean"], samples=500)["mean_band"]
        return float(((band.sel(bound="low") < 0) & (band.sel(bound="high") > 0)).mean())

    assert covered(noise) == pytest.approx(0.9, abs=0.04)
    assert covered(noise.reshape(blocks * cases, 1, repeats)) < 0.6


@pytest.mark.parametrize("blocks", [8, 20, 60])
def test_nowcasters_of_equal_skill_are_told_apart_about_as_often_as_the_p_value_says(blocks):
    repeats = 1500
    generator = np.random.default_rng(blocks)
    rain = 100 * np.exp(0.8 * generator.standard_normal((blocks, 1, repeats)))
    shared = 0.4 + 0.1 * generator.standard_normal((blocks, 1, repeats))
    own = 0.08 * generator.standard_normal((blocks, 2, repeats))
    dims = ("block", "nowcaster", "repeat")
    sums = xr.Dataset(
        {"value": (dims, rain * (shared + own)), "number": (dims, rain + 0 * own)},
        coords={"nowcaster": ["one", "two"]},
    )
    p_values = paired(sums, _mean, "mean", ["two"], samples=1000)["mean_gain_p"]
    wrong = (p_values.sel(nowcaster="one", reference="two") < 0.05).mean().item()
    assert 0.03 < wrong < 0.08


def test_a_gain_is_found_that_bands_of_each_alone_would_hide():
    generator = np.random.default_rng(8)
    skill = generator.uniform(0.2, 0.8, (30, 1, 1))  # differs from block to block, for both alike
    values = skill + [[[0.05, 0.0]]] + 0.02 * generator.standard_normal((30, 1, 2))
    sums = _of_means(values, "nowcaster").assign_coords(nowcaster=["better", "worse"])
    alone = bands(sums, _mean, ["mean"])["mean_band"]
    assert alone.sel(nowcaster="better", bound="low") < alone.sel(nowcaster="worse", bound="high")
    gain = paired(sums, _mean, "mean", ["worse"]).sel(nowcaster="better", reference="worse")
    assert gain["mean_gain"].item() == pytest.approx(0.05, abs=0.015)
    assert gain["mean_gain_band"].sel(bound="low") > 0
    # Of no sample is the gain negative: the least p-value that 30 blocks and 10,000 samples give.
    least = 2 * t.cdf(norm.ppf(1 / 10_001) * np.sqrt(29 / 30), 29)
    assert gain["mean_gain_p"].item() == pytest.approx(least)


def test_what_is_paired_equals_a_loop():
    sums = _of_counts(np.random.default_rng(9), blocks=12, nowcasters=("one", "two", "three"))
    found = paired(sums, _csi, "csi", ["two"], samples=300, seed=4, level=0.8)

    def csi(blocks):
        counts = {name: sums[name].values[blocks].sum(axis=0) for name in ("hits", "misses")}
        alarms = sums["alarms"].values[blocks].sum(axis=0)
        return counts["hits"] / (counts["hits"] + counts["misses"] + alarms)

    weights = _weights(blocks=12, samples=300, seed=4)
    drawn = np.array([csi(np.repeat(np.arange(12), weight)) for weight in weights])
    tail = norm.cdf(t.ppf(0.1, 11) * np.sqrt(12 / 11))
    for which, nowcaster in ((0, "one"), (2, "three")):
        one = found.sel(nowcaster=nowcaster, reference="two")
        gain = csi(np.arange(12))
        assert one["csi_gain"].values == pytest.approx(gain[which] - gain[1])
        gains = drawn[:, which] - drawn[:, 1]
        for bound, part in (("low", tail), ("high", 1 - tail)):
            expected = np.quantile(gains, part, axis=0)
            assert one["csi_gain_band"].sel(bound=bound).values == pytest.approx(expected)
        fewer = np.minimum((gains <= 0).sum(axis=0), (gains >= 0).sum(axis=0))
        wider = norm.ppf(np.minimum((1 + fewer) / 301, 0.5)) * np.sqrt(11 / 12)
        assert one["csi_gain_p"].values == pytest.approx(2 * t.cdf(wider, 11))
    itself = found.sel(nowcaster="two", reference="two")
    assert all(itself[name].isnull().all() for name in found)


def test_nowcasters_with_the_same_forecasts_have_no_gain_and_a_p_value_of_one():
    squares = np.random.default_rng(10).gamma(1.0, 1.0, (20, 1, 1, 9))  # of which sums are rounded
    sums = _of_means(np.repeat(squares, 3, axis=2), "nowcaster", "lead_time")
    sums = sums.assign_coords(nowcaster=["one", "same", "other"])
    found = paired(sums, lambda total: np.sqrt(_mean(total)), "mean", ["one"])
    same = found.sel(nowcaster="same")
    assert (same["mean_gain"] == 0).all()
    assert (same["mean_gain_band"] == 0).all()
    assert (same["mean_gain_p"] == 1).all()
    assert (same["mean_gain_p_holm"] == 1).all()


def test_the_order_of_two_nowcasters_turns_the_gain_and_leaves_the_p_value():
    sums = _of_counts(np.random.default_rng(11), blocks=10)
    found = paired(sums, _csi, "csi", ["one", "two"], samples=200)
    there = found.sel(nowcaster="one", reference="two")
    back = found.sel(nowcaster="two", reference="one")
    assert there["csi_gain"].values == pytest.approx(-back["csi_gain"].values)
    assert there["csi_gain_p"].values == pytest.approx(back["csi_gain_p"].values)
    low, high = (there["csi_gain_band"].sel(bound=bound).values for bound in ("low", "high"))
    assert low == pytest.approx(-back["csi_gain_band"].sel(bound="high").values)
    assert (low < high).all()


def test_holms_correction_by_hand():
    dims = ("nowcaster", "reference", "lead_time")
    tested = xr.DataArray([[[0.01, 0.04, 0.03, 0.005]], [[0.5, np.nan, 0.02, np.nan]]], dims=dims)
    # Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, and not below it 0.06.
    expected = [[[0.03, 0.06, 0.06, 0.02]], [[0.5, np.nan, 0.04, np.nan]]]
    assert holm(tested).values == pytest.approx(np.array(expected), nan_ok=True)
    assert holm(tested * 2).max() == 1.0


@pytest.mark.parametrize("wet", [1, 2, 12])
def test_events_in_too_few_blocks_give_no_band(wet):
    counts = xr.Dataset(
        {name: ("block", [3] * wet + [0] * (12 - wet)) for name in ("hits", "misses", "alarms")}
    )
    band = bands(counts, _csi, ["csi"])["csi_band"]
    # Without any event are (1 - wet/12)^12 of the samples: 35 %, 11 %, none.
    assert band.isnull().all() if wet < 12 else band.values == pytest.approx(1 / 3)


def test_samples_without_the_score_are_left_out_of_a_band_where_they_are_few():
    counts = np.array([2, 4, 6] + [0] * 9)  # (9/12)^12, 3 % of the samples have none of the three
    sums = xr.Dataset({"hits": ("block", counts), "misses": ("block", counts)})
    sums["alarms"] = xr.zeros_like(sums["hits"])
    drawn = _csi(resampled(sums, samples=1000))["csi"]
    assert 0.01 < drawn.isnull().mean() < 0.1
    band = bands(sums, _csi, ["csi"])["csi_band"]
    assert band.values == pytest.approx([0.5, 0.5])


def test_a_single_block_gives_no_band_and_no_p_value():
    sums = _of_counts(np.random.default_rng(12), blocks=1)
    assert bands(sums, _csi, ["csi"])["csi_band"].isnull().all()
    found = paired(sums, _csi, "csi", ["two"]).sel(nowcaster="one")
    assert found["csi_gain"].notnull().all()
    for name in ("csi_gain_band", "csi_gain_p", "csi_gain_p_holm"):
        assert found[name].isnull().all()


def test_a_score_that_is_not_defined_has_no_band():
    sums = _of_counts(np.random.default_rng(13), blocks=9)
    sums = sums.where(sums["threshold"] < 5.0, 0)
    band = bands(sums, _csi, ["csi"])["csi_band"]
    assert band.sel(threshold=5.0).isnull().all()
    assert band.sel(threshold=1.0).notnull().all()
    p_values = paired(sums, _csi, "csi", ["two"], samples=200).sel(nowcaster="one")
    assert p_values["csi_gain_p_holm"].sel(threshold=5.0).isnull().all()


def test_bands_of_many_scores_need_little_memory():
    dims = {"block": 60, "nowcaster": 5, "threshold": 4, "scale": 6, "lead_time": 12}
    value = xr.DataArray(np.ones(tuple(dims.values())), dims=tuple(dims))
    sums = xr.Dataset({name: value for name in ("hits", "misses", "alarms")})
    tracemalloc.start()
    bands(sums, _csi, ["csi"])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6
