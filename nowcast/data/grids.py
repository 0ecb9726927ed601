"""Coarser grids: fewer, larger pixels that keep apart what is dry and what was not observed."""

import math

import xarray as xr

LEAST_OBSERVED = 0.5  # part of a coarse pixel that must be observed, else it is missing


def coarsen(observed: xr.Dataset, factor: int) -> xr.Dataset:
    """Give the fields on a grid of pixels `factor` times as long, lazily.

    A coarse pixel is the mean of its observed pixels, or missing if less than half of them
    (`LEAST_OBSERVED`) are observed, so that nothing missing becomes dry. Rows and columns at the
    end that do not fill a coarse pixel are left out. Reflectivity is averaged in dBZ.

    Parameters
    ----------
    observed
        Any variables with ``y`` and ``x``; others, times, bounds and grid mapping are kept.
    factor
        Pixels along each side of a coarse pixel; 1 gives the same dataset.

    Raises
    ------
    ValueError
        If the factor is below 1 or exceeds the grid.

    Examples
    --------
    >>> from nowcast.data.synthetic import synthesise
    >>> dict(coarsen(synthesise(hours=1, size=16), 4).sizes)["x"]
    4
    """
    if factor == 1:
        return observed
    smallest = min(observed.sizes["y"], observed.sizes["x"])
    if not 1 <= factor <= smallest:
        raise ValueError(f"a grid cannot be coarsened by {factor}; give 1 to {smallest} pixels")
    gridded = [name for name, array in observed.items() if {"y", "x"} <= set(array.dims)]
    axes = {
        axis: observed[axis].coarsen({axis: factor}, boundary="trim").mean().variable
        for axis in ("y", "x")
    }
    for axis, coordinate in axes.items():
        coordinate.attrs = dict(observed[axis].attrs)
    coarse = observed.drop_vars(["y", "x", *gridded]).assign_coords(axes)
    return coarse.assign({name: _coarsened(observed[name], factor) for name in gridded})


def _coarsened(array: xr.DataArray, factor: int) -> xr.DataArray:
    blocks = {"y": factor, "x": factor}
    plain = array.drop_vars(list(array.coords))
    count = plain.notnull().coarsen(blocks, boundary="trim").sum()
    total = plain.fillna(0).coarsen(blocks, boundary="trim").sum()
    enough = count >= math.ceil(LEAST_OBSERVED * factor**2)
    mean: xr.DataArray = (total / count.where(enough)).astype(array.dtype)
    return mean.assign_attrs(array.attrs)
