"""Everything that issues nowcasts, behind one protocol."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import pandas as pd
    import xarray as xr

NOWCASTERS = {
    "persistence": "nowcast.nowcasters.persistence:Persistence",
    "extrapolation": "nowcast.nowcasters.extrapolation:Extrapolation",
    "steps": "nowcast.nowcasters.steps:Steps",
    "periodic": "nowcast.nowcasters.periodic:Periodic",
    "pretrained": "nowcast.nowcasters.pretrained:open_pretrained",
}
BASELINES = ("persistence", "extrapolation")  # of rain; where nothing else is asked for


@runtime_checkable
class Nowcaster(Protocol):
    """Issues nowcasts: for each base time, a field at each lead time.

    Only frames at or before a base time may be used.
    """

    @property
    def input_frames(self) -> int:
        """Number of frames used, up to and with the base time."""
        ...

    @property
    def step(self) -> pd.Timedelta | None:
        """Time between the frames used; None is the step of the observations."""
        ...

    def nowcast(
        self, observed: xr.Dataset, *, base_times: pd.DatetimeIndex, lead_times: pd.TimedeltaIndex
    ) -> xr.Dataset:
        """Give a nowcast that keeps the convention, on the grid of the observations.

        Raises
        ------
        ValueError
            If a base time is not in the data or one of its input frames is absent.
        """
        ...


def open_nowcaster(name_or_folder: str | Path, **settings: Any) -> Nowcaster:
    """Open a nowcaster by its name, or a saved one by its folder.

    Models in the registry are opened by `nowcast.tracking.open_nowcaster`.

    Parameters
    ----------
    name_or_folder
        One of `NOWCASTERS`, or a folder that `NeuralNowcaster.save` wrote.
    settings
        Passed to the named nowcaster.

    Raises
    ------
    ValueError
        If there is no such nowcaster; the message lists the known ones.

    Examples
    --------
    >>> open_nowcaster("persistence").input_frames
    1
    """
    name = str(name_or_folder)
    if name in NOWCASTERS:
        module, _, kind = NOWCASTERS[name].partition(":")
        nowcaster: Nowcaster = getattr(import_module(module), kind)(**settings)
        return nowcaster
    if Path(name).is_dir():
        from nowcast.nowcasters.neural import NeuralNowcaster

        return NeuralNowcaster.load(Path(name))
    raise ValueError(
        f"no nowcaster {name!r}; known are {', '.join(NOWCASTERS)}, a folder of a saved one, "
        "or a model of the registry such as models:/nowcast@champion"
    )
