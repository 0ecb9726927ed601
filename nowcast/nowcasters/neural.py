"""A trained network that issues nowcasts, saved as settings and weights."""

import functools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import Variable, build_nowcast, check_nowcast, grid_spacing
from nowcast.durable import replacing_folder, sha256
from nowcast.frames import Window, as_inputs, check_observed, input_frames, tiles
from nowcast.networks import build, settings_of, version_of
from nowcast.rainrate import Transform

FORMAT = 1
SETTINGS, WEIGHTS, MANIFEST = "settings.json", "network.weights.h5", "manifest.json"
SPACING_TOLERANCE = 0.01  # part by which a grid spacing may differ from the one trained on
LARGEST_GRID = 1024 * 1024  # pixels forecast at once; what is larger is cut into tiles
TILE = 512  # pixels along y and x, of a network that takes any grid
OVERLAP = 0.25  # part of a tile's shorter side that it shares with its neighbour
LARGEST_SETTINGS = 1_000_000  # bytes
LARGEST_WEIGHTS = 2_000_000_000  # bytes


@dataclass(frozen=True)
class NeuralSettings:
    """All that a network needs besides its weights to issue nowcasts in physical units.

    Parameters
    ----------
    network, network_version, network_settings
        Which network, the version of its code, and its own settings.
    variable, transform, window
        What is forecast, the scale the network sees, and the frames.
    grid : (y, x)
        Pixels trained on.
    grid_spacing, grid_units
        Of the grid trained on; a network knows motion in pixels, so they must be the same.
    provenance
        What it was trained on and by which code.
    """

    network: str
    network_version: int
    network_settings: dict[str, Any]
    variable: Variable
    transform: Transform
    window: Window
    grid: tuple[int, int]
    grid_spacing: float
    grid_units: str
    provenance: dict[str, str] = field(default_factory=dict)

    @property
    def takes_any_grid(self) -> bool:
        """Whether it takes grids of other sizes than the one trained on."""
        return bool(settings_of(self.network, self.network_settings).any_grid)

    @property
    def grid_multiple(self) -> int:
        """Both sides of a grid are padded, with missing pixels, to a multiple of this."""
        return int(settings_of(self.network, self.network_settings).grid_multiple)

    def to_dict(self) -> dict[str, Any]:
        """Give the settings as JSON types."""
        content = asdict(self)
        content["window"]["step"] = self.window.step.total_seconds()
        return {"format": FORMAT, **content}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "NeuralSettings":
        """Read what `to_dict` gave.

        Raises
        ------
        ValueError
            If something is absent, unknown or of another format.
        """
        content = dict(content)
        if content.pop("format", None) != FORMAT:
            raise ValueError(f"a saved nowcaster must be of format {FORMAT}")
        try:
            window = dict(content.pop("window"))
            step = pd.Timedelta(seconds=window.pop("step"))
            return cls(
                variable=Variable(**content.pop("variable")),
                transform=Transform(**content.pop("transform")),
                window=Window(step=step, **window),
                grid=tuple(content.pop("grid")),
                **content,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"the settings of a saved nowcaster do not fit: {error}") from error


class NeuralNowcaster:
    """A network with its weights and all that is needed to use it; see `Nowcaster`.

    A pixel at which any input frame was missing is missing at every lead time.

    Parameters
    ----------
    settings
        See `NeuralSettings`.
    weights
        As the Keras network gives them, in its order.
    sha256
        Of the weights file, where it was saved.
    """

    def __init__(
        self, settings: NeuralSettings, weights: list[np.ndarray], *, sha256: str = ""
    ) -> None:
        self.settings = settings
        self.sha256 = sha256
        self.input_frames = settings.window.input_frames
        self.step: pd.Timedelta | None = settings.window.step
        self.weights = weights
        self._network = functools.lru_cache(maxsize=2)(self._build)

    def nowcast(
        self, observed: xr.Dataset, *, base_times: pd.DatetimeIndex, lead_times: pd.TimedeltaIndex
    ) -> xr.Dataset:
        """Give the network's nowcast of each base time; see `Nowcaster`.

        Raises
        ------
        ValueError
            If the grid, a base time or a lead time does not fit the network.
        """
        return nowcast_with(
            self.settings, self.forecast, observed, base_times=base_times, lead_times=lead_times
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
            In physical units, NaN where an input frame was.
        """
        _, count, height, width = frames.shape
        if count != self.settings.window.input_frames:
            raise ValueError(
                f"this nowcaster needs {self.settings.window.input_frames} frames; received {count}"
            )
        values = np.zeros((len(frames), self.settings.window.lead_frames, height, width))
        for (rows, columns), weights in self._tiles((height, width)):
            values[..., rows, columns] += weights * self._forecast(frames[..., rows, columns])
        values = np.clip(values, self.settings.variable.valid_min, self.settings.variable.valid_max)
        seen = np.isfinite(frames).all(axis=1, keepdims=True)
        if np.isnan(values).any():  # it would pass for "not observed"
            raise ValueError(f"network {self.settings.network!r} gave NaN; train it again")
        return np.where(seen, values, np.nan).astype(np.float32)

    def _tiles(self, grid: tuple[int, int]) -> list[tuple[tuple[slice, slice], np.ndarray]]:
        """Cut a grid that the network cannot take, or that is too large, into tiles that blend."""
        size = grid
        if not self.settings.takes_any_grid:
            size = self.settings.grid
        elif grid[0] * grid[1] > LARGEST_GRID:
            size = (min(grid[0], self._padded(TILE)), min(grid[1], self._padded(TILE)))
        return tiles(grid, size, int(OVERLAP * min(size)))

    def _forecast(self, frames: np.ndarray) -> np.ndarray:
        """Give what the network makes of one tile, in physical units."""
        height, width = frames.shape[2:]
        tall, wide = self._padded(height), self._padded(width)
        padding = ((0, 0), (0, 0), (0, tall - height), (0, wide - width))
        scaled = self.settings.transform.forward(frames.astype(np.float32))
        inputs = as_inputs(np.pad(scaled, padding, constant_values=np.nan))
        outputs = np.asarray(self._network((tall, wide))(inputs, training=False))
        values: np.ndarray = self.settings.transform.inverse(outputs[:, :, :height, :width, 0])
        return values

    def save(self, folder: Path | str) -> Path:
        """Write settings, weights and their hashes to a folder, whole or not at all."""
        folder = Path(folder)
        with replacing_folder(folder) as temporary:
            (temporary / SETTINGS).write_text(json.dumps(self.settings.to_dict(), indent=2))
            self._network(self.settings.grid).save_weights(temporary / WEIGHTS)
            hashes = {name: sha256(temporary / name) for name in (SETTINGS, WEIGHTS)}
            (temporary / MANIFEST).write_text(json.dumps(hashes, indent=2))
        self.sha256 = hashes[WEIGHTS]
        return folder

    @classmethod
    def load(cls, folder: Path | str) -> "NeuralNowcaster":
        """Read a folder that `save` wrote. No code from the folder runs, nothing is unpickled.

        Raises
        ------
        ValueError
            If a file is absent, changed since it was saved, or does not fit.
        """
        folder = Path(folder)
        hashes = _read_json(folder / MANIFEST)
        for name in (SETTINGS, WEIGHTS):
            if not (folder / name).is_file() or sha256(folder / name) != hashes.get(name):
                raise ValueError(f"{folder / name} is absent or not what was saved; restore it")
        settings = NeuralSettings.from_dict(_read_json(folder / SETTINGS))
        if settings.network_version != version_of(settings.network):
            raise ValueError(
                f"{folder} was trained with version {settings.network_version} of network "
                f"{settings.network!r}; this nowcast has version {version_of(settings.network)}; "
                "train it again, or install the nowcast it was trained with"
            )
        if (folder / WEIGHTS).stat().st_size > LARGEST_WEIGHTS:
            raise ValueError(f"{folder / WEIGHTS} is larger than {LARGEST_WEIGHTS} bytes")
        network = _network(settings, settings.grid)
        network.load_weights(folder / WEIGHTS)
        return cls(settings, network.get_weights(), sha256=hashes[WEIGHTS])

    def _build(self, grid: tuple[int, int]) -> Any:
        network = _network(self.settings, grid)
        network.set_weights(self.weights)
        return network

    def _padded(self, side: int) -> int:
        multiple = self.settings.grid_multiple
        return -(-side // multiple) * multiple


def nowcast_with(
    settings: NeuralSettings,
    forecast: Callable[[np.ndarray], np.ndarray],
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
    forecast
        ``(batch, frame, y, x)`` to ``(batch, lead frame, y, x)``, physical units.
    observed, base_times, lead_times
        See `Nowcaster`.

    Raises
    ------
    ValueError
        If the grid, a base time or a lead time does not fit the network.
    """
    name, window = settings.variable.name, settings.window
    _check_grid(settings, observed)
    leads = _lead_positions(window, lead_times)
    windows = [
        input_frames(observed, base_time=base_time, frames=window.input_frames, step=window.step)
        for base_time in base_times
    ]
    frames = np.stack([check_observed(one, name)[name].values for one in windows])
    return check_nowcast(
        build_nowcast(
            forecast(frames)[:, leads],
            observed=observed,
            variable=settings.variable,
            base_times=base_times,
            lead_times=lead_times,
        ),
        settings.variable,
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


def _lead_positions(window: Window, lead_times: pd.TimedeltaIndex) -> np.ndarray:
    known = pd.TimedeltaIndex([window.step * lead for lead in range(1, window.lead_frames + 1)])
    positions: np.ndarray = known.get_indexer(lead_times)
    if (positions < 0).any():
        raise ValueError(
            f"this nowcaster gives lead times from {known[0]} to {known[-1]} every "
            f"{window.step}; received {lead_times[positions < 0][0]}"
        )
    return positions


def _network(settings: NeuralSettings, grid: tuple[int, int]) -> Any:
    return build(
        settings.network,
        settings=settings.network_settings,
        input_frames=settings.window.input_frames,
        lead_frames=settings.window.lead_frames,
        grid=grid,
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path.parent} holds no saved nowcaster: {path.name} is absent")
    if path.stat().st_size > LARGEST_SETTINGS:
        raise ValueError(f"{path} is larger than {LARGEST_SETTINGS} bytes")
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    return content
