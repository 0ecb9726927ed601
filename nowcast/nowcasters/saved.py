"""A network saved as settings and weights, and what it sees of frames."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd

from nowcast.conventions import Variable
from nowcast.durable import replacing_folder, sha256
from nowcast.frames import Window, as_inputs
from nowcast.networks import build, grid_multiples, sees_motion, settings_of, version_of
from nowcast.networks.heads import Head
from nowcast.nowcasters.motions import INPUT_FRAMES as MOTION_FRAMES
from nowcast.postprocessing import Postprocessing
from nowcast.rainrate import Transform
from nowcast.turns import Views

FORMAT = 2
SETTINGS, WEIGHTS, MANIFEST = "settings.json", "network.weights.h5", "manifest.json"
CALIBRATION = "calibration.json"  # only where there is one
SAVED = {SETTINGS, WEIGHTS, MANIFEST, CALIBRATION}
LARGEST_SETTINGS = 1_000_000  # bytes
LARGEST_CALIBRATION = 10_000_000  # bytes
LARGEST_WEIGHTS = 2_000_000_000  # bytes


@dataclass(frozen=True)
class NeuralSettings:
    """All that a network needs besides its weights to issue nowcasts in physical units.

    Parameters
    ----------
    network, network_version, network_settings
        Which network, the version of its code, and its own settings.
    channels
        Of its input: value and observed, or 1 for values alone.
    views
        Of the frames, by each of which the network is asked; what it says is the mean of its raw
        outputs: 1, as they are; 4, their flips too; 8, and quarter turns.
    head
        What the network's outputs mean.
    variable, transform, window
        What is forecast, the scale the network sees, and the frames.
    grid : (y, x)
        Pixels trained on.
    grid_spacing, grid_units
        Of the grid trained on; a network knows motion in pixels, so they must be the same.
    points : (y, x) of each
        Of a series, in the coordinates of the grid; none for an areal mean.
    provenance
        What it was trained on and by which code.

    Raises
    ------
    ValueError
        If the network takes no frames that are turned.
    """

    network: str
    network_version: int
    network_settings: dict[str, Any]
    head: Head
    variable: Variable
    transform: Transform
    window: Window
    grid: tuple[int, int]
    grid_spacing: float
    grid_units: str
    points: tuple[tuple[float, float], ...] = ()
    channels: int = 2
    views: Views = 1
    provenance: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse views that the network cannot take."""
        if self.views not in get_args(Views):
            raise ValueError(f"views are 1, 4 or 8; received {self.views!r}")
        if self.views == 8 and self.grid[0] != self.grid[1] and not self.takes_any_grid:
            raise ValueError(
                f"views=8 turns rows into columns, and network {self.network!r} takes grids of "
                f"{self.grid} alone; use views=4"
            )

    @property
    def takes_any_grid(self) -> bool:
        """Whether it takes grids of other sizes than the one trained on."""
        return bool(settings_of(self.network, self.network_settings).any_grid)

    @property
    def motion_frames(self) -> int:
        """Last frames from which the motion is found that the network sees; 0: it sees none."""
        sees = sees_motion(settings_of(self.network, self.network_settings))
        return min(self.window.input_frames, MOTION_FRAMES) if sees else 0

    def padded(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Give the least grid that the network takes and that holds this one."""
        multiples = grid_multiples(settings_of(self.network, self.network_settings), grid)
        height, width = (-(-side // by) * by for side, by in zip(grid, multiples, strict=True))
        return height, width

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
        found = content.pop("format", None)
        if found != FORMAT:
            raise ValueError(
                f"a saved nowcaster must be of format {FORMAT}; this one is of {found!r}, of "
                "another nowcast; train it again, or install the nowcast it was trained with"
            )
        try:
            head = dict(content.pop("head"))
            window = dict(content.pop("window"))
            step = pd.Timedelta(seconds=window.pop("step"))
            return cls(
                head=Head(head["kind"], tuple(head["levels"]), tuple(head["labels"])),
                variable=Variable(**content.pop("variable")),
                transform=Transform(**content.pop("transform")),
                window=Window(step=step, **window),
                grid=tuple(content.pop("grid")),
                points=tuple(map(tuple, content.pop("points"))),
                **content,
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"the settings of a saved nowcaster do not fit: {error}") from error


def network_with(settings: NeuralSettings, weights: list[np.ndarray], grid: tuple[int, int]) -> Any:
    """Build a network for a grid that it takes, and give it its weights."""
    network = _network(settings, grid)
    network.set_weights(weights)
    return network


def network_inputs(settings: NeuralSettings, frames: np.ndarray) -> np.ndarray:
    """Give what the network sees of frames, padded with missing pixels to a grid that it takes.

    Parameters
    ----------
    settings
        Of the network.
    frames : (batch, frame, y, x)
        In physical units, NaN where not observed.

    Raises
    ------
    ValueError
        If a pixel is missing and the network cannot know.
    """
    missing = np.isnan(frames).sum() if settings.channels == 1 else 0
    if missing:
        raise ValueError(
            f"this network sees values alone (network.channels=1), and {missing} pixels are "
            "missing; train one that is told what was observed"
        )
    grid = frames.shape[2:]
    padding = [(0, more - side) for more, side in zip(settings.padded(grid), grid, strict=True)]
    scaled = settings.transform.forward(frames.astype(np.float32))
    inputs = as_inputs(np.pad(scaled, [(0, 0), (0, 0), *padding], constant_values=np.nan))
    return inputs[..., : settings.channels]


def save_network(
    folder: Path | str,
    settings: NeuralSettings,
    network: Callable[[tuple[int, int]], Any],
    postprocessing: Postprocessing | None = None,
) -> str:
    """Write settings, weights and their hashes to a folder, whole or not at all.

    Parameters
    ----------
    folder
        Replaced if there is a saved nowcaster in it, and nothing else.
    settings
        Of the network.
    network
        Gives the network with its weights for a grid.
    postprocessing
        Of its probabilities, if there is one.

    Returns
    -------
    str
        SHA-256 of the weights file.

    Raises
    ------
    ValueError
        If something else is there.
    """
    check_replaceable(folder)
    with replacing_folder(Path(folder)) as temporary:
        (temporary / SETTINGS).write_text(json.dumps(settings.to_dict(), indent=2))
        network(settings.padded(settings.grid)).save_weights(temporary / WEIGHTS)
        if postprocessing:
            (temporary / CALIBRATION).write_text(postprocessing.to_json())
        hashes = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / MANIFEST).write_text(json.dumps(hashes, indent=2))
    return hashes[WEIGHTS]


def check_replaceable(folder: Path | str) -> None:
    """Refuse a place for a saved nowcaster in which something else would be lost.

    Raises
    ------
    ValueError
        Naming what is there.
    """
    folder, lost = Path(folder), ""
    if folder.is_file():
        lost = "is a file"
    elif folder.is_dir() and folder.resolve() == Path.cwd():
        lost = "is the folder in which this runs"
    elif folder.is_dir() and (others := sorted({path.name for path in folder.iterdir()} - SAVED)):
        lost = f"holds {', '.join(others[:3])}{' and more' if len(others) > 3 else ''}"
    if lost:
        raise ValueError(
            f"a saved nowcaster would replace {folder}, which {lost}; give a folder that is not "
            "there yet, or one with a saved nowcaster and nothing else"
        )


def load_network(folder: Path | str) -> tuple[NeuralSettings, list[np.ndarray], str]:
    """Read settings, weights and their hash from a folder that `save_network` wrote.

    No code from the folder runs, nothing is unpickled.

    Raises
    ------
    ValueError
        If a file is absent, changed since it was saved, or does not fit.
    """
    folder = Path(folder)
    hashes = _read_json(folder / MANIFEST)
    for name in (SETTINGS, WEIGHTS):
        _check_saved(folder / name, hashes)
    settings = NeuralSettings.from_dict(_read_json(folder / SETTINGS))
    if settings.network_version != version_of(settings.network):
        raise ValueError(
            f"{folder} was trained with version {settings.network_version} of network "
            f"{settings.network!r}; this nowcast has version {version_of(settings.network)}; "
            "train it again, or install the nowcast it was trained with"
        )
    if (folder / WEIGHTS).stat().st_size > LARGEST_WEIGHTS:
        raise ValueError(f"{folder / WEIGHTS} is larger than {LARGEST_WEIGHTS} bytes")
    network = _network(settings, settings.padded(settings.grid))
    network.load_weights(folder / WEIGHTS)
    return settings, network.get_weights(), hashes[WEIGHTS]


def load_postprocessing(folder: Path | str) -> Postprocessing | None:
    """Read the calibration and decision levels from a folder of a nowcaster; None if it has none.

    Raises
    ------
    ValueError
        If they are absent though they were saved, changed since, or do not fit.
    """
    path = Path(folder) / CALIBRATION
    hashes = _read_json(path.with_name(MANIFEST))
    if CALIBRATION not in hashes and not path.exists():
        return None
    _check_saved(path, hashes)
    return Postprocessing.from_dict(_read_json(path, largest=LARGEST_CALIBRATION))


def _check_saved(path: Path, hashes: dict[str, Any]) -> None:
    if not path.is_file() or sha256(path) != hashes.get(path.name):
        raise ValueError(f"{path} is absent or not what was saved; restore it")


def _network(settings: NeuralSettings, grid: tuple[int, int]) -> Any:
    return build(
        settings.network,
        settings=settings.network_settings,
        input_frames=settings.window.input_frames,
        lead_frames=settings.window.lead_frames,
        grid=grid,
        head=settings.head,
        channels=settings.channels,
        transform=settings.transform,
    )


def _read_json(path: Path, *, largest: int = LARGEST_SETTINGS) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path.parent} holds no saved nowcaster: {path.name} is absent")
    if path.stat().st_size > largest:
        raise ValueError(f"{path} is larger than {largest} bytes")
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    return content
