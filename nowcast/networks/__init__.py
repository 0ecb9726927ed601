"""The zoo: Keras 3 networks from input frames to lead frames, written with ``keras.ops`` alone.

Each network is a short module with a frozen ``Settings``, a ``build`` and what grids it takes.
Every network maps ``(batch, frame, y, x, channel)``, channels value and observed, to what its
head makes a forecast of: ``(batch, lead frame, y, x, output)`` for heads of frames. See
`nowcast.networks.heads`.
"""

import dataclasses
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nowcast.networks.heads import FRAME_HEADS, Head
from nowcast.networks.tasks import Task

if TYPE_CHECKING:  # listing the networks needs no NumPy
    import numpy as np

    from nowcast.rainrate import Transform

NETWORKS = {
    "cnn_lstm": "nowcast.networks.cnn_lstm",
    "convgru": "nowcast.networks.convgru",
    "convlstm": "nowcast.networks.convlstm",
    "fc_lstm": "nowcast.networks.fc_lstm",
    "lagrangian": "nowcast.networks.lagrangian",
    "predrnn": "nowcast.networks.predrnn",
    "simvp": "nowcast.networks.simvp",
    "trajgru": "nowcast.networks.trajgru",
    "unet": "nowcast.networks.unet",
}


def load_keras() -> Any:
    """Import Keras and start its backend, without what TensorFlow's C++ code prints meanwhile.

    TensorFlow writes notes on instruction sets and absent GPUs to the process's standard error,
    whatever its log level; Python errors are raised as ever.
    """
    if "keras" in sys.modules:
        return sys.modules["keras"]
    saved = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        import keras

        keras.ops.zeros(1)
    finally:
        os.dup2(saved, 2)
        os.close(saved)
    return keras


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


def version_of(name: str) -> int:
    """Give the version of a network's code: weights fit the version they were trained with."""
    settings_of(name, {})
    return int(import_module(NETWORKS[name]).VERSION)


def build(
    name: str,
    *,
    settings: dict[str, Any],
    input_frames: int,
    lead_frames: int,
    grid: tuple[int, int],
    head: Head | None = None,
    channels: int = 2,
    transform: "Transform | None" = None,
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
    head
        What its outputs mean; by default a field.
    channels
        Of the input: value and observed, or 1 for values alone.
    transform
        The scale on which it sees the frames; by default as `Transform` has it.

    Returns
    -------
    keras.Model
        ``(batch, frame, y, x, channel)`` to raw outputs ``(batch, lead frame, y, x, output)``; to
        ``(batch, lead frame, output)`` for the head ``series``, to ``(batch, output)`` for
        ``classes``. Not compiled. A network that `sees_motion` takes it as a second input,
        ``(batch, component, y, x)``.

    Raises
    ------
    ValueError
        If the name, a setting or the grid does not fit.
    """
    complete = settings_of(name, settings)
    multiples = grid_multiples(complete, grid)
    if grid[0] % multiples[0] or grid[1] % multiples[1]:
        raise ValueError(
            f"{name!r} needs a grid in multiples of {max(multiples)} pixels; received {grid}"
        )
    head = head or Head()
    check_head(name, head)
    from nowcast.rainrate import Transform

    load_keras()
    task = Task(input_frames, lead_frames, grid, channels, head, transform or Transform())
    return import_module(NETWORKS[name]).build(complete, task)


def check_head(name: str, head: Head) -> None:
    """Refuse a head that a network does not have.

    Raises
    ------
    ValueError
        With those that it has.
    """
    heads = getattr(import_module(NETWORKS[name]), "HEADS", FRAME_HEADS)
    if head.kind not in heads:
        raise ValueError(
            f"network {name!r} has no head {head.kind!r}; it has {', '.join(heads)}; "
            "set network.head to one of these"
        )


def sees_motion(settings: Any) -> bool:
    """Tell whether a network with these settings takes the motion of the frames as well."""
    return bool(getattr(settings, "sees_motion", False))


def grid_multiples(settings: Any, grid: tuple[int, int]) -> tuple[int, int]:
    """Give what the sides of a grid must be multiples of.

    Parameters
    ----------
    settings
        Of a network. Where they say that it ``takes_rows``, a side of one pixel stays one.
    grid : (y, x)
        Pixels.

    Examples
    --------
    >>> grid_multiples(settings_of("cnn_lstm", {}), (1, 60))
    (1, 8)
    """
    rows = getattr(settings, "takes_rows", False)
    height, width = (1 if rows and side == 1 else int(settings.grid_multiple) for side in grid)
    return height, width


def takes_leads(name: str) -> bool:
    """Tell whether weights of a network can be used for fewer lead times, or begin for more."""
    return hasattr(import_module(NETWORKS[name]), "for_leads")


def for_leads(
    name: str,
    settings: dict[str, Any],
    weights: list["np.ndarray"],
    *,
    known: int,
    wanted: int,
) -> list["np.ndarray"]:
    """Give the weights of a network for another number of lead times.

    For fewer they are a part of them; for more what a training can begin from.

    Parameters
    ----------
    name
        One of `NETWORKS`.
    settings
        The network's own.
    weights
        As the network gives them, in its order.
    known, wanted
        Lead times that they are for, and that they are to be for.

    Raises
    ------
    ValueError
        If the weights of such a network are for as many lead times as it was trained on.
    """
    if known == wanted:
        return weights
    if not takes_leads(name):
        raise ValueError(
            f"weights of {name!r} are for {known} lead frames, not for {wanted}; those of "
            f"{', '.join(filter(takes_leads, NETWORKS))} can be; keep window.lead_frames={known}, "
            "or train anew"
        )
    module = import_module(NETWORKS[name])
    changed: list[np.ndarray] = module.for_leads(
        settings_of(name, settings), weights, known=known, wanted=wanted
    )
    return changed


def keep_lead_times(name: str, network: Any, *, known: int) -> None:
    """Let a network that `takes_leads` learn lead times behind the known ones, and nothing else.

    Parameters
    ----------
    name
        One of `NETWORKS`.
    network
        As built, with the weights that it begins from, before it is compiled.
    known
        Lead times for which it gives what it gave, to the bit.
    """
    import_module(NETWORKS[name]).keep_lead_times(network, known=known)


def initialise(name: str, network: Any, settings: dict[str, Any]) -> None:
    """Read what a network is to start from, such as pretrained weights, before it is trained.

    A network that is built to hold saved weights needs none of it, and no file but theirs.

    Parameters
    ----------
    name
        One of `NETWORKS`.
    network
        As `build` gave it.
    settings
        That it was built with.

    Raises
    ------
    ValueError
        If a file that the settings name is absent or does not fit.
    """
    complete, module = settings_of(name, settings), import_module(NETWORKS[name])
    if hasattr(module, "initialise"):
        module.initialise(network, complete)


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
