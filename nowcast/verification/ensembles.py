"""Scores of ensembles: whether members are as far from one another as from what happened.

The rules: pixels are pooled over space and cases; a member that is missing where a pixel counts
says no rain; a nowcaster without two members or more has no scores here, all NaN.
"""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from nowcast.verification.batches import OF_VARIABLE, Batch, case_coordinates, defined_by
from nowcast.verification.distributions import Row, members_of, rows_of

HAMILL = "doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2"
FORTIN = "doi:10.1175/JHM-D-14-0008.1"
DEFINITIONS = {
    "rank_count": ("pixels by the rank of the observed value among the members", "1", HAMILL),
    "rank_tied": ("pixels at which the observed value and all members are the same", "1", HAMILL),
    "spread": (
        "spread of the members, as large as the error where they are reliable",
        OF_VARIABLE,
        FORTIN,
    ),
    "spread_skill": ("spread of the members over the error of their mean", "1", FORTIN),
}


@dataclass(frozen=True)
class Ranks:
    """Rank histogram and spread of ensembles.

    ``rank_count`` by ``rank`` counts the pixels by how many members are below what was observed: a
    reliable ensemble fills all ranks alike, one with too little spread the outer ones. Where
    members equal what was observed, as in dry weather, the pixel is spread evenly over the ranks
    that it may have; so it is the same each time, unlike by drawing lots. Pixels at which all are
    the same, ``rank_tied``, so add as much to each rank, and may be taken off again. Ranks that an
    ensemble smaller than the largest has not are NaN.

    ``spread`` is the root of the mean unbiased variance of the members, times (m + 1) / m for m
    members: that is the squared error which the mean of a reliable ensemble has, as large as it
    is. ``spread_skill`` is ``spread`` over the root mean square error of the mean: 1 where
    reliable, less where the ensemble is too sure.

    Parameters
    ----------
    most_members
        Of the largest ensemble that is compared.

    Raises
    ------
    ValueError
        If that is less than 1.

    References
    ----------
    Hamill (2001), doi:10.1175/1520-0493(2001)129<0550:IORHFV>2.0.CO;2;
    Fortin et al. (2014), doi:10.1175/JHM-D-14-0008.1
    """

    most_members: int
    name = "ranks"
    gridded = False

    def __post_init__(self) -> None:
        if self.most_members < 1:
            raise ValueError(
                f"most_members must be 1 or more; received {self.most_members}; "
                "give the size of the largest ensemble"
            )

    def sums(self, batch: Batch) -> xr.Dataset:
        """Give what adds up by ``(base_time, lead_time)``, ``rank_count`` by ``rank`` too.

        Raises
        ------
        ValueError
            If an ensemble has more members than `most_members`.
        """
        rows = rows_of(batch)
        shape = (len(rows), batch.observed.sizes["lead_time"])
        ranks = np.zeros((*shape, self.most_members + 1))
        number, members, tied = (np.zeros(shape, np.int64) for _ in range(3))
        variance, squared_error = np.zeros(shape), np.zeros(shape)
        for case, row in enumerate(rows):
            ensemble = members_of(batch, case, row)
            if ensemble is None or len(ensemble.values) < 2:
                continue
            values, size = ensemble.values, len(ensemble.values)
            if size > self.most_members:
                raise ValueError(
                    f"an ensemble has {size} members, and room was made for {self.most_members}; "
                    "give the size of the largest as most_members"
                )
            number[case] = np.bincount(row.lead, minlength=row.leads)
            members[case] = size * number[case]
            ranks[case, :, : size + 1], tied[case] = _ranks(values, row)
            variance[case] = row.added(
                (size + 1) / size * values.var(axis=0, ddof=1, dtype=np.float64)
            )
            error = values.mean(axis=0, dtype=np.float64) - row.observed
            squared_error[case] = row.added(error**2)
        dims = ("base_time", "lead_time")
        return xr.Dataset(
            {
                "rank_count": ((*dims, "rank"), ranks),
                "rank_tied": (dims, tied),
                "rank_number": (dims, number),
                "rank_members": (dims, members),
                "spread_variance": (dims, variance),
                "spread_squared_error": (dims, squared_error),
            },
            coords={**case_coordinates(batch), "rank": np.arange(self.most_members + 1)},
        )

    def scores(self, total: xr.Dataset) -> xr.Dataset:
        """Give the histogram, ``spread`` and ``spread_skill`` of added sums.

        Examples
        --------
        >>> sums = {"rank_number": 4, "rank_members": 8, "rank_tied": 0}
        >>> sums = {**sums, "spread_variance": 9.0, "spread_squared_error": 36.0}
        >>> total = xr.Dataset({**sums, "rank_count": ("rank", [2.0, 1.0, 1.0, 0.0])})
        >>> scores = Ranks(3).scores(total.assign_coords(rank=range(4)))
        >>> scores["spread"].item(), scores["spread_skill"].item()
        (1.5, 0.5)
        >>> scores["rank_count"].values
        array([ 2.,  1.,  1., nan])
        """
        number = total["rank_number"].where(total["rank_number"] > 0).astype(np.float64)
        spread = np.sqrt(total["spread_variance"] / number)
        squared_error = total["spread_squared_error"] / number
        error = np.sqrt(squared_error.where(squared_error > 0))
        has_rank = total["rank"] <= total["rank_members"] / number
        scores = {
            "rank_count": total["rank_count"].where(has_rank),
            "rank_tied": total["rank_tied"].where(number.notnull()),
            "spread": spread,
            "spread_skill": spread / error,
        }
        return defined_by(DEFINITIONS, xr.Dataset(scores))


def _ranks(members: np.ndarray, row: Row) -> tuple[np.ndarray, np.ndarray]:
    """Give the pixels by lead time and rank, evenly over tied ranks, and those wholly tied."""
    size = len(members)
    below = np.count_nonzero(members < row.observed, axis=0)
    equal = np.count_nonzero(members == row.observed, axis=0)
    at = (row.lead * (size + 1) + below) * (size + 1) + equal
    pixels = np.bincount(at, minlength=row.leads * (size + 1) ** 2)
    pixels = pixels.reshape(row.leads, size + 1, size + 1)
    first, ties, rank = np.ogrid[: size + 1, : size + 1, : size + 1]
    share = ((first <= rank) & (rank <= first + ties)) / (ties + 1.0)
    ranks: np.ndarray = np.tensordot(pixels, share, axes=2)
    return ranks, pixels[:, 0, size]
