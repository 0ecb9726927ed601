"""Nowcasters that seem better than they are, each in another way that a report has to expose."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import xarray as xr
from scipy.ndimage import gaussian_filter

from nowcast.conventions import (
    RAIN_RATE,
    REFLECTIVITY,
    build_nowcast,
    check_nowcast,
    known_variable,
)
from nowcast.frames import step_of
from nowcast.nowcasters.extrapolation import Extrapolation
from nowcast.rainrate import to_rain_rate, to_reflectivity


@dataclass(frozen=True)
class Peeking:
    """Extrapolates from the frame after the base time, and shows that frame first."""

    input_frames: int = 3
    step: pd.Timedelta | None = None

    def nowcast(
        self, observed: xr.Dataset, *, base_times: pd.DatetimeIndex, lead_times: pd.TimedeltaIndex
    ) -> xr.Dataset:
        """Give what an honest extrapolation would say one step later of the same valid times."""
        variable, step = known_variable(observed), self.step or step_of(observed)
        field, later = observed[variable.name], lead_times[lead_times > step] - step
        values = np.full((len(base_times), len(lead_times), *field.shape[1:]), np.nan)
        if lead_times[0] == step:
            values[:, 0] = field.sel(time=base_times + step).values
        if len(later):
            honest = Extrapolation(self.input_frames, step).nowcast(
                observed, base_times=base_times + step, lead_times=later
            )
            values[:, -len(later) :] = honest[variable.name].values
        return check_nowcast(
            build_nowcast(
                values,
                observed=observed,
                variable=variable,
                base_times=base_times,
                lead_times=lead_times,
            )
        )


@dataclass(frozen=True)
class Blurred:
    """Extrapolates and smooths, which makes errors smaller and forecasts no better.

    Parameters
    ----------
    width
        Standard deviation of the Gaussian, in pixels.
    """

    width: float = 3.0
    input_frames: int = 3
    step: pd.Timedelta | None = None

    def nowcast(
        self, observed: xr.Dataset, *, base_times: pd.DatetimeIndex, lead_times: pd.TimedeltaIndex
    ) -> xr.Dataset:
        """Give the extrapolation, each field smoothed over what it reaches."""
        honest = Extrapolation(self.input_frames, self.step).nowcast(
            observed, base_times=base_times, lead_times=lead_times
        )
        field = honest[known_variable(observed).name]
        reached = field.notnull().values
        widths = (0, 0, self.width, self.width)
        smooth = gaussian_filter(np.where(reached, field.values, 0.0), widths)
        weight = gaussian_filter(reached.astype(float), widths)
        values = np.where(reached, smooth / np.where(reached, weight, 1.0), np.nan)
        return check_nowcast(honest.assign({str(field.name): field.copy(data=values)}))


@dataclass(frozen=True)
class Overforecasting:
    """Extrapolates and makes rain heavier, which hits more events and warns of many in vain.

    Parameters
    ----------
    factor
        By which rain rates are too high.
    """

    factor: float = 2.0
    input_frames: int = 3
    step: pd.Timedelta | None = None

    def nowcast(
        self, observed: xr.Dataset, *, base_times: pd.DatetimeIndex, lead_times: pd.TimedeltaIndex
    ) -> xr.Dataset:
        """Give the extrapolation with all rain rates multiplied."""
        honest = Extrapolation(self.input_frames, self.step).nowcast(
            observed, base_times=base_times, lead_times=lead_times
        )
        variable = known_variable(observed)
        field = honest[variable.name]
        if variable.name == REFLECTIVITY.name:
            rain = np.minimum(self.factor * to_rain_rate(field.values), RAIN_RATE.valid_max)
            values = to_reflectivity(rain)
        else:
            values = np.minimum(self.factor * field.values, variable.valid_max)
        return check_nowcast(honest.assign({str(field.name): field.copy(data=values)}))
