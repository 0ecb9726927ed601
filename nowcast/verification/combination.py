"""Scores of several verifications in one table, if they were made by the same protocol."""

from collections.abc import Mapping

import xarray as xr

from nowcast.verification.comparison import BLOCK_SUMS, gains
from nowcast.verification.protocol import check_same_protocol
from nowcast.verification.scores import EVENT_COUNTS, Events


def combine(scores: Mapping[str, xr.Dataset]) -> xr.Dataset:
    """Give the scores of all nowcasters of several verifications beside each other.

    A nowcaster that was verified twice with the same outcome stands once; where the outcomes
    differ, each bears the name of its verification. The tests between nowcasters are made again,
    from the sums by block that the files hold.

    Parameters
    ----------
    scores
        Of `nowcast.verification.verify`, by the name of the verification.

    Raises
    ------
    ProtocolError
        If two were not made by the same protocol; the message names the fields.
    """
    check_same_protocol(scores)
    columns: dict[str, xr.Dataset] = {}
    for run, one in scores.items():
        for name in map(str, one["nowcaster"].values):
            column = one.drop_dims("reference", errors="ignore").sel(nowcaster=name, drop=True)
            if name in columns and not _same(columns[name], column):
                columns[f"{name} ({run})"] = column
            else:
                columns.setdefault(name, column)
    first = next(iter(scores.values()))
    of_nowcasters = [name for name, one in first.data_vars.items() if "nowcaster" in one.dims]
    names = xr.Variable("nowcaster", list(columns))
    own = [column[[n for n in of_nowcasters if n in column]] for column in columns.values()]
    together = xr.concat(own, dim=names, join="outer", coords="minimal", compat="override")
    others = first.drop_dims(["nowcaster", "reference"], errors="ignore")
    result = xr.merge([together, others], compat="override", join="outer")
    result.attrs = dict(first.attrs)
    return _tested(result)


def _tested(scores: xr.Dataset) -> xr.Dataset:
    counts = [f"{BLOCK_SUMS}{name}" for name in EVENT_COUNTS]
    if not all(name in scores for name in counts) or not scores.sizes.get("threshold"):
        return scores
    references = [
        name
        for name in scores.attrs.get("references", "").split("\n")
        if name in scores["nowcaster"].values
    ]
    sums = scores[counts].rename({f"{BLOCK_SUMS}{name}": name for name in EVENT_COUNTS})
    thresholds = tuple(map(float, scores["threshold"].values))
    tests = gains(sums, Events(thresholds), references)
    return scores.merge(tests, compat="override", join="outer")


def _same(one: xr.Dataset, other: xr.Dataset) -> bool:
    """Tell whether two verifications of a nowcaster came out alike."""
    sums = [name for name in one.data_vars if str(name).startswith(BLOCK_SUMS)]
    told = sums or list(one.data_vars)  # scores of labels have no blocks
    return one[told].equals(other[told])
