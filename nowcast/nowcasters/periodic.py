"""The same hour yesterday: what a nowcast of anything with a daily or other cycle has to beat."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import Variable, build_nowcast, check_nowcast, known_variable
from nowcast.frames import input_frames

HOUR, DAY = pd.Timedelta(hours=1), pd.Timedelta(hours=24)


@dataclass(frozen=True)
class Periodic:
    """Gives the frame one period before the valid time.

    For a lead time beyond one period it goes back as many whole periods as are needed to reach the
    base time, so that it never uses a later frame.

    Parameters
    ----------
    period
        Of the cycle; a multiple of `step`.
    step
        Time between the frames; lead times are multiples of it.
    variable
        What is forecast; by default the one quantity that the observations hold.

    Raises
    ------
    ValueError
        If the period is no multiple of the step.

    Examples
    --------
    >>> same_hour_yesterday = Periodic(period=pd.Timedelta("24h"), step=pd.Timedelta("1h"))
    >>> same_hour_yesterday.input_frames
    24
    """

    period: pd.Timedelta = DAY
    step: pd.Timedelta = HOUR
    variable: Variable | None = None

    def __post_init__(self) -> None:
        nothing = pd.Timedelta(0)
        if min(self.period, self.step) <= nothing or self.period % self.step != nothing:
            raise ValueError(
                f"a period must be a multiple of the step between frames; received a period of "
                f"{self.period} and a step of {self.step}"
            )

    @property
    def input_frames(self) -> int:
        """Frames of one period, up to and with the base time."""
        return int(self.period // self.step)

    def nowcast(
        self, observed: xr.Dataset, *, base_times: pd.DatetimeIndex, lead_times: pd.TimedeltaIndex
    ) -> xr.Dataset:
        """Give for each lead time the frame of whole periods before; see `Nowcaster`.

        Raises
        ------
        ValueError
            If a base time lacks a frame, or a lead time is no multiple of the step.
        """
        variable = self.variable or known_variable(observed)
        repeated = self._repeated(lead_times)
        fields = []
        for base_time in base_times:
            window = input_frames(
                observed, base_time=base_time, frames=self.input_frames, step=self.step
            )
            fields.append(window[variable.name].isel(time=repeated).values)
        return check_nowcast(
            build_nowcast(
                np.stack(fields),
                observed=observed,
                variable=variable,
                base_times=base_times,
                lead_times=lead_times,
            )
        )

    def _repeated(self, lead_times: pd.TimedeltaIndex) -> np.ndarray:
        """Give which of the frames of one period, the base time's last, each lead time repeats."""
        steps = np.asarray(lead_times / self.step)
        if (steps % 1 != 0).any():
            raise ValueError(
                f"lead times must be multiples of the step of {self.step}; "
                f"received {lead_times[steps % 1 != 0][0]}"
            )
        return (steps.astype(int) - 1) % self.input_frames
