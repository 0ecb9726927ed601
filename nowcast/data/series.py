"""Series: fields reduced to their areal mean, or to their values at points."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

LEAST_OBSERVED = 0.5  # part of the area that must be observed, else its mean is missing
AREA = "area"  # name of the one point of an areal mean

Points = Sequence[tuple[float, float]]


def series_of(field: xr.DataArray, points: Points = ()) -> xr.DataArray:
    """Give the areal mean of a field, or its values at points.

    The mean is over the pixels that are not missing, and missing itself if these are fewer than
    half (`LEAST_OBSERVED`).

    Parameters
    ----------
    field : (..., y, x)
        Observed or forecast; may be lazy.
    points : (y, x) of each
        In the coordinates of the grid; the nearest pixel counts. None for the areal mean.

    Returns
    -------
    DataArray : (..., point)
        In the units of the field.

    Raises
    ------
    ValueError
        If a point lies outside of the grid.

    Examples
    --------
    >>> from nowcast.data.synthetic import synthesise
    >>> rain_rate = synthesise(hours=1, size=8)["rain_rate"]
    >>> series_of(rain_rate).dims, series_of(rain_rate, [(0.0, 1000.0)])["point"].values.tolist()
    (('time', 'point'), ['y=0 x=1000'])
    """
    if not points:
        share = field.notnull().mean(("y", "x"))
        mean = field.mean(("y", "x"), dtype=np.float64).where(share >= LEAST_OBSERVED)
        return mean.expand_dims({"point": list(names_of(points))}, axis=-1)
    rows, columns = pixels_of(points, y=field["y"].values, x=field["x"].values)
    at = {"y": xr.DataArray(rows, dims="point"), "x": xr.DataArray(columns, dims="point")}
    values = field.isel(at).assign_coords(point=list(names_of(points)))
    return values.transpose(..., "point")


def names_of(points: Points) -> tuple[str, ...]:
    """Give the names of points, or that of the area."""
    return tuple(f"y={y:g} x={x:g}" for y, x in points) or (AREA,)


def pixels_of(points: Points, *, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the rows and columns of the pixels in which points lie.

    Parameters
    ----------
    points : (y, x) of each
        In the coordinates of the grid.
    y, x
        Of the pixels' centres.

    Raises
    ------
    ValueError
        Naming the point that lies in no pixel, and what the grid reaches.
    """
    spacing = max(abs(np.diff(axis).mean()) for axis in (y, x) if len(axis) > 1)  # of a row: of x
    half = 0.5 * (1 + 1e-6) * spacing
    away = [
        np.abs(np.subtract.outer([point[at] for point in points], axis))
        for at, axis in enumerate((y, x))
    ]
    for place, point in enumerate(points):
        if any(one[place].min() > half for one in away):
            raise ValueError(
                f"the point {tuple(point)} lies outside of the grid, which reaches from y "
                f"{y.min() - half:g} to {y.max() + half:g} and from x {x.min() - half:g} to "
                f"{x.max() + half:g}; give network.points as [[y, x], ...] in its coordinates"
            )
    rows, columns = (one.argmin(axis=1) for one in away)
    return rows, columns
