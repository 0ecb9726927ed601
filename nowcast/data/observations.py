"""Opening observations from wherever they are, and their fingerprint."""

import hashlib
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nowcast import rainrate
from nowcast.conventions import (
    RAIN_RATE,
    REFLECTIVITY,
    Variable,
    check_observations,
    grid_id,
    grid_mapping_name,
    select,
    variable_of,
)
from nowcast.data.labels import LABEL, classes_of, labels_of
from nowcast.data.readers import expand, is_zarr, read

_OF_FRAMES = ("time_bnds", "quality_flag", LABEL)  # what some observations say of each frame
# What can be turned into what, lazily, by the relation of Marshall and Palmer.
_CONVERSIONS = {
    (REFLECTIVITY.name, RAIN_RATE.name): rainrate.to_rain_rate,
    (RAIN_RATE.name, REFLECTIVITY.name): rainrate.to_reflectivity,
}


def open_observations(
    path: Path | str | Sequence[Path | str],
    *,
    source: str = "",
    reader: str = "",
    variable: Variable | None = None,
) -> xr.Dataset:
    """Open observations from wherever they are, lazily and checked.

    Parameters
    ----------
    path
        An archive folder, a NetCDF file or Zarr store, a raw radar file, a pattern such as
        ``radar/*.h5``, or a sequence of these, put together in the order of time.
    source
        Which part of an archive: ``source``, ``source/product`` or ``source/product/grid_id``.
    reader
        One of `nowcast.data.readers.READERS`; empty: found by the content of each file.
    variable
        The quantity wanted; by default the one there is. Rain rate and reflectivity are turned
        into each other by `nowcast.rainrate`.

    Returns
    -------
    xr.Dataset
        One variable with dims ``(time, y, x)``, in Dask chunks; nothing has been computed.

    Raises
    ------
    FileNotFoundError
        If nothing is there.
    ValueError
        If what is there cannot be read, does not fit together or lacks the variable.

    Examples
    --------
    >>> import tempfile
    >>> from nowcast.data.synthetic import synthesise
    >>> path = Path(tempfile.mkdtemp()) / "rain.nc"
    >>> observed = synthesise(hours=1, size=16)
    >>> observed["time"].encoding["units"] = "seconds since 1970-01-01"
    >>> observed.to_netcdf(path)
    >>> list(open_observations(path, variable=REFLECTIVITY))
    ['reflectivity']
    """
    paths = expand(path)
    parts = [_part(each, source, reader, variable) for each in paths]
    return _whole(parts, paths, variable)


def open_by_grid(
    path: Path | str | Sequence[Path | str],
    *,
    source: str = "",
    reader: str = "",
    variable: Variable | None = None,
) -> list[xr.Dataset]:
    """Open observations that lie on several grids, such as those of several radars.

    See `open_observations`, which refuses them, for the parameters and what is raised.

    Returns
    -------
    list of xr.Dataset
        Of each grid all its frames, in the order in which the grids are met.

    Examples
    --------
    >>> import tempfile
    >>> from nowcast.data.synthetic import synthesise
    >>> folder = Path(tempfile.mkdtemp())
    >>> for size in (16, 24):
    ...     observed = synthesise(hours=1, size=size)
    ...     observed["time"].encoding["units"] = "seconds since 1970-01-01"
    ...     observed.to_netcdf(folder / f"{size}.nc")
    >>> [part.sizes["x"] for part in open_by_grid(folder / "*.nc")]
    [16, 24]
    """
    opened: dict[str, tuple[list[xr.Dataset], list[Path]]] = {}
    for each in expand(path):
        part = _part(each, source, reader, variable)
        parts, paths = opened.setdefault(grid_id(part), ([], []))
        parts.append(part)
        paths.append(each)
    return [_whole(parts, paths, variable) for parts, paths in opened.values()]


def fingerprint(observed: xr.Dataset) -> str:
    """Give 16 hexadecimal digits that are the same for the same observations.

    They depend on the grid, the variable, the times, every value and the labels, if there are any,
    and not on the chunks; one changed pixel changes them. Lazy values are computed chunk by chunk.

    Parameters
    ----------
    observed
        Dims ``(time, y, x)``.

    Examples
    --------
    >>> from nowcast.data.synthetic import synthesise
    >>> observed = synthesise(hours=1, size=16)
    >>> fingerprint(observed) == fingerprint(observed.chunk(time=2, x=5))
    True
    """
    name = variable_of(observed)
    values = observed[name].transpose("time", "y", "x").data
    if not isinstance(values, np.ndarray):
        whole = values.rechunk({1: -1, 2: -1})
        values = whole.map_blocks(
            frame_digests, drop_axis=[1, 2], meta=np.empty(0, "S32")
        ).compute()
    else:
        values = frame_digests(values)
    return fingerprint_of(observed, values)


def fingerprint_of(observed: xr.Dataset, digests: np.ndarray) -> str:
    """Give the fingerprint of observations whose values are known by `frame_digests`.

    Parameters
    ----------
    observed
        Dims ``(time, y, x)``; its values are not read.
    digests
        Of its frames, in their order.
    """
    name = variable_of(observed)
    times = observed["time"].values.astype("datetime64[ns]").astype("<i8")
    heading = f"{grid_id(observed)} {name} {observed[name].attrs.get('units')}"
    parts = [heading.encode(), times.tobytes(), digests.tobytes()]
    if classes := classes_of(observed):
        parts += [" ".join(classes).encode(), labels_of(observed).astype("<i2").tobytes()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def frame_digests(values: Any) -> Any:
    """Give the SHA-256 of each frame's values, alike for equal values whatever their bits.

    Parameters
    ----------
    values : (time, y, x)
        As 32-bit floats, or what is wider.
    """
    plain = values.astype(np.result_type(values, np.float32)) + np.float32(0.0)  # no -0.0
    plain[np.isnan(plain)] = np.nan  # NaN has many bit patterns
    digests = [hashlib.sha256(np.ascontiguousarray(frame).tobytes()).digest() for frame in plain]
    return np.array(digests, dtype="S32")


def _part(path: Path, source: str, reader: str, variable: Variable | None) -> xr.Dataset:
    return _convert(_open_one(path, source=source, reader=reader), path, variable)


def _whole(parts: list[xr.Dataset], paths: list[Path], variable: Variable | None) -> xr.Dataset:
    """Give the frames of several datasets on one grid, checked."""
    observed = parts[0] if len(parts) == 1 else _join(parts, paths)
    # Without units of its own, xarray would write time and its bounds in different ones.
    observed["time"].encoding = {"units": "seconds since 1970-01-01", "dtype": "int64"}
    return check_observations(observed, variable)


def _open_one(path: Path, *, source: str, reader: str) -> xr.Dataset:
    from nowcast.data import archive

    if archive.is_archive(path):
        return archive.open_archive(path, source=source)
    if source:
        raise ValueError(
            f"only an archive has sources, and {path} is none; leave the source {source!r} out "
            "(--source, or data.source of the settings)"
        )
    if path.is_dir() and not is_zarr(path):
        raise ValueError(
            f"{path} is neither an archive nor a Zarr store; for raw radar files give a pattern "
            f"such as '{path}/*'"
        )
    return _lazy(read(path, reader=reader))


def _lazy(dataset: xr.Dataset) -> xr.Dataset:
    """Give fields that a reader had in memory in Dask chunks, so that what follows waits."""
    fields = {
        name: array.variable.chunk()
        for name, array in dataset.items()
        if {"y", "x"} <= set(array.dims) and array.chunks is None
    }
    return dataset.assign(fields)


def _convert(dataset: xr.Dataset, path: Path, variable: Variable | None) -> xr.Dataset:
    """Give the dataset with the wanted variable alone, converted if need be."""
    names = [str(name) for name, array in dataset.items() if {"y", "x"} <= set(array.dims)]
    if variable is None and len(names) == 1:
        return dataset
    if variable is None:
        raise ValueError(f"{path} holds {', '.join(names)}; say which variable is wanted")
    if variable.name in names:
        return select(dataset, variable.name)
    possible = [name for name in names if (name, variable.name) in _CONVERSIONS]
    if not possible:
        raise ValueError(
            f"{path} holds {', '.join(names)}, from which {variable.name} cannot be made"
        )
    return _converted(select(dataset, possible[0]), possible[0], variable)


def _converted(dataset: xr.Dataset, name: str, variable: Variable) -> xr.Dataset:
    values = _CONVERSIONS[name, variable.name](dataset[name]).astype(np.float32)
    a, b = rainrate.MARSHALL_PALMER
    values.attrs = {**variable.attributes, "comment": f"from {name} by Z = {a:g} R^{b:g}"}
    values.attrs["grid_mapping"] = grid_mapping_name(dataset)
    return dataset.drop_vars(name).assign({variable.name: values})


def _join(parts: list[xr.Dataset], paths: list[Path]) -> xr.Dataset:
    """Give the frames of several datasets in one, in the order of time."""
    names, grids = [variable_of(part) for part in parts], [grid_id(part) for part in parts]
    for path, name, grid in zip(paths, names, grids, strict=True):
        if name != names[0]:
            raise ValueError(f"{paths[0]} holds {names[0]}, but {path} holds {name}")
        if grid != grids[0]:
            raise ValueError(
                f"the frames lie on different grids: {paths[0]} on {grids[0]}, {path} on {grid}; "
                "open them apart"
            )
    common = [name for name in _OF_FRAMES if all(name in part.variables for part in parts)]
    plain = [_without(part, [name for name in _OF_FRAMES if name not in common]) for part in parts]
    joined = xr.concat(
        plain,
        dim="time",
        data_vars=[names[0]],
        coords=common,
        compat="override",
        join="override",
        combine_attrs="drop_conflicts",
    )
    order = np.argsort(joined["time"].values, kind="stable")
    _check_no_duplicates(joined["time"].values, parts, paths)
    return joined.isel(time=order)


def _without(part: xr.Dataset, names: list[str]) -> xr.Dataset:
    part = part.drop_vars(names, errors="ignore")
    if "time_bnds" in names:
        part["time"].attrs.pop("bounds", None)
    return part


def _check_no_duplicates(times: Any, parts: list[xr.Dataset], paths: list[Path]) -> None:
    origins = [path for part, path in zip(parts, paths, strict=True) for _ in part["time"]]
    pairs = sorted(zip(times, map(str, origins), strict=True))
    for (time, path), (next_time, next_path) in itertools.pairwise(pairs):
        if time == next_time:
            raise ValueError(
                f"two frames are of {np.datetime_as_string(time, unit='s')}Z: in {path} and in "
                f"{next_path}; leave one out"
            )
