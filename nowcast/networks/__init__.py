"""The zoo: Keras 3 networks from input frames to lead frames, written with ``keras.ops`` alone.

Each network is a short module with a frozen ``Settings``, a ``build`` and what grids it takes.
Every network maps ``(batch, frame, y, x, channel)``, channels value and observed, to
``(batch, lead frame, y, x, 1)`` on the scale of its transform.
"""

import dataclasses
from importlib import import_module
from typing import Any

NETWORKS = {
    "cnn_lstm": "nowcast.networks.cnn_lstm",
    "convlstm": "nowcast.networks.convlstm",
}


def settings_of(name: str, settings: dict[str, Any]) -> Any:
    """Give the complete settings of a network.

    Raises
    ------
    ValueError
        If the network or one of the settings is unknown.

    Examples
    --------
    >>> settings_of("convlstm", {"patch": 2}).patch
    2
    """
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; known are {', '.join(sorted(NETWORKS))}")
    kind = import_module(NETWORKS[name]).Settings
    known = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(
            f"network {name!r} has no setting {', '.join(unknown)}; it has {', '.join(known)}"
        )
    return kind(**{key: _frozen(value) for key, value in settings.items()})


def build(
    name: str,
    *,
    settings: dict[str, Any],
    input_frames: int,
    lead_frames: int,
    grid: tuple[int, int],
) -> Any:
    """Build a network for a grid.

    Parameters
    ----------
    name
        One of `NETWORKS`.
    settings
        The network's own; those not given have defaults.
    input_frames, lead_frames
        Of the window.
    grid : (y, x)
        Pixels; multiples of `grid_multiple`.

    Returns
    -------
    keras.Model
        Not compiled.

    Raises
    ------
    ValueError
        If the name, a setting or the grid does not fit.
    """
    complete = settings_of(name, settings)
    multiple = complete.grid_multiple
    if grid[0] % multiple or grid[1] % multiple:
        raise ValueError(
            f"{name!r} needs a grid in multiples of {multiple} pixels; received {grid}"
        )
    module = import_module(NETWORKS[name])
    return module.build(complete, input_frames=input_frames, lead_frames=lead_frames, grid=grid)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
