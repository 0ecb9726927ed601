"""Diagrams of events, probabilities, ensembles and regimes: what one score cannot say."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from nowcast.plots.style import (
    GRID_COLOUR,
    LEAD,
    NOWCASTER,
    REFERENCE_COLOUR,
    THRESHOLD,
    Drawing,
    at_threshold,
    card,
    defined,
    headline,
    label_leads,
    lead_values,
    legend,
    long_headline,
    name_plot,
    present,
    protocol_hash,
    reference_line,
    spell_units,
    spelled,
    styles,
    thresholds,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CSI_LEVELS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
BIAS_LEVELS = (0.25, 0.5, 1.0, 2.0, 4.0)
SQUARE_INCHES = 4.1  # height of a card whose plot is square
BIN = "probability_bin"
RELIABILITY = ("forecast_probability", "observed_frequency", "probability_count")
ROC = ("roc_false_alarm_rate", "roc_hit_rate")
FEW_CASES = 10  # in a regime, whose score is then marked


def performance(scores: xr.Dataset) -> Iterator[Drawing]:
    """Draw Roebber's performance diagram, a card per threshold: four scores in one place.

    A line joins the lead times of a nowcaster; its large marker is the first of them. See
    doi:10.1175/2008WAF2222159.1.
    """
    pod, far = (present(scores, name, NOWCASTER, THRESHOLD, LEAD) for name in ("pod", "far"))
    if pod is None or far is None:
        return
    for value in thresholds(pod + far):
        yield _performance_card(scores, pod.sel(threshold=value), far.sel(threshold=value), value)


def _performance_card(
    scores: xr.Dataset, pod: xr.DataArray, far: xr.DataArray, threshold: float
) -> Drawing:
    names = defined(pod + far)
    figure, ((axes,),) = card(names, height=SQUARE_INCHES)
    _draw_performance_ground(axes)
    for name, look in _looks(scores, names).items():
        success, hit = (1 - far.sel(nowcaster=name)).values, pod.sel(nowcaster=name).values
        axes.plot(success, hit, label=spelled(name), clip_on=False, **look)
        known = np.flatnonzero(np.isfinite(success + hit))[:1]
        axes.plot(
            success[known],
            hit[known],
            marker=look["marker"],
            color=look["color"],
            markersize=8,
            clip_on=False,
        )
    axes.set_box_aspect(1)
    _unit_square(axes, "success ratio, 1 less FAR", "probability of detection (POD)")
    title = f"Performance, {at_threshold(scores, threshold)}"
    long_headline(figure, title)
    legend(figure, axes)
    told = "; ".join(
        f"{name} POD {pod.sel(nowcaster=name).mean().item():.2f}, success ratio "
        f"{1 - far.sel(nowcaster=name).mean().item():.2f}"
        for name in names
    )
    alt = f"{title}: POD against success ratio. Mean over lead times: {told}."
    return Drawing(f"performance-{threshold:g}", alt, figure, protocol_hash(scores))


def _draw_performance_ground(axes: "Axes") -> None:
    line = np.linspace(1e-3, 1.0, 200)
    success, hit = np.meshgrid(line, line)
    levels = axes.contour(
        line,
        line,
        1.0 / (1.0 / success + 1.0 / hit - 1.0),
        levels=CSI_LEVELS,
        colors="#b5c7d6",
        linewidths=0.7,
        zorder=1,
    )
    # Near the right edge, where few nowcasters come: hardly a false alarm, many misses.
    places = [(0.96, 1.0 / (1.0 / csi + 1.0 - 1.0 / 0.96)) for csi in CSI_LEVELS]
    axes.clabel(levels, fmt=lambda level: f"{level:g}", fontsize=6.5, manual=places)
    for bias in BIAS_LEVELS:
        axes.plot([0, 1], [0, bias], color="#c4c4c4", linewidth=0.7, linestyle="--", zorder=1)
        end = (1.0, bias) if bias <= 1.0 else (1.0 / bias, 1.0)
        axes.annotate(
            f"{bias:g}",
            end,
            xytext=(2, 0) if bias <= 1.0 else (0, 1),
            textcoords="offset points",
            fontsize=6.5,
            color=REFERENCE_COLOUR,
            ha="left" if bias <= 1.0 else "center",
            va="center" if bias <= 1.0 else "bottom",
        )
    axes.grid(visible=False)


def reliability(scores: xr.Dataset) -> Iterator[Drawing]:
    """Draw reliability diagrams, a card per threshold, with how often each probability was said.

    Counts by lead time are added. Bars are the band of the observed frequency, where that is there;
    the dotted line is the observed frequency over all forecasts. Nowcasters that only say 0
    or 1 are left out: a performance diagram tells all of them.
    """
    scores = _with_probabilities(scores)
    parts = [present(scores, name, NOWCASTER, THRESHOLD, BIN) for name in RELIABILITY]
    said, happened, count = parts
    if said is None or happened is None or count is None:
        return
    pooled = _pooled_reliability(xr.Dataset(dict(zip(RELIABILITY, parts, strict=True))))
    for value in thresholds(pooled["observed_frequency"]):
        yield _reliability_card(scores, pooled.sel({THRESHOLD: value}), value)


def _with_probabilities(scores: xr.Dataset) -> xr.Dataset:
    """Take scores of probabilities from those who only ever say two of them: yes and no."""
    count = present(scores, RELIABILITY[2], NOWCASTER, BIN)
    if count is None:
        return scores
    others = [dim for dim in count.dims if dim not in (NOWCASTER, BIN)]
    several = (count.sum(others) > 0).sum(BIN) > 2
    names = [name for name in (*RELIABILITY, *ROC, f"{ROC[0]}_pooled", f"{ROC[1]}_pooled")
             if name in scores]  # fmt: skip
    return scores.assign({name: scores[name].where(several) for name in names})


def _pooled_reliability(parts: xr.Dataset) -> xr.Dataset:
    said, happened, count = (parts[name] for name in RELIABILITY)
    others = [dim for dim in said.dims if dim not in (NOWCASTER, THRESHOLD, BIN)]
    count = count.where(happened.notnull(), 0.0)
    total = count.sum(others)
    means = {
        name: (parts[name].fillna(0.0) * count).sum(others) / total.where(total > 0)
        for name in RELIABILITY[:2]
    }
    return xr.Dataset({**means, RELIABILITY[2]: total})


def _reliability_card(scores: xr.Dataset, parts: xr.Dataset, threshold: float) -> Drawing:
    from matplotlib.ticker import NullFormatter

    said, happened, count = (parts[name] for name in RELIABILITY)
    names = defined(happened)
    figure, ((axes,), (below,)) = card(
        names,
        height=SQUARE_INCHES + 0.9,
        shape=(2, 1),
        gridspec_kw={"height_ratios": (3.4, 1)},
        sharex=True,
    )
    axes.plot([0, 1], [0, 1], color=REFERENCE_COLOUR, linewidth=0.9, zorder=1)
    total = count.sum(BIN)
    rate = ((happened.fillna(0.0) * count).sum(BIN) / total.where(total > 0)).max().item()
    reference_line(axes, rate, ":")
    band = present(scores, f"{RELIABILITY[1]}_pooled_band", NOWCASTER, THRESHOLD, BIN, "bound")
    for name, look in _looks(scores, names).items():
        x, y, n = (part.sel(nowcaster=name).values for part in (said, happened, count))
        axes.plot(x, y, label=spelled(name), **look)
        if band is not None:
            ends = band.sel({NOWCASTER: name, THRESHOLD: threshold}).transpose("bound", BIN)
            axes.vlines(x, *ends.sel(bound=["low", "high"]).values, color=look["color"], lw=0.8)
        below.plot(x[n > 0], n[n > 0], **look)
    _unit_square(axes, "", "observed frequency")
    below.set_xlabel("forecast probability", fontsize=8)
    below.set_ylabel("forecasts", fontsize=8)
    below.set_yscale("log")
    below.yaxis.set_minor_formatter(NullFormatter())
    title = f"Reliability, {at_threshold(scores, threshold)}"
    headline(axes, title)
    legend(figure, axes)
    alt = (
        f"{title}: observed frequency against forecast probability, and the number of forecasts, "
        f"of {', '.join(names)}; over all forecasts it happened in {rate:.3g} of them."
    )
    return Drawing(f"reliability-{threshold:g}", alt, figure, protocol_hash(scores))


def roc(scores: xr.Dataset) -> Iterator[Drawing]:
    """Draw relative operating characteristics, a card per threshold.

    Where the rates are by lead time, those of the middle one are drawn, and the title says so.
    Nowcasters that only say 0 or 1 are left out.
    """
    scores = _with_probabilities(scores)
    rates = xr.Dataset(
        {name: scores.get(f"{name}_pooled", scores.get(name)) for name in ROC if name in scores}
    )
    hit = present(rates, ROC[1], NOWCASTER, THRESHOLD)
    if hit is None or ROC[0] not in rates:
        return
    told = ""
    if LEAD in rates.dims:
        rates, told = _middle_lead(rates)
    for value in thresholds(hit):
        yield _roc_card(scores, rates.sel({THRESHOLD: value}), value, told)


def _middle_lead(parts: xr.Dataset) -> tuple[xr.Dataset, str]:
    leads, unit = lead_values(parts)
    middle = (len(leads) - 1) // 2
    return parts.isel({LEAD: middle}), f", +{leads[middle]:g} {unit}"


def _roc_card(scores: xr.Dataset, rates: xr.Dataset, threshold: float, told: str) -> Drawing:
    names = defined(rates[ROC[1]])
    labels = {name: f"{spelled(name)}{_area(scores, name, threshold)}" for name in names}
    figure, ((axes,),) = card(list(labels.values()), height=SQUARE_INCHES)
    axes.plot([0, 1], [0, 1], color=REFERENCE_COLOUR, linewidth=0.9, zorder=1)
    for name, look in _looks(scores, names).items():
        x, y = (rates[rate].sel(nowcaster=name).values.ravel() for rate in ROC)
        known = np.isfinite(x + y)
        # The corners belong to every curve: never, and always, saying that it will happen.
        x, y = np.append(x[known], [0.0, 1.0]), np.append(y[known], [0.0, 1.0])
        order = np.lexsort((y, x))
        axes.plot(x[order], y[order], label=labels[name], **look)
    axes.set_box_aspect(1)
    _unit_square(axes, "false alarm rate (of non-events)", "hit rate")
    title = f"ROC, {at_threshold(scores, threshold)}{told}"
    long_headline(figure, title)
    legend(figure, axes)
    alt = f"{title}: hit rate against false alarm rate; with areas: {', '.join(labels.values())}."
    return Drawing(f"roc-{threshold:g}", alt, figure, protocol_hash(scores))


def _area(scores: xr.Dataset, name: str, threshold: float) -> str:
    area = scores.get("roc_area_pooled", scores.get("roc_area"))
    if area is None:
        return ""
    value = area.sel({NOWCASTER: name, THRESHOLD: threshold}).mean().item()
    return f" ({value:.2f})" if np.isfinite(value) else ""


def rank_histogram(scores: xr.Dataset) -> Iterator[Drawing]:
    """Draw, for each ensemble, how often the observed value had each rank among its members.

    Counts by lead time are added; 1 is what a perfect ensemble has in every rank. Pixels at which
    what was observed and all members are the same (``rank_tied``), most of them dry, fill all
    ranks alike and are taken off.
    """
    count = present(scores, "rank_count", NOWCASTER, "rank")
    if count is None:
        return
    if "rank_tied" in scores:
        count = count - scores["rank_tied"] / count.notnull().sum("rank")
    others = [dim for dim in count.dims if dim not in (NOWCASTER, "rank")]
    count = count.sum(others, min_count=1)
    ranks = {name: _ranks(count.sel(nowcaster=name)) for name in defined(count)}
    ranks = {name: values for name, values in ranks.items() if values.size}
    if not ranks:
        return
    columns = min(len(ranks), 2)
    rows = -(-len(ranks) // columns)
    figure, grid = card([], height=0.7 + 1.5 * rows, shape=(rows, columns), sharey=True)
    looks = styles(scores)
    for axes, (name, values) in zip(grid.flat, ranks.items(), strict=False):
        axes.bar(np.arange(values.size), values, width=0.9, color=looks[name]["color"])
        reference_line(axes, 1.0)
        name_plot(axes, name)
        axes.set_xlabel("rank of the observed value", fontsize=8)
    for axes in list(grid.flat)[len(ranks) :]:
        axes.set_axis_off()
    grid[0, 0].set_ylabel("frequency ÷ uniform", fontsize=8)
    title = "Rank histogram"
    long_headline(figure, title)
    ends = "; ".join(
        f"{name}: lowest rank {values[0]:.2f}, middle {values[values.size // 2]:.2f}, "
        f"highest {values[-1]:.2f} of uniform"
        for name, values in ranks.items()
    )
    yield Drawing("rank-histogram", f"{title}. {ends}.", figure, protocol_hash(scores))


def _ranks(count: xr.DataArray) -> npt.NDArray[Any]:
    """Give frequencies over the uniform one; ranks that a smaller ensemble lacks are left out."""
    values = np.asarray(count.dropna("rank").values, np.float64)
    return values / values.mean() if values.sum() > 0 else values[:0]


def spread_skill(scores: xr.Dataset) -> Iterator[Drawing]:
    """Draw the spread of ensembles beside their error, and the ratio of the two."""
    ratio = present(scores, "spread_skill", NOWCASTER, LEAD)
    spread = present(scores, "spread", NOWCASTER, LEAD)
    if ratio is None or spread is None or THRESHOLD in ratio.dims:
        return
    names = defined(ratio)
    figure, ((axes,), (below,)) = card(names, height=4.2, shape=(2, 1), sharex=True)
    leads, unit = lead_values(ratio)
    for name, look in _looks(scores, names).items():
        wide, quotient = (part.sel(nowcaster=name).values for part in (spread, ratio))
        error = np.where(quotient > 0, wide / np.where(quotient > 0, quotient, 1.0), np.nan)
        axes.plot(leads, error, label=spelled(name), **{**look, "linestyle": "-"})
        axes.plot(leads, wide, **{**look, "linestyle": ":"})
        below.plot(leads, quotient, **look)
    units = spell_units(str(scores["spread"].attrs.get("units", "")))
    axes.set_ylabel(f"error (—), spread (···)\n{units}".rstrip(), fontsize=8)
    axes.set_ylim(bottom=0.0)
    below.set_ylabel("spread ÷ error", fontsize=8)
    below.set_ylim(bottom=0.0)
    reference_line(below, 1.0)
    headline(axes, "Spread and error of ensembles")
    label_leads(below, unit)
    legend(figure, axes)
    told = "; ".join(
        f"{name} {ratio.sel(nowcaster=name).mean().item():.2f} on average" for name in names
    )
    alt = f"Spread and error of ensembles against lead time. Spread over error: {told}."
    yield Drawing("spread-skill", alt, figure, protocol_hash(scores))


def regimes(scores: xr.Dataset) -> Iterator[Drawing]:
    """Draw the CSI in each regime, with its number of cases, a card per threshold.

    Where it is by lead time, its mean over them is drawn.
    """
    score = present(scores, "csi_by_regime", NOWCASTER, THRESHOLD, "regime")
    if score is None:
        return
    others = [dim for dim in score.dims if dim not in (NOWCASTER, THRESHOLD, "regime")]
    how = "CSI, mean over lead times" if LEAD in others else "CSI"
    for value in thresholds(score):
        yield _regime_card(scores, score.mean(others).sel({THRESHOLD: value}), value, how)


def _regime_card(scores: xr.Dataset, score: xr.DataArray, threshold: float, how: str) -> Drawing:
    labels, names = _regime_labels(scores, score), defined(score)
    figure, ((axes,),) = card(names, height=0.9 + 0.42 * len(labels))
    offsets = np.linspace(-0.3, 0.3, len(names)) if len(names) > 1 else np.zeros(1)
    band = present(scores, "csi_by_regime_band", "bound", NOWCASTER, THRESHOLD, "regime")
    places = np.arange(len(labels))
    for place in places[::2]:
        axes.axhspan(place - 0.5, place + 0.5, color=GRID_COLOUR, alpha=0.45, linewidth=0)
    for offset, (name, look) in zip(offsets, _looks(scores, names).items(), strict=True):
        values = score.sel(nowcaster=name).values
        axes.plot(
            values,
            places + offset,
            label=spelled(name),
            **{**look, "linestyle": "", "markersize": 5},
        )
        if band is not None and set(band.dims) == {"bound", NOWCASTER, THRESHOLD, "regime"}:
            ends = band.sel({NOWCASTER: name, THRESHOLD: threshold}).sel(bound=["low", "high"])
            axes.hlines(places + offset, *ends.values, color=look["color"], linewidth=1.0)
    axes.set_yticks(places, labels=labels)
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.set_xlim(left=0.0)
    axes.set_xlabel(how, fontsize=8)
    axes.grid(visible=False, axis="y")
    title = f"CSI by regime, {at_threshold(scores, threshold)}"
    long_headline(figure, title)
    legend(figure, axes)
    told = "; ".join(
        f"{label.replace(chr(10), ' ')}: {_best(score.isel(regime=place))}"
        for place, label in enumerate(labels)
    )
    alt = f"{title}. Best in {told}."
    return Drawing(f"regimes-{threshold:g}", alt, figure, protocol_hash(scores))


def _best(score: xr.DataArray) -> str:
    if not bool(score.notnull().any()):
        return "not defined"
    return f"{score.idxmax(NOWCASTER).item()} {score.max().item():.2f}"


def _regime_labels(scores: xr.Dataset, score: xr.DataArray) -> list[str]:
    names = [str(name) for name in score["regime"].values]
    if "cases_by_regime" not in scores:
        return names
    counts = scores["cases_by_regime"].sel(regime=score["regime"]).values.tolist()
    return [
        f"{name}\n{count} case{'s' * (count != 1)}{' (few)' * (count < FEW_CASES)}"
        for name, count in zip(names, counts, strict=True)
    ]


def _unit_square(axes: "Axes", across: str, up: str) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel(across, fontsize=8)
    axes.set_ylabel(up, fontsize=8)


def _looks(scores: xr.Dataset, names: list[str]) -> dict[str, dict[str, Any]]:
    return {name: look for name, look in styles(scores).items() if name in names}
