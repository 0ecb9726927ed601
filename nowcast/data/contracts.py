"""Contracts: what is known of a sender's product, against which its frames are checked.

A file may say "mm" and hold tenths of it. What a product has always been gives it away: on which
grid it lies, at which times, in which steps its values go, how faint and how heavy its rain is.
The products known are in ``contracts.toml``; ``docs/readers.md`` says how to add one.
"""

import dataclasses
import datetime
import functools
import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import VARIABLES, grid_id, variable_of
from nowcast.data.framefiles import sanitise

TABLE = Path(__file__).with_name("contracts.toml")
MANY_WET = 100  # pixels, from which on the faintest of them says something
MANY_DISTINCT = 8  # wet values, from which on their common step says something...
LONG_ODDS = 10_000  # ...as it does sooner if chance gives it once in so many times
# Of float32, after a few operations: parts of a step, and of the number of steps.
ROUNDING = (1e-2, 1e-6)

_PAIRS = ("faintest", "heavy", "coverage", "middle")


class ContractError(ValueError):
    """A frame that is not what its sender's product is known to be."""


@dataclass(frozen=True)
class Contract:
    """What is known of one product of one sender.

    Parameters
    ----------
    source, product
        As the reader gives them; compared as `nowcast.data.framefiles.sanitise` writes them.
    variable
        ``rain_rate`` or ``reflectivity``, in the units of the convention, as all values here.
    step, offset
        Each wet value is `offset` and a whole number of times `step`; 0: values have no step.
    levels
        All wet values there are, where these have no common step.
    greatest
        No value is above.
    faintest
        Least and greatest value that the faintest rain of a frame may have; nothing is fainter
        than the first, and a frame with many wet pixels (`MANY_WET`) has some up to the second.
    heavy
        A value, and the greatest part of the observed pixels that may be above it.
    grid_ids
        The grids known; empty: any.
    cadence_minutes
        Nominal times are whole multiples of it, counted from midnight; 0: any.
    interval_minutes
        Over which a frame is measured; 0: the sender does not say.
    coverage
        Least and greatest part of the grid that a frame may have observed. What falls short of
        the usual is flagged, not refused; what exceeds the reach of the radars is no observation.
    middle
        Least and greatest median of the wet values of a frame with many of them.
    name
        What the name of a file holds, its nominal time in the codes of `strptime`; a file that
        has another name is not judged by it.
    reference
        Where this comes from.
    """

    source: str
    product: str
    variable: str
    greatest: float
    reference: str
    step: float = 0.0
    offset: float = 0.0
    levels: tuple[float, ...] = ()
    faintest: tuple[float, float] | tuple[()] = ()
    heavy: tuple[float, float] | tuple[()] = ()
    grid_ids: tuple[str, ...] = ()
    cadence_minutes: float = 0.0
    interval_minutes: float = 0.0
    coverage: tuple[float, float] | tuple[()] = ()
    middle: tuple[float, float] | tuple[()] = ()
    name: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What it is found by."""
        return sanitise(self.source), sanitise(self.product)

    @property
    def units(self) -> str:
        """Of its values."""
        return VARIABLES[self.variable].units


def contract_of(source: str, product: str, extra: Path | None = None) -> Contract | None:
    """Give what is known of a product; None if nothing is.

    Parameters
    ----------
    source, product
        As in the attributes of observations; capitals and signs make no difference.
    extra
        A TOML file with contracts of your own, which come before those of nowcast.

    Raises
    ------
    ValueError
        If the file cannot be understood; the message names it.

    Examples
    --------
    >>> contract_of("KNMI", "RAD_NL25_RAU_H1.5_5mi").step
    0.12
    >>> contract_of("KNMI", "another") is None
    True
    """
    key = (sanitise(source), sanitise(product))
    for table in (extra, TABLE):
        found = load_contracts(table).get(key) if table else None
        if found:
            return found
    return None


@functools.cache
def load_contracts(path: Path) -> dict[tuple[str, str], Contract]:
    """Give the contracts of a TOML file by source and product.

    Raises
    ------
    ValueError
        If a key is absent or unknown, or a product is there twice; the message names the file.
    """
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
        contracts = [_contract(table) for table in tables.pop("contract", [])]
        if tables:
            raise ValueError(f"{', '.join(tables)} is unknown; write [[contract]]")
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is no table of contracts: {error}") from error
    found = {contract.key: contract for contract in contracts}
    if len(found) < len(contracts):
        raise ValueError(f"{path} has two contracts for one source and product")
    return found


def check_contract(block: xr.Dataset, contract: Contract) -> None:
    """Check frames against what is known of their product.

    Parameters
    ----------
    block
        Observations that keep the convention, in memory.
    contract
        Of their source and product.

    Raises
    ------
    ContractError
        With what was promised, what came and what to do.
    """
    _check_variable(block, contract)
    _check_grid(block, contract)
    _check_times(block, contract)
    values = block[contract.variable].values.ravel()
    wet = values[values > 0]
    _check_range(values, wet, contract)
    _check_steps(wet, contract)
    _check_levels(wet, contract)
    _check_distribution(values, wet, contract)
    _check_coverage(block[contract.variable].values, contract)
    _check_middle(wet, contract)


def check_name(name: str, times: pd.DatetimeIndex, contract: Contract) -> None:
    """Refuse a file whose name says another time than those of its frames.

    Raises
    ------
    ContractError
        With both.
    """
    digits = {"Y": r"\d{4}"}
    pattern = re.sub("%(.)", lambda code: digits.get(code[1], r"\d{2}"), re.escape(contract.name))
    found = re.search(pattern, name) if contract.name else None
    if not found:
        return
    said = pd.Timestamp(datetime.datetime.strptime(found[0], contract.name))
    if said not in times:
        _refuse(
            contract,
            f"the nominal time in its file's name, which is {said.isoformat()}Z",
            f"this holds the frame of {times[0].isoformat()}Z",
            advice="check its times",
        )


def _contract(table: dict[str, Any]) -> Contract:
    fields = {field.name: field for field in dataclasses.fields(Contract)}
    unknown = sorted(set(table) - set(fields))
    required = {name for name, f in fields.items() if f.default is dataclasses.MISSING}
    absent = sorted(required - set(table))
    name = f"the contract of {table.get('source', '?')} {table.get('product', '?')}"
    if unknown or absent:
        wrong = [f"{', '.join(unknown)} unknown"] * bool(unknown)
        wrong += [f"{', '.join(absent)} absent"] * bool(absent)
        raise ValueError(f"{name}: {'; '.join(wrong)}; known are {', '.join(fields)}")
    if table["variable"] not in VARIABLES:
        raise ValueError(f"{name}: {table['variable']!r} is none of {', '.join(VARIABLES)}")
    frozen: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in table.items()}
    if any(len(frozen.get(pair, ())) not in (0, 2) for pair in _PAIRS):
        raise ValueError(f"{name}: {', '.join(_PAIRS)} are pairs of numbers")
    return Contract(**frozen)


def _refuse(
    contract: Contract, promised: str, came: str, *, advice: str = "check units and calibration"
) -> None:
    raise ContractError(
        f"{contract.source} {contract.product} is known to have {promised}; {came}: {advice}; "
        "if the sender has changed it, give a contract of your own (--contracts FILE, see "
        "docs/readers.md)"
    )


def _check_variable(block: xr.Dataset, contract: Contract) -> None:
    name = variable_of(block)
    units = block[name].attrs.get("units")
    if (name, units) != (contract.variable, contract.units):
        _refuse(contract, f"{contract.variable} in {contract.units}", f"this is {name} in {units}")


def _check_grid(block: xr.Dataset, contract: Contract) -> None:
    grid = grid_id(block)
    if contract.grid_ids and grid not in contract.grid_ids:
        shape = f"{block.sizes['y']} x {block.sizes['x']} pixels"
        _refuse(
            contract,
            f"the grid {' or '.join(contract.grid_ids)}",
            f"this is {grid}, {shape}",
            advice="check the projection and the corners",
        )


def _check_times(block: xr.Dataset, contract: Contract) -> None:
    cadence = pd.Timedelta(minutes=contract.cadence_minutes)
    times = block["time"].to_index()
    off = times[(times - times.normalize()) % cadence != pd.Timedelta(0)] if cadence else times[:0]
    if len(off):
        promised = f"a frame every {contract.cadence_minutes:g} minutes"
        _refuse(contract, promised, f"one is of {off[0].isoformat()}Z", advice="check its times")
    interval = pd.Timedelta(minutes=contract.interval_minutes)
    if not interval:
        return
    promised = f"frames measured over {contract.interval_minutes:g} minutes"
    if "time_bnds" not in block.variables:
        _refuse(contract, promised, "these have no time_bnds", advice="check its times")
    bounds = block["time_bnds"].values
    lengths = pd.TimedeltaIndex(bounds[:, 1] - bounds[:, 0])
    for length in lengths[lengths != interval]:
        minutes = length / pd.Timedelta(minutes=1)
        _refuse(contract, promised, f"one is measured over {minutes:g}", advice="check its times")


def _check_range(values: Any, wet: Any, contract: Contract) -> None:
    low, high = np.fmin.reduce(values), np.fmax.reduce(values)
    if low < 0 or high > contract.greatest * (1 + ROUNDING[1]):
        promised = f"values from 0 to {contract.greatest:g} {contract.units}"
        _refuse(contract, promised, f"these reach from {low:g} to {high:g}")
    if contract.faintest and wet.size and wet.min() < contract.faintest[0] * (1 - ROUNDING[0]):
        promised = f"no rain fainter than {contract.faintest[0]:g} {contract.units}"
        _refuse(contract, promised, f"there is {wet.min():g}")


def _check_steps(wet: Any, contract: Contract) -> None:
    """Refuse values between the steps, and those that leave most steps out."""
    if not contract.step or not wet.size:
        return
    steps = (wet.astype(np.float64) - contract.offset) / contract.step
    whole = np.rint(steps)
    wrong = np.abs(steps - whole) > ROUNDING[0] + ROUNDING[1] * np.abs(whole)
    promised = f"steps of {contract.step:g} {contract.units} from {contract.offset:g}"
    if wrong.any():
        part, one = wrong.mean(), wet[wrong][0]
        _refuse(contract, promised, f"{part:.1%} of the wet values are between, such as {one:g}")
    held = np.bincount((whole - whole.min()).astype(np.int64)).nonzero()[0]
    common = int(np.gcd.reduce(held))
    many = len(held) >= MANY_DISTINCT or common ** (len(held) - 1) > LONG_ODDS
    if common > 1 and many:
        coarse = common * contract.step
        _refuse(contract, promised, f"the {len(held)} wet values here go in steps of {coarse:g}")


def _check_levels(wet: Any, contract: Contract) -> None:
    if not contract.levels or not wet.size:
        return
    levels = np.sort(np.asarray(contract.levels, np.float64))
    middles = (levels[1:] + levels[:-1]) / 2
    nearest = levels[np.searchsorted(middles, wet)]
    wrong = np.abs(wet - nearest) > ROUNDING[1] * 10 * nearest
    if wrong.any():
        part, one = wrong.mean(), wet[wrong][0]
        promised = f"{len(levels)} levels, from {levels[0]:g} to {levels[-1]:g} {contract.units}"
        _refuse(contract, promised, f"{part:.1%} of the wet values are none, such as {one:g}")


def _check_distribution(values: Any, wet: Any, contract: Contract) -> None:
    if contract.faintest and wet.size >= MANY_WET:
        limit = contract.faintest[1]
        if wet.min() > limit * (1 + ROUNDING[0]):
            promised = f"some rain up to {limit:g} {contract.units} wherever there is much"
            _refuse(
                contract,
                promised,
                f"the faintest of {wet.size:,} wet pixels has {wet.min():g}",
            )
    if contract.heavy and wet.size:
        value, part = contract.heavy
        found = np.count_nonzero(wet > value) / np.count_nonzero(~np.isnan(values))
        if found > part:
            promised = f"at most {part:.2%} of the observed pixels above {value:g} {contract.units}"
            _refuse(contract, promised, f"{found:.2%} are")


def _check_coverage(values: Any, contract: Contract) -> None:
    if not contract.coverage:
        return
    low, high = contract.coverage
    parts = np.count_nonzero(~np.isnan(values), axis=(1, 2)) / math.prod(values.shape[1:])
    for part in parts[(parts < low) | (parts > high)]:
        promised = f"from {low:.1%} to {high:.1%} of the grid observed"
        _refuse(contract, promised, f"{part:.1%} is", advice="check the codes for missing and dry")


def _check_middle(wet: Any, contract: Contract) -> None:
    if not contract.middle or wet.size < MANY_WET:
        return
    low, high = contract.middle
    middle = float(np.median(wet))
    if not low <= middle <= high:
        promised = f"a median of wet values from {low:g} to {high:g} {contract.units}"
        _refuse(contract, promised, f"this is {middle:g}")
