"""Nowcasts that were issued before, replayed from their files so that they can be verified."""

from pathlib import Path

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import build_nowcast, check_nowcast, grid_id, known_variable
from nowcast.issuing import open_nowcast

SLOT = "%Y%m%dT%H%MZ"  # a base time in the names of files, as nowcast.issuing writes it
_PREFIX = "nowcast-"


class Issued:
    """The nowcasts in a folder, as a nowcaster: what is verified is what was published.

    Parameters
    ----------
    folder
        Where `nowcast.issuing.issue` wrote them.
    newest
        How many of them to know.

    Examples
    --------
    >>> import tempfile
    >>> from nowcast.data.synthetic import synthesise
    >>> from nowcast.issuing import issue
    >>> from nowcast.nowcasters import open_nowcaster
    >>> observed, folder = synthesise(hours=1, size=16), tempfile.mkdtemp()
    >>> asked = {
    ...     "base_times": observed["time"].to_index()[3:4],
    ...     "lead_times": pd.to_timedelta([10, 20], unit="min"),
    ... }
    >>> persistence = open_nowcaster("persistence")
    >>> _ = issue(persistence, observed, **asked, out=folder)
    >>> issued = Issued(Path(folder), newest=10)
    >>> issued.nowcast(observed, **asked).equals(persistence.nowcast(observed, **asked))
    True
    """

    input_frames = 1
    step: pd.Timedelta | None = None

    def __init__(self, folder: Path, *, newest: int) -> None:
        self._folder = folder
        slots = sorted(path.stem.removeprefix(_PREFIX) for path in folder.glob(f"{_PREFIX}*.nc"))
        self.base_times = pd.DatetimeIndex(
            [pd.to_datetime(s, format=SLOT) for s in slots[-newest:]]
        )

    def path(self, base_time: pd.Timestamp) -> Path:
        """Give where the nowcast from a base time is, or would be."""
        return nowcast_file(self._folder, base_time)

    def lead_times(self, base_time: pd.Timestamp) -> pd.TimedeltaIndex:
        """Give the lead times of the nowcast from a base time."""
        with xr.open_dataset(self.path(base_time), engine="netcdf4") as file:
            return pd.TimedeltaIndex(file["lead_time"].to_index())

    def fits(
        self, base_time: pd.Timestamp, observed: xr.Dataset, *, lead_times: pd.TimedeltaIndex
    ) -> bool:
        """Tell whether a nowcast lies on the grid of the observations and has the lead times."""
        with xr.open_dataset(self.path(base_time), engine="netcdf4") as nowcast:
            return _fits(nowcast, observed, lead_times)

    def nowcast(
        self, observed: xr.Dataset, *, base_times: pd.DatetimeIndex, lead_times: pd.TimedeltaIndex
    ) -> xr.Dataset:
        """Give what was issued from each base time; see `nowcast.nowcasters.Nowcaster`.

        Raises
        ------
        ValueError
            If one does not fit the observations or lacks a lead time.
        FileNotFoundError
            If none was issued from a base time.
        """
        variable = known_variable(observed)
        fields = [
            self._field(base_time, observed, lead_times)[variable.name].values
            for base_time in base_times
        ]
        return check_nowcast(
            build_nowcast(
                np.concatenate(fields),
                observed=observed,
                variable=variable,
                base_times=base_times,
                lead_times=lead_times,
            )
        )

    def _field(
        self, base_time: pd.Timestamp, observed: xr.Dataset, lead_times: pd.TimedeltaIndex
    ) -> xr.Dataset:
        nowcast = open_nowcast(self.path(base_time))
        if not _fits(nowcast, observed, lead_times):
            raise ValueError(
                f"{self.path(base_time)} has another grid, variable or lead times than asked for; "
                "verify it by itself"
            )
        return nowcast.sel(lead_time=lead_times)


def nowcast_file(folder: Path, base_time: pd.Timestamp) -> Path:
    """Give the name under which `nowcast.issuing.issue` writes a nowcast.

    Examples
    --------
    >>> nowcast_file(Path("out"), pd.Timestamp("2024-06-01T12:30")).name
    'nowcast-20240601T1230Z.nc'
    """
    return folder / f"{_PREFIX}{base_time:{SLOT}}.nc"


def _fits(nowcast: xr.Dataset, observed: xr.Dataset, lead_times: pd.TimedeltaIndex) -> bool:
    same = grid_id(nowcast) == grid_id(observed) and known_variable(observed).name in nowcast
    return same and bool(lead_times.isin(nowcast["lead_time"].to_index()).all())
