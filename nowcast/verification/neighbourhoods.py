"""Scores that tell at which scale a forecast is of use.

The fractions skill score (Roberts and Lean 2008) compares how much of a window is an event; the
intensity-scale skill (Casati et al. 2004) splits the error into scales. An event is a value at or
above a threshold. Sums over a field are of whole numbers, exact in 64 bits, so they come out the
same whatever is computed together.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import xarray as xr

from nowcast.verification.batches import Batch, defined_by

ROBERTS_LEAN = "doi:10.1175/2007MWR2123.1"
CASATI = "doi:10.1017/S1350482704001239"
DEFINITIONS = {
    "fss": ("fractions skill score", "1", ROBERTS_LEAN),
    "fss_useful": ("fractions skill score from which a forecast is useful", "1", ROBERTS_LEAN),
    "useful_scale": ("smallest scale at which a forecast is useful", "km", ROBERTS_LEAN),
    "intensity_scale_skill": ("skill by scale of the error, against chance", "1", CASATI),
}
SCALE = {"long_name": "width of a window", "units": "km"}
COMPONENT_SCALE = {"long_name": "scale of a component of the error", "units": "km"}
PIXELS_AT_ONCE = 2**16  # so few that what is computed of them stays in a processor's cache


def scales_of(spacing_km: float, grid: tuple[int, int]) -> tuple[float, ...]:
    """Give scales that are worth a look on a grid, in km, up to about half of its smaller side.

    Parameters
    ----------
    spacing_km
        Distance between two pixels.
    grid
        Number of pixels along y and x.

    Examples
    --------
    >>> scales_of(2.0, (64, 100))
    (2.0, 6.0, 10.0, 18.0, 34.0, 66.0)
    """
    doublings = int(np.log2(max(min(grid) // 2, 1)))
    pixels = [1, *(2**power + 1 for power in range(1, doublings + 1))]
    return tuple(spacing_km * width for width in pixels)


@dataclass(frozen=True)
class Neighbourhoods:
    """Fractions skill score by scale, and the scale from which a forecast is useful.

    The score is 1 - sum((f - o)**2) / sum(f**2 + o**2), where f and o are the fractions of a window
    that are events; both sums are over windows and cases. It is NaN where no event is forecast and
    none observed.

    The rule for missing pixels: a window is centred on each pixel that counts, and its fraction is
    of its whole area; a pixel that does not count, or lies outside the grid, is no event in either
    field. So a window at the border of what counts weighs by the area that it shares with it, and
    where nothing is missing the score is that of pysteps. (That of `scores` is not: with padding,
    it has windows centred on a row and a column beyond the grid.)

    A forecast is useful from halfway between a random forecast's score and 1: ``fss_useful`` is
    1/2 + base rate / 2, of the pixels that count. ``useful_scale`` is the smallest scale at which
    the score reaches it, linear between two scales; NaN where it does not.

    Parameters
    ----------
    thresholds
        In the units of what is forecast.
    scales_km
        Widths of the windows, rising. Of each the nearest odd number of pixels is taken, of two
        equally near ones the larger; the scores bear the widths that were taken.
    spacing_km
        Distance between two pixels.

    Raises
    ------
    ValueError
        If there is no scale, or two have the same window, or they do not rise.

    Examples
    --------
    Rain in one pixel, forecast for its neighbour.

    >>> dims = ("base_time", "lead_time", "y", "x")
    >>> observed = xr.DataArray([[[[0.0, 0.0, 2.0, 0.0, 0.0]]]], dims=dims)
    >>> forecast = xr.DataArray([[[[0.0, 2.0, 0.0, 0.0, 0.0]]]], dims=dims)
    >>> measure = Neighbourhoods(thresholds=(1.0,), scales_km=(1.0, 3.0), spacing_km=1.0)
    >>> sums = measure.sums(Batch(forecast, observed, xr.Dataset()))
    >>> measure.scores(sums.sum("base_time"))["fss"].values.ravel().round(3).tolist()
    [0.0, 0.667]
    """

    thresholds: tuple[float, ...]
    scales_km: tuple[float, ...]
    spacing_km: float

    def __post_init__(self) -> None:
        if not self.widths or min(np.diff(self.widths, prepend=0)) <= 0:
            raise ValueError(
                "scales_km need one width or more, rising, each with a window of its own; received "
                f"{self.scales_km}, at {self.spacing_km} km windows of {self.widths} pixels"
            )

    name = "neighbourhoods"
    gridded = True

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the windows, in pixels."""
        return tuple(2 * int(scale / self.spacing_km / 2) + 1 for scale in self.scales_km)

    def sums(self, batch: Batch) -> xr.Dataset:
        """Give squared fractions added over windows, and how many pixels count and are events.

        Returns
        -------
        Dataset
            ``squared_difference``, ``squared_forecast`` and ``squared_observed`` by ``(base_time,
            lead_time, threshold, scale)``, ``observed_events`` without scale, ``number`` without
            threshold.
        """
        counted = batch.observed.notnull().values
        shape = (*counted.shape[:2], len(self.thresholds), len(self.widths))
        squares = np.zeros((3, np.prod(shape[:2]), *shape[2:]))
        happened = np.zeros(squares.shape[1:3], np.int64)
        for fields, at, events in _wet(batch, self.thresholds):
            centres = counted.reshape(-1, *events.shape[2:])[fields]
            happened[fields, at] = events[1].sum((1, 2))
            for scale, counts in enumerate(_windows(events, self.widths)):
                flat = (counts * centres).reshape(2, len(fields), -1).astype(np.float64)
                squares[1:, fields, at, scale] = np.vecdot(flat, flat)
                both = np.vecdot(*flat)
                squares[0, fields, at, scale] = squares[1:, fields, at, scale].sum(0) - 2 * both
        squares /= np.power(self.widths, 4.0)
        difference, of_forecast, of_observed = squares.reshape(3, *shape)
        dims = ("base_time", "lead_time", "threshold", "scale")
        return xr.Dataset(
            {
                "squared_difference": (dims, difference),
                "squared_forecast": (dims, of_forecast),
                "squared_observed": (dims, of_observed),
                "observed_events": (dims[:3], happened.reshape(shape[:3])),
                "number": (dims[:2], counted.sum((2, 3))),
            },
            {
                **_coordinates(batch, self.thresholds),
                "scale": ("scale", self.spacing_km * np.array(self.widths, np.float64), SCALE),
            },
        )

    def scores(self, total: xr.Dataset) -> xr.Dataset:
        """Give ``fss``, ``fss_useful`` and ``useful_scale``."""
        most = total["squared_forecast"] + total["squared_observed"]
        fss = 1 - total["squared_difference"] / most  # 0 / 0, so NaN, without any event
        useful = 0.5 + total["observed_events"] / total["number"] / 2
        scores = {"fss": fss, "fss_useful": useful, "useful_scale": _first_scale(fss, useful)}
        return _described(scores)


@dataclass(frozen=True)
class IntensityScale:
    """Skill by scale of the error: which scales are forecast better than at random.

    The error of events, forecast minus observed (-1, 0 or 1), is split by the Haar wavelet into
    components that add up to it: what means over s km have and means over 2 s km have not, for
    s from one pixel to half of the grid, and at last the mean of all, s being the whole grid. The
    skill of a component is 1 - n E / R, with E its mean square, n the number of components and
    R = f (1 - o) + o (1 - f) the mean squared error of a random forecast, of the frequencies of
    forecast and observed events. (Casati et al. 2004 first take the bias away, f = o; pysteps
    takes f = o for granted.) The mean of the skill over all components is the Heidke skill score.
    It is NaN where a random forecast has no error: no event at all, or nothing else.

    The rule for missing pixels: what does not count is no error, and neither is what is added to
    the grid to make it square, with a power of two of pixels to a side. Means and frequencies are
    of the pixels that count.

    Parameters
    ----------
    thresholds
        In the units of what is forecast.
    spacing_km
        Distance between two pixels.

    Examples
    --------
    Rain in one of two by two pixels, forecast for its neighbour along x: an error within two pixels
    and none of their mean.

    >>> dims = ("base_time", "lead_time", "y", "x")
    >>> observed = xr.DataArray([[[[0.0, 2.0], [0.0, 0.0]]]], dims=dims)
    >>> forecast = xr.DataArray([[[[2.0, 0.0], [0.0, 0.0]]]], dims=dims)
    >>> measure = IntensityScale(thresholds=(1.0,), spacing_km=1.0)
    >>> sums = measure.sums(Batch(forecast, observed, xr.Dataset()))
    >>> skill = measure.scores(sums.sum("base_time"))["intensity_scale_skill"]
    >>> skill.values.ravel().round(3).tolist()
    [-1.667, 1.0]
    """

    thresholds: tuple[float, ...]
    spacing_km: float
    name = "intensity_scale"
    gridded = True

    def sums(self, batch: Batch) -> xr.Dataset:
        """Give squared components of the error added over pixels, and counts of events.

        Returns
        -------
        Dataset
            ``squared_error`` by ``(base_time, lead_time, threshold, component_scale)``,
            ``forecast_events`` and ``observed_events`` without scale, ``number`` without threshold.
        """
        counted = batch.observed.notnull().values
        scales = 2 ** np.arange((max(counted.shape[2:]) - 1).bit_length() + 1)
        shape = (*counted.shape[:2], len(self.thresholds), len(scales))
        squares = np.zeros((np.prod(shape[:2]), *shape[2:]))
        numbers = np.zeros((2, *squares.shape[:2]), np.int64)
        for fields, at, events in _wet(batch, self.thresholds):
            numbers[:, fields, at] = events.sum((2, 3))
            squares[fields, at] = _components(events, scales)
        said, happened = numbers.reshape(2, *shape[:3])
        dims = ("base_time", "lead_time", "threshold", "component_scale")
        return xr.Dataset(
            {
                "squared_error": (dims, squares.reshape(shape)),
                "forecast_events": (dims[:3], said),
                "observed_events": (dims[:3], happened),
                "number": (dims[:2], counted.sum((2, 3))),
            },
            {
                **_coordinates(batch, self.thresholds),
                dims[3]: (dims[3], self.spacing_km * scales, COMPONENT_SCALE),
            },
        )

    def scores(self, total: xr.Dataset) -> xr.Dataset:
        """Give ``intensity_scale_skill``."""
        error, said, happened = (
            total[name] / total["number"]
            for name in ("squared_error", "forecast_events", "observed_events")
        )
        random = said * (1 - happened) + happened * (1 - said)
        skill = 1 - total.sizes["component_scale"] * error / random  # 0 / 0 where not defined
        return _described({"intensity_scale_skill": skill})


def _wet(
    batch: Batch, thresholds: tuple[float, ...]
) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
    """Give the fields that have events, a few at a time and for one threshold after the other.

    Yields
    ------
    fields, at, events
        Which fields, of those of all cases and lead times; the number of the threshold; and the
        events, forecast and observed: ``(2, field, y, x)``.
    """
    both = (batch.forecast.values, batch.observed.values)
    grid = both[0].shape[2:]
    for first in range(0, int(np.prod(both[0].shape[:2])), few := _few(grid)):
        some = [field.reshape(-1, *grid)[first : first + few] for field in both]
        for at, threshold in enumerate(thresholds):
            events = np.stack([field >= threshold for field in some])
            wet = np.flatnonzero(events.reshape(*events.shape[:2], -1).any(2).any(0))
            if len(wet):
                yield first + wet, at, events[:, wet]


def _few(grid: tuple[int, ...]) -> int:
    """Give how many fields are computed at a time."""
    return max(1, PIXELS_AT_ONCE // int(np.prod(grid)))


def _windows(events: np.ndarray, widths: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Give how many events there are in the window around each pixel, for one width after another.

    By differences of the sums of all before a pixel. All fields are summed as one, with what is
    beyond the grid between them; the sums may overflow, and their differences are right if the
    type holds what a window can.
    """
    import cv2

    y, x = events.shape[-2:]
    reach = widths[-1] // 2
    beyond = np.pad(events.view(np.uint8), ((0, 0), (0, 0), (reach, reach), (reach, reach)))
    kind = np.min_scalar_type(widths[-1] ** 2)
    sums = cv2.integral(beyond.reshape(-1, beyond.shape[-1])).astype(kind)
    above, upto = (part.reshape(*beyond.shape[:-1], -1) for part in (sums[:-1], sums[1:]))
    for width in widths:
        low, high = reach - width // 2, reach + width // 2
        rows = upto[..., high : high + y, :] - above[..., low : low + y, :]
        yield rows[..., high + 1 : high + 1 + x] - rows[..., low : low + x]


def _components(events: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Give the squares of the Haar components of the error, added over pixels: (field, scale).

    What a mean over a block has and the mean over the block around it has not is the difference of
    their squares, since the components are orthogonal.
    """
    said, happened = events.astype(np.int32)
    error = said - happened
    beyond = scales[-1] - np.array(error.shape[1:])
    blocks = np.pad(error, ((0, 0), (0, beyond[0]), (0, beyond[1])))
    squares = []
    for scale in scales:
        flat = blocks.reshape(len(blocks), -1).astype(np.float64)
        squares.append(np.vecdot(flat, flat) / scale**2)
        blocks = blocks[:, ::2] + blocks[:, 1::2] if scale < scales[-1] else blocks
        blocks = blocks[..., ::2] + blocks[..., 1::2] if scale < scales[-1] else blocks
    return -np.diff(np.array(squares).T, append=0.0)


def _first_scale(fss: xr.DataArray, useful: xr.DataArray) -> xr.DataArray:
    """Give the smallest scale at which the score is useful, linear between two scales."""
    reached, scale = fss >= useful, fss["scale"]
    before = fss.shift(scale=1)
    part = (useful - before) / (fss - before)
    between = scale.shift(scale=1) * (1 - part) + scale * part
    crossing = between.where(before < useful, scale)
    smallest: xr.DataArray = crossing.where(reached).min("scale")
    return smallest


def _coordinates(batch: Batch, thresholds: tuple[float, ...]) -> dict[str, object]:
    """Give the coordinates of what is told by case, lead time and threshold."""
    times = {name: batch.observed[name] for name in ("base_time", "lead_time")}
    return {**times, "threshold": np.array(thresholds, np.float64)}


def _described(scores: dict[str, xr.DataArray]) -> xr.Dataset:
    """Give the scores with what is said of them."""
    return defined_by(DEFINITIONS, xr.Dataset(scores))
