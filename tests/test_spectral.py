import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from nowcast.spectral import radial_power, wavelengths, weights


def _fading(grid):
    """The weights of a grid without missing pixels, by hand: a square's part is a product."""
    width = 2 * (min(grid) // 6) + 1
    y, x = (np.convolve(np.ones(side), np.ones(width) / width, "same") for side in grid)
    return np.clip(2 * np.outer(y, x) - 1, 0, 1)


def _by_hand(field, spacing):
    """Power and wavelengths coefficient by coefficient, in waves per km."""
    counted = np.isfinite(field)
    weight, (height, width) = weights(counted), field.shape
    values = np.where(counted, field, 0.0)
    if weight.sum():
        values = values - (weight * values).sum() / weight.sum()
    y, x = np.mgrid[:height, :width]
    rings = {}
    for row in range(-(height // 2), (height + 1) // 2):
        for column in range(-(width // 2), (width + 1) // 2):
            frequency = np.hypot(row / height, column / width) / spacing  # waves per km
            ring = round(frequency * max(height, width) * spacing)
            phase = 2 * np.pi * (row * y / height + column * x / width)
            amplitude = (weight * values * np.exp(-1j * phase)).sum()
            rings.setdefault(ring, []).append(abs(amplitude) ** 2 / field.size)
    last = (max(height, width) - 1) // 2
    return np.array([np.mean(rings[ring]) for ring in range(1, last + 1)])


@pytest.mark.parametrize("side", [32, 33, 64])
def test_power_agrees_with_pysteps_where_nothing_is_missing(side):
    from pysteps.utils.spectral import rapsd

    field = np.random.default_rng(side).gamma(0.3, 4.0, (side, side))
    weight = _fading(field.shape)
    anomaly = weight * (field - np.average(field, weights=weight))
    expected, frequency = rapsd(anomaly, fft_method=np.fft, return_freq=True, d=2.0)
    power, share = radial_power(field)
    np.testing.assert_allclose(power, expected[1:], rtol=1e-9)
    np.testing.assert_allclose(wavelengths(field.shape, 2.0), 1 / frequency[1:], rtol=1e-12)
    assert share == pytest.approx((weight**2).mean(), rel=1e-12)


@pytest.mark.parametrize("grid", [(20, 20), (16, 24), (25, 18)])
def test_power_is_that_of_each_coefficient_with_missing_pixels_and_on_any_grid(grid):
    rng = np.random.default_rng(1)
    fields = rng.gamma(0.3, 4.0, (3, *grid))
    fields[0, :5, :7] = np.nan
    fields[0, 12, 9] = np.nan
    fields[1] = 0.0
    fields[1, 3:] = np.nan
    expected = [_by_hand(field, 1.5) for field in fields]
    np.testing.assert_allclose(radial_power(fields)[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1])
def test_a_wave_along_either_side_of_an_oblong_grid_has_its_own_wavelength(axis):
    along = np.arange((48, 96)[axis]).reshape((-1, 1) if axis == 0 else (1, -1))
    field = np.broadcast_to(np.sin(2 * np.pi * along / 6), (48, 96))  # six pixels, of 2 km
    power, _ = radial_power(field)
    assert wavelengths((48, 96), 2.0)[power.argmax()] == pytest.approx(12.0)


def test_a_blurred_field_has_no_power_at_small_scales_though_half_of_it_is_missing():
    noise = np.random.default_rng(2).normal(size=(64, 64))
    blurred = gaussian_filter(noise, 4.0)
    blurred[:, 30:] = np.nan
    faded, _ = radial_power(blurred)
    cut_off = np.where(np.isfinite(blurred), blurred, 0.0)
    stepped = np.abs(np.fft.fft2(cut_off)) ** 2 / cut_off.size
    assert faded[-1] / faded.max() < 1e-4 < stepped[0, 31] / stepped.max()


def test_an_offset_changes_nothing_and_a_factor_counts_squared():
    field = np.random.default_rng(3).gamma(0.3, 4.0, (32, 40))
    field[:8] = np.nan
    power, _ = radial_power(field)
    np.testing.assert_allclose(radial_power(field + 280.0)[0], power, rtol=1e-6)
    np.testing.assert_allclose(radial_power(3 * field)[0], 9 * power, rtol=1e-9)


def test_white_noise_has_the_power_of_its_share_at_every_wavelength():
    noise = np.random.default_rng(4).normal(size=(200, 48, 48))
    noise[:, :, 30:] = np.nan
    power, share = radial_power(noise)
    # The longest waves lose some to the mean that is taken off.
    np.testing.assert_allclose((power.mean(0) / share.mean())[2:], 1.0, atol=0.1)


def test_a_dry_field_and_one_without_a_pixel_that_counts_have_no_power():
    dry, blind = np.zeros((16, 16)), np.full((16, 16), np.nan)
    power, share = radial_power(np.stack([dry, blind]))
    assert (power == 0).all()
    assert share[0] > 0
    assert share[1] == 0


def test_fields_have_the_same_power_whatever_they_are_computed_with():
    fields = np.random.default_rng(5).gamma(0.3, 4.0, (70, 2, 40, 44))  # several pieces
    together = radial_power(fields)
    alone = radial_power(fields[61, 1])
    np.testing.assert_array_equal(together[0][61, 1], alone[0])
    assert together[1][61, 1] == alone[1]


def test_a_lone_missing_pixel_takes_next_to_nothing_from_those_around_it():
    counted = np.ones((64, 64), bool)
    counted[32, 32] = False
    weight = weights(counted)
    assert weight[32, 32] == 0
    assert weight[32, 33] == pytest.approx(1 - 2 / 21**2)
