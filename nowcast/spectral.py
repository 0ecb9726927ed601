"""Power by wavelength: how much of a field's variation lies at which scale."""

import functools
from collections.abc import Iterator

import numpy as np
from scipy import fft, ndimage

SQUARE = 3  # of the grid's shorter side, the width of the square in `weights`
PIXELS_AT_ONCE = 2**17  # so that what is computed of them stays in a processor's cache


def radial_power(fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the radially averaged power of fields, by rising number of waves on the longer side.

    The mean of a field is taken off, and what is left fades to zero towards the edges of the grid
    and of what was not observed (see `weights`), where it is zero. Else the steps there would look
    like power at small scales: of a blurred field, far more than its own. Two fields compare where
    the same pixels are missing in both.

    Parameters
    ----------
    fields : (..., y, x)
        NaN where a pixel does not count.

    Returns
    -------
    power : (..., wave)
        Squared amplitudes of the Fourier transform over the number of pixels, averaged over rings
        of equal wavelength; in squared units of the fields. The n-th ring has n waves on the longer
        side, see `wavelengths`. Zero of a field that is the same everywhere.
    share : (...)
        Mean squared weight of a pixel: the power that white noise of variance 1 would have.

    References
    ----------
    Ruzanski and Chandrasekar (2011), doi:10.1109/TGRS.2010.2103946: the radial average.

    Examples
    --------
    Sixteen waves across, so one in four pixels:

    >>> field = np.broadcast_to(np.sin(2 * np.pi * 16 * np.arange(64) / 64), (64, 64))
    >>> power, share = radial_power(field)
    >>> float(wavelengths(field.shape, 1.0)[power.argmax()])
    4.0
    """
    *leading, height, width = fields.shape
    flat = fields.reshape(-1, height, width)
    power = np.empty((len(flat), _waves(height, width)))
    share = np.empty(len(flat))
    for piece in _pieces(flat):
        power[piece], share[piece] = _power(flat[piece])
    return power.reshape(*leading, -1), share.reshape(leading)


def wavelengths(grid: tuple[int, int], spacing: float) -> np.ndarray:
    """Give the wavelengths of the rings of `radial_power`, from the longer side down to two pixels.

    Parameters
    ----------
    grid
        Number of pixels along y and x.
    spacing
        Distance between two pixels, in the units that the wavelengths shall have.

    Examples
    --------
    >>> wavelengths((6, 8), 2.0).round(2).tolist()
    [16.0, 8.0, 5.33]
    """
    return np.divide(max(grid) * spacing, np.arange(1, _waves(*grid) + 1))


def weights(counted: np.ndarray) -> np.ndarray:
    """Give the weights of pixels: 1 inside, 0 where nothing counts, fading between them.

    Twice the part of a square around the pixel that counts, less 1. So a straight edge fades over
    half a square, and a lone missing pixel takes next to nothing from those around it. A square is
    as wide as a third of the grid's shorter side, and an odd number of pixels.

    Parameters
    ----------
    counted : (..., y, x)
        Whether a pixel counts; those outside the grid do not.

    Examples
    --------
    >>> weights(np.ones((24, 24), bool))[12, :6].round(2).tolist()
    [0.11, 0.33, 0.56, 0.78, 1.0, 1.0]
    """
    width = 2 * (min(counted.shape[-2:]) // (2 * SQUARE)) + 1
    part = ndimage.uniform_filter(counted.astype(float), width, mode="constant", axes=(-2, -1))
    return np.asarray(counted * np.clip(2 * part - 1, 0, 1))


def _power(fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Do what `radial_power` says for fields (field, y, x) that are few enough to be at hand."""
    counted = np.isfinite(fields)
    weight = weights(counted)
    values = np.where(counted, fields, 0.0)
    total = weight.sum((1, 2), keepdims=True)
    mean = (weight * values).sum((1, 2), keepdims=True) / np.where(total > 0, total, 1.0)
    amplitude = fft.rfft2(weight * (values - mean))
    squared = (amplitude.real**2 + amplitude.imag**2) / values[0].size
    order, starts, factors, numbers = _rings(*fields.shape[1:])
    ordered = squared.reshape(len(fields), -1)[:, order] * factors
    return np.add.reduceat(ordered, starts, axis=1) / numbers, (weight**2).mean((1, 2))


def _waves(height: int, width: int) -> int:
    return (max(height, width) - 1) // 2


@functools.lru_cache(maxsize=4)
def _rings(height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Give the order of Fourier coefficients by ring, and where in it each ring starts.

    Besides, for how many coefficients of a whole transform each of those stands, since `rfft2`
    leaves out the conjugate half, and how many of the whole transform there are in each ring.
    """
    longer = max(height, width)
    along_x = fft.rfftfreq(width)
    waves = longer * np.hypot(fft.fftfreq(height)[:, None], along_x)
    ring = waves.round().astype(int).ravel()
    alone = (along_x == 0) | (along_x == 0.5)
    stands_for = np.broadcast_to(np.where(alone, 1.0, 2.0), waves.shape).ravel()
    order = np.argsort(ring, kind="stable")
    order = order[(ring[order] >= 1) & (ring[order] <= _waves(height, width))]
    starts = np.flatnonzero(np.diff(ring[order], prepend=0))
    return order, starts, stands_for[order], np.add.reduceat(stands_for[order], starts)


def _pieces(fields: np.ndarray) -> Iterator[slice]:
    """Give the slices of fields that are computed together."""
    number = max(1, PIXELS_AT_ONCE // fields[0].size) if len(fields) else 1
    for first in range(0, len(fields), number):
        yield slice(first, first + number)
