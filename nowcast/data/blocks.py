"""Blocks of frames on a pipe: a header in JSON and raw arrays, checked before memory is taken.

`pack` runs in the decoder, which may have been turned by a hostile file; `unpack` in the process
that asked it, and trusts nothing of what it reads. Nothing is unpickled, and nothing can be said
in a header but names, shapes and attributes.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from nowcast.conventions import grid_mapping_name

FRAMES_PER_BLOCK = 32  # at most, unless that is more than
LARGEST_BLOCK = 128_000_000  # bytes; a single larger frame is a block of its own
LARGEST_HEADER = 1_000_000  # bytes, of JSON
MOST_VARIABLES = 16  # of a block, coordinates among them

_DIMS = frozenset({(), ("time",), ("y",), ("x",), ("time", "bnds"), ("time", "y", "x")})
_NUMBERS = frozenset(f"<{kind}" for kind in ("f4", "f8", "i2", "i4", "i8", "u2", "u4", "u8"))
_NUMBERS |= {"|i1", "|u1"}
_DTYPES = _NUMBERS | {"|b1"} | {f"<M8[{unit}]" for unit in ("s", "ms", "us", "ns")}
_INTEGERS = range(-(2**63), 2**63)  # what a netCDF attribute can hold
_WIDEST = 8  # bytes of a value


@dataclass(frozen=True)
class _Declared:
    """What a header says of one variable."""

    name: str
    dims: tuple[str, ...]
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    attrs: dict[str, Any]
    coordinate: bool

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def pack(block: xr.Dataset, name: str) -> tuple[dict[str, Any], list[Any]]:
    """Give the header of a block in memory, and its arrays as bytes in the header's order.

    Left out are coordinates that the convention does not know, and attributes that netCDF has no
    type for. Tuples become lists, and what is not text in a text is replaced.

    Parameters
    ----------
    block
        Observations of one variable.
    name
        Of this variable; what it names as its ``ancillary_variables`` comes along.

    Raises
    ------
    ValueError
        If a variable has dims or a type that observations do not have, or too many attributes.
    """
    variables, arrays = [], []
    for each in _names(block, name):
        variable = block.variables[each]
        values = np.ascontiguousarray(variable.values)
        if variable.dims not in _DIMS or values.dtype.newbyteorder("<").str not in _DTYPES:
            dims = ", ".join(map(str, variable.dims))
            raise ValueError(f"{each}({dims}) of type {values.dtype} is nothing observations hold")
        values = values.astype(values.dtype.newbyteorder("<"), copy=False)
        variables.append(
            {
                "name": each,
                "dims": list(variable.dims),
                "dtype": values.dtype.str,
                "shape": list(variable.shape),
                "attrs": _packed_attrs(variable.attrs),
                "coordinate": each in block.coords,
            }
        )
        arrays.append(values.reshape(-1).view(np.uint8))
    header = {"attrs": _packed_attrs(block.attrs), "variables": variables}
    size = len(json.dumps(header))
    if size > LARGEST_HEADER // 2:
        raise ValueError(
            f"its attributes take {size:,} bytes; {LARGEST_HEADER // 2:,} is the limit"
        )
    return header, arrays


def unpack(header: Any, fill: Callable[[memoryview], None], *, largest_frame: int) -> xr.Dataset:
    """Give the block that a header describes; its arrays are read once the header is checked.

    Parameters
    ----------
    header
        As `pack` gives it, from JSON.
    fill
        Fills the memory it is given with the next bytes.
    largest_frame
        Pixels.

    Raises
    ------
    ValueError
        If the header is not one that `pack` would have made, or claims too much.

    Examples
    --------
    >>> from nowcast.data.synthetic import synthesise
    >>> frame = synthesise(hours=1, size=16).isel(time=[0]).load()
    >>> header, arrays = pack(frame, "rain_rate")
    >>> content = iter(arrays)
    >>> def fill(memory):
    ...     memory[:] = next(content).data
    >>> arrived = unpack(header, fill, largest_frame=256)
    >>> bool((arrived["rain_rate"] == frame["rain_rate"]).all())
    True
    """
    declared = [_declared(each) for each in _of_type(list, _of_type(dict, header)["variables"])]
    attrs = _unpacked_attrs(header["attrs"])
    _check_sizes(declared, largest_frame)
    variables = {each.name: _filled(each, fill) for each in declared}
    coordinates = {each.name: variables.pop(each.name) for each in declared if each.coordinate}
    return xr.Dataset(variables, coordinates, attrs)


def ancillary(dataset: xr.Dataset, name: str) -> list[str]:
    """Give the names of what describes a variable frame by frame, such as a quality index."""
    named = str(dataset[name].attrs.get("ancillary_variables", "")).split()
    return [each for each in named if each in dataset and dataset[each].dims == ("time", "y", "x")]


def _names(block: xr.Dataset, name: str) -> list[str]:
    bounds = block["time"].attrs.get("bounds") or block["time"].encoding.get("bounds")
    coordinates = ("time", "time_bnds", bounds, "y", "x", grid_mapping_name(block))
    names = [name, *ancillary(block, name), *map(str, coordinates)]
    return [each for each in dict.fromkeys(names) if each in block.variables]


def _packed_attrs(attrs: Any) -> dict[str, Any]:
    packed = {_text(str(key)): _packed(value) for key, value in attrs.items()}
    return {key: value for key, value in packed.items() if key and value is not None}


def _packed(value: Any) -> Any:
    """Give an attribute as JSON; None where it has no place in observations."""
    if isinstance(value, np.generic | np.ndarray) and not isinstance(value, str):
        dtype = value.dtype.newbyteorder("<").str
        return {dtype: value.tolist()} if dtype in _NUMBERS and value.ndim < 2 else None
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, int):
        return value if value in _INTEGERS else None
    if isinstance(value, list | tuple):
        items = [_packed(item) for item in value if isinstance(item, str | int | float)]
        return items if len(items) == len(value) and None not in items else None
    return value if isinstance(value, float) else None


def _text(value: str) -> str:
    return value.encode(errors="replace").decode().replace("\0", "")


def _of_type(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{kind.__name__} expected, {type(value).__name__} received")
    return value


def _declared(entry: Any) -> _Declared:
    entry = _of_type(dict, entry)
    dims = tuple(_of_type(list, entry["dims"]))
    shape = tuple(_of_type(int, size) for size in _of_type(list, entry["shape"]))
    dtype = _of_type(str, entry["dtype"])
    if dims not in _DIMS or len(shape) != len(dims) or min(shape, default=1) < 1:
        raise ValueError(f"{dims} of {shape} are no dims of observations")
    if dtype not in _DTYPES:
        raise ValueError(f"{dtype!r} is no type of observations")
    attrs = _unpacked_attrs(entry["attrs"])
    coordinate = _of_type(bool, entry["coordinate"])
    return _Declared(_name(entry["name"]), dims, np.dtype(dtype), shape, attrs, coordinate)


def _check_sizes(declared: list[_Declared], largest_frame: int) -> None:
    if len({each.name for each in declared}) != len(declared) or len(declared) > MOST_VARIABLES:
        raise ValueError("variables are named twice, or too many")
    sizes = dict(pair for each in declared for pair in zip(each.dims, each.shape, strict=True))
    if any(sizes[dim] != size for each in declared for dim, size in _sizes(each)):
        raise ValueError("the sizes of one dim differ")
    if not {"time", "y", "x"} <= set(sizes):
        raise ValueError(f"only the dims {sorted(sizes)} are there")
    pixels = sizes["y"] * sizes["x"]
    if sizes["time"] > FRAMES_PER_BLOCK or sizes.get("bnds", 2) != 2 or pixels > largest_frame:
        raise ValueError(f"a block of {sizes} is too large")
    # A variable, what describes it, and coordinates.
    most = 3 * max(LARGEST_BLOCK, _WIDEST * largest_frame)
    if sum(each.nbytes for each in declared) > most:
        raise ValueError(f"a block of more than {most:,} bytes")


def _sizes(each: _Declared) -> list[tuple[str, int]]:
    return list(zip(each.dims, each.shape, strict=True))


def _filled(each: _Declared, fill: Callable[[memoryview], None]) -> xr.Variable:
    content = np.empty(each.nbytes, np.uint8)
    fill(content.data)
    return xr.Variable(each.dims, content.view(each.dtype).reshape(each.shape), each.attrs)


def _name(value: Any) -> str:
    name: str = _of_type(str, value)
    if not name or _text(name) != name:
        raise ValueError(f"{name!a} is no name")
    return name


def _unpacked_attrs(attrs: Any) -> dict[str, Any]:
    return {_name(key): _unpacked(value) for key, value in _of_type(dict, attrs).items()}


def _unpacked(value: Any) -> Any:
    if isinstance(value, dict):
        ((dtype, content),) = value.items()
        if dtype not in _NUMBERS:
            raise ValueError(f"{dtype!r} is no type of an attribute")
        array = np.array(content, np.dtype(dtype))
        if array.ndim > 1:
            raise ValueError("an attribute of several dims")
        return array if isinstance(content, list) else array[()]
    if isinstance(value, list):
        return [_unpacked(_single(item)) for item in value]
    if isinstance(value, str) and _text(value) != value:
        raise ValueError("a text that is none")
    if isinstance(value, int) and value not in _INTEGERS:
        raise ValueError("an integer too large")
    return _single(value)


def _single(item: Any) -> Any:
    if not isinstance(item, str | int | float):
        raise ValueError(f"an attribute of type {type(item).__name__}")
    return item
