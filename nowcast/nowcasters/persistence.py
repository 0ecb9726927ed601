"""The last frame stays as it is: what any nowcast has to beat."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import Variable, build_nowcast, check_nowcast, known_variable
from nowcast.frames import check_observed, input_frames


@dataclass(frozen=True)
class Persistence:
    """Repeats the frame of the base time at every lead time (Eulerian persistence).

    Examples
    --------
    >>> from nowcast.data.synthetic import synthesise
    >>> observed = synthesise(hours=1, size=16)
    >>> nowcast = Persistence().nowcast(
    ...     observed,
    ...     base_times=observed["time"].to_index()[2:3],
    ...     lead_times=pd.to_timedelta([10, 20], unit="min"),
    ... )
    >>> nowcast["rain_rate"].sizes["lead_time"]
    2
    """

    variable: Variable | None = None
    step: pd.Timedelta | None = None
    input_frames: int = 1

    def nowcast(
        self, observed: xr.Dataset, *, base_times: pd.DatetimeIndex, lead_times: pd.TimedeltaIndex
    ) -> xr.Dataset:
        """Give the last frame of each base time at every lead time; see `Nowcaster`."""
        variable = self.variable or known_variable(observed)
        step = self.step or pd.Timedelta(0)
        windows = [
            input_frames(observed, base_time=base_time, frames=1, step=step)
            for base_time in base_times
        ]
        frames = [check_observed(one, variable.name)[variable.name].values for one in windows]
        values = np.repeat(np.stack(frames), len(lead_times), axis=1)
        return check_nowcast(
            build_nowcast(
                values,
                observed=observed,
                variable=variable,
                base_times=base_times,
                lead_times=lead_times,
            )
        )
