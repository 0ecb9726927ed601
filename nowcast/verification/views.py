"""What is scored: the fields themselves, their sums over lead times, or what is at places.

A view is applied alike to every nowcast and to what was observed at its valid times.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import (
    DISTRIBUTIONS,
    RAIN_RATE,
    REFLECTIVITY,
    Variable,
    variable_of,
)
from nowcast.places import Places

AMOUNT_UNITS = "mm"
HOUR = pd.Timedelta(hours=1)


class View(Protocol):
    """What is scored instead of the fields."""

    @property
    def name(self) -> str:
        """What the protocol calls it."""
        ...

    @property
    def gridded(self) -> bool:
        """Whether neighbours in ``y`` and ``x`` are neighbours on the ground."""
        ...

    def units(self, variable: Variable) -> str:
        """Give the units of what is scored, in which thresholds are."""
        ...

    def nowcast(self, nowcast: xr.Dataset) -> xr.Dataset:
        """Give the nowcast as it is scored: the same variable, with dims of the same names."""
        ...

    def observed(self, fields: xr.DataArray) -> xr.DataArray:
        """Give what was observed at valid times, ``(base_time, lead_time, y, x)``, likewise."""
        ...


@dataclass(frozen=True)
class Fields:
    """The fields themselves."""

    name = "fields"
    gridded = True

    def units(self, variable: Variable) -> str:
        """Give the units of the variable."""
        return variable.units

    def nowcast(self, nowcast: xr.Dataset) -> xr.Dataset:
        """Give the nowcast as it is."""
        return nowcast

    def observed(self, fields: xr.DataArray) -> xr.DataArray:
        """Give the fields as they are."""
        return fields


@dataclass(frozen=True)
class Accumulations:
    """The amount of rain from the base time to each lead time; see `accumulated`."""

    name = "amounts since the base time"
    gridded = True

    def units(self, variable: Variable) -> str:
        """Give millimetres.

        Raises
        ------
        ValueError
            If the variable is not rain rate.
        """
        _check_rain_rate(variable.name, variable.units)
        return AMOUNT_UNITS

    def nowcast(self, nowcast: xr.Dataset) -> xr.Dataset:
        """Give the nowcast with sums in place of its field, member by member.

        Probabilities and quantiles of rates are left out: they say nothing of a sum.
        """
        name = variable_of(nowcast)
        return _only(nowcast, name).assign({name: accumulated(nowcast[name])})

    def observed(self, fields: xr.DataArray) -> xr.DataArray:
        """Give the sums of what was observed."""
        return accumulated(fields)


@dataclass(frozen=True)
class AtPlaces:
    """What is at points, or the means over areas.

    The places take the place of pixels: ``y`` has one row, and ``x`` counts them.

    Parameters
    ----------
    places
        On the grid of the nowcasts and of the observations.
    accumulated
        Whether amounts are scored instead; the mean over an area of the sums over time.
    """

    places: Places
    accumulated: bool = False

    gridded = False

    @property
    def name(self) -> str:
        """With a hash of names and geometry."""
        what = f"{self.places.kind}s {self.places.sha256[:12]}"
        return f"{Accumulations.name} at {what}" if self.accumulated else what

    def units(self, variable: Variable) -> str:
        """Give the units of the variable, or millimetres."""
        return self.before.units(variable)

    def nowcast(self, nowcast: xr.Dataset) -> xr.Dataset:
        """Give the nowcast at the places, member by member.

        At points the probabilities and quantiles of a pixel stay; those of an area's mean follow
        from no pixel's, and are left out.
        """
        reduced = self.reduced(nowcast)
        rows = {str(name): _in_a_row(values) for name, values in reduced.items()}
        return reduced.drop_dims("place").assign(rows)

    def observed(self, fields: xr.DataArray) -> xr.DataArray:
        """Give what was observed at the places."""
        return _in_a_row(self.places.of(self.before.observed(fields)))

    def reduced(self, nowcast: xr.Dataset) -> xr.Dataset:
        """Give the nowcast at the places, with these as the coordinate ``place``.

        Raises
        ------
        ValueError
            If the nowcast is on another grid than the places.
        """
        self.places.check_grid(nowcast)
        seen = self.before.nowcast(nowcast)
        if self.places.kind == "area":
            seen = _only(seen, variable_of(nowcast))
        fields = {name: self.places.of(seen[name]) for name in _fields_of(seen)}
        return seen.drop_dims(["y", "x"]).assign(fields)

    @property
    def before(self) -> View:
        """What is taken at the places: fields, or their sums."""
        return Accumulations() if self.accumulated else Fields()


def accumulated(fields: xr.DataArray) -> xr.DataArray:
    """Give the amount of rain from the base time to each lead time.

    The rate of a frame is taken to hold for the step that ends at its valid time, as the rates of
    radar composites do. From a missing frame on the amount is missing: what fell is not known.

    Parameters
    ----------
    fields : (base_time, [member,] lead_time, ...)
        Rain rate in mm/h, with every lead time from one step on.

    Returns
    -------
    DataArray
        Of the same dims, in mm.

    Raises
    ------
    ValueError
        If it is not rain rate, or a lead time is absent.

    Examples
    --------
    >>> leads = pd.to_timedelta([10, 20, 30], unit="min")
    >>> rate = xr.DataArray(
    ...     [6.0, 0.0, 3.0],
    ...     dims="lead_time",
    ...     coords={"lead_time": leads},
    ...     name="rain_rate",
    ...     attrs={"units": "mm h-1"},
    ... )
    >>> accumulated(rate).values.tolist()
    [1.0, 1.0, 1.5]
    """
    _check_rain_rate(str(fields.name), str(fields.attrs.get("units", RAIN_RATE.units)))
    hours = _step_of(fields["lead_time"].to_index()) / HOUR
    if fields.chunks:
        fields = fields.chunk(lead_time=-1)  # else the order of adding would follow the chunks
    summed = np.cumsum(fields.data * np.float64(hours), axis=fields.get_axis_num("lead_time"))
    attributes = {
        "standard_name": "thickness_of_rainfall_amount",
        "long_name": "rain amount from the base time to the valid time",
        "units": AMOUNT_UNITS,
    }
    kept = {key: fields.attrs[key] for key in ("grid_mapping",) if key in fields.attrs}
    result: xr.DataArray = fields.copy(data=summed.astype(fields.dtype))
    result.attrs = {**attributes, **kept}
    return result


def _step_of(lead_times: pd.TimedeltaIndex) -> pd.Timedelta:
    """Give the step of lead times that follow each other from the base time on."""
    step = min([lead_times[0], *(lead_times[1:] - lead_times[:-1])])
    whole = pd.timedelta_range(step, lead_times[-1], freq=step)
    absent = whole.difference(lead_times)
    if len(absent) or whole[-1] != lead_times[-1]:
        told = ", ".join(f"{lead / pd.Timedelta(minutes=1):g}" for lead in lead_times)
        raise ValueError(
            f"an amount needs every step from the base time on; the lead times are {told} minutes, "
            f"so that one step of {step / pd.Timedelta(minutes=1):g} or more is not known; issue "
            "or verify all of them"
        )
    return step


def _check_rain_rate(name: str, units: str) -> None:
    if (name, units) == (RAIN_RATE.name, RAIN_RATE.units):
        return
    remedy = (
        "issue it as rain rate, with --set variable.name=rain_rate, or convert it by "
        "nowcast.rainrate.to_rain_rate"
        if name == REFLECTIVITY.name
        else "leave the accumulation out"
    )
    raise ValueError(
        f"amounts are sums of {RAIN_RATE.name} in {RAIN_RATE.units}; received {name} in "
        f"{units or 'no units'}; {remedy}"
    )


def _fields_of(dataset: xr.Dataset) -> list[str]:
    return [str(name) for name, array in dataset.items() if {"y", "x"} <= set(array.dims)]


def _only(nowcast: xr.Dataset, name: str) -> xr.Dataset:
    """Leave out probabilities and quantiles."""
    others = [other for other in _fields_of(nowcast) if other != name]
    axes = [axis for axis in DISTRIBUTIONS.values() if axis in nowcast.coords]
    return nowcast.drop_vars([*others, *axes])


def _in_a_row(values: xr.DataArray) -> xr.DataArray:
    """Give values at places as fields of one row."""
    return values.drop_vars("place").rename(place="x").expand_dims("y", axis=-2)
