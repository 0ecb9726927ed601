"""The embedded source: rain that moves, grows and decays like radar's, its motion known.

A Gaussian random field evolves, each scale at its own pace, is carried along by the motion of its
event, and becomes rain by a rising function: nothing up to a threshold, lognormal rates above.
The numbers come from radar: "measured" below means by ``benchmarks/radar_statistics.py`` on 92
five-minute composites of the Royal Netherlands Meteorological Institute, 2010-08-26 00:00 to 07:35
UTC, in a square of 295 km without missing values. They were set once, to be like that, never for
a score. Unlike there, motion is the same in a whole frame, and no direction is preferred in shape.
"""

import collections
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import dask.array as da
import numpy as np
import pandas as pd
import xarray as xr
from pyproj import CRS
from scipy.special import ndtr, ndtri

from nowcast.conventions import CF_CONVENTIONS, GRID_MAPPING, RAIN_RATE, check_observations

# Fall of power density with wavenumber, above and below the break, of the Gaussian field. That of
# rain in dB is flatter, as its edges are sharp: measured 2.75 and 3.30; of this source 2.73, 3.27.
SPECTRAL_SLOPE = (3.0, 4.0)
SCALE_BREAK = 20.0  # km, wavelength between the two; read off the measured spectrum
OUTER_SCALE = 295.0  # km, the largest that was measured; power density is level beyond
LIFETIME = (1.43, 0.91)  # a, b of a (wavelength/km)^b minutes to fall to 1/e; measured, 4 to 128 km
FALL_TO_1_E = 2.146193  # t/T at which (1 + t/T) exp(-t/T), the measured fall, is 1/e

WET_FROM = 0.1  # mm/h; less counts as dry. One count of the composites is 0.12 mm/h
WET_FRACTION = 0.56  # of the pixels of a frame, in the median event; measured (0.43 to 0.73)
WET_FRACTION_SPREAD = 0.5  # between events, in normal deviates: with it, the wet fraction of frames
# of 128 km has a standard deviation of 0.26; measured 0.27
WET_LOG_MEAN = -0.74  # of rates in mm/h, of the lognormal that is cut at WET_FROM; measured
WET_LOG_SPREAD = 0.98  # its standard deviation; measured
HIGHEST_RAIN_RATE = 100.0  # mm/h; 55 dBZ, a usual cap against hail; the highest measured was 29

# One event cannot tell how events differ. Storms move at 7 m/s, mostly to the northeast, in Belgium
# (Poelman 2014, doi:10.1175/MWR-D-14-00202.1), at 13 m/s in southern Germany (Hagen et al. 1999,
# doi:10.1017/S1350482799001164); the median lies between. The spread of speed puts the measured
# event, 27.8 m/s to 74 degrees, at two standard deviations; that of direction is a judgement.
EVENT_SPEED = 10.0  # m/s, median
EVENT_SPEED_SPREAD = 0.5  # standard deviation of its logarithm
EVENT_DIRECTION = (45.0, 45.0)  # degrees clockwise from north, towards: mean, standard deviation
# Standard deviation (m/s), lifetime (minutes) of motion around that of its event, along x and along
# y. By optical flow, 1.2 and 0.9 m/s, 30 minutes there; 0.8 and 0.9 m/s, 27 minutes of this source.
WANDERING = (1.0, 60.0)

# What becomes of the rain of a frame where it moves: see `regimes`. Set so that no regime is
# rare, before any network was trained on them.
REGIMES = ("advective", "growing", "decaying", "initiating")
REGIME_MINUTES = 60.0  # from the frame to the one that it is compared with
CHANGED = 1.25  # factor in areal mean rain from which rain grows or, its inverse, decays
LITTLE_RAIN = 0.2  # mm/h, areal mean; a quarter of the frames of 128 km have less
INITIATED = 1.5  # factor from which little rain is rain that begins

FIRST_TIME = "2024-01-01T00:00"  # UTC, of the first event
EPOCH = "seconds since 1970-01-01"  # in files, for times and bounds alike
GAP_HOURS = 6.0  # at least, between two events
GRID_CENTRE = (52.0, 5.0)  # degrees north, degrees east


def synthesise(
    *,
    events: int = 1,
    hours: float = 6.0,
    size: int = 64,
    grid_spacing_m: float = 2000.0,
    step_minutes: int = 10,
    seed: int = 0,
) -> xr.Dataset:
    """Give observations of synthetic rain, lazily, with the motion that it has.

    For tests, tutorials and proofs, where no radar data is at hand or the answer must be known.
    An event depends on the seed and its own number alone, so any part may be computed by itself,
    in any order, and is always the same to the last bit. The grid shows one quarter of a periodic
    field: what leaves it does not come back before it has crossed the grid's width again.

    Parameters
    ----------
    events
        How many; each is one Dask chunk, and six hours without frames divide two.
    hours
        From the first frame of an event to its last.
    size
        Pixels along y and along x.
    grid_spacing_m
        Of these, in metres.
    step_minutes
        Between frames.
    seed
        Zero or more; each gives different rain.

    Returns
    -------
    xr.Dataset
        ``rain_rate(time, y, x)`` in mm/h without missing values; row 0 is the north. Coordinates
        ``motion_x(time)``, ``motion_y(time)``: velocity in m/s towards east and north, the same
        for the whole frame; between frames it changes linearly.

    Raises
    ------
    ValueError
        If there would be no rain to show, or the seed is negative.

    References
    ----------
    Pegram and Clothier (2001), doi:10.1016/S0022-1694(00)00373-5: fields by a power-law spectrum.
    Bowler et al. (2006), doi:10.1256/qj.04.100: evolution of second order, by scale.

    Examples
    --------
    >>> observed = synthesise(events=2, hours=1, size=16)
    >>> dict(observed.sizes)
    {'time': 14, 'y': 16, 'x': 16, 'bnds': 2}
    >>> observed["rain_rate"].chunks[0]
    (7, 7)
    >>> bool((observed["rain_rate"] >= 0).all())
    True
    """
    source = _source(events, hours, size, grid_spacing_m, step_minutes, seed)
    frames = source.frames
    rain_rate = da.map_blocks(
        _rain_rate,
        source,
        chunks=((frames,) * events, (size,), (size,)),
        dtype=np.float32,
        meta=np.empty((0, 0, 0), np.float32),
    )
    dataset = xr.Dataset(
        {RAIN_RATE.name: (("time", "y", "x"), rain_rate, RAIN_RATE.attributes)},
        coords={**_time_coordinates(source, events, hours), **_grid_coordinates(source)},
        attrs={
            "title": "Synthetic rain with known motion",
            "source": f"nowcast.data.synthetic, seed {seed}",
            "Conventions": CF_CONVENTIONS,
        },
    )
    return check_observations(dataset, RAIN_RATE)


def regimes(
    *,
    events: int = 1,
    hours: float = 6.0,
    size: int = 64,
    grid_spacing_m: float = 2000.0,
    step_minutes: int = 10,
    seed: int = 0,
) -> da.Array:
    """Give what becomes of the rain of each frame in the coming hour, known from its making.

    Not a score of any forecast: the rain over the area that a frame shows is compared with the
    rain over the same area an hour later, the area having moved along with the rain. So what flows
    in or out does not count. With R the areal mean of the frame in mm/h, and R' that of an hour
    (`REGIME_MINUTES`) later:

    ``initiating``
        R < 0.2 and R' >= 1.5 R: hardly any rain now, some later;
    ``growing``
        R' >= 1.25 R, but not initiating;
    ``decaying``
        R' <= R / 1.25;
    ``advective``
        the rest: the rain moves and hardly changes.

    Of 14,800 frames of the default grid (128 km) 40 % are advective, 20 % growing, 30 % decaying
    and 10 % initiating.

    Parameters
    ----------
    events, hours, size, grid_spacing_m, step_minutes, seed
        As given to `synthesise`, whose frames they are.

    Returns
    -------
    dask.array.Array : (time,)
        Places in `REGIMES`, one chunk for each event.

    Examples
    --------
    >>> found = regimes(events=2, hours=1, size=16).compute()
    >>> [REGIMES[one] for one in found[:4]]
    ['advective', 'growing', 'growing', 'initiating']
    """
    source = _source(events, hours, size, grid_spacing_m, step_minutes, seed)
    return da.map_blocks(
        _regimes,
        source,
        chunks=((source.frames,) * events,),
        dtype=np.int16,
        meta=np.empty(0, np.int16),
    )


@dataclass(frozen=True)
class _Source:
    """What all events share; the motion and the rain of one follow from it and its number."""

    frames: int
    size: int
    grid_spacing_m: float
    step_minutes: int
    seed: int

    def generators(self, event: int) -> list[np.random.Generator]:
        """Independent randomness of one event: for its motion, and for its rain."""
        children = np.random.SeedSequence([self.seed, event]).spawn(2)
        return [np.random.default_rng(child) for child in children]


def _source(
    events: int, hours: float, size: int, grid_spacing_m: float, step_minutes: int, seed: int
) -> _Source:
    if min(events, size - 1, grid_spacing_m, step_minutes) <= 0 or min(hours, seed) < 0:
        raise ValueError(
            "events, size - 1, grid_spacing_m and step_minutes must be positive, hours and "
            f"seed not below 0; received {events=}, {size=}, {grid_spacing_m=}, {step_minutes=}, "
            f"{hours=}, {seed=}"
        )
    frames = pd.Timedelta(hours=hours) // pd.Timedelta(minutes=step_minutes) + 1
    return _Source(frames, size, grid_spacing_m, step_minutes, seed)


def _rain_rate(source: _Source, block_id: tuple[int, ...]) -> np.ndarray:
    """Rain rate of one event; dims ``(frame, y, x)``."""
    event = block_id[0]
    generator = source.generators(event)[1]
    dry = _dry(generator)
    states = itertools.islice(_states(source, generator), source.frames)
    show = _shower(source, event)
    fields = np.stack([show(state, frame) for frame, state in enumerate(states)])
    return _as_rain(fields, dry)


def _regimes(source: _Source, block_id: tuple[int, ...]) -> np.ndarray:
    """Places in `REGIMES` of the frames of one event."""
    event = block_id[0]
    generator = source.generators(event)[1]
    dry = _dry(generator)
    ahead = max(1, round(REGIME_MINUTES / source.step_minutes))
    states = itertools.islice(_states(source, generator), source.frames + ahead)
    show = _shower(source, event)
    waiting: collections.deque[np.ndarray] = collections.deque(maxlen=ahead + 1)
    means = []
    for number, state in enumerate(states):
        waiting.append(state)
        if number >= ahead:
            frame = number - ahead  # the area stays with the rain: both are shown where it is now
            pair = [show(one, frame) for one in (waiting[0], waiting[-1])]
            means.append([_as_rain(field, dry).mean() for field in pair])
    now, later = np.array(means).T
    initiating = (now < LITTLE_RAIN) & (later >= INITIATED * now) & (later > 0)
    growing, decaying = later >= CHANGED * now, later * CHANGED <= now
    flags = np.select([now + later == 0, initiating, growing, decaying], [0, 3, 1, 2], 0)
    return flags.astype(np.int16)


def _dry(generator: np.random.Generator) -> float:
    """Draw the normal deviate up to which an event is dry."""
    return float(ndtri(1.0 - WET_FRACTION) + WET_FRACTION_SPREAD * generator.standard_normal())


def _as_rain(field: np.ndarray, dry: float) -> np.ndarray:
    """Turn standard normal values into rain rate: zero up to `dry`, rising above."""
    cut = (np.log(WET_FROM) - WET_LOG_MEAN) / WET_LOG_SPREAD
    exceeded = ndtr(-np.maximum(field, dry)) / ndtr(-dry)  # by which part of the wet pixels
    rates = np.exp(WET_LOG_MEAN - WET_LOG_SPREAD * ndtri(exceeded * ndtr(-cut)))
    return np.where(field > dry, np.minimum(rates, HIGHEST_RAIN_RATE), 0.0).astype(np.float32)


def _states(source: _Source, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Evolve a periodic field without end, step by step: its modes in the frame of its motion."""
    side = 2 * source.size
    kept, new = _evolution(_wavenumbers(source)[2], source.step_minutes)
    state = _white_noise(generator, side)
    while True:
        yield state[0]
        state = _product(kept, state) + _product(new, _white_noise(generator, side))


def _shower(source: _Source, event: int) -> Callable[[np.ndarray, int], np.ndarray]:
    """Give what moves a state to where it is at a frame, and cuts out one quarter; ``(y, x)``."""
    along_y, along_x, wavenumber = _wavenumbers(source)
    amplitude = _amplitude(wavenumber, 2 * source.size)
    east, north = _displacement(_motion(source, event), source.step_minutes) / 1000.0

    def show(state: np.ndarray, frame: int) -> np.ndarray:
        shift = np.exp(-2j * np.pi * (along_x * east[frame] + along_y * north[frame]))
        moved = np.fft.irfft2(amplitude * shift * state)
        return np.asarray(moved[: source.size, : source.size])

    return show


def _white_noise(generator: np.random.Generator, side: int) -> np.ndarray:
    """Draw two independent standard normal fields, as modes; ``(2, y, x)``."""
    return np.fft.rfft2(generator.standard_normal((2, side, side)))


def _product(matrices: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Apply the matrix of each mode to its state."""
    product: np.ndarray = np.einsum("yxij,jyx->iyx", matrices, state)
    return product


def _wavenumbers(source: _Source) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cycles per km towards north, towards east, and in all, of each mode of the double grid."""
    spacing = source.grid_spacing_m / 1000.0
    along_y = -np.fft.fftfreq(2 * source.size, spacing)[:, None]  # rows go south
    along_x = np.fft.rfftfreq(2 * source.size, spacing)[None, :]
    return along_y, along_x, np.hypot(along_y, along_x)


def _amplitude(wavenumber: np.ndarray, side: int) -> np.ndarray:
    """Factor that gives white noise the measured spectrum, mean zero and variance one."""
    coarse, fine = SPECTRAL_SLOPE
    relative = np.maximum(wavenumber, 1.0 / OUTER_SCALE) * SCALE_BREAK
    power = np.where(relative < 1.0, relative**-coarse, relative**-fine)
    power[0, 0] = 0.0
    power[side // 2, :] = power[:, side // 2] = 0.0  # a wave of two pixels cannot move by parts
    twice = np.full(wavenumber.shape[1], 2.0)  # the half of the modes that rfft leaves out
    twice[[0, -1]] = 1.0
    amplitude: np.ndarray = np.sqrt(power * side**2 / (power * twice).sum())
    return amplitude


def _evolution(wavenumber: np.ndarray, step_minutes: int) -> tuple[np.ndarray, np.ndarray]:
    """Matrices, for each mode, of what a step keeps and of what is new; ``(y, x, 2, 2)``.

    The state is a mode and its rate of change, each of variance one; that the second is there
    makes rain grow and decay smoothly. Correlation after t is ``(1 + t/T) exp(-t/T)``, exactly
    so at any step.
    """
    a, b = LIFETIME
    lifetime = a * np.maximum(wavenumber, 1.0 / OUTER_SCALE) ** -b
    passed = step_minutes * FALL_TO_1_E / lifetime
    rows = [[1.0 + passed, passed], [-passed, 1.0 - passed]]
    kept = np.moveaxis(np.exp(-passed) * np.array(rows), (0, 1), (-2, -1))
    new = np.linalg.cholesky(np.eye(2) - kept @ np.swapaxes(kept, -1, -2))
    return kept, new


def _motion(source: _Source, event: int) -> np.ndarray:
    """Velocity in m/s to east and north, wandering around that of the event; ``(2, frame)``."""
    generator = source.generators(event)[0]
    speed = EVENT_SPEED * np.exp(EVENT_SPEED_SPREAD * generator.standard_normal())
    mean, spread = np.radians(EVENT_DIRECTION)
    direction = mean + spread * generator.standard_normal()
    motion = np.empty((2, source.frames))
    deviation, lifetime = WANDERING
    kept = np.exp(-source.step_minutes / lifetime)
    wandering = deviation * generator.standard_normal(2)
    for frame in range(source.frames):
        motion[:, frame] = speed * np.array([np.sin(direction), np.cos(direction)]) + wandering
        new = np.sqrt(1.0 - kept**2) * deviation * generator.standard_normal(2)
        wandering = kept * wandering + new
    return motion


def _displacement(motion: np.ndarray, step_minutes: int) -> np.ndarray:
    """Metres since the first frame, motion changing linearly between frames; ``(2, frame)``."""
    steps = 60.0 * step_minutes * (motion[:, 1:] + motion[:, :-1]) / 2.0
    return np.pad(steps.cumsum(axis=1), ((0, 0), (1, 0)))


def _time_coordinates(source: _Source, events: int, hours: float) -> dict[str, object]:
    """Nominal times with bounds, and the motion."""
    step = pd.Timedelta(minutes=source.step_minutes)
    apart = pd.Timedelta(hours=hours + GAP_HOURS).ceil("h")
    first = pd.timedelta_range(0, periods=source.frames, freq=step)
    offsets = pd.TimedeltaIndex([apart * event + one for event in range(events) for one in first])
    times = pd.Timestamp(FIRST_TIME) + offsets
    bounds = np.stack([times - step, times], axis=1)
    motion = np.concatenate([_motion(source, event) for event in range(events)], axis=1)
    names = {"standard_name": "time", "long_name": "nominal time, end of the interval"}
    return {
        "time": ("time", times, {**names, "bounds": "time_bnds"}, {"units": EPOCH}),
        "time_bnds": (("time", "bnds"), bounds),
        "motion_x": ("time", motion[0], {"long_name": "motion towards east", "units": "m s-1"}),
        "motion_y": ("time", motion[1], {"long_name": "motion towards north", "units": "m s-1"}),
    }


def _grid_coordinates(source: _Source) -> dict[str, object]:
    """Pixel centres in metres around the centre of the projection, and the projection."""
    centres = (np.arange(source.size) - (source.size - 1) / 2.0) * source.grid_spacing_m
    latitude, longitude = GRID_CENTRE
    projection = CRS.from_dict(
        {"proj": "laea", "lat_0": latitude, "lon_0": longitude, "ellps": "WGS84", "units": "m"}
    )
    return {
        "y": ("y", centres[::-1], {"standard_name": "projection_y_coordinate", "units": "m"}),
        "x": ("x", centres, {"standard_name": "projection_x_coordinate", "units": "m"}),
        GRID_MAPPING: ((), 0, projection.to_cf()),
    }
