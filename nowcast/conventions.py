"""The data convention: what an observation and a nowcast look like, and the checks of it.

Observations have dims ``(time, y, x)``, nowcasts ``(base_time, [member,] lead_time, y, x)``.
Times are UTC. NaN is "not observed" and zero is "dry"; nothing turns one into the other.
The whole convention is written down in ``docs/convention.md``.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

CF_CONVENTIONS = "CF-1.11"
GRID_MAPPING = "crs"
METRES = frozenset({"m", "metre", "meter", "metres", "meters"})
DEGREES = frozenset({"degrees", "degrees_north", "degrees_east", "degree"})
IRREGULARITY = 1e-3  # largest departure from a regular grid spacing, as a part of the spacing
# What a nowcast may hold besides its field, by the dimension along which it is given.
EXCEEDANCE, QUANTILES = "probability_of_exceedance", "value_at_quantile"
DISTRIBUTIONS = {EXCEEDANCE: "threshold", QUANTILES: "quantile"}


@dataclass(frozen=True)
class Variable:
    """A gridded quantity that can be forecast: its name, units and what values it may take.

    Parameters
    ----------
    name
        Of the variable in a Dataset.
    units
        In UDUNITS spelling; must be equal to the ``units`` attribute.
    long_name, standard_name
        CF names for plots and files; an empty `standard_name` is left out.
    valid_min, valid_max
        Values outside are refused by readers and never issued.
    """

    name: str
    units: str
    long_name: str
    standard_name: str
    valid_min: float
    valid_max: float

    @property
    def attributes(self) -> dict[str, Any]:
        """The CF attributes of a variable of this quantity."""
        names = {"long_name": self.long_name, "units": self.units, "grid_mapping": GRID_MAPPING}
        return {"standard_name": self.standard_name, **names} if self.standard_name else names


RAIN_RATE = Variable("rain_rate", "mm h-1", "rain rate", "rainfall_rate", 0.0, 1000.0)
REFLECTIVITY = Variable(
    "reflectivity", "dBZ", "radar reflectivity", "equivalent_reflectivity_factor", 0.0, 95.0
)
VARIABLES = {variable.name: variable for variable in (RAIN_RATE, REFLECTIVITY)}


def variable_of(dataset: xr.Dataset) -> str:
    """Give the name of the one gridded variable of observations or of a nowcast.

    Raises
    ------
    ValueError
        If there is none or more than one.
    """
    names = [name for name in gridded(dataset) if {"time", "lead_time"} & set(dataset[name].dims)]
    if len(names) != 1:
        raise ValueError(
            f"one variable with time, y and x is needed; the dataset has {sorted(names)}; "
            "select one, as in dataset[['rain_rate']]"
        )
    return names[0]


def gridded(dataset: xr.Dataset) -> list[str]:
    """Give the names of the variables with y and x, but for those that only describe others.

    CF calls these ancillary: a quality index, say, named by the variable that it is about. The
    probabilities and quantiles of a nowcast describe its field.
    """
    describing = " ".join(
        str(array.attrs.get("ancillary_variables", "")) for array in dataset.values()
    ).split()
    names = [str(name) for name, array in dataset.items() if {"y", "x"} <= set(array.dims)]
    return [name for name in names if name not in describing and name not in DISTRIBUTIONS]


def known_variable(dataset: xr.Dataset) -> Variable:
    """Give the quantity of the dataset's one gridded variable; its own attributes if unknown."""
    name = variable_of(dataset)
    attributes = dataset[name].attrs
    return VARIABLES.get(name) or Variable(
        name=name,
        units=str(attributes.get("units", "")),
        long_name=str(attributes.get("long_name", name)),
        standard_name=str(attributes.get("standard_name", "")),
        valid_min=float(attributes.get("valid_min", -np.inf)),
        valid_max=float(attributes.get("valid_max", np.inf)),
    )


def check_observations(observed: xr.Dataset, variable: Variable | None = None) -> xr.Dataset:
    """Give back observations that keep the convention; refuse any other, saying why.

    Metadata and coordinates are checked, never the lazy values: `check_values` does that.

    Parameters
    ----------
    observed
        Dims ``(time, y, x)``.
    variable
        The quantity that must be there; by default the one that is, if it is a known one.

    Raises
    ------
    ValueError
        With what is wrong, what was received and what to do.
    """
    name = variable.name if variable else variable_of(observed)
    if name not in observed:
        raise ValueError(f"no variable {name!r}; the dataset has {sorted(map(str, observed))}")
    _check_dims(observed[name], ("time", "y", "x"))
    _check_units(observed[name], variable or VARIABLES.get(name))
    _check_increasing_times(observed, "time")
    _check_grid(observed, name)
    bounds = observed["time"].attrs.get("bounds") or observed["time"].encoding.get("bounds")
    if bounds and bounds not in observed:
        raise ValueError(f"time says its bounds are {bounds!r}, which the dataset does not hold")
    known = bounds and observed[bounds].chunks is None  # else its values are not there yet
    if known and (np.diff(observed[bounds].values, axis=-1) < np.timedelta64(0)).any():
        raise ValueError(f"{bounds!r} must hold the start and then the end of each interval")
    return observed


def check_nowcast(nowcast: xr.Dataset, variable: Variable | None = None) -> xr.Dataset:
    """Give back a nowcast that keeps the convention; refuse any other, saying why.

    Parameters
    ----------
    nowcast
        Dims ``(base_time, [member,] lead_time, y, x)`` with ``valid_time(base_time, lead_time)``;
        optionally with `DISTRIBUTIONS`, see `with_exceedance` and `with_quantiles`.
    variable
        The quantity that must be there; by default the one that is.

    Raises
    ------
    ValueError
        With what is wrong, what was received and what to do.
    """
    name = variable.name if variable else variable_of(nowcast)
    members = ("member",) if "member" in nowcast[name].dims else ()
    _check_dims(nowcast[name], ("base_time", *members, "lead_time", "y", "x"))
    _check_units(nowcast[name], variable or VARIABLES.get(name))
    _check_increasing_times(nowcast, "base_time")
    _check_grid(nowcast, name)
    if nowcast["lead_time"].dtype.kind != "m":
        raise ValueError(
            f"lead_time must be a timedelta; it is {nowcast['lead_time'].dtype}; "
            "open the file with nowcast.issuing.open_nowcast"
        )
    if not (np.diff(nowcast["lead_time"]) > np.timedelta64(0)).all():
        raise ValueError("lead_time must be strictly increasing")
    if nowcast.sizes["lead_time"] and nowcast["lead_time"].values[0] <= np.timedelta64(0):
        first = pd.Timedelta(nowcast["lead_time"].values[0])
        raise ValueError(
            f"a nowcast is of times after its base time; received a lead time of {first}"
        )
    expected = nowcast["base_time"] + nowcast["lead_time"]
    if "valid_time" not in nowcast.coords or not (nowcast["valid_time"] == expected).all():
        raise ValueError("valid_time(base_time, lead_time) must be there: base_time + lead_time")
    if "base_time" in nowcast[name].dims and isinstance(nowcast[name].data, np.ndarray):
        check_values(nowcast, variable)
    for distribution, axis in DISTRIBUTIONS.items():
        if distribution in nowcast:
            _check_distribution(nowcast, distribution, axis, name)
    return nowcast


def check_values(dataset: xr.Dataset, variable: Variable | None = None) -> xr.Dataset:
    """Give the dataset back if every observed value is in the variable's valid range.

    Computes lazy values. NaN, "not observed", is always right; infinity never is.

    Raises
    ------
    ValueError
        If a value is out of range.
    """
    name = variable.name if variable else variable_of(dataset)
    quantity = variable or VARIABLES.get(name)
    values = dataset[name]
    low = quantity.valid_min if quantity else -np.inf
    high = quantity.valid_max if quantity else np.inf
    wrong = ((values < low) | (values > high) | np.isinf(values)).sum()
    if int(wrong):
        raise ValueError(
            f"{int(wrong)} values of {name!r} are outside [{low}, {high}] {values.attrs['units']}; "
            f"they reach from {float(values.min())} to {float(values.max())}; "
            "check the units of the source"
        )
    return dataset


def check_thresholds(thresholds: Sequence[float]) -> None:
    """Refuse thresholds that are no numbers, or of which one comes twice.

    Raises
    ------
    ValueError
        Telling them.

    Examples
    --------
    >>> check_thresholds([1.0, 0.5, 1.0])
    Traceback (most recent call last):
    ValueError: thresholds must be finite and differ; received 1, 0.5, 1; give each number once
    """
    if len(set(thresholds)) < len(thresholds) or not np.isfinite(list(thresholds)).all():
        raise ValueError(
            "thresholds must be finite and differ; received "
            f"{', '.join(f'{one:g}' for one in thresholds)}; give each number once"
        )


def build_nowcast(
    values: np.ndarray,
    *,
    observed: xr.Dataset,
    variable: Variable,
    base_times: pd.DatetimeIndex,
    lead_times: pd.TimedeltaIndex,
) -> xr.Dataset:
    """Give the nowcast Dataset for an array of values on the grid of the observations.

    Parameters
    ----------
    values : (base_time, [member,] lead_time, y, x)
        In the units of `variable`.
    observed
        Where the grid comes from.
    variable
        The quantity.
    base_times, lead_times
        The coordinates; valid times follow from them.
    """
    members = ("member",) if values.ndim == 5 else ()
    dims = ("base_time", *members, "lead_time", "y", "x")
    valid = base_times.to_numpy()[:, None] + lead_times.to_numpy()[None, :]
    cf = {"standard_name": "time", "long_name": "time the field is about"}
    coordinates = {
        "base_time": ("base_time", base_times, _BASE_TIME),
        "lead_time": ("lead_time", lead_times, _LEAD_TIME),
        "valid_time": (("base_time", "lead_time"), valid, cf),
        "y": observed["y"],
        "x": observed["x"],
        GRID_MAPPING: observed[grid_mapping_name(observed)].variable,
    }
    if members:
        coordinates["member"] = ("member", np.arange(values.shape[1]), _MEMBER)
    kept = values.astype(np.float32, copy=False)
    array = xr.DataArray(kept, dims=dims, attrs=variable.attributes)
    return xr.Dataset({variable.name: array}, coords=coordinates)


def with_exceedance(
    nowcast: xr.Dataset, probabilities: np.ndarray, *, thresholds: tuple[float, ...]
) -> xr.Dataset:
    """Give the nowcast with the probabilities that its quantity reaches thresholds.

    Parameters
    ----------
    nowcast
        That keeps the convention.
    probabilities : (base_time, threshold, lead_time, y, x)
        That a value is at or above the threshold; NaN where the field is missing.
    thresholds
        In the units of the quantity, rising.
    """
    quantity = known_variable(nowcast)
    about = {"long_name": f"threshold of {quantity.long_name}", "units": quantity.units}
    attributes = {
        "long_name": f"probability that {quantity.long_name} reaches the threshold",
        "units": "1",
    }
    return _with_distribution(
        nowcast, EXCEEDANCE, probabilities, attributes, levels=thresholds, about=about
    )


def with_quantiles(
    nowcast: xr.Dataset, values: np.ndarray, *, quantiles: tuple[float, ...]
) -> xr.Dataset:
    """Give the nowcast with quantiles of its quantity.

    Parameters
    ----------
    nowcast
        That keeps the convention.
    values : (base_time, quantile, lead_time, y, x)
        In the units of the quantity, rising along the quantiles; NaN where the field is missing.
    quantiles
        Between 0 and 1, rising.
    """
    quantity = known_variable(nowcast)
    about = {"long_name": "probability that the value is not exceeded", "units": "1"}
    attributes = {"long_name": f"quantiles of {quantity.long_name}", "units": quantity.units}
    return _with_distribution(nowcast, QUANTILES, values, attributes, levels=quantiles, about=about)


def _with_distribution(
    nowcast: xr.Dataset,
    name: str,
    values: np.ndarray,
    attributes: dict[str, str],
    *,
    levels: tuple[float, ...],
    about: dict[str, str],
) -> xr.Dataset:
    """Add an array along levels; what has the units of the quantity has its standard name too."""
    quantity, axis = known_variable(nowcast), DISTRIBUTIONS[name]
    for each in (attributes, about):
        if quantity.standard_name and each["units"] == quantity.units:
            each["standard_name"] = quantity.standard_name
    array = xr.DataArray(
        values.astype(np.float32, copy=False),
        dims=("base_time", axis, "lead_time", "y", "x"),
        attrs={**attributes, "grid_mapping": grid_mapping_name(nowcast)},
    )
    return nowcast.assign({name: array}).assign_coords({axis: (axis, np.array(levels), about)})


_BASE_TIME = {
    "standard_name": "forecast_reference_time",
    "long_name": "time of the last frame used",
}
_LEAD_TIME = {"standard_name": "forecast_period", "long_name": "valid time minus base time"}
_MEMBER = {"standard_name": "realization", "long_name": "ensemble member", "units": "1"}


def select(dataset: xr.Dataset, name: str) -> xr.Dataset:
    """Give the dataset with one variable alone, keeping its grid mapping and bounds of time.

    Unlike ``dataset[[name]]``, which drops the bounds. What describes the variable, such as a
    quality index, is left out too.
    """
    others = [str(each) for each, array in dataset.items() if {"y", "x"} <= set(array.dims)]
    alone = dataset.drop_vars([other for other in others if other != name])
    if "ancillary_variables" in alone[name].attrs:
        alone[name] = alone[name].copy(deep=False)
        del alone[name].attrs["ancillary_variables"]
    return alone


def grid_mapping_name(dataset: xr.Dataset) -> str:
    """Give the name of the grid mapping variable of a dataset that keeps the convention."""
    for array in dataset.values():
        name = array.attrs.get("grid_mapping") or array.encoding.get("grid_mapping")
        if name:
            return str(name)
    return GRID_MAPPING


def grid_id(dataset: xr.Dataset) -> str:
    """Give 12 hexadecimal digits that are the same for the same projection, extent and shape.

    Examples
    --------
    >>> from nowcast.data.synthetic import synthesise
    >>> observed = synthesise(hours=1, size=16)
    >>> grid_id(observed) == grid_id(observed.isel(y=slice(None, None, -1)))
    False
    """
    mapping = dataset[grid_mapping_name(dataset)].attrs
    content: dict[str, Any] = {key: _plain(mapping[key]) for key in sorted(mapping)}
    for axis in ("y", "x"):
        values = dataset[axis].values.astype(float)
        ends = [f"{values[0]:.6g}", f"{values[-1]:.6g}"] if len(values) else []
        content[axis] = [len(values), *ends, dataset[axis].attrs.get("units", "")]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def grid_spacing(dataset: xr.Dataset) -> float:
    """Give the distance between neighbouring columns, in the units of ``x``, positive."""
    return float(abs(np.diff(dataset["x"].values.astype(float)).mean()))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else value


def _check_dims(array: xr.DataArray, dims: tuple[str, ...]) -> None:
    if array.dims != dims:
        raise ValueError(
            f"{array.name!r} must have the dims {dims}; it has {array.dims}; "
            "rename or transpose them"
        )


def _check_distribution(nowcast: xr.Dataset, name: str, axis: str, field: str) -> None:
    """Refuse probabilities or quantiles of a field that no distribution has."""
    array, units = nowcast[name], nowcast[field].attrs["units"]
    _check_dims(array, ("base_time", axis, "lead_time", "y", "x"))
    expected = (units, "1") if name == EXCEEDANCE else ("1", units)
    found = tuple(nowcast[one].attrs.get("units") for one in (axis, name))
    if axis not in nowcast.coords or found != expected:
        raise ValueError(
            f"{axis!r} must be a coordinate in {expected[0]!r} and {name!r} in {expected[1]!r}; "
            f"their units are {found}"
        )
    levels = nowcast[axis].values
    inside = name == EXCEEDANCE or ((levels > 0) & (levels < 1)).all()
    if not (inside and (np.diff(levels) > 0).all()):
        between = "" if name == EXCEEDANCE else " between 0 and 1"
        raise ValueError(f"{axis!r} must be strictly increasing{between}; it is {levels}")
    if isinstance(array.data, np.ndarray):
        _check_distributed(array, nowcast[field], axis)


def _check_distributed(array: xr.DataArray, field: xr.DataArray, axis: str) -> None:
    low, high = (0.0, 1.0)
    if array.name == QUANTILES:
        quantity = VARIABLES.get(str(field.name))
        low, high = (quantity.valid_min, quantity.valid_max) if quantity else (-np.inf, np.inf)
    if bool(((array < low) | (array > high) | np.isinf(array)).any()):
        raise ValueError(
            f"{array.name!r} must lie in [{low}, {high}]; it reaches from {float(array.min())} to "
            f"{float(array.max())}"
        )
    steps = array.diff(axis)
    if bool(((steps > 0) if array.name == EXCEEDANCE else (steps < 0)).any()):
        way = "fall" if array.name == EXCEEDANCE else "rise"
        raise ValueError(f"{array.name!r} must {way} along {axis!r}, or stay the same")
    missing = field.isnull().all("member") if "member" in field.dims else field.isnull()
    if bool((array.isnull() != missing).any()):
        raise ValueError(f"{array.name!r} must be missing where {field.name!r} is, and only there")


def _check_units(array: xr.DataArray, variable: Variable | None) -> None:
    units = array.attrs.get("units")
    if units is None:
        raise ValueError(f"{array.name!r} has no units; give it a 'units' attribute")
    if variable and units != variable.units:
        raise ValueError(
            f"{array.name!r} must be in {variable.units!r}; its units are {units!r}; convert it"
        )


def _check_increasing_times(dataset: xr.Dataset, name: str) -> None:
    if name not in dataset.coords or dataset[name].dtype.kind != "M":
        raise ValueError(f"{name!r} must be a coordinate of UTC times (datetime64)")
    times = dataset[name].to_index()
    if not (times.is_monotonic_increasing and times.is_unique):
        wrong = times[1:][np.diff(times.to_numpy()) <= np.timedelta64(0)][0]
        raise ValueError(
            f"{name!r} must be strictly increasing; {wrong.isoformat()} does not come after the "
            "time before it; sort and remove duplicates"
        )


def _check_grid(dataset: xr.Dataset, name: str) -> None:
    for axis in ("y", "x"):
        if axis not in dataset.coords:
            raise ValueError(f"no coordinate {axis!r}: give the projection coordinates of the grid")
        units = dataset[axis].attrs.get("units")
        if units not in METRES | DEGREES:
            raise ValueError(f"{axis!r} must be in metres or degrees; its units are {units!r}")
        steps = np.diff(dataset[axis].values.astype(float))
        if len(steps) and np.abs(steps - steps.mean()).max() > IRREGULARITY * abs(steps.mean()):
            raise ValueError(
                f"{axis!r} must be regular; its spacing goes from {steps.min()} to {steps.max()}"
            )
    mapping = dataset[name].attrs.get("grid_mapping") or dataset[name].encoding.get("grid_mapping")
    if not mapping or mapping not in dataset.variables:
        raise ValueError(
            f"{name!r} needs a grid mapping; its grid_mapping attribute is {mapping!r}"
        )
    if "grid_mapping_name" not in dataset[mapping].attrs:
        raise ValueError(f"the grid mapping {mapping!r} has no 'grid_mapping_name' attribute")
