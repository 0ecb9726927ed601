import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.ndimage import gaussian_filter

from nowcast.data.observations import open_observations
from nowcast.data.synthetic import synthesise
from nowcast.frames import Window, base_times
from nowcast.nowcasters import open_nowcaster
from nowcast.nowcasters.smoothed import smooth
from nowcast.verification.batches import FIELD_DIMS, Batch
from nowcast.verification.spectra import Spectra

SPACING = 2.0  # km


@pytest.fixture(scope="module")
def rain():
    """Observed, (base_time, lead_time, y, x)."""
    frames = synthesise(events=4, hours=1, size=64, seed=7)["rain_rate"].values
    return frames.reshape(4, 7, 64, 64)[:, :6].astype(float)


def _array(values):
    return xr.DataArray(values, dims=FIELD_DIMS)


def _sums(forecast, observed):
    return Spectra(SPACING).sums(Batch(_array(forecast), _array(observed), xr.Dataset()))


def _scores(forecast, observed):
    return Spectra(SPACING).scores(_sums(forecast, observed).sum("base_time"))


def _resolution(ratio):
    """Of a forecast with so much of the observed power at 64, 32, 16 and 8 km."""
    observed = np.array([9.0, 3.0, 1.0, 0.5])
    total = xr.Dataset(
        {
            "power_sum": ("wavelength", np.array(ratio) * observed),
            "observed_power_sum": ("wavelength", observed),
            "power_share": 2.0,
        },
        {"wavelength": [64.0, 32.0, 16.0, 8.0]},
    )
    return Spectra(SPACING).scores(total)["effective_resolution"].item()


def _blurred(fields, sigma):
    return gaussian_filter(fields, sigma, axes=(-2, -1))


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [
        ([1, 0.9, 0.1, 0], np.sqrt(32 * 16)),  # half lies in the middle between 0.9 and 0.1
        ([1, 0.75, 0.25, 9], np.sqrt(32 * 16)),  # noise at small scales does not help
        ([1, 1, 0.6, 0.4], np.sqrt(16 * 8)),
        ([1, 3, 5, 7], 8.0),  # more power is no blur
        ([1, 1, 1, 0.5], 8.0),
        ([0.4, 1, 1, 1], 64.0),
        ([0, 0, 0, 0], 64.0),
    ],
)
def test_effective_resolution_by_hand(ratio, expected):
    assert _resolution(ratio) == pytest.approx(expected)


@pytest.mark.parametrize("sigma", [1.0, 2.0])
def test_effective_resolution_of_a_field_blurred_by_a_gaussian_is_the_analytic_one(rain, sigma):
    """Power falls by exp(-(2 pi sigma / wavelength)^2), which is a half there."""
    observed = rain.copy()
    observed[:, :, :10, :12] = np.nan
    forecast = np.where(np.isfinite(observed), _blurred(rain, sigma), np.nan)
    analytic = 2 * np.pi * sigma * SPACING / np.sqrt(np.log(2))
    np.testing.assert_allclose(_scores(forecast, observed)["effective_resolution"], analytic, 0.1)
    # Of noise, as strong at all scales, nothing leaks from large ones to small ones.
    noise = np.random.default_rng(0).normal(size=(50, 1, 64, 64))
    flat = _scores(_blurred(noise, sigma), noise)["effective_resolution"]
    np.testing.assert_allclose(flat, analytic, 0.03)


def test_the_more_a_forecast_is_blurred_the_coarser_it_is(rain):
    resolutions = [
        _scores(_blurred(rain, sigma), rain)["effective_resolution"].values
        for sigma in (0.0, 0.7, 1.5, 3.0)
    ]
    assert (np.diff(resolutions, axis=0) > 0).all()


def test_a_forecast_with_more_power_than_observed_does_not_look_blurred(rain):
    noisy = rain + np.random.default_rng(0).normal(size=rain.shape)
    shortest = 64 * SPACING / 31
    for forecast in (noisy, 2 * rain, rain):
        np.testing.assert_allclose(_scores(forecast, rain)["effective_resolution"], shortest)


def test_noise_laid_over_a_blurred_forecast_does_not_hide_the_blur(rain):
    blurred, there = _blurred(rain, 2.0), _scores(rain, rain)["power"].max("lead_time")
    strong = np.sqrt(2 * there[-1].item())  # as much again as there is at the shortest wavelength
    noise = np.random.default_rng(0).normal(scale=strong, size=rain.shape)
    noisy = _scores(blurred + noise, rain)
    assert (noisy["power"] > noisy["observed_power"])[:, -1].all()
    resolution = _scores(blurred, rain)["effective_resolution"]
    np.testing.assert_allclose(noisy["effective_resolution"], resolution, rtol=0.15)


def test_power_is_that_of_noise_whatever_part_of_it_counts():
    noise = np.random.default_rng(1).normal(scale=2.0, size=(60, 1, 48, 48))
    noise[::2, :, :, :20] = np.nan
    scores = _scores(0 * noise, noise)
    np.testing.assert_allclose(scores["observed_power"], 4.0, rtol=0.2)
    assert scores["observed_power"].mean() == pytest.approx(4.0, rel=0.02)
    assert (scores["power"] == 0).all()


def test_where_only_dryness_was_observed_the_resolution_is_not_defined(rain):
    observed, forecast = rain.copy(), rain.copy()
    observed[:, 1] = 0.0
    observed[:, 2] = forecast[:, 2] = np.nan
    scores = _scores(forecast, observed)
    resolution = scores["effective_resolution"].values
    assert np.isnan(resolution[1:3]).all()
    assert np.isfinite(resolution[[0, 3, 4, 5]]).all()
    assert (scores["observed_power"][1] == 0).all()
    assert scores["observed_power"][2].isnull().all()
    assert scores["power"][2].isnull().all()


@pytest.mark.parametrize("grid", [(1, 1), (2, 2)])
def test_on_a_grid_without_waves_the_resolution_is_not_defined(grid):
    rain = np.ones((2, 3, *grid))
    assert np.isnan(_scores(rain, rain)["effective_resolution"]).all()


def test_where_no_rain_is_forecast_nothing_is_resolved(rain):
    resolution = _scores(0 * rain, rain)["effective_resolution"]
    np.testing.assert_allclose(resolution, 64 * SPACING)


def test_a_dry_case_adds_no_power_and_is_counted(rain):
    half = np.concatenate([rain, 0 * rain])
    np.testing.assert_allclose(_scores(half, half)["power"], _scores(rain, rain)["power"] / 2)


def test_sums_are_never_missing_and_the_same_in_any_batch(rain):
    observed = rain.copy()
    observed[1, :, :30] = np.nan
    observed[2] = np.nan
    forecast = np.where(np.isfinite(observed), _blurred(rain, 1.0), np.nan)
    together = _sums(forecast, observed)
    assert not together.to_array().isnull().any()
    alone = [_sums(forecast[[case]], observed[[case]]) for case in range(4)]
    xr.testing.assert_identical(together, xr.concat(alone, "base_time"))


def test_observations_are_looked_at_once_for_all_nowcasters(rain):
    observed, once = _array(rain), {}
    for forecast in (_array(rain), _array(_blurred(rain, 1.0))):
        sums = Spectra(SPACING).sums(Batch(forecast, observed, xr.Dataset(), once=once))
        xr.testing.assert_identical(sums, _sums(forecast.values, rain))
    assert list(once) == ["spectra"]


def test_scores_are_those_of_each_group_and_of_all_lead_times_together(rain):
    sums = _sums(_blurred(rain, 1.0), rain)
    measure = Spectra(SPACING)
    groups = sums.rename(base_time="block").transpose("lead_time", "wavelength", "block")
    for block, scores in measure.scores(groups).groupby("block"):
        expected = measure.scores(sums.isel(base_time=block))
        xr.testing.assert_allclose(
            scores.squeeze("block").transpose(*expected["power"].dims), expected
        )
    pooled = measure.scores(sums.sum(("base_time", "lead_time")))
    assert pooled["effective_resolution"].dims == ()
    assert pooled["power"].dims == ("wavelength",)


def test_scores_say_what_they_are(rain):
    scores = _scores(rain, rain)
    assert scores["effective_resolution"].attrs["units"] == "km"
    assert scores["wavelength"].attrs["units"] == "km"
    assert all({"long_name", "references"} <= set(score.attrs) for score in scores.values())


def test_extrapolation_of_real_radar_is_sharp_and_a_blurred_one_is_found_out(shared_data):
    """On a wet morning of TAASRAD19; moving rain by parts of a pixel costs some power."""
    observed = open_observations(shared_data / "taasrad19" / "validation.nc")
    observed = observed.sel(time=slice("2016-09-17T00:00", "2016-09-17T12:00")).load()
    leads = pd.to_timedelta([5, 30, 60], unit="min")
    cases = base_times(observed, Window(3, 12, pd.Timedelta("5min")))[::12]
    forecast = {
        name: open_nowcaster(name).nowcast(observed, base_times=cases, lead_times=leads)
        for name in ("persistence", "extrapolation")
    }
    fields = {name: nowcast["reflectivity"].values for name, nowcast in forecast.items()}
    fields["blurred"] = smooth(fields["extrapolation"], 2.0)
    truth = observed["reflectivity"].sel(time=forecast["persistence"]["valid_time"]).values
    there = np.isfinite(fields["extrapolation"])
    truth = np.where(there, truth, np.nan)
    measure, resolution = Spectra(3.75), {}
    for name, values in fields.items():
        batch = Batch(_array(np.where(there, values, np.nan)), _array(truth), xr.Dataset())
        scores = measure.scores(measure.sums(batch).sum("base_time"))
        resolution[name] = scores["effective_resolution"].values
    assert (resolution["persistence"] < 9).all()
    assert (resolution["extrapolation"] < 13).all()
    analytic = 2 * np.pi * 2.0 * 3.75 / np.sqrt(np.log(2))  # of the blur alone: 56.6 km
    np.testing.assert_allclose(resolution["blurred"], analytic, rtol=0.25)
