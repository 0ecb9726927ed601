"""Curves: losses against epochs, and scores against lead times."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from nowcast.durable import replacing
from nowcast.plots.style import (
    GRID_COLOUR,
    LEAD,
    NOWCASTER,
    REFERENCE_COLOUR,
    THRESHOLD,
    Drawing,
    at_threshold,
    band_alpha,
    card,
    defined,
    headline,
    label_columns,
    label_leads,
    lead_unit,
    lead_values,
    legend,
    line_style,
    long_headline,
    painted,
    present,
    protocol_hash,
    reference_line,
    spell_units,
    spelled,
    stamp,
    styles,
    thresholds,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OVERVIEW_DPI = 110
LOSSES = {"loss": "training", "val_loss": "validation"}  # of a learning curve
CATEGORICAL = {"csi": "CSI", "pod": "POD", "far": "FAR", "frequency_bias": "frequency bias"}
CONTINUOUS = {"mae": "MAE", "rmse": "RMSE", "me": "mean error"}
PERFECT = {"frequency_bias": 1.0, "me": 0.0}  # drawn as a line; the others' best is an edge
BIAS_LIMITS = (2 / 3, 1.5)  # of a frequency bias that passes without remark
BIAS_TICKS = (0.1, 0.2, 0.33, 0.5, 0.67, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)
WIDE_BIAS_TICKS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # the axis goes no farther
SIGNIFICANT = 0.05  # of a p-value


@dataclass(frozen=True)
class Curve:
    """A score that is drawn against lead time on a card of its own.

    Parameters
    ----------
    score
        Name of its variable.
    words
        What the card calls it.
    reference
        Level of a line to compare with.
    from_zero
        Whether the axis begins at zero.
    lowest
        Where the axis ends at least, so that one very bad nowcaster leaves room for the others;
        the title then says so.
    """

    score: str
    words: str
    reference: float | None = None
    from_zero: bool = True
    lowest: float | None = None


CSI = Curve("csi", "CSI")
BRIER_SKILL = Curve("brier_skill", "Brier skill", reference=0.0, from_zero=False, lowest=-1.0)
CRPS = Curve("crps", "CRPS")
MINUTES_GAINED = Curve(
    "minutes_gained", "minutes gained over extrapolation", reference=0.0, from_zero=False
)
EFFECTIVE_RESOLUTION = Curve("effective_resolution", "effective resolution")
ERRORS = (
    Curve("mae", "mean absolute error"),
    Curve("rmse", "root mean square error"),
    Curve("me", "mean error", reference=0.0, from_zero=False),
    Curve("correlation", "correlation", from_zero=False),
    Curve("balanced_mae", "balanced absolute error"),
    Curve("balanced_mse", "balanced squared error"),
    Curve("ssim", "structural similarity (SSIM)", from_zero=False),
)

_BOUNDS = ["low", "high"]
_Cell: TypeAlias = tuple[str, xr.DataArray, xr.DataArray | None]  # title, score and its band


def score_curves(scores: xr.Dataset, *, path: Path | str) -> Path:
    """Draw scores against lead time, one line per nowcaster and one small plot per score.

    Where ``<score>_band`` is there, it is drawn about the line.

    Parameters
    ----------
    scores
        Any of ``csi``, ``pod``, ``far``, ``frequency_bias``, dims ``(nowcaster, threshold,
        lead_time)``, and of ``mae``, ``rmse``, ``me``, dims ``(nowcaster, lead_time)``.
    path
        Of the PNG file, replaced if there.

    Returns
    -------
    Path
        The PNG file.

    Raises
    ------
    ValueError
        If there is none of these scores.

    Examples
    --------
    >>> import tempfile
    >>> dims = ("nowcaster", "threshold", "lead_time")
    >>> leads = pd.to_timedelta([10, 20], unit="min")
    >>> coordinates = {"nowcaster": ["persistence"], "threshold": [1.0], "lead_time": leads}
    >>> scores = xr.Dataset({"csi": (dims, [[[0.5, 0.4]]])}, coords=coordinates)
    >>> score_curves(scores, path=Path(tempfile.mkdtemp()) / "scores.png").name
    'scores.png'
    """
    figure = _draw_scores(scores)
    with replacing(path) as temporary:
        painted(figure).save(temporary, "PNG")
    return Path(path)


def learning_curve(history: pd.DataFrame, *, path: Path | str) -> Path:
    """Draw the loss of a training and of its validation against the epoch.

    Parameters
    ----------
    history
        A row per epoch, from 0; columns ``loss`` and ``val_loss``, NaN where they were infinite.
    path
        Of the PNG file, replaced if there.

    Returns
    -------
    Path
        The PNG file.

    Examples
    --------
    >>> import tempfile
    >>> history = pd.DataFrame({"loss": [3.0, 2.0], "val_loss": [3.1, 2.5]})
    >>> learning_curve(history, path=Path(tempfile.mkdtemp()) / "curve.png").name
    'curve.png'
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    losses = history.reindex(columns=list(LOSSES)).astype(float)
    figure = Figure((5.0, 3.2), dpi=OVERVIEW_DPI, layout="constrained")
    axes = figure.subplots()
    for number, (column, label) in enumerate(LOSSES.items()):
        axes.plot(
            losses.index + 1,
            losses[column],
            label=label,
            **line_style(number),
        )
    if losses["val_loss"].notna().any():
        best = losses["val_loss"].idxmin() + 1
        axes.axvline(best, color=REFERENCE_COLOUR, linewidth=0.9, zorder=1, label="best epoch")
    axes.set_xlabel("epoch", fontsize=9)
    axes.set_ylabel("loss", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.tick_params(labelsize=8)
    axes.grid(color=GRID_COLOUR, linewidth=0.6)
    axes.legend(fontsize=9, frameon=False)
    with replacing(path) as temporary:
        painted(figure).save(temporary, "PNG")
    return Path(path)


def _draw_scores(scores: xr.Dataset) -> "Figure":
    from matplotlib.figure import Figure

    cells = _score_cells(scores)
    rows, columns = len(cells), max(map(len, cells))
    figure = Figure((columns * 2.5 + 1.8, rows * 2.1 + 0.6), dpi=OVERVIEW_DPI, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for line, row in zip(grid, cells, strict=True):
        for axes, (title, score, band) in zip(line, row, strict=False):
            _draw_score(axes, score, band)
            axes.set_title(title, fontsize=9)
    unit = lead_unit(pd.TimedeltaIndex(scores[LEAD].to_index()))
    label_columns(grid, [len(row) for row in cells], f"lead time ({unit})")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize=9, frameon=False)
    stamp(figure, protocol_hash(scores))
    return figure


def _score_cells(scores: xr.Dataset) -> list[list[_Cell]]:
    """Give one row of titled scores per threshold, and one of those without threshold."""
    categorical = [name for name in CATEGORICAL if name in scores]
    cells = [
        [
            (
                f"{CATEGORICAL[name]}, {at_threshold(scores, float(value))}",
                scores[name].sel({THRESHOLD: value}),
                _band(scores, name, **{THRESHOLD: value}),
            )
            for name in categorical
        ]
        for value in (scores[THRESHOLD].values if categorical else ())
    ]
    cells.append(
        [
            (f"{words}{_in_units(scores[name])}", scores[name], _band(scores, name))
            for name, words in CONTINUOUS.items()
            if name in scores
        ]
    )
    cells = [row for row in cells if row]
    if not cells:
        raise ValueError(
            f"none of the scores {[*CATEGORICAL, *CONTINUOUS]} is there; "
            f"the dataset has {sorted(map(str, scores))}"
        )
    return cells


def _in_units(score: xr.DataArray) -> str:
    units = spell_units(str(score.attrs.get("units", "")))
    return f" ({units})" if units not in ("", "1") else ""


def _band(scores: xr.Dataset, name: str, **where: float) -> xr.DataArray | None:
    band = present(scores, f"{name}_band", "bound", NOWCASTER)
    return None if band is None else band.sel(where)


def _draw_score(axes: "Axes", score: xr.DataArray, band: xr.DataArray | None) -> None:
    looks = styles(score.to_dataset(name="score"))
    _draw_lines(axes, score, band, looks)
    name = str(score.name)
    if name in PERFECT:
        reference_line(axes, PERFECT[name])
    if name in ("csi", "pod", "far"):
        axes.set_ylim(-0.02, 1.02)
    elif name != "me":
        axes.set_ylim(bottom=0.0)
    axes.tick_params(labelsize=8)
    axes.grid(color=GRID_COLOUR, linewidth=0.6)


def _draw_lines(
    axes: "Axes",
    score: xr.DataArray,
    band: xr.DataArray | None,
    looks: dict[str, dict[str, Any]],
) -> None:
    """Draw a line per nowcaster with its band; dims ``(nowcaster, lead_time)``."""
    leads, _ = lead_values(score)
    alpha = band_alpha(len(looks))
    for name, look in looks.items():
        values = score.sel({NOWCASTER: name}).transpose(LEAD).values
        axes.plot(leads, values, label=spelled(name), **look)
        if band is None:
            continue
        edges = band.sel({NOWCASTER: name}).transpose("bound", LEAD).sel(bound=_BOUNDS).values
        low, high = np.where(np.isfinite(values), edges, np.nan)
        if leads.size > 1:
            axes.fill_between(leads, low, high, color=look["color"], alpha=alpha, linewidth=0)
        else:
            axes.vlines(leads, low, high, color=look["color"], linewidth=1.0)


def by_lead_time(scores: xr.Dataset, curve: Curve) -> Iterator[Drawing]:
    """Draw a score against lead time: a card per threshold, or one if it is of none.

    A single lead time is drawn as points. Nothing is drawn of a score that is nowhere defined.
    """
    score = present(scores, curve.score, NOWCASTER, LEAD)
    if score is None:
        return
    if THRESHOLD not in score.dims:
        yield _curve_card(scores, curve, score, _band(scores, curve.score), None)
        return
    for value in thresholds(score):
        where = {THRESHOLD: value}
        band = _band(scores, curve.score, **where)
        yield _curve_card(scores, curve, score.sel(where), band, value)


def _curve_card(
    scores: xr.Dataset,
    curve: Curve,
    score: xr.DataArray,
    band: xr.DataArray | None,
    threshold: float | None,
) -> Drawing:
    names = defined(score)
    figure, ((axes,),) = card(names)
    looks = styles(scores)
    _draw_lines(axes, score, band, {name: looks[name] for name in names})
    if curve.reference is not None:
        reference_line(axes, curve.reference)
    if curve.from_zero:
        axes.set_ylim(bottom=0.0)
    title = f"{curve.words[:1].upper()}{curve.words[1:]}"
    title += _in_units(score) if threshold is None else f", {at_threshold(scores, threshold)}"
    if curve.lowest is not None and axes.get_ylim()[0] < curve.lowest:
        axes.set_ylim(bottom=curve.lowest)
        title += f" (axis from {curve.lowest:g})"
    if threshold is not None and _in_units(score):
        axes.set_ylabel(spell_units(score.attrs["units"]), fontsize=8)
    headline(axes, title)
    label_leads(axes, lead_values(score)[1])
    legend(figure, axes)
    return Drawing(
        _file_name(curve.score, threshold), _told(title, score), figure, protocol_hash(scores)
    )


def _file_name(score: str, threshold: float | None) -> str:
    stem = score.replace("_", "-")
    return stem if threshold is None else f"{stem}-{threshold:g}"


def _told(title: str, score: xr.DataArray) -> str:
    """Say what a curve card shows: for each nowcaster the first and the last value."""
    leads, unit = lead_values(score)
    told = []
    for name in defined(score):
        values = score.sel({NOWCASTER: name}).transpose(LEAD).values
        known = np.flatnonzero(np.isfinite(values))
        if known.size:
            first, last = known[0], known[-1]
            told.append(
                f"{name} {values[first]:.3g} at {leads[first]:g} {unit}"
                + (f", {values[last]:.3g} at {leads[last]:g} {unit}" if last > first else "")
            )
    return f"{title} against lead time. {'; '.join(told)}."


def frequency_bias(scores: xr.Dataset) -> Iterator[Drawing]:
    """Draw the frequency bias against lead time on a logarithmic axis, a card per threshold."""
    score = present(scores, "frequency_bias", NOWCASTER, THRESHOLD, LEAD)
    if score is None:
        return
    for value in thresholds(score):
        where = {THRESHOLD: value}
        drawing = _curve_card(
            scores,
            Curve("frequency_bias", "frequency bias", reference=1.0, from_zero=False),
            score.sel(where),
            _band(scores, "frequency_bias", **where),
            value,
        )
        _scale_bias(drawing.figure.axes[0], score.sel(where).values)
        yield drawing


def _scale_bias(axes: "Axes", values: npt.NDArray[Any]) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    shown = values[np.isfinite(values) & (values > 0)]
    low = max(min(0.45, float(shown.min(initial=1.0)) / 1.15), WIDE_BIAS_TICKS[0])
    high = min(max(2.2, float(shown.max(initial=1.0)) * 1.15), WIDE_BIAS_TICKS[-1])
    narrow = BIAS_TICKS[0] < low and high < BIAS_TICKS[-1]
    ticks = BIAS_TICKS if narrow else WIDE_BIAS_TICKS
    axes.set_yscale("log")
    axes.set_yticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(low, high)
    for limit in BIAS_LIMITS:
        reference_line(axes, limit, "--")


def gains(scores: xr.Dataset) -> Iterator[Drawing]:
    """Draw the gain in CSI over each reference, with paired bands: a card per threshold.

    A filled marker tells a gain or loss that is significant after Holm's correction. Of two
    references the first is not drawn over the second, which says the same again.
    """
    gain = present(scores, "csi_gain", NOWCASTER, "reference", THRESHOLD, LEAD)
    if gain is None:
        return
    references = gain["reference"].values
    for place, reference in enumerate(references):
        again = gain[NOWCASTER].isin(references[:place]) & (gain["reference"] == reference)
        gain = gain.where(~again)
    for value in thresholds(gain):
        yield _gain_card(scores, gain.sel({THRESHOLD: value}), value)


def _gain_card(scores: xr.Dataset, gain: xr.DataArray, threshold: float) -> Drawing:
    references = [
        str(name) for name in gain["reference"].values if gain.sel(reference=name).notnull().any()
    ]
    names = defined(gain)
    figure, grid = card(
        names, height=0.8 + 1.35 * len(references), shape=(len(references), 1), sharex=True
    )
    _, unit = lead_values(gain)
    for (axes,), reference in zip(grid, references, strict=True):
        where = {"reference": reference, THRESHOLD: threshold}
        band = present(scores, "csi_gain_band", "bound", NOWCASTER, "reference")
        looks = {name: look for name, look in styles(scores).items() if name in names}
        _draw_lines(
            axes, gain.sel(reference=reference), None if band is None else band.sel(where), looks
        )
        _hollow(axes, scores, where, names)
        reference_line(axes, 0.0)
        axes.set_title(f"over {spelled(reference)}", fontsize=8.5, loc="left")
    title = f"Gain in CSI, {at_threshold(scores, threshold)}"
    long_headline(figure, title)
    label_leads(grid[-1, 0], unit)
    legend(figure, grid[0, 0])
    told = " ".join(
        _told(f"Over {name}:", gain.sel(reference=name)).replace(" against lead time.", "")
        for name in references
    )
    name = _file_name("csi_gain", threshold)
    return Drawing(name, f"{title}. {told}", figure, protocol_hash(scores))


def _hollow(axes: "Axes", scores: xr.Dataset, where: dict[str, Any], names: list[str]) -> None:
    """Empty the markers of what is not significant: all of them, where nothing was tested."""
    tested = present(scores, "csi_gain_p_holm", NOWCASTER, "reference", THRESHOLD, LEAD)
    for line, name in zip(list(axes.lines), names, strict=True):
        values = np.asarray(line.get_ydata(), np.float64)
        sure = np.zeros(values.size, bool)
        if tested is not None:
            sure = tested.sel({NOWCASTER: name, **where}).values < SIGNIFICANT
        leads = np.asarray(line.get_xdata(), np.float64)
        axes.plot(
            leads[~sure],
            values[~sure],
            linestyle="",
            marker=line.get_marker(),
            markersize=3.5,
            markeredgecolor=line.get_color(),
            markerfacecolor="white",
            zorder=3,
        )
