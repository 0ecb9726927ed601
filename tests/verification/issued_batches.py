"""Batches for the tests of scores of distributions: what was issued in one of four ways."""

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.conventions import (
    REFLECTIVITY,
    build_nowcast,
    check_nowcast,
    variable_of,
    with_exceedance,
    with_quantiles,
)
from nowcast.data.synthetic import synthesise
from nowcast.verification.batches import Batch

LARGEST = 16  # pixels along y and x


def row_batch(observed, *, members=None, field=None, ladder=None, quantiles=None):
    """Give a batch of one case and one lead time from values of a row of pixels.

    ``members`` is (member, pixel), ``ladder`` and ``quantiles`` (levels, values (level, pixel)).
    """

    def spread(values):
        return None if values is None else np.array(values, float)[None, ..., None, None, :]

    def level(told):
        return told and (told[0], spread(told[1]))

    return batch_of(
        spread(observed),
        members=spread(members),
        field=spread(field),
        ladder=level(ladder),
        quantiles=level(quantiles),
    )


def batch_of(observed, *, members=None, field=None, ladder=None, quantiles=None):
    """Give a batch from (base_time, lead_time, y, x), as verification makes it.

    What counts is where ``observed`` is not NaN. Other levels come after the base time.
    """
    values = members if members is not None else field
    if values is None:
        told = (ladder or quantiles)[1]
        values = np.where(np.isnan(told[:, 0]), np.nan, 0.0)
    nowcast = _nowcast(values, observed.shape)
    if ladder:
        nowcast = with_exceedance(nowcast, ladder[1], thresholds=ladder[0])
    if quantiles:
        nowcast = with_quantiles(nowcast, quantiles[1], quantiles=quantiles[0])
    check_nowcast(nowcast)
    forecast = nowcast[variable_of(nowcast)]
    if members is not None:
        forecast = forecast.mean("member")
    seen = xr.DataArray(
        observed.astype(np.float32),
        dims=("base_time", "lead_time", "y", "x"),
        coords=forecast.coords,
    )
    return Batch(forecast.fillna(0.0).where(seen.notnull()), seen, nowcast)


def _nowcast(values, shape):
    cases, leads, height, width = shape
    grid = synthesise(events=1, hours=1, size=LARGEST)
    return build_nowcast(
        values,
        observed=grid.isel(y=slice(height), x=slice(width)),
        variable=REFLECTIVITY,
        base_times=pd.date_range("2024-06-01", periods=cases, freq="3h"),
        lead_times=pd.timedelta_range("5min", periods=leads, freq="5min"),
    )


def some_weather(rng, *, cases=3, leads=2, size=6, members=4):
    """Give members and what was observed, in dBZ: partly dry, a case that is all dry, with holes.

    Members lack some pixels that count; so would a nowcaster that does not reach them.
    """
    shape = (cases, members + 1, leads, size, size)
    every = np.maximum(rng.normal(5.0, 15.0, shape), 0.0).round()  # rounded: ties
    every[-1] = 0.0
    every[0, :, 0, 0, 0] = 0.0
    observed, ensemble = every[:, 0].copy(), every[:, 1:].copy()
    observed[rng.random(observed.shape) < 0.2] = np.nan
    ensemble[:, 1][rng.random(observed.shape) < 0.1] = np.nan
    return ensemble, observed


def measured(measure, batch):
    """Give the scores of a batch by lead time."""
    return measure.scores(measure.sums(batch).sum("base_time"))


def counted(observed, *fields):
    """Give the pixels that count, one after the other, with 0 where a field is missing."""
    places = np.isfinite(observed)
    return [observed[places], *(np.nan_to_num(field[places]) for field in fields)]
