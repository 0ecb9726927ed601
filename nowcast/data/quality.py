"""The quality of radar frames: flags that say what is wrong, and filters that are asked for.

A flag never changes a value. The two filters, of static clutter and of speckle, are off unless the
settings name them; they make a pixel missing, never dry, and write down in the variable's
attributes that they were applied. See ``docs/quality.md``.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from nowcast import durable
from nowcast.conventions import (
    CF_CONVENTIONS,
    GRID_MAPPING,
    Variable,
    grid_id,
    grid_mapping_name,
    known_variable,
    variable_of,
)

# Of the usual coverage. Losing a tenth leaves a hole as large as some of the catchments a forecast
# is for. Of ten products looked at, the lowest was 0.96, in one frame (MeteoSwiss).
LOW_COVERAGE = 0.9
# Of the usual coverage. Ten degrees of a single radar are 0.028, and one radar of a hundred that
# do not overlap 0.01. Eight of ten products change by 0 to 0.001; the larger changes of the others
# are true: MeteoSwiss lost a rim for one frame (0.041), RADOLAN's hourly sums some discs (0.020).
COVERAGE_JUMP = 0.01
ONE_STEP = 1.5  # median steps; two frames further apart have another between them that is absent
FROZEN_FRAMES = 3  # identical ones; two may be one frame sent twice, with the next one late
# Part of the observed pixels that are wet and stand alone. Independent noise on 3.3 % to 25 % of
# the pixels exceeds it. Rain does not (ten composite products: 0.0009 at most), nor, but for 8 of
# 41,334 frames, do the noise rings of TAASRAD19.
SPECKLED = 0.025

# A frame is scarce in rain if less of its observed pixels is wet: the mean pixel is then wet in
# less than a tenth of such frames, and one that is wet far more often is no place where it rains.
SCARCE = 0.1
# By which a pixel's wet frequency in scarce frames exceeds that of its neighbourhood. Frames of
# five minutes are alike for about an hour, so `FEWEST_FRAMES` are some 40 independent ones, and a
# frequency of 0.1 has a standard error of 0.05: this is four of them.
LEAST_EXCESS = 0.2
FEWEST_FRAMES = 500  # scarce in rain; a pixel observed in fewer of them is not judged
FEWEST_DAYS = 3  # with such frames: rain that stands over a mountain for a day is not static
NEIGHBOURHOOD = 9  # pixels, side of the square whose median is a pixel's surroundings

FILTERS = "nowcast_filters"  # attribute of a variable: what was applied to it, in order

_MAP_VARIABLES = ("clutter", "wet_frequency", "scarce_wet_frequency", "frames", "scarce_frames")


@dataclass(frozen=True)
class Flag:
    """What one bit of a quality flag says.

    Parameters
    ----------
    mask
        The bit.
    meaning
        In words, for a reader of a report.
    fault
        Whether something is wrong with the frame; else it is information only.
    """

    mask: int
    meaning: str
    fault: bool


FLAGS: dict[str, Flag] = {
    "all_missing": Flag(1, "no pixel was observed", True),
    "low_coverage": Flag(2, f"coverage is below {LOW_COVERAGE:g} of the usual", True),
    "coverage_jump": Flag(
        4, f"coverage differs by over {COVERAGE_JUMP:g} of the usual from the frame before", True
    ),
    "frozen": Flag(8, f"one of {FROZEN_FRAMES} or more frames in a row with equal values", True),
    "speckled": Flag(
        16, f"over {SPECKLED:g} of the observed pixels are wet and have no wet neighbour", True
    ),
    "all_dry": Flag(32, "no observed pixel is wet", False),
    "unit_unproven": Flag(
        64, "no contract of its source proves the unit that the file gives", False
    ),
    "out_of_range": Flag(128, "the reader set absurd pixels aside as missing", False),
}
FAULTS = sum(flag.mask for flag in FLAGS.values() if flag.fault)
FROM_INGEST = FLAGS["unit_unproven"].mask | FLAGS["out_of_range"].mask  # not from statistics


@dataclass(frozen=True)
class FrameStatistics:
    """What one frame says by itself, whatever came before it.

    Parameters
    ----------
    coverage
        Part of the grid's pixels that was observed, 0 to 1.
    wet
        Part of the observed pixels above the variable's dry value; 0 if none was observed.
    maximum, minimum
        Of the observed values, in the variable's units; None if none was observed.
    speckle
        Part of the wet pixels that have no wet pixel among their eight neighbours; 0 if none is
        wet. What is missing, or beyond the border of the grid, is not wet.
    values_sha256
        16 hexadecimal digits of the values as 32-bit floats, the same for every way to write NaN
        and zero.
    """

    coverage: float
    wet: float
    maximum: float | None
    minimum: float | None
    speckle: float
    values_sha256: str


def frame_statistics(frame: np.ndarray, variable: Variable) -> FrameStatistics:
    """Give the statistics of one frame.

    Parameters
    ----------
    frame : (y, x)
        NaN where not observed.
    variable
        The quantity. What exceeds its `valid_min` is wet: rain rate above 0 mm/h, reflectivity
        above 0 dBZ; of a quantity without a lower bound, all that was observed.

    Examples
    --------
    >>> from nowcast.conventions import RAIN_RATE
    >>> statistics = frame_statistics(np.array([[2.0, 0.0], [0.0, np.nan]]), RAIN_RATE)
    >>> statistics.coverage, statistics.maximum, statistics.speckle
    (0.75, 2.0, 1.0)
    """
    observed = int(frame.size - np.count_nonzero(np.isnan(frame)))
    wet = frame > variable.valid_min
    count = int(np.count_nonzero(wet))
    alone = int(np.count_nonzero(_stands_alone(wet)))
    return FrameStatistics(
        coverage=observed / frame.size,
        wet=count / observed if observed else 0.0,
        maximum=float(np.fmax.reduce(frame, axis=None)) if observed else None,
        minimum=float(np.fmin.reduce(frame, axis=None)) if observed else None,
        speckle=alone / count if count else 0.0,
        values_sha256=_values_sha256(frame),
    )


def quality_flags(
    times: np.ndarray, statistics: Mapping[str, Any], *, ingested: np.ndarray | int = 0
) -> np.ndarray:
    """Give the flags of the frames of one partition, from their statistics alone.

    They depend on what frames there are, and not on the order in which these arrived. What is
    usual is that of the frames given, so flags may change as an archive grows.

    Parameters
    ----------
    times : (time)
        UTC, strictly increasing.
    statistics
        Columns of the fields of `FrameStatistics`, each ``(time)``: a dictionary of arrays, or a
        DataFrame. ``coverage``, ``wet``, ``speckle`` and ``values_sha256`` are used.
    ingested
        Flags that the archive holds from the time of ingest (`FROM_INGEST`), ``(time)``.

    Returns
    -------
    np.ndarray
        ``(time)``, int32, bits of `FLAGS`; a frame has a fault where ``flags & FAULTS`` is not 0.

    Raises
    ------
    ValueError
        If the times do not increase, a column has another length, or `ingested` has other bits.

    Examples
    --------
    >>> times = np.arange("2024-06-01T12:00", "2024-06-01T12:15", 5, dtype="datetime64[m]")
    >>> flags = quality_flags(
    ...     times,
    ...     {
    ...         "coverage": [1.0, 1.0, 0.5],
    ...         "wet": [0.1, 0.0, 0.2],
    ...         "speckle": [0.0, 0.0, 0.0],
    ...         "values_sha256": ["a", "b", "c"],
    ...     },
    ... )
    >>> [flag_names(each) for each in flags]
    [[], ['all_dry'], ['low_coverage', 'coverage_jump']]
    """
    times = np.asarray(times).astype("datetime64[ns]")
    if (np.diff(times) <= np.timedelta64(0)).any():
        raise ValueError("the times of frames must be strictly increasing; sort the columns")
    coverage, wet, speckle = (
        _column(statistics, name, len(times)).astype(float)
        for name in ("coverage", "wet", "speckle")
    )
    digests = _column(statistics, "values_sha256", len(times))
    some = coverage > 0.0
    usual = float(np.median(coverage[some])) if some.any() else 0.0
    found = {
        "all_missing": ~some,
        "low_coverage": coverage < LOW_COVERAGE * usual,
        "coverage_jump": _jumps(times, coverage, COVERAGE_JUMP * usual),
        "frozen": _frozen(digests, some & (wet > 0.0)),
        "speckled": wet * speckle > SPECKLED,
        "all_dry": some & (wet == 0.0),
    }
    return _ingested(ingested) | sum(
        (np.where(found[name], FLAGS[name].mask, 0) for name in found),
        start=np.zeros(len(times), np.int32),
    ).astype(np.int32)


def quality_variable(times: np.ndarray, flags: np.ndarray) -> xr.DataArray:
    """Give flags as the CF flag variable ``quality_flag(time)``, to go beside observations.

    Parameters
    ----------
    times : (time)
        UTC.
    flags : (time)
        Of `quality_flags`.

    Examples
    --------
    >>> times = np.array(["2024-06-01T12:00"], dtype="datetime64[ns]")
    >>> quality_variable(times, np.array([32])).attrs["flag_meanings"].split()[:2]
    ['all_missing', 'low_coverage']
    """
    attributes = {
        "standard_name": "quality_flag",
        "long_name": "quality of the frame",
        "flag_masks": np.array([flag.mask for flag in FLAGS.values()], np.int32),
        "flag_meanings": " ".join(FLAGS),
    }
    values = np.asarray(flags, np.int32)
    return xr.DataArray(
        values, coords={"time": times}, dims="time", name="quality_flag", attrs=attributes
    )


def flag_names(flags: int) -> list[str]:
    """Give the names of the flags of one frame.

    Examples
    --------
    >>> flag_names(10)
    ['low_coverage', 'frozen']
    """
    return [name for name, flag in FLAGS.items() if int(flags) & flag.mask]


def without(observed: xr.Dataset, names: Collection[str]) -> xr.Dataset:
    """Give the observations without the frames that have one of these flags: they are absent.

    Parameters
    ----------
    observed
        With ``quality_flag(time)``, as `nowcast.data.archive.open_archive` gives it.
    names
        Of `FLAGS`.

    Raises
    ------
    ValueError
        If a name is unknown, or the observations have no flags.
    """
    unknown = sorted(set(names) - set(FLAGS))
    if unknown:
        raise ValueError(f"unknown quality flags {', '.join(unknown)}; known: {', '.join(FLAGS)}")
    if "quality_flag" not in observed.coords:
        raise ValueError("only observations from an archive have quality flags; ingest the files")
    masks = sum(FLAGS[name].mask for name in set(names))
    return observed.isel(time=np.flatnonzero((observed["quality_flag"].values & masks) == 0))


def clutter_map(
    observed: xr.Dataset, *, scarce: float = SCARCE, least_excess: float = LEAST_EXCESS
) -> xr.Dataset:
    """Learn from many frames where static clutter lies: echoes that are there without rain.

    Only frames with little rain are asked, so that a place where it often rains is no clutter. A
    pixel is clutter if it is wet in more of them, by `least_excess`, than the median pixel of its
    neighbourhood. Clutter that fills more than half of the neighbourhood is not found. The frames
    are read once, lazily, chunk by chunk.

    Parameters
    ----------
    observed
        Dims ``(time, y, x)``; 500 frames with little rain, on three days, are needed.
    scarce
        A frame has little rain if less than this part of its observed pixels is wet.
    least_excess
        Difference of two frequencies, 0 to 1; smaller finds more, and weaker, clutter.

    Returns
    -------
    xr.Dataset
        On ``(y, x)``: ``clutter``, true or false; ``wet_frequency`` and ``scarce_wet_frequency``,
        the part of all and of the scarce frames in which an observed pixel is wet, NaN if it was
        observed in too few; ``frames`` and ``scarce_frames``, in how many it was observed.

    Raises
    ------
    ValueError
        If there are too few frames with little rain.
    """
    import dask

    counts, parts = dask.compute(*_counted(observed, scarce))
    times = observed["time"].to_index()
    dry_times = times[parts < scarce]
    days = dry_times.normalize().nunique()
    if len(dry_times) < FEWEST_FRAMES or days < FEWEST_DAYS:
        raise ValueError(
            f"a clutter map needs {FEWEST_FRAMES} frames on {FEWEST_DAYS} days in which less than "
            f"{scarce:g} of the observed pixels are wet; of {len(times)} frames there are "
            f"{len(dry_times)} on {days} days; give more frames, or a larger `scarce`"
        )
    frames, wet, scarce_frames, scarce_wet = counts
    frequency = _frequency(scarce_wet, scarce_frames)
    fields = {
        "clutter": _exceeds_neighbourhood(frequency, least_excess),
        "wet_frequency": _frequency(wet, frames),
        "scarce_wet_frequency": frequency,
        "frames": frames,
        "scarce_frames": scarce_frames,
    }
    period = f"{times[0].isoformat()}/{times[-1].isoformat()}"
    return _as_map(fields, observed, period=period, scarce=scarce, least_excess=least_excess)


def save_clutter_map(clutter: xr.Dataset, path: Path | str) -> None:
    """Write a clutter map as a NetCDF file, whole or not at all."""
    axes = {axis: {"_FillValue": None} for axis in ("y", "x")}  # CF allows coordinates none
    with durable.replacing(path) as temporary:
        clutter.to_netcdf(temporary, engine="netcdf4", encoding=axes)


def open_clutter_map(path: Path | str) -> xr.Dataset:
    """Read a clutter map into memory.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is no clutter map.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no clutter map {path}; learn and save one first")
    try:
        with xr.open_dataset(path, engine="netcdf4") as stored:
            clutter = stored.load()
    except OSError as error:
        raise ValueError(f"{path} is no clutter map, or damaged: {error}") from error
    lacking = [name for name in _MAP_VARIABLES if name not in clutter]
    if lacking or "grid_id" not in clutter.attrs or clutter["clutter"].dtype != bool:
        raise ValueError(
            f"{path} is no clutter map: it holds {sorted(map(str, clutter))}; "
            "make one with nowcast.data.quality.clutter_map"
        )
    return clutter


def mask_clutter(observed: xr.Dataset, clutter: xr.Dataset) -> xr.Dataset:
    """Give the observations with the pixels of static clutter missing, lazily.

    Parameters
    ----------
    observed
        Dims ``(time, y, x)``.
    clutter
        Of `clutter_map` or `open_clutter_map`, on the same grid.

    Raises
    ------
    ValueError
        If the map was learnt on another grid.
    """
    known, here = str(clutter.attrs["grid_id"]), grid_id(observed)
    if known != here:
        raise ValueError(
            f"the clutter map is of the grid {known}, the observations lie on {here}; "
            "learn a map from frames of this grid, before any coarsening"
        )
    array = observed[variable_of(observed)]
    # Without coordinates: those of the same grid may differ in the last bit.
    clear = xr.DataArray(~clutter["clutter"].values, dims=("y", "x"))
    count = int(clutter["clutter"].sum())
    note = f"clutter: {count} pixels missing, by the map of {clutter.attrs['period']}"
    return _filtered(observed, array.where(clear), note)


def mask_speckle(observed: xr.Dataset) -> xr.Dataset:
    """Give the observations with every wet pixel that has no wet neighbour missing, lazily.

    Of eight neighbours; what is missing, or beyond the border of the grid, is not wet. A shower
    of one pixel goes too: on a grid of several kilometres think twice.

    Parameters
    ----------
    observed
        Dims ``(time, y, x)``.

    Examples
    --------
    >>> from nowcast.data.synthetic import synthesise
    >>> observed = synthesise(hours=1, size=16)
    >>> mask_speckle(observed)["rain_rate"].attrs["nowcast_filters"]
    'speckle: wet pixels without a wet neighbour missing'
    """
    array = observed[variable_of(observed)]
    whole = array.chunk(y=-1, x=-1) if array.chunks else array
    masked = xr.apply_ufunc(
        _without_speckle,
        whole,
        kwargs={"dry": known_variable(observed).valid_min},
        input_core_dims=[["y", "x"]],
        output_core_dims=[["y", "x"]],
        dask="parallelized",
        output_dtypes=[array.dtype],
        keep_attrs=True,
    )
    return _filtered(observed, masked, "speckle: wet pixels without a wet neighbour missing")


def _values_sha256(frame: np.ndarray) -> str:
    values = frame.astype("<f4") + np.float32(0.0)  # no -0.0
    values[np.isnan(values)] = np.nan  # NaN has many bit patterns
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()[:16]


def _stands_alone(wet: np.ndarray) -> np.ndarray:
    """Tell which wet pixels have no wet one among their eight neighbours; ``(..., y, x)``."""
    edge = [(0, 0)] * (wet.ndim - 2) + [(1, 1), (1, 1)]
    padded = np.pad(wet, edge)
    beside = padded[..., :-2] | padded[..., 2:]
    row = beside | padded[..., 1:-1]
    alone: np.ndarray = wet & ~(row[..., :-2, :] | row[..., 2:, :] | beside[..., 1:-1, :])
    return alone


def _without_speckle(values: np.ndarray, *, dry: float) -> np.ndarray:
    return np.where(_stands_alone(values > dry), values.dtype.type(np.nan), values)


def _column(statistics: Mapping[str, Any], name: str, length: int) -> np.ndarray:
    column = np.asarray(statistics[name])
    if column.shape != (length,):
        raise ValueError(f"{name} has the shape {column.shape}; there are {length} times")
    return column


def _jumps(times: np.ndarray, coverage: np.ndarray, largest: float) -> np.ndarray:
    jumps = np.zeros(len(times), bool)
    if len(times) > 1:
        gaps = np.diff(times).astype(np.int64)
        near = gaps <= ONE_STEP * np.median(gaps)
        jumps[1:] = near & (np.abs(np.diff(coverage)) > largest)
    return jumps


def _frozen(digests: np.ndarray, rainy: np.ndarray) -> np.ndarray:
    """Tell the members of runs of equal frames; dry and missing ones are alike by nature."""
    frozen = np.zeros(len(digests), bool)
    if len(digests) < FROZEN_FRAMES:
        return frozen
    equal = (digests[1:] == digests[:-1]) & rainy[1:]
    pairs = np.lib.stride_tricks.sliding_window_view(equal, FROZEN_FRAMES - 1)
    runs: np.ndarray = np.logical_and.reduce(pairs, axis=1)
    for member in range(FROZEN_FRAMES):
        frozen[member : member + len(runs)] |= runs
    return frozen


def _ingested(flags: np.ndarray | int) -> np.ndarray:
    brought = np.asarray(flags, np.int32)
    if (brought & ~FROM_INGEST).any():
        raise ValueError(
            f"ingest brings only {' and '.join(flag_names(FROM_INGEST))} ({FROM_INGEST}); "
            f"received the bits {np.bitwise_or.reduce(brought, axis=None)}"
        )
    return brought


def _counted(observed: xr.Dataset, scarce: float) -> tuple[Any, Any]:
    """Give, lazily, what a clutter map counts, and the wet part of each frame.

    Both come from the same chunks, so that computing them together reads each frame once.
    """
    import dask.array

    array = observed[variable_of(observed)].transpose("time", "y", "x")
    frames = dask.array.asarray(array.data).rechunk({1: -1, 2: -1})
    dry = known_variable(observed).valid_min
    parts = frames.map_blocks(_wet_parts, dry=dry, drop_axis=[1, 2], meta=np.empty(0))
    counts = frames.map_blocks(
        _counts,
        dry=dry,
        scarce=scarce,
        new_axis=1,
        chunks=((1,) * frames.numblocks[0], (4,), *frames.chunks[1:]),
        meta=np.empty((0, 0, 0, 0), np.int32),
    )
    return counts.sum(axis=0, dtype=np.int32), parts


def _wet_parts(frames: np.ndarray, *, dry: float) -> np.ndarray:
    """Give the wet part of the observed pixels of each frame; 1, never scarce, if there is none."""
    observed = np.count_nonzero(~np.isnan(frames), axis=(1, 2))
    wet = np.count_nonzero(frames > dry, axis=(1, 2))
    return np.where(observed > 0, wet / np.maximum(observed, 1), 1.0)


def _counts(frames: np.ndarray, *, dry: float, scarce: float) -> np.ndarray:
    """Count frames in which a pixel is observed, and wet: of all, and of those scarce in rain."""
    chosen = _wet_parts(frames, dry=dry) < scarce
    observed, wet = ~np.isnan(frames), frames > dry
    fields = (observed, wet, observed[chosen], wet[chosen])
    return np.stack([field.sum(axis=0, dtype=np.int32) for field in fields])[np.newaxis]


def _frequency(wet: np.ndarray, frames: np.ndarray) -> np.ndarray:
    enough = frames >= FEWEST_FRAMES
    return np.where(enough, wet / np.maximum(frames, 1), np.nan).astype(np.float32)


def _exceeds_neighbourhood(frequency: np.ndarray, least_excess: float) -> np.ndarray:
    """Tell where the frequency exceeds, by so much, the median of the square around the pixel."""
    clutter = frequency >= least_excess  # only these can, and they are few
    padded = np.pad(frequency, NEIGHBOURHOOD // 2, constant_values=np.nan)
    squares = np.lib.stride_tricks.sliding_window_view(padded, (NEIGHBOURHOOD, NEIGHBOURHOOD))
    surroundings = np.nanmedian(squares[clutter], axis=(1, 2))
    clutter[clutter] = frequency[clutter] - surroundings >= least_excess
    return clutter


def _as_map(
    fields: dict[str, np.ndarray],
    observed: xr.Dataset,
    *,
    period: str,
    scarce: float,
    least_excess: float,
) -> xr.Dataset:
    names = {
        "clutter": "static clutter",
        "wet_frequency": "part of the frames in which the pixel is wet",
        "scarce_wet_frequency": "part of the frames with little rain in which the pixel is wet",
        "frames": "number of frames in which the pixel was observed",
        "scarce_frames": "number of frames with little rain in which the pixel was observed",
    }
    variables = {
        name: (("y", "x"), field, {"long_name": names[name], "grid_mapping": GRID_MAPPING})
        for name, field in fields.items()
    }
    grid = {
        "y": observed["y"].variable,
        "x": observed["x"].variable,
        GRID_MAPPING: observed[grid_mapping_name(observed)].variable,
    }
    attributes = {
        "Conventions": CF_CONVENTIONS,
        "title": "Static clutter learnt from radar frames",
        "source": str(observed.attrs.get("source", "")),
        "grid_id": grid_id(observed),
        "period": period,
        "scarce": scarce,
        "least_excess": least_excess,
    }
    return xr.Dataset(variables, grid, attributes)


def _filtered(observed: xr.Dataset, array: xr.DataArray, note: str) -> xr.Dataset:
    earlier = array.attrs.get(FILTERS)
    array.attrs = {**array.attrs, FILTERS: f"{earlier}; {note}" if earlier else note}
    return observed.assign({str(array.name): array})
