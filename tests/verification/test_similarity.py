import numpy as np
import pytest
import xarray as xr

from nowcast.verification.batches import FIELD_DIMS, Batch
from nowcast.verification.similarity import Similarity


def _sums(measure, forecast, observed):
    fields = (xr.DataArray(one, dims=FIELD_DIMS) for one in (forecast, observed))
    return measure.sums(Batch(*fields, xr.Dataset()))


def _ssim(measure, forecast, observed):
    return measure.scores(_sums(measure, forecast, observed).sum("base_time"))["ssim"]


def _fields(seed, top=60.0):
    values = np.random.default_rng(seed).gamma(0.4, 6.0, (3, 2, 16, 19))
    return np.clip(values, 0.0, top).astype(np.float32)


def _by_window(forecast, observed, value_range):
    """Mean over windows of 7 x 7 pixels, one after the other, of those without a missing pixel."""
    small, large = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    found = []
    for y in range(forecast.shape[0] - 6):
        for x in range(forecast.shape[1] - 6):
            mine, its = (f[y : y + 7, x : x + 7].astype(float) for f in (forecast, observed))
            if np.isnan(its).any():
                continue
            (a, b), cov = (mine.mean(), its.mean()), np.cov(mine.ravel(), its.ravel())
            light = (2 * a * b + small) / (a**2 + b**2 + small)
            found.append(light * (2 * cov[0, 1] + large) / (cov[0, 0] + cov[1, 1] + large))
    return np.mean(found) if found else np.nan


def test_similarity_of_even_fields_by_hand():
    forecast, observed = np.full((1, 1, 8, 8), 3.0), np.full((1, 1, 8, 8), 1.0)
    # Without variance the second factor is 1: (2 * 3 * 1 + C1) / (9 + 1 + C1), C1 = (0.01 * 10)**2.
    expected = (6 + 0.01) / (10 + 0.01)
    assert _ssim(Similarity(10.0), forecast, observed).item() == pytest.approx(expected, rel=1e-12)


def test_similarity_is_the_mean_over_fields_of_what_scikit_image_gives():
    from skimage.metrics import structural_similarity

    forecast, observed = _fields(0), _fields(1)
    ssim = _ssim(Similarity(60.0), forecast, observed)
    for lead in range(2):
        pairs = zip(forecast[:, lead], observed[:, lead], strict=True)
        each = [structural_similarity(*map(np.float64, pair), data_range=60.0) for pair in pairs]
        assert ssim[lead].item() == pytest.approx(np.mean(each), rel=1e-12)


@pytest.mark.slow
def test_similarity_is_that_of_tensorflow_where_nothing_is_missing():
    import tensorflow as tf

    forecast, observed = _fields(0), _fields(1)
    theirs = tf.image.ssim(
        forecast[..., None],
        observed[..., None],
        max_val=60.0,
        filter_size=7,
        filter_sigma=1e6,  # so wide that all pixels of a window weigh alike
        k2=0.03 * np.sqrt(48 / 49),  # it divides variances by 49, scikit-image by 48
    )
    ssim = _ssim(Similarity(60.0), forecast, observed)
    np.testing.assert_allclose(ssim, theirs.numpy().mean(0), atol=1e-6)


def test_similarity_counts_windows_without_missing_pixels_alone():
    forecast, observed = _fields(0), _fields(1)
    missing = np.zeros(observed.shape, bool)
    missing[0, 0, 5, 3] = missing[0, 1, :, 8] = True
    missing[1, 0, :, 6::7] = True  # no window is whole
    missing[2, 1] = True
    forecast[missing] = observed[missing] = np.nan
    forecast[2, 0] = observed[2, 0] = 0.0
    sums = _sums(Similarity(60.0), forecast, observed)
    assert sums["fields"].values.tolist() == [[1, 1], [0, 1], [1, 0]]
    assert not sums["similarity"].isnull().any()
    ssim = _ssim(Similarity(60.0), forecast, observed)
    for lead in range(2):
        pairs = zip(forecast[:, lead], observed[:, lead], strict=True)
        brute = [_by_window(*pair, 60.0) for pair in pairs]
        assert ssim[lead].item() == pytest.approx(np.nanmean(brute), abs=1e-6)


def test_two_dry_fields_are_alike():
    dry = np.zeros((1, 1, 8, 8))
    assert _ssim(Similarity(60.0), dry, dry).item() == 1.0


@pytest.mark.parametrize("shape", [(6, 20), (20, 6), (1, 1)])
def test_fields_smaller_than_a_window_have_no_similarity(shape):
    field = np.ones((2, 1, *shape))
    assert np.isnan(_ssim(Similarity(60.0), field, field)).all()


def test_scores_follow_from_sums_of_groups():
    forecast, observed = _fields(0), _fields(1)
    observed[1, 1] = forecast[1, 1] = np.nan
    measure = Similarity(60.0)
    sums = _sums(measure, forecast, observed)
    by_case = measure.scores(sums)["ssim"]
    assert by_case.dims == ("base_time", "lead_time")
    assert np.isnan(by_case[1, 1])
    pooled = measure.scores(sums.sum(("base_time", "lead_time")))["ssim"]
    assert pooled.item() == pytest.approx(np.nanmean(by_case), rel=1e-12)


def test_what_counts_is_found_once_for_all_nowcasters():
    observed = xr.DataArray(_fields(1), dims=FIELD_DIMS)
    once = {}
    for seed in (0, 2):
        forecast = xr.DataArray(_fields(seed), dims=FIELD_DIMS)
        Similarity(60.0).sums(Batch(forecast, observed, xr.Dataset(), once=once))
    assert list(once) == ["whole_windows"]
    assert once["whole_windows"].sum() == 3 * 2 * 10 * 13


def test_a_range_that_is_not_above_zero_is_refused():
    with pytest.raises(ValueError, match="value_range must be above 0; received 0"):
        Similarity(0.0)
