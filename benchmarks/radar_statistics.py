"""Measure what `nowcast.data.synthetic` is set from: radar's rain in space, in time and in motion.

Run ``python benchmarks/radar_statistics.py [--knmi DIR] [--synthetic]``. ``DIR`` holds five-minute
HDF5 composites of the Royal Netherlands Meteorological Institute; by default it is
``radar/knmi_hdf5`` in ``$NOWCAST_SHARED_DATA``, or in ``../shared/data``. With ``--synthetic`` the
same is measured, on the same grid and at the same step, on three events of the synthetic source.
Takes one minute, with ``--synthetic`` three.
"""

import argparse
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
from scipy.optimize import least_squares
from scipy.special import ndtr, ndtri

from nowcast.data import synthetic

COUNT = 0.12  # mm/h; one count of the composites is 0.01 mm in five minutes
MISSING = 65535
STEP_MINUTES = 5
GRID_SPACING_KM = 1.0
DRY_DB = -15.0  # dB given to dry pixels before spectra and optical flow, as in pysteps
SLOPE_RANGES = ((20.0, 150.0), (4.0, 20.0))  # km, on either side of the scale break
BANDS = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0)  # km, edges of the bands of wavelength
LAGS = (1, 2, 3, 4, 6, 8, 10, 12)  # steps of five minutes
BASE_EVERY = 4  # steps between the frames from which correlations are taken
WINDOW_KM = 128  # side of the smaller squares in which wet fraction is taken
QUANTILES = (0.25, 0.5, 0.75, 0.9, 0.99, 0.999)
EVENTS = 3  # of the synthetic source

Rows = list[tuple[str, str]]  # of the table: what was measured, its value


def main() -> None:
    """Print the table."""
    arguments = _arguments()
    columns = {"KNMI": statistics([read_knmi(arguments.knmi)])}
    if arguments.synthetic:
        columns["synthetic"] = statistics(list(synthetic_events()))
    print(f"{'':44}" + "".join(f"{name:>36}" for name in columns))
    for rows in zip(*columns.values(), strict=True):
        print(f"{rows[0][0]:44}" + "".join(f"{value:>36}" for _, value in rows))


def read_knmi(folder: Path) -> np.ndarray:
    """Give rain rate in mm/h in the largest square that is observed in all frames."""
    paths = sorted(folder.glob("*.h5"))
    if not paths:
        raise SystemExit(f"{folder} holds no .h5 files; say --knmi DIR")
    counts = np.stack([_counts(path) for path in paths])
    rows, columns = largest_square((counts != MISSING).all(axis=0))
    return counts[:, rows, columns] * COUNT


def synthetic_events(size: int = 295) -> Iterator[np.ndarray]:
    """Give rain rate in mm/h of each event of the synthetic source, on the grid of KNMI."""
    observed = synthetic.synthesise(
        events=EVENTS,
        hours=91 * STEP_MINUTES / 60,
        size=size,
        grid_spacing_m=1000 * GRID_SPACING_KM,
        step_minutes=STEP_MINUTES,
    )
    for block in observed["rain_rate"].data.blocks:
        yield block.compute(scheduler="synchronous").astype(float)


def statistics(events: list[np.ndarray]) -> Rows:
    """Measure rain rates with dims ``(frame, y, x)``, an array for each event."""
    decibels = [to_decibels(event) for event in events]
    motions = [dense_motion(event) for event in decibels]
    return [
        ("frames, pixels along a side", f"{sum(map(len, events))}, {events[0].shape[-1]}"),
        *_wetness(events),
        *_rates(np.concatenate([event[event >= synthetic.WET_FROM] for event in events])),
        *_slopes(np.concatenate(decibels)),
        *_lifetimes(decibels, motions),
        *_motion(motions),
    ]


def largest_square(observed: np.ndarray) -> tuple[slice, slice]:
    """Give rows and columns of the largest square in which every pixel is true.

    Examples
    --------
    >>> largest_square(np.array([[1, 1, 0], [1, 1, 1], [0, 1, 1]], bool))
    (slice(0, 2, None), slice(0, 2, None))
    """
    side = np.zeros(np.add(observed.shape, 1), int)  # of the square that ends at a pixel
    for y, x in np.argwhere(observed):
        side[y + 1, x + 1] = 1 + min(side[y, x], side[y, x + 1], side[y + 1, x])
    y, x = np.unravel_index(side.argmax(), side.shape)
    return slice(int(y - side.max()), int(y)), slice(int(x - side.max()), int(x))


def to_decibels(rain_rate: np.ndarray) -> np.ndarray:
    """Give rain rate in dB, dry pixels at `DRY_DB`."""
    wet = rain_rate >= synthetic.WET_FROM
    return np.where(wet, 10.0 * np.log10(np.where(wet, rain_rate, 1.0)), DRY_DB)


def dense_motion(decibels: np.ndarray) -> np.ndarray:
    """Give motion in pixels per step by optical flow, between neighbours of each inner frame."""
    from pysteps.motion.lucaskanade import dense_lucaskanade

    pairs = [decibels[frame : frame + 3 : 2] for frame in range(len(decibels) - 2)]
    return np.stack([dense_lucaskanade(pair) / 2.0 for pair in pairs])


def power_spectrum(decibels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give wavelengths in km and power density, averaged over frames and directions."""
    side = decibels.shape[-1]
    window = np.hanning(side)[:, None] * np.hanning(side)
    deviations = decibels - decibels.mean(axis=(1, 2), keepdims=True)
    power = sum(np.abs(np.fft.fft2(frame * window)) ** 2 for frame in deviations)
    along = np.fft.fftfreq(side) * side
    ring = np.round(np.hypot(along[:, None], along)).astype(int).ravel()
    radial = np.bincount(ring, power.ravel()) / np.bincount(ring)
    order = np.arange(1, side // 2)
    return side * GRID_SPACING_KM / order, radial[order]


def slope(wavelength: np.ndarray, power: np.ndarray, low: float, high: float) -> float:
    """Give the fall of power density with wavenumber between two wavelengths, as a positive power.

    Octaves of wavelength weigh alike, however many orders they hold.

    Examples
    --------
    >>> wavelength = 100.0 / np.arange(1, 50)
    >>> round(slope(wavelength, wavelength**3, 5.0, 50.0), 6)
    3.0
    """
    inside = (wavelength >= low) & (wavelength <= high)
    weight = np.sqrt(wavelength[inside])  # orders are spaced evenly, octaves are not
    return float(np.polyfit(np.log(wavelength[inside]), np.log(power[inside]), 1, w=weight)[0])


def correlations(decibels: np.ndarray, motion: np.ndarray, lag: int) -> np.ndarray:
    """Give sums over frames and waves of each band: products, and squares of either frame.

    A frame is carried along by the mean motion until its later one, so that what remains is
    growth, decay, and the error of the motion.
    """
    from pysteps.extrapolation.semilagrangian import extrapolate

    sums = np.zeros((3, len(BANDS) + 1))
    for base in range(0, len(decibels) - max(LAGS) - 2, BASE_EVERY):
        carried = extrapolate(decibels[base], motion[base : base + lag].mean(axis=0), lag)[-1]
        inside = _trimmed(np.isfinite(carried))
        sums += _band_products(carried[inside], decibels[base + lag][inside])
    return sums[:, 1:-1]


def lifetime(correlation: np.ndarray) -> float:
    """Give minutes to fall to 1/e, by ``(1 + t/T) exp(-t/T)`` fitted to the correlations at `LAGS`.

    Examples
    --------
    >>> passed = 5 * np.array(LAGS) / 14.0
    >>> round(lifetime((1 + passed) * np.exp(-passed)), 2)
    30.05
    """
    minutes = STEP_MINUTES * np.array(LAGS, float)

    def misfit(logarithm: np.ndarray) -> np.ndarray:
        passed = minutes / np.exp(logarithm)
        return (1.0 + passed) * np.exp(-passed) - correlation

    return float(synthetic.FALL_TO_1_E * np.exp(least_squares(misfit, [3.0]).x[0]))


def fit_rates(rates: np.ndarray) -> tuple[float, float]:
    """Give mean and spread of the logarithm, of the lognormal that is cut at the least wet rate.

    Fitted to quantiles rather than moments, as the least rates are coarse counts.
    """
    exceeded = 1.0 - np.array(QUANTILES)
    quantiles = np.log(np.quantile(rates, QUANTILES))

    def misfit(parameters: np.ndarray) -> np.ndarray:
        mean, spread = parameters
        cut = (np.log(synthetic.WET_FROM) - mean) / spread
        return mean - spread * ndtri(exceeded * ndtr(-cut)) - quantiles

    mean, spread = least_squares(misfit, [-0.7, 1.0]).x
    return float(mean), float(spread)


def _wetness(events: list[np.ndarray]) -> Rows:
    wet = [event >= synthetic.WET_FROM for event in events]
    frames = np.concatenate([event.mean(axis=(1, 2)) for event in wet])
    windows = np.concatenate([_window_fractions(event) for event in wet])
    return [
        ("wet fraction of frames: mean (range)", f"{frames.mean():.2f} {_range(frames)}"),
        ("  of 128 km windows: mean, sd", f"{windows.mean():.2f}, {windows.std():.2f}"),
    ]


def _window_fractions(wet: np.ndarray) -> np.ndarray:
    side = int(WINDOW_KM / GRID_SPACING_KM)
    corners = np.linspace(0, wet.shape[-1] - side, 4).astype(int)
    windows = [wet[:, y : y + side, x : x + side] for y in corners for x in corners]
    return np.concatenate([window.mean(axis=(1, 2)) for window in windows])


def _rates(rates: np.ndarray) -> Rows:
    mean, spread = fit_rates(rates)
    logarithms = np.log(rates)
    shown = " ".join(f"{value:.2g}" for value in np.quantile(rates, QUANTILES[1:]))
    return [
        (
            "wet rates: mean, sd of logarithm of mm/h",
            f"{logarithms.mean():.2f}, {logarithms.std():.2f}",
        ),
        ("  lognormal before its cut: mean, sd", f"{mean:.2f}, {spread:.2f}"),
        ("  50 75 90 99 99.9 % (mm/h)", shown),
        ("  highest (mm/h)", f"{rates.max():.0f}"),
    ]


def _slopes(decibels: np.ndarray) -> Rows:
    wavelength, power = power_spectrum(decibels)
    return [
        (
            f"spectral slope of dB, {low:g} to {high:g} km",
            f"{slope(wavelength, power, low, high):.2f}",
        )
        for low, high in SLOPE_RANGES
    ]


def _lifetimes(decibels: list[np.ndarray], motions: list[np.ndarray]) -> Rows:
    pairs = list(zip(decibels, motions, strict=True))
    sums = [sum(correlations(event, motion, lag) for event, motion in pairs) for lag in LAGS]
    correlation = np.array([products / np.sqrt(one * other) for products, one, other in sums])
    minutes = np.array([lifetime(band) for band in correlation.T])
    centres = np.sqrt(np.multiply(BANDS[1:], BANDS[:-1]))
    power, logarithm = np.polyfit(np.log(centres), np.log(minutes), 1)
    names = [f"lifetime, {low:g} to {high:g} km (min)" for low, high in pairwise(BANDS)]
    return [
        *zip(names, (f"{value:.1f}" for value in minutes), strict=True),
        ("  fitted: a, b of a (wavelength/km)^b", f"{np.exp(logarithm):.2f}, {power:.2f}"),
    ]


def _motion(motions: list[np.ndarray]) -> Rows:
    to_speed = 1000.0 * GRID_SPACING_KM / (60.0 * STEP_MINUTES)
    east_north = [motion * to_speed * np.array([1, -1])[:, None, None] for motion in motions]
    means = [motion.mean(axis=(2, 3)) for motion in east_north]  # of each frame
    wandering = np.concatenate([mean - mean.mean(axis=0) for mean in means])
    within = np.concatenate([motion.std(axis=(2, 3)) for motion in east_north]).mean(axis=0)
    return [
        ("motion of events to east, north (m/s)", "; ".join(_pair(mean.mean(0)) for mean in means)),
        ("  sd in time around it", _pair(wandering.std(axis=0))),
        (
            "  lifetime of that (min)",
            f"{np.mean([_wandering_minutes(mean) for mean in means]):.0f}",
        ),
        ("  sd within a frame", _pair(within)),
    ]


def _wandering_minutes(mean: np.ndarray) -> float:
    """Give the first minutes at which the correlation of mean motion in time is below 1/e."""
    deviations = mean - mean.mean(axis=0)
    variance = (deviations**2).mean()
    for lag in range(1, len(deviations)):
        if (deviations[:-lag] * deviations[lag:]).mean() < variance / np.e:
            return STEP_MINUTES * lag
    return np.inf


def _pair(values: np.ndarray) -> str:
    return f"{values[0]:.1f}, {values[1]:.1f}"


def _trimmed(inside: np.ndarray) -> tuple[slice, slice]:
    """Give rows and columns inside: the side with most pixels outside goes, until none is left."""
    bounds = [0, inside.shape[0], 0, inside.shape[1]]
    while True:
        y, x = slice(*bounds[:2]), slice(*bounds[2:])
        left = ~inside[y, x]
        if not left.any():
            return y, x
        sides = [left[0].mean(), left[-1].mean(), left[:, 0].mean(), left[:, -1].mean()]
        side = int(np.argmax(sides))
        bounds[side] += 1 if side % 2 == 0 else -1


def _band_products(carried: np.ndarray, later: np.ndarray) -> np.ndarray:
    height, width = carried.shape
    window = np.hanning(height)[:, None] * np.hanning(width)
    one, other = (np.fft.fft2((frame - frame.mean()) * window) for frame in (carried, later))
    wavenumber = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    wavelength = GRID_SPACING_KM / np.maximum(wavenumber, 1e-9)
    band = np.digitize(wavelength, BANDS).ravel()
    products = ((one * other.conj()).real, np.abs(one) ** 2, np.abs(other) ** 2)
    return np.stack([np.bincount(band, p.ravel(), len(BANDS) + 1) / p.size for p in products])


def _range(values: np.ndarray) -> str:
    return f"({values.min():.2f} to {values.max():.2f})"


def _counts(path: Path) -> np.ndarray:
    with h5py.File(path) as file:
        counts: np.ndarray = file["image1/image_data"][:]
    return counts


def _arguments() -> argparse.Namespace:
    shared = Path(os.environ.get("NOWCAST_SHARED_DATA", "../shared/data"))
    parser = argparse.ArgumentParser(description="Statistics of radar's rain, and of synthetic.")
    parser.add_argument("--knmi", type=Path, default=shared / "radar" / "knmi_hdf5", metavar="DIR")
    parser.add_argument("--synthetic", action="store_true", help="measure the synthetic source too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
