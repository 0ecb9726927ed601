"""Which figures a report has, in which order, and how each is read."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import xarray as xr

from nowcast.plots import curves, diagrams, scales
from nowcast.plots.style import Drawing

SKILL, SHARPNESS, ERRORS, CHANCES, WEATHER = (
    "Skill", "Scale and sharpness", "Errors", "Probabilities and ensembles", "Regimes"
)  # fmt: skip


@dataclass(frozen=True)
class Section:
    """Figures of one kind, one card each.

    Parameters
    ----------
    chapter, heading
        Where they stand.
    read
        How they are read.
    doubt
        What in them would look suspicious, and of what.
    draw
        Gives none where the scores have nothing to show.
    """

    chapter: str
    heading: str
    read: str
    doubt: str
    draw: Callable[[xr.Dataset], Iterator[Drawing]]


def _curve(curve: curves.Curve) -> Callable[[xr.Dataset], Iterator[Drawing]]:
    return partial(curves.by_lead_time, curve=curve)


def _errors(scores: xr.Dataset) -> Iterator[Drawing]:
    for curve in curves.ERRORS:
        yield from curves.by_lead_time(scores, curve)


SECTIONS = (
    Section(
        SKILL,
        "CSI against lead time",
        "Hits over hits, misses and false alarms: 1 is perfect, 0 none hit. Shaded is the band of "
        "the block bootstrap. Each line falls as the forecast ages.",
        "A line that starts near 1, falls late or rises: a look ahead. Bands that overlap do not "
        "say that two are alike; the gains below are of the same cases and say more.",
        _curve(curves.CSI),
    ),
    Section(
        SKILL,
        "Gain in CSI over the baselines",
        "CSI less that of the baseline on the same cases, with the band of the paired bootstrap. "
        "A filled marker is significant (p < 0.05 after Holm's correction), an empty one is not: "
        "of a hundred tests none can be with fewer than about 60 blocks, so look at the band, and "
        "at the test over all lead times above. A pair is drawn once.",
        "A gain that is greatest at the first lead times: what is to be gained there is little, "
        "so look for a look ahead. A gain at low thresholds alone, with a loss of resolution, is "
        "blur.",
        curves.gains,
    ),
    Section(
        SKILL,
        "Minutes gained over extrapolation",
        "By how many minutes a nowcaster keeps the CSI that extrapolation has lost: its lead time "
        "less that at which extrapolation is as good. Nothing is drawn where extrapolation never "
        "falls that low.",
        "A forecast earns its minutes slowly, from near 0 on. A line that begins at one step of "
        "the radar or more, alike at all thresholds, peeks that far ahead.",
        _curve(curves.MINUTES_GAINED),
    ),
    Section(
        SKILL,
        "Performance diagram",
        "Up is more events detected, right is fewer false alarms; the corner at the top right is "
        "perfect. Curves are CSI, dashed rays the frequency bias. A line joins the lead times, "
        "from the large marker on.",
        "A line far above the ray of 1 forecasts too much, which buys POD; far below it too "
        "little. A smoothed forecast drops below the ray as it ages.",
        diagrams.performance,
    ),
    Section(
        SKILL,
        "Frequency bias",
        "Events forecast over events observed, on a logarithmic axis: 1 is as many as there were. "
        "The dashed lines at 2/3 and 1.5 are those of the checks.",
        "Above 1.5 rain is forecast too widely, which raises POD and often CSI. A fall with lead "
        "time that is worse at high thresholds is a forecast that blurs its peaks away.",
        curves.frequency_bias,
    ),
    Section(
        SHARPNESS,
        "Fractions skill score by scale and lead time",
        "Skill when rain need only be near: yellow is good. Above and left of the white line the "
        "forecast is useful; the lower the line starts and the farther it reaches, the better.",
        "Skill at large scales alone is that of a bias or of a mean. A map without a line is "
        "useful everywhere or nowhere.",
        scales.fss_map,
    ),
    Section(
        SHARPNESS,
        "Skill by intensity and scale",
        "The Heidke skill split by the size of the error: purple is better than chance, orange "
        "worse. Small and intense features go first.",
        "Orange at large scales is a bias; a nowcaster that is orange where extrapolation is "
        "purple displaces or removes features of that size.",
        scales.intensity_scale,
    ),
    Section(
        SHARPNESS,
        "Power spectra",
        "How much structure there is at each wavelength; observed in black. Below, the ratio to "
        "it: 1 is as much as observed, and below the dashed line, a half, a scale counts as lost.",
        "A line that falls off towards short wavelengths is blurred: its scores profit from that, "
        "so hold it against smoothed extrapolation. One above 1 there is noise.",
        scales.spectra,
    ),
    Section(
        SHARPNESS,
        "Effective resolution",
        "The wavelength down to which the forecast has half of the observed power or more, in km: "
        "low is sharp. The dashed line is the shortest that was observed.",
        "A line that climbs with lead time is blur. Gains of CSI and RMSE that come with it would "
        "come from smoothing extrapolation too.",
        scales.effective_resolution,
    ),
    Section(
        ERRORS,
        "Errors and correlation",
        "Over all pixels that count. Low errors are good, high correlation and similarity too; "
        "balanced errors weigh heavy rain more. A mean error of 0 is no bias.",
        "RMSE rewards blur: a nowcaster that leads here and not in FSS, CSI at high thresholds or "
        "spectra is smooth, not good. Most pixels are dry, which makes all errors small.",
        _errors,
    ),
    Section(
        CHANCES,
        "Reliability",
        "How often it rained when the forecast said so with some probability: on the diagonal "
        "probabilities can be taken at their word. Bars: where the frequency would lie, nine times "
        "of ten, with other weather of the kind. Dotted, how often it rained at all. Below, how "
        "many forecasts there were.",
        "A line flatter than the diagonal is too sure of itself, a steeper one not enough. Trust "
        "no point with few forecasts. Nowcasters that only say 0 or 1 are not drawn.",
        diagrams.reliability,
    ),
    Section(
        CHANCES,
        "Relative operating characteristic",
        "Hit rate against false alarm rate as one warns from lower and lower probabilities; the "
        "area, in brackets, is 1 for perfect and 0.5 for no discrimination. Nowcasters that only "
        "say 0 or 1 are not drawn.",
        "It does not see bias: a curve that is good here with bad reliability needs calibration. "
        "For rare events all of it that matters is at the left edge.",
        diagrams.roc,
    ),
    Section(
        CHANCES,
        "Brier skill score",
        "Skill of the probability against always saying the base rate: 1 is perfect, below 0 is "
        "worse than that.",
        "A forecast of 0 or 1 falls fast here; that an ensemble beats it is no merit yet.",
        _curve(curves.BRIER_SKILL),
    ),
    Section(
        CHANCES,
        "CRPS",
        "The error of a whole distribution, in the units of what is forecast; of a single-valued "
        "forecast it is the mean absolute error. Low is good.",
        "Dry pixels make it small; compare differences, not sizes.",
        _curve(curves.CRPS),
    ),
    Section(
        CHANCES,
        "Rank histogram",
        "Where what was observed lies among the members, where not all of them are the same: flat "
        "is reliable, 1 is each rank's share.",
        "High ends: too little spread. A slope: a bias, high at the right if it forecasts too "
        "little. A hump: too much spread.",
        diagrams.rank_histogram,
    ),
    Section(
        CHANCES,
        "Spread and error",
        "The spread of the members, dotted, beside the error of their mean; below, their ratio. A "
        "reliable ensemble has a ratio of 1 at every lead time.",
        "Below 1 it is too sure, and its probabilities are too near 0 and 1.",
        diagrams.spread_skill,
    ),
    Section(
        WEATHER,
        "CSI by regime",
        "The same score in cases of one kind of weather; the bounds of each kind are the same for "
        "all data and follow from the observations alone.",
        "A lead that comes from one regime, above all one with few cases, does not hold in "
        "general. Rain that is new at the base time is what extrapolation cannot forecast: a high "
        "score there asks for a look at whether the nowcaster peeks.",
        diagrams.regimes,
    ),
)
