"""A trained network that issues nowcasts."""

import functools
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.calibration import count
from nowcast.conventions import (
    EXCEEDANCE,
    QUANTILES,
    VARIABLES,
    build_nowcast,
    check_nowcast,
    grid_spacing,
    with_exceedance,
    with_quantiles,
)
from nowcast.decisions import Decisions
from nowcast.frames import Window, check_observed, input_frames, step_of, tiles
from nowcast.networks import (
    for_leads,
    load_keras,
    takes_leads,
)
from nowcast.networks.heads import SEQUENCE_HEADS
from nowcast.nowcasters.extrapolation import advect, motion
from nowcast.nowcasters.saved import (
    NeuralSettings,
    load_network,
    load_postprocessing,
    network_inputs,
    network_with,
    save_network,
)
from nowcast.postprocessing import Postprocessing, field_of
from nowcast.postprocessing import fit as fit_postprocessing
from nowcast.turns import Views, turns

MEDIAN = 0.5
DISTRIBUTION_OF = {"exceedance": EXCEEDANCE, "quantiles": QUANTILES}  # by the head's kind
SPACING_TOLERANCE = 0.01  # part by which a grid spacing may differ from the one trained on
LARGEST_GRID = 1024 * 1024  # pixels forecast at once; what is larger is cut into tiles
TILE = 512  # pixels along y and x, of a network that takes any grid
AT_ONCE = 2**17  # pixels of all cases, up to which a network is asked by four views at a time
RIM = 32  # pixels, of what a network sees around each
OVERLAP = 0.25  # part of a tile's shortest side that is cut, which it shares with its neighbour
_LOG = logging.getLogger(__name__)


class NeuralNowcaster:
    """A network with its weights and all that is needed to use it; see `Nowcaster`.

    A pixel at which any input frame was missing is missing at every lead time; of a network that
    sees motion, a pixel is missing where extrapolation of the last frame is.

    Parameters
    ----------
    settings
        See `NeuralSettings`.
    weights
        As the Keras network gives them, in its order.
    sha256
        Of the weights file, where it was saved.
    postprocessing
        Calibration and decision levels of a head ``exceedance``; see `calibrate`. None: its
        probabilities are the network's own, and its field their median.
    corrected
        Whether a network that corrects extrapolation does so: without, the field is that of
        extrapolation, and what it reaches is certain.

    Raises
    ------
    ValueError
        If the postprocessing is of other thresholds or lead times, or there is no extrapolation
        to leave uncorrected.
    """

    def __init__(
        self,
        settings: NeuralSettings,
        weights: list[np.ndarray],
        *,
        sha256: str = "",
        postprocessing: Postprocessing | None = None,
        corrected: bool = True,
    ) -> None:
        if not (corrected or settings.motion_frames):
            raise ValueError(
                f"{settings.network!r} sees no motion, so it corrects no extrapolation; leave "
                "corrected=True"
            )
        self.settings = settings
        self.corrected = corrected
        self.sha256 = sha256
        self.postprocessing = postprocessing
        if postprocessing:
            _check_postprocessing(postprocessing, settings)
        self.input_frames = settings.window.input_frames
        self.step: pd.Timedelta | None = settings.window.step
        self.weights = weights
        self._network = functools.lru_cache(maxsize=2)(self._build)
        self._shorter = functools.lru_cache(maxsize=1)(self._for_leads)

    def nowcast(
        self, observed: xr.Dataset, *, base_times: pd.DatetimeIndex, lead_times: pd.TimedeltaIndex
    ) -> xr.Dataset:
        """Give the network's nowcast of each base time; see `Nowcaster`.

        With calibration and decision levels its attributes say so. A network whose weights can be
        used for fewer lead times computes none that lies behind the last one asked for.

        Raises
        ------
        ValueError
            If the grid, a base time or a lead time does not fit the network.
        """
        known, wanted = self.settings.window.lead_frames, _leads_to(self.settings, lead_times)
        one = self._shorter(wanted) if wanted < known else self
        nowcast = nowcast_with(
            one.settings, one.forecasts, observed, base_times=base_times, lead_times=lead_times
        )
        if self.postprocessing is None:
            return nowcast
        return nowcast.assign_attrs(
            field_rule=self.postprocessing.rule,
            calibration_sha256=self.postprocessing.sha256,
        )

    def forecast(self, frames: np.ndarray) -> np.ndarray:
        """Give the lead frames for bare arrays, as the endpoint needs it.

        Parameters
        ----------
        frames : (batch, frame, y, x)
            The input frames in physical units, NaN where not observed.

        Returns
        -------
        lead_frames : (batch, lead frame, y, x)
            In physical units, NaN where missing. Of probabilities or quantiles, the
            median, see `median_of_exceedance` and `median_of_quantiles`; of probabilities with
            decision levels, what these decide.
        """
        return self.forecasts(frames)[self.settings.variable.name]

    def forecasts(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """Give all that the network's head gives, by the name of the variable in a nowcast.

        Parameters
        ----------
        frames : (batch, frame, y, x)
            As `forecast` takes them.

        Returns
        -------
        dict
            The lead frames, and for a head ``exceedance`` or ``quantiles`` its
            ``(batch, level, lead frame, y, x)``, calibrated if they are.
        """
        settings, head = self.settings, self.settings.head
        self._check_frames(frames)
        if not self.corrected:
            return self._uncorrected(frames)
        moving = self._motion(frames)
        moved = self._extrapolated(frames, moving)
        distribution = self._blended(frames, moving, moved)
        field = distribution[:, 0]
        if head.kind == "exceedance" and self.postprocessing:
            self.postprocessing.calibration.calibrated(distribution, out=distribution)
            field = self.postprocessing.field(
                distribution, moved, transform=settings.transform, lowest=_lowest(settings)
            )
        elif head.kind == "exceedance":
            field = median_of_exceedance(np.moveaxis(distribution, 1, -1), settings)
        elif head.kind == "quantiles":
            field = median_of_quantiles(np.moveaxis(distribution, 1, -1), head.levels)
        forecasts = {settings.variable.name: field}
        if head.kind in DISTRIBUTION_OF:
            forecasts[DISTRIBUTION_OF[head.kind]] = distribution
        return {name: array.astype(np.float32, copy=False) for name, array in forecasts.items()}

    def _blended(self, frames: np.ndarray, moving: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Give what the head gives on the whole grid, (batch, output, lead frame, y, x).

        It is missing where nothing is forecast. That is where an input frame was missing; of a
        network that sees motion, where extrapolation is: a sector that is missing in the last frame
        throws a shadow.
        """
        height, width = frames.shape[2:]
        head, variable = self.settings.head, self.settings.variable
        leads = self.settings.window.lead_frames
        values = np.zeros((len(frames), head.outputs, leads, height, width), np.float32)
        for (rows, columns), weights in self._tiles((height, width), moving):
            part = self._forecast(frames[..., rows, columns], moving[..., rows, columns])
            for lead, told in enumerate(part):
                weighted = weights.astype(np.float32) * np.moveaxis(told, -1, 1)
                values[:, :, lead, rows, columns] += weighted
        if np.isnan(values).any():  # it would pass for "not observed"
            raise ValueError(f"network {self.settings.network!r} gave NaN; train it again")
        probable = head.kind == "exceedance"
        low, high = (0.0, 1.0) if probable else (variable.valid_min, variable.valid_max)
        np.clip(values, low, high, out=values)
        # By construction they fall or rise along the levels, but for the rounding of 32-bit floats.
        in_order = np.minimum if probable else np.maximum
        for place in range(1, head.outputs):
            in_order(values[:, place], values[:, place - 1], out=values[:, place])
        if self.settings.motion_frames:  # where nothing is, there is no extrapolation to correct
            values[~(frames > variable.valid_min).any(axis=(1, 2, 3))] = 0.0
        np.copyto(values, np.nan, where=np.isnan(moved)[:, None])
        return values

    def _check_frames(self, frames: np.ndarray) -> None:
        needed = self.settings.window.input_frames
        if frames.shape[1] != needed:
            raise ValueError(f"this nowcaster needs {needed} frames; received {frames.shape[1]}")

    def _motion(self, frames: np.ndarray) -> np.ndarray:
        """Give the motion at each base time, (batch, component, y, x); none if it is not seen."""
        variable, used = self.settings.variable, self.settings.motion_frames
        if not used:
            return np.zeros((len(frames), 0, *frames.shape[2:]), np.float32)
        return np.stack([motion(window[-used:], variable) for window in frames])

    def _extrapolated(self, frames: np.ndarray, moving: np.ndarray) -> np.ndarray:
        """Give the last frame advected to each lead time, (batch, lead frame, y, x).

        Of a network that sees no motion, the last frame as it is, missing where any frame was. As
        32-bit floats, as it is issued: it reaches a threshold here exactly where it does there.
        """
        if not self.settings.motion_frames:
            seen = np.isfinite(frames).all(axis=1)
            return np.where(seen, frames[:, -1], np.nan)[:, None].astype(np.float32, copy=False)
        steps = [float(lead) for lead in range(1, self.settings.window.lead_frames + 1)]
        pairs = zip(frames[:, -1], moving, strict=True)
        return np.stack([advect(last, flow, steps).astype(np.float32) for last, flow in pairs])

    def _uncorrected(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """Give what extrapolation says, and as certain."""
        variable = self.settings.variable
        levels = np.array(self.settings.head.levels, np.float32)  # 0.7 as such reaches 0.7
        moved = self._extrapolated(frames, self._motion(frames))
        field = np.clip(moved, variable.valid_min, variable.valid_max)
        certain = np.where(
            np.isnan(field[:, None]), np.nan, field[:, None] >= levels.reshape(-1, 1, 1, 1)
        )
        forecasts = {variable.name: field, EXCEEDANCE: certain}
        return {name: array.astype(np.float32) for name, array in forecasts.items()}

    def _tiles(
        self, grid: tuple[int, int], moving: np.ndarray
    ) -> list[tuple[tuple[slice, slice], np.ndarray]]:
        """Cut a grid that the network cannot take, or that is too large, into tiles that blend."""
        size, overlap, rim = grid, 0, 0
        if not self.settings.takes_any_grid:
            size = self.settings.grid
        elif grid[0] * grid[1] > LARGEST_GRID:
            # What flows into a tile is known from its neighbour alone, and so did what is seen of
            # the earlier frames.
            window = self.settings.window
            steps = window.lead_frames + window.input_frames - 1
            farthest = float(np.abs(moving).max(initial=0.0)) * steps
            rim = int(np.ceil(farthest)) + (RIM if self.settings.motion_frames else 0)
            tall, wide = self.settings.padded((TILE + 2 * rim, TILE + 2 * rim))
            size = (min(grid[0], tall), min(grid[1], wide))
        cut = [side for side, whole in zip(size, grid, strict=True) if side < whole]
        overlap = int(OVERLAP * (min(cut, default=min(size)) - 2 * rim)) + 2 * rim
        return tiles(grid, size, overlap, rim=rim)

    def _forecast(self, frames: np.ndarray, moving: np.ndarray) -> Iterator[np.ndarray]:
        """Give what the network's head makes of one tile, one lead frame after the other.

        That is physical values, or probabilities, (batch, y, x, output).
        """
        head, to_numpy = self.settings.head, load_keras().ops.convert_to_numpy
        raw = self._mean_raw(frames, moving)
        for lead in range(self.settings.window.lead_frames):
            values = to_numpy(head.values(raw[:, lead]))
            probable = head.kind == "exceedance"
            yield values if probable else self.settings.transform.inverse(values)

    def _mean_raw(self, frames: np.ndarray, moving: np.ndarray) -> Any:
        """Give the raw outputs, (batch, lead frame, y, x, output), mean of the settings' views."""
        views = turns(self.settings.views)
        if len(views) == 1:
            return self._raw(frames, moving)
        total: Any = 0.0
        flips = 4  # that are of one shape
        at_once = flips if flips * frames[:, 0].size <= AT_ONCE else 1
        to_numpy, sees = load_keras().ops.convert_to_numpy, self.settings.motion_frames
        for first in range(0, len(views), at_once):
            some = views[first : first + at_once]
            seen = np.concatenate([turn.fields(frames) for turn in some])
            flow = np.concatenate([turn.motion(moving) if sees else moving for turn in some])
            raw = np.split(to_numpy(self._raw(seen, flow)), len(some))
            for turn, one in zip(some, raw, strict=True):
                total = total + turn.undone(one, y_axis=2)
        return total / np.float32(len(views))

    def _raw(self, frames: np.ndarray, moving: np.ndarray) -> Any:
        height, width = frames.shape[2:]
        grid = self.settings.padded((height, width))
        inputs: Any = network_inputs(self.settings, frames)
        if self.settings.motion_frames:
            more = [(0, side - given) for side, given in zip(grid, (height, width), strict=True)]
            inputs = [
                inputs,
                np.pad(moving.astype(np.float32), [(0, 0), (0, 0), *more], mode="edge"),
            ]
        return self._network(grid)(inputs, training=False)[:, :, :height, :width]

    def save(self, folder: Path | str) -> Path:
        """Write settings, weights, calibration and hashes to a folder, whole or not at all."""
        self.sha256 = save_network(folder, self.settings, self._network, self.postprocessing)
        return Path(folder)

    @classmethod
    def load(cls, folder: Path | str) -> "NeuralNowcaster":
        """Read a folder that `save` wrote. No code from the folder runs, nothing is unpickled.

        Raises
        ------
        ValueError
            If a file is absent, changed since it was saved, or does not fit.
        """
        settings, weights, digest = load_network(folder)
        if settings.head.kind in SEQUENCE_HEADS:
            raise ValueError(
                f"{folder} holds a predictor of {settings.head.kind}: it gives no frames to issue "
                "or promote; score it with `nowcast verify`, or call its predict, see "
                "nowcast.predictors"
            )
        postprocessing = load_postprocessing(folder)
        return cls(settings, weights, sha256=digest, postprocessing=postprocessing)

    def _build(self, grid: tuple[int, int]) -> Any:
        return network_with(self.settings, self.weights, grid)

    def _for_leads(self, leads: int) -> "NeuralNowcaster":
        settings, window = self.settings, self.settings.window
        weights = for_leads(
            settings.network,
            settings.network_settings,
            self.weights,
            known=window.lead_frames,
            wanted=leads,
        )
        return NeuralNowcaster(
            replace(settings, window=replace(window, lead_frames=leads)),
            weights,
            sha256=self.sha256,
            postprocessing=self.postprocessing and self.postprocessing.for_leads(leads),
            corrected=self.corrected,
        )


def calibrate(
    nowcaster: NeuralNowcaster,
    observed: xr.Dataset,
    *,
    base_times: pd.DatetimeIndex,
    decisions: Decisions = Decisions(),
    views: Views | None = None,
    batch_cases: int = 8,
) -> NeuralNowcaster:
    """Give a nowcaster with calibration and decision levels fitted on cases, its weights the same.

    They are of the network's own probabilities, at all of its lead times, whether or not the
    nowcaster was calibrated before.

    Parameters
    ----------
    nowcaster
        Of a head ``exceedance``.
    observed
        The frames before and after the base times.
    base_times
        Of the cases: other weather than what the network was trained on, by which it would seem
        surer than it is, and than what the nowcaster is judged by.
    decisions
        How the field is decided.
    views
        By which the nowcaster given asks its network, see `NeuralSettings`; None: its own.
    batch_cases
        Cases in memory at a time.

    Raises
    ------
    ValueError
        If there is no case, the head gives no probabilities, or there is no extrapolation.
    """
    settings = replace(nowcaster.settings, views=views or nowcaster.settings.views)
    window = settings.window
    decisions.check(settings.network, settings.head.levels, motion=bool(settings.motion_frames))
    leads = pd.TimedeltaIndex([window.step * lead for lead in range(1, window.lead_frames + 1)])
    counts = count(
        NeuralNowcaster(settings, nowcaster.weights),
        observed,
        base_times=base_times,
        lead_times=leads,
        batch_cases=batch_cases,
    )
    unseen = leads[(counts["probability_count"].sum(("threshold", "probability_bin")) == 0).values]
    if len(unseen):
        _LOG.warning(
            "no frame was observed %s min after a base time, so nothing is known of these lead "
            "times: do not issue them, or calibrate on longer events",
            ", ".join(f"{lead / pd.Timedelta(minutes=1):g}" for lead in unseen),
        )
    return NeuralNowcaster(
        settings,
        nowcaster.weights,
        sha256=nowcaster.sha256,
        postprocessing=fit_postprocessing(counts, decisions),
    )


def _check_postprocessing(postprocessing: Postprocessing, settings: NeuralSettings) -> None:
    ladder, window = postprocessing.calibration, settings.window
    minutes = [window.step.total_seconds() / 60 * lead for lead in range(1, window.lead_frames + 1)]
    thresholds = settings.head.levels if settings.head.kind == "exceedance" else ()
    same_leads = np.array_equal(np.round(ladder.lead_minutes, 6), np.round(minutes, 6))
    if ladder.thresholds != thresholds or not same_leads:
        raise ValueError(
            f"a calibration for the thresholds {ladder.thresholds} and the lead times "
            f"{ladder.lead_minutes} min does not fit a network of the head "
            f"{settings.head.kind!r} with {thresholds} and {minutes}; calibrate it anew"
        )


def nowcast_with(
    settings: NeuralSettings,
    forecasts: Callable[[np.ndarray], dict[str, np.ndarray]],
    observed: xr.Dataset,
    *,
    base_times: pd.DatetimeIndex,
    lead_times: pd.TimedeltaIndex,
) -> xr.Dataset:
    """Give the nowcast of a network, wherever it computes: here or behind an endpoint.

    Parameters
    ----------
    settings
        Of the network.
    forecasts
        ``(batch, frame, y, x)`` in physical units to arrays by the name of their variable, as
        `NeuralNowcaster.forecasts` gives them; the field must be among them.
    observed, base_times, lead_times
        See `Nowcaster`.

    Raises
    ------
    ValueError
        If the grid, a base time or a lead time does not fit the network.
    """
    name = settings.variable.name
    positions = _lead_positions(settings.window, lead_times)
    first = np.arange(len(positions))
    leads = slice(len(first)) if np.array_equal(positions, first) else positions
    frames = windows_of(settings, observed, base_times)
    arrays, levels = forecasts(frames), settings.head.levels
    nowcast = build_nowcast(
        arrays[name][:, leads],
        observed=observed,
        variable=settings.variable,
        base_times=base_times,
        lead_times=lead_times,
    )
    if EXCEEDANCE in arrays:
        nowcast = with_exceedance(nowcast, arrays[EXCEEDANCE][:, :, leads], thresholds=levels)
    if QUANTILES in arrays:
        nowcast = with_quantiles(nowcast, arrays[QUANTILES][:, :, leads], quantiles=levels)
    return check_nowcast(nowcast, settings.variable)


def median_of_exceedance(probabilities: np.ndarray, settings: NeuralSettings) -> np.ndarray:
    """Give the field that is exceeded as likely as not.

    Where the probability crosses 1/2 between two thresholds, linearly on the transform's scale;
    the highest threshold where that is reached. Where not even the lowest is, it is dry: the
    lowest valid value of rain; of another quantity, the lowest threshold, the nearest known. So
    the field reaches a threshold exactly where its probability is 1/2 or more.

    Parameters
    ----------
    probabilities : (..., threshold)
        That fall along the thresholds; NaN where missing.
    settings
        Whose head's levels are the thresholds.

    Returns
    -------
    field : (...)
        In physical units, NaN where missing.
    """
    return field_of(
        np.moveaxis(probabilities, -1, 0),
        np.array(MEDIAN),
        thresholds=settings.head.levels,
        transform=settings.transform,
        lowest=_lowest(settings),
    )


def _lowest(settings: NeuralSettings) -> float:
    """Give the value of what does not reach the lowest threshold."""
    known = settings.variable.name in VARIABLES
    return settings.variable.valid_min if known else settings.head.levels[0]


def median_of_quantiles(values: np.ndarray, quantiles: tuple[float, ...]) -> np.ndarray:
    """Give the quantile 0.5, linearly between its neighbours, or the nearest that there is.

    Parameters
    ----------
    values : (..., quantile)
        NaN where missing.
    quantiles
        Of these, between 0 and 1, rising.
    """
    place = float(np.interp(MEDIAN, quantiles, np.arange(len(quantiles))))
    low, part = int(place), place % 1.0
    if not part:
        return values[..., low]
    return (1.0 - part) * values[..., low] + part * values[..., low + 1]


def windows_of(
    settings: NeuralSettings, observed: xr.Dataset, base_times: pd.DatetimeIndex
) -> np.ndarray:
    """Give the input frames of each base time.

    Returns
    -------
    frames : (base time, frame, y, x)
        In physical units, NaN where not observed.

    Raises
    ------
    ValueError
        If the grid or a base time does not fit, or a frame has no observed pixel.
    """
    name, window = settings.variable.name, settings.window
    _check_quantity(settings, observed)
    _check_grid(settings, observed)
    _check_cadence(settings, observed)
    windows = [
        input_frames(observed, base_time=base_time, frames=window.input_frames, step=window.step)
        for base_time in base_times
    ]
    return np.stack([check_observed(one, name)[name].values for one in windows])


def _check_quantity(settings: NeuralSettings, observed: xr.Dataset) -> None:
    wanted = settings.variable
    if wanted.name not in observed:
        held = ", ".join(
            f"{name} ({one.attrs.get('units', '?')})" for name, one in observed.items()
        )
        raise ValueError(
            f"this nowcaster forecasts {wanted.name} ({wanted.units}); the observations hold "
            f"{held}; open them as {wanted.name} (--set variable.name={wanted.name}), or train "
            "on them"
        )
    units = observed[wanted.name].attrs.get("units")
    if units != wanted.units:
        raise ValueError(
            f"this nowcaster was trained on {wanted.name} in {wanted.units}; the observations are "
            f"in {units}; convert them"
        )


def _check_cadence(settings: NeuralSettings, observed: xr.Dataset) -> None:
    wanted = settings.window.step
    found = step_of(observed) if observed.sizes["time"] > 1 else wanted
    if wanted % found != pd.Timedelta(0):
        raise ValueError(
            f"this nowcaster was trained on frames every {wanted / pd.Timedelta(minutes=1):g} min; "
            f"the observations come every {found / pd.Timedelta(minutes=1):g} min; train on them"
        )


def _check_grid(settings: NeuralSettings, observed: xr.Dataset) -> None:
    units, spacing = observed["x"].attrs.get("units"), grid_spacing(observed)
    off = abs(spacing / settings.grid_spacing - 1)
    if units != settings.grid_units or off > SPACING_TOLERANCE:
        raise ValueError(
            f"this nowcaster was trained on pixels of {settings.grid_spacing:g} "
            f"{settings.grid_units}; the observations have {spacing:g} {units}; "
            "average them (--set data.coarsen=2), or train on them"
        )
    grid = (observed.sizes["y"], observed.sizes["x"])
    if not settings.takes_any_grid and (np.array(grid) < settings.grid).any():
        raise ValueError(
            f"network {settings.network!r} takes grids of {settings.grid}, on which it was trained,"
            f" or larger; the observations have {grid}; train on them, or a convlstm"
        )


def _leads_to(settings: NeuralSettings, lead_times: pd.TimedeltaIndex) -> int:
    """Give as how many lead frames a network is to compute, to give these lead times."""
    positions = _lead_positions(settings.window, lead_times)
    if not takes_leads(settings.network):
        return settings.window.lead_frames
    return int(positions.max(initial=0)) + 1


def _lead_positions(window: Window, lead_times: pd.TimedeltaIndex) -> np.ndarray:
    known = pd.TimedeltaIndex([window.step * lead for lead in range(1, window.lead_frames + 1)])
    positions: np.ndarray = known.get_indexer(lead_times)
    if (positions < 0).any():
        raise ValueError(
            f"this nowcaster gives lead times from {known[0]} to {known[-1]} every "
            f"{window.step}; received {lead_times[positions < 0][0]}"
        )
    return positions
