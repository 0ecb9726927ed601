import dask
import numpy as np
import pandas as pd
import pytest

from nowcast.conventions import RAIN_RATE, check_observations, check_values
from nowcast.data import synthetic
from nowcast.data.synthetic import REGIMES, regimes, synthesise

STILL = {"EVENT_SPEED": 1e-9, "WANDERING": (0.0, 60.0)}
MEASURED_QUANTILES = {0.5: 0.48, 0.9: 2.04, 0.99: 4.92}  # mm/h of wet pixels; radar_statistics.py
MEASURED_SLOPE = 3.0  # of rain in dB, 8 to 64 km: between 2.75 and 3.30; radar_statistics.py
MEASURED_SPREAD = 0.27  # of the wet fraction of 128 km windows; radar_statistics.py


@pytest.fixture
def settings(monkeypatch):
    """Change constants of the source for one test."""

    def change(**constants):
        for name, value in constants.items():
            monkeypatch.setattr(synthetic, name, value)

    return change


@pytest.fixture(scope="module")
def many_first_frames():
    return synthesise(events=300, hours=0)["rain_rate"].to_numpy()


def decibels(rain_rate):
    wet = rain_rate > 0
    return np.where(wet, 10 * np.log10(np.where(wet, rain_rate, 1.0)), -15.0)


def waves(frames):
    """Modes of frames under a window, and their wavelength in pixels."""
    side = frames.shape[-1]
    window = np.hanning(side)[:, None] * np.hanning(side)
    wavenumber = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side))
    deviations = frames - frames.mean(axis=(-2, -1), keepdims=True)
    return np.fft.fft2(deviations * window), 1 / np.maximum(wavenumber, 1e-9)


def test_synthetic_rain_keeps_the_convention():
    observed = synthesise(events=2, hours=1, size=16)
    check_values(check_observations(observed, RAIN_RATE))
    assert observed["rain_rate"].dtype == np.float32
    assert observed["crs"].attrs["grid_mapping_name"] == "lambert_azimuthal_equal_area"
    assert observed["crs"].attrs["latitude_of_projection_origin"] == 52.0
    assert observed["x"].to_numpy()[[0, -1]].tolist() == [-15_000.0, 15_000.0]
    assert observed["y"].to_numpy()[[0, -1]].tolist() == [15_000.0, -15_000.0]
    assert "seed 0" in observed.attrs["source"]


def test_frames_end_at_their_nominal_time():
    observed = synthesise(hours=1, size=8, step_minutes=5)
    assert observed.sizes["time"] == 13
    assert (observed["time_bnds"][:, 1] == observed["time"]).all()
    assert (observed["time_bnds"][:, 0] == observed["time"] - pd.Timedelta("5min")).all()


def test_events_are_a_gap_apart():
    times = synthesise(events=3, hours=2.5, size=8)["time"].to_index()
    assert times[0] == pd.Timestamp("2024-01-01T00:00")
    assert times[[16, 32]].tolist() == [
        pd.Timestamp("2024-01-01T09:00"),
        pd.Timestamp("2024-01-01T18:00"),
    ]
    assert sorted(set(np.diff(times) / pd.Timedelta("10min"))) == [1.0, 39.0]


def test_the_same_seed_gives_the_same_bytes():
    one, other = (synthesise(events=2, hours=1, size=32, seed=7) for _ in range(2))
    assert one["rain_rate"].data.name == other["rain_rate"].data.name
    assert one.compute().identical(other.compute(scheduler="synchronous"))


def test_another_seed_gives_other_rain_and_motion():
    one, other = (synthesise(hours=1, size=32, seed=seed) for seed in (0, 1))
    assert not (one["rain_rate"] == other["rain_rate"]).all()
    assert not (one["motion_x"] == other["motion_x"]).any()


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_an_event_is_the_same_alone_and_among_others(scheduler):
    whole = synthesise(events=3, hours=1, size=32).compute(scheduler=scheduler)
    lazy = synthesise(events=3, hours=1, size=32)
    for event in (2, 0, 1):
        frames = slice(7 * event, 7 * event + 7)
        assert lazy.isel(time=frames).compute().identical(whole.isel(time=frames))
    assert synthesise(hours=1, size=32).compute().identical(whole.isel(time=slice(0, 7)))


def test_nothing_is_computed_before_it_is_asked_for():
    def refuse(*_args, **_kwargs):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        observed = synthesise(events=2, hours=1, size=16)
        with pytest.raises(AssertionError, match="computed"):
            observed["rain_rate"].compute()
    assert observed["rain_rate"].chunks[0] == (7, 7)


def test_dry_is_exactly_zero_and_wet_is_in_range(many_first_frames):
    wet = many_first_frames[many_first_frames != 0]
    assert not np.isnan(many_first_frames).any()
    assert wet.min() >= np.float32(synthetic.WET_FROM) * (1 - 1e-6)
    assert wet.max() <= synthetic.HIGHEST_RAIN_RATE


def test_the_wet_fraction_varies_as_measured(many_first_frames):
    fractions = (many_first_frames > 0).mean(axis=(1, 2))
    assert np.median(fractions) == pytest.approx(synthetic.WET_FRACTION, abs=0.05)
    assert fractions.std() == pytest.approx(MEASURED_SPREAD, abs=0.04)


def test_wet_rates_are_spread_as_measured(many_first_frames):
    wet = many_first_frames[many_first_frames > 0]
    for part, rate in MEASURED_QUANTILES.items():
        assert np.quantile(wet, part) == pytest.approx(rate, rel=0.2)


def test_more_of_the_field_is_more_rain():
    field = np.linspace(-3, 8, 100)
    rates = synthetic._as_rain(field, 0.5)
    assert (rates[field <= 0.5] == 0).all()
    assert (np.diff(rates[field > 0.5]) >= 0).all()
    assert rates[-1] == synthetic.HIGHEST_RAIN_RATE


def test_the_field_has_variance_one_and_the_stated_slopes():
    source = synthetic._Source(1, 256, 1000.0, 10, 0)
    wavenumber = synthetic._wavenumbers(source)[2]
    amplitude = synthetic._amplitude(wavenumber, 512)
    modes = np.hstack([amplitude, amplitude[:, -2:0:-1]])
    assert (modes**2).sum() / 512**2 == pytest.approx(1.0)
    for low, high, slope in [(1 / 200, 1 / 25, 3.0), (1 / 15, 1 / 3, 4.0)]:
        kept = (wavenumber > low) & (wavenumber < high) & (amplitude > 0)
        fitted = np.polyfit(np.log(wavenumber[kept]), 2 * np.log(amplitude[kept]), 1)[0]
        assert fitted == pytest.approx(-slope, abs=1e-6)


def test_rain_has_the_measured_spectral_slope(many_first_frames):
    modes, wavelength = waves(decibels(many_first_frames))
    power = (np.abs(modes) ** 2).mean(axis=0)
    kept = (2 * wavelength > 8) & (2 * wavelength < 64)
    fitted = np.polyfit(np.log(wavelength[kept]), np.log(power[kept]), 1, w=wavelength[kept])[0]
    assert fitted == pytest.approx(MEASURED_SLOPE, abs=0.3)


def test_correlation_falls_as_measured_whatever_the_step():
    wavenumber = np.array([[1 / 64.0, 1 / 8.0]])
    kept = synthetic._evolution(wavenumber, 10)[0]
    halves = synthetic._evolution(wavenumber, 5)[0]
    np.testing.assert_allclose(halves @ halves, kept, atol=1e-12)
    a, b = synthetic.LIFETIME
    passed = 10 * synthetic.FALL_TO_1_E / (a * np.array([64.0, 8.0]) ** b)
    np.testing.assert_allclose(kept[0, :, 0, 0], (1 + passed) * np.exp(-passed))


def test_evolution_keeps_the_variance():
    kept, new = synthetic._evolution(np.array([[1 / 64.0]]), 10)
    both = kept[0, 0] @ kept[0, 0].T + new[0, 0] @ new[0, 0].T
    np.testing.assert_allclose(both, np.eye(2), atol=1e-12)


def test_larger_rain_lives_longer_by_the_stated_law(settings):
    settings(**STILL)
    observed = synthesise(events=8, hours=3, step_minutes=5)
    frames = decibels(observed["rain_rate"].to_numpy()).reshape(8, 37, 64, 64)
    modes, wavelength = waves(frames)
    a, b = synthetic.LIFETIME
    for low, high in [(8, 16), (16, 32), (32, 64)]:
        kept = modes[..., (2 * wavelength >= low) & (2 * wavelength < high)]
        power = (np.abs(kept) ** 2).mean()
        fall = [
            (kept[:, lag:] * kept[:, : 37 - lag].conj()).real.mean() / power for lag in range(20)
        ]
        lifetime = 5 * np.interp(-1 / np.e, -np.array(fall), np.arange(20))
        assert lifetime == pytest.approx(a * np.sqrt(low * high) ** b, rel=0.25)


@pytest.mark.parametrize(
    ("direction", "now", "before"),
    [
        (90.0, np.s_[:, :, 1:], np.s_[:, :, :-1]),  # east: one column on
        (0.0, np.s_[:, :-1, :], np.s_[:, 1:, :]),  # north: one row up
    ],
)
def test_rain_moves_one_pixel_a_step(settings, direction, now, before):
    settings(
        EVENT_SPEED=2000 / 600,
        EVENT_SPEED_SPREAD=0.0,
        EVENT_DIRECTION=(direction, 0.0),
        WANDERING=(0.0, 60.0),
        LIFETIME=(1e4, 0.0),
    )
    rain_rate = synthesise(hours=1)["rain_rate"].to_numpy()
    change = rain_rate[1:][now] - rain_rate[:-1][before]
    assert np.abs(change).mean() < 0.01 * rain_rate.mean()


def test_optical_flow_finds_the_stated_motion():
    from pysteps.motion.lucaskanade import dense_lucaskanade

    observed = synthesise(events=4, hours=1, size=128, step_minutes=5).compute()
    for start in range(0, 52, 13):
        event = observed.isel(time=slice(start, start + 13))
        frames = decibels(event["rain_rate"].to_numpy())
        pixels = np.mean([dense_lucaskanade(frames[n : n + 2]) for n in range(12)], axis=0)
        along_x, along_y = pixels.mean(axis=(1, 2)) * 2000 / 300
        assert along_x == pytest.approx(float(event["motion_x"].mean()), abs=1.0)
        assert -along_y == pytest.approx(float(event["motion_y"].mean()), abs=1.0)


def test_motion_wanders_slowly_around_that_of_its_event():
    observed = synthesise(events=50, size=8)
    motion = np.stack([observed["motion_x"], observed["motion_y"]]).reshape(2, 50, 37)
    around = motion - motion.mean(axis=2, keepdims=True)
    assert 0.6 < around.std() < 1.0
    assert np.abs(np.diff(around)).max() < 3.0
    assert np.median(np.hypot(*motion.mean(axis=2))) == pytest.approx(10.0, abs=2.5)


def test_displacement_follows_from_motion():
    motion = np.array([[1.0, 3.0, 3.0], [0.0, 0.0, -2.0]])
    metres = synthetic._displacement(motion, 10)
    assert metres.tolist() == [[0.0, 1200.0, 3000.0], [0.0, 0.0, -600.0]]


@pytest.mark.parametrize("wrong", [{"events": 0}, {"size": 1}, {"step_minutes": -5}, {"seed": -1}])
def test_what_gives_no_frames_is_refused(wrong):
    with pytest.raises(ValueError, match="must be positive"):
        synthesise(**wrong)


def _means(events=20, **settings):
    """Areal mean rain of frames, and the rain of the same area an hour later, made by hand."""
    observed = synthesise(events=events, hours=3, size=16, **settings)
    means = observed["rain_rate"].mean(("y", "x")).values.reshape(events, -1)
    return means[:, :-6], means[:, 6:]


def test_regimes_of_rain_that_does_not_move_are_those_of_its_frames(settings):
    settings(**STILL)
    now, later = _means()
    found = regimes(events=20, hours=3, size=16).compute().reshape(20, -1)[:, :-6]
    initiating = (now < 0.2) & (later >= 1.5 * now) & (later > 0)
    growing = (later >= 1.25 * now) & (later > 0) & ~initiating
    decaying = (later * 1.25 <= now) & (now > 0)
    assert (found == np.select([initiating, growing, decaying], [3, 1, 2], 0)).mean() > 0.999


def test_what_the_motion_carries_in_and_out_changes_no_regime(settings):
    # Means of the first frame are the same whatever the motion; so are those an hour later, of an
    # area that moves along.
    moving = regimes(events=40, hours=0, size=16).compute()
    settings(**STILL)
    assert regimes(events=40, hours=0, size=16).compute().tolist() == moving.tolist()


def test_rain_that_moves_is_little_where_its_frame_says_so_before_it_initiates():
    found = regimes(events=20, hours=3, size=16).compute()
    means = synthesise(events=20, hours=3, size=16)["rain_rate"].mean(("y", "x")).values
    assert (found == 3).sum() > 10
    assert (means[found == 3] < 0.2).all()


def test_no_regime_is_rare_and_each_is_called_by_its_name():
    shares = np.bincount(regimes(events=60, hours=2, size=32).compute(), minlength=4) / (60 * 13)
    assert REGIMES == ("advective", "growing", "decaying", "initiating")
    assert shares.min() > 0.05
    assert shares.max() < 0.6


def test_regimes_are_lazy_and_the_same_each_time():
    found = regimes(events=3, hours=1, size=8, seed=5)
    assert found.chunks == ((7, 7, 7),)
    assert found.name == regimes(events=3, hours=1, size=8, seed=5).name
    assert found.blocks[2].compute().tolist() == found.compute()[14:].tolist()
