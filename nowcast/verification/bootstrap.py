"""Bands of scores, and tests between nowcasters, from sums by blocks of cases.

What is drawn with replacement are blocks: events, or spans of a few hours. Pixels of a frame and
frames of an hour resemble each other, so that a band from pixels or single cases, each taken for a
finding of its own, is far too narrow. All nowcasters, lead times and thresholds see the same
draws: so a difference between two is of the same cases in each sample (a paired test), and most of
what makes both good or bad on a day drops out of it.

The band is the percentile interval, widened for the number of blocks as if the samples were normal
(Hesterberg 2015), since that of a few blocks is too narrow; the p-value is what fits it. Both
take blocks for exchangeable and independent of each other. Of fewer than about eight, or where one
block holds most of the rain, they are still too confident.

References
----------
Efron and Tibshirani (1993), doi:10.1007/978-1-4899-4541-9: the bootstrap, and percentiles;
Hamill (1999), doi:10.1175/1520-0434(1999)014<0155:HTFENP>2.0.CO;2: paired tests of forecasts by
resampling blocks of cases;
Hesterberg (2015), doi:10.1080/00031305.2015.1089789: percentiles widened for few observations;
Davison and Hinkley (1997), doi:10.1017/CBO9780511802843: adding one to both counts of a p-value;
Holm (1979), https://www.jstor.org/stable/4615733: many tests at once.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import xarray as xr

Scores = Callable[[xr.Dataset], xr.Dataset]

BOUNDS = ["low", "high"]
LEVEL = 0.9  # of a band: so much of what other blocks would have given
SAMPLES = 1000  # of a band: its ends then vary by 0.04 of its half width from seed to seed
# Of a test: no p-value is smaller than about 2 / samples, and Holm's correction multiplies it by
# the number of tests, some tens.
PAIRED_SAMPLES = 10_000
MOST_UNDEFINED = 0.1  # part of the samples without a score from which there is no band
SAMPLES_BYTES = 2**24  # of the totals in memory at a time; the scores take a few times as much
ROUNDING = 1e-12  # of two scores: what differs by less, in parts of them, is the same


def resampled(sums: xr.Dataset, samples: int = SAMPLES, seed: int = 0) -> xr.Dataset:
    """Give the totals of blocks drawn with replacement, as many of them as there are.

    Parameters
    ----------
    sums
        Every variable by ``block`` and whatever else; never NaN.
    samples
        How often a set of blocks is drawn.
    seed
        Of the draws. The same seed, samples and number of blocks give the same draws, whatever
        the sums.

    Returns
    -------
    Dataset
        As `sums`, with ``sample`` instead of ``block``, in 64-bit floats: counts stay exact.

    Examples
    --------
    >>> sums = xr.Dataset({"number": ("block", [1, 10, 100])})
    >>> resampled(sums, samples=4)["number"].values.tolist()
    [111.0, 300.0, 12.0, 111.0]
    """
    return xr.concat(list(_parts(sums, samples, seed)), dim="sample", data_vars="all", join="exact")


def bands(
    sums: xr.Dataset,
    scores: Scores,
    names: Sequence[str],
    *,
    level: float = LEVEL,
    samples: int = SAMPLES,
    seed: int = 0,
) -> xr.Dataset:
    """Give the band of each score that other blocks of the same kind would have given.

    Parameters
    ----------
    sums
        See `resampled`.
    scores
        Scores from added sums; see `nowcast.verification.batches.Measure`.
    names
        Of the scores wanted.
    level
        Part of the samples inside, before the band is widened for the number of blocks.
    samples, seed
        See `resampled`.

    Returns
    -------
    Dataset
        ``<score>_band``, with the dims of the score and ``bound``: ``low`` and ``high``. NaN where
        there is a single block, where the score of all blocks is not defined, and where more than
        a tenth of the samples have none; fewer of them are left out.
    """
    total = scores(sums.sum("block"))
    drawn = _samples(sums, scores, names, samples, seed)
    blocks = sums.sizes["block"]
    return xr.Dataset(
        {
            f"{name}_band": _band(drawn[name], level, blocks).where(total[name].notnull())
            for name in names
        }
    )


def paired(
    sums: xr.Dataset,
    scores: Scores,
    name: str,
    references: Sequence[str],
    *,
    level: float = LEVEL,
    samples: int = PAIRED_SAMPLES,
    seed: int = 0,
) -> xr.Dataset:
    """Give by how much each nowcaster's score exceeds that of each reference, and how surely.

    The p-value is two-sided. Of the samples, those in which the difference has the other sign than
    most, or is zero, are counted; one is added to them and to all samples; twice that part is the
    p-value, made larger for the number of blocks as the band is wider. So there is a least p-value:
    with 10,000 samples 0.010 of 8 blocks, 0.0018 of 20, 0.0005 of 60.

    Of many tests some come out by chance. ``<name>_gain_p_holm`` is corrected for that by Holm's
    method: of all tests of one nowcaster here, against every reference, at every threshold and
    lead time, the chance that even one is wrongly below 0.05 is 0.05 at most. Nowcasters are not
    corrected for each other: who picks the best of ten on these cases has to do that himself.

    Parameters
    ----------
    sums
        See `resampled`; by ``nowcaster``, among other dims.
    scores, level, samples, seed
        See `bands`.
    name
        Of the score.
    references
        Names of nowcasters, usually the baselines.

    Returns
    -------
    Dataset
        ``<name>_gain``, ``<name>_gain_band``, ``<name>_gain_p`` and ``<name>_gain_p_holm`` by
        ``(nowcaster, reference)`` and the other dims of the score. NaN as in `bands`, and of a
        nowcaster beside itself, which is no test.
    """
    blocks = sums.sizes["block"]
    total = scores(sums.sum("block"))[name]
    drawn = _samples(sums, scores, [name], samples, seed)[name]
    columns = []
    for reference in references:
        other = total["nowcaster"] != reference
        gain = (total - total.sel(nowcaster=reference, drop=True)).where(other)
        difference = _difference(drawn, drawn.sel(nowcaster=reference, drop=True))
        column = {
            f"{name}_gain": gain,
            f"{name}_gain_band": _band(difference, level, blocks).where(gain.notnull()),
            f"{name}_gain_p": _p_value(difference, blocks).where(gain.notnull()),
        }
        columns.append(xr.Dataset(column))
    result = xr.concat(columns, dim=xr.Variable("reference", list(references)), join="exact")
    result = result.transpose("nowcaster", "reference", ..., "bound")
    result[f"{name}_gain_p_holm"] = _holm(result[f"{name}_gain_p"])
    return result


def _parts(sums: xr.Dataset, samples: int, seed: int) -> Iterator[xr.Dataset]:
    """Give the totals of all samples, in parts that fit in memory."""
    blocks = sums.sizes["block"]
    sums = sums.transpose("block", ...)
    weights = np.random.default_rng(seed).multinomial(
        blocks, np.full(blocks, 1 / blocks), size=samples
    )
    values = sum(variable.size for variable in sums.data_vars.values()) // blocks
    rows = max(1, SAMPLES_BYTES // (8 * max(1, values)))
    for first in range(0, samples, rows):
        yield sums.map(_added, args=(weights[first : first + rows].astype(float),))


def _added(sums: xr.DataArray, weights: np.ndarray) -> xr.DataArray:
    """Give the sums of a variable over its blocks, by as many weights as there are samples."""
    # Left to Dataset.dot, this would be a loop, not a product of matrices.
    total = np.tensordot(weights, sums.values.astype(float), axes=1)
    others = {name: one for name, one in sums.coords.items() if "block" not in one.dims}
    return xr.DataArray(total, coords=others, dims=("sample", *sums.dims[1:]))


def _samples(
    sums: xr.Dataset, scores: Scores, names: Sequence[str], samples: int, seed: int
) -> xr.Dataset:
    """Give the scores of all samples; of the totals no more than a part is kept."""
    parts = [scores(part)[list(names)] for part in _parts(sums, samples, seed)]
    return xr.concat(parts, dim="sample", data_vars="all", join="exact")


def _difference(one: xr.DataArray, other: xr.DataArray) -> xr.DataArray:
    """Give one minus other; zero where only rounding tells them apart."""
    difference = one - other
    return difference.where(~(abs(difference) <= ROUNDING * (abs(one) + abs(other))), 0.0)


def _band(drawn: xr.DataArray, level: float, blocks: int) -> xr.DataArray:
    """Give the widened percentile interval of the samples that are defined."""
    from scipy.stats import norm, t

    shape = drawn.isel(sample=0, drop=True)
    if blocks < 2:
        return xr.full_like(shape, np.nan).expand_dims(bound=BOUNDS).transpose(..., "bound")
    tail = norm.cdf(t.ppf((1 - level) / 2, blocks - 1) * np.sqrt(blocks / (blocks - 1)))
    drawn = drawn.transpose("sample", ...)
    defined = drawn.notnull().sum("sample")
    ordered = np.sort(drawn.values, axis=0)  # what is not defined comes last
    ends = [_at(ordered, part * (defined.values - 1)) for part in (tail, 1 - tail)]
    band = xr.concat([shape.copy(data=end) for end in ends], dim=xr.Variable("bound", BOUNDS))
    return band.where(_enough(drawn)).transpose(..., "bound")


def _at(ordered: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Give what stands at a place along the first axis, linearly between two neighbours."""
    place = np.maximum(place, 0.0)
    below = place.astype(int)
    above = np.ceil(place).astype(int)
    low, high = (np.take_along_axis(ordered, one[None], axis=0)[0] for one in (below, above))
    return np.asarray(low + (place - below) * (high - low))


def _p_value(difference: xr.DataArray, blocks: int) -> xr.DataArray:
    """Give the two-sided p-value of no difference; see `paired`."""
    from scipy.stats import norm, t

    if blocks < 2:
        return xr.full_like(difference.isel(sample=0, drop=True), np.nan)
    below, above = (difference <= 0).sum("sample"), (difference >= 0).sum("sample")
    fewer = below.where(below < above, above)
    part = ((1 + fewer) / (1 + difference.notnull().sum("sample"))).clip(max=0.5)
    wider = norm.ppf(part.values) / np.sqrt(blocks / (blocks - 1))
    return part.copy(data=2 * t.cdf(wider, blocks - 1)).where(_enough(difference))


def _enough(drawn: xr.DataArray) -> xr.DataArray:
    """Give whether enough samples are defined."""
    return drawn.isnull().mean("sample") <= MOST_UNDEFINED


def _holm(p_values: xr.DataArray) -> xr.DataArray:
    """Correct the p-values of each nowcaster for all others of its own."""
    families = p_values.values.reshape(p_values.sizes["nowcaster"], -1)
    corrected = np.full_like(families, np.nan)
    for family, result in zip(families, corrected, strict=True):
        order = np.argsort(family)[: np.count_nonzero(~np.isnan(family))]  # NaN comes last
        stepped = family[order] * np.arange(len(order), 0, -1)
        result[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return p_values.copy(data=corrected.reshape(p_values.shape))
