"""Skill and power by scale: FSS and intensity-scale maps, spectra."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from nowcast.plots.curves import EFFECTIVE_RESOLUTION, by_lead_time
from nowcast.plots.style import (
    LEAD,
    NOWCASTER,
    OBSERVED_COLOUR,
    THRESHOLD,
    Drawing,
    at_threshold,
    card,
    defined,
    headline,
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
    from matplotlib.figure import Figure

COMPONENT = "component_scale"
SKILL_COLOURS = "cividis"  # one hue order and one lightness order for every colour vision
SIGNED_COLOURS = "PuOr"
HALF_POWER = 0.5  # below which a scale counts as lost in the effective resolution
RATIO_TICKS = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
MAP_HEIGHT_INCHES = 1.45
MOST_TICKS = 7
SHOWN_LEADS = (0.0, 0.5, 1.0)  # of the lead times, from the first to the last


def fss_map(scores: xr.Dataset) -> Iterator[Drawing]:
    """Draw FSS by scale and lead time, a card per threshold and a map per nowcaster.

    The white line bounds what is useful: above it the score reaches ``fss_useful``, half of the
    way from a random to a perfect forecast; see doi:10.1175/2007MWR2123.1.
    """
    fss = present(scores, "fss", NOWCASTER, THRESHOLD, "scale", LEAD)
    if fss is None:
        return
    for value in thresholds(fss):
        yield _fss_card(scores, fss.sel({THRESHOLD: value}), value)


def _fss_card(scores: xr.Dataset, fss: xr.DataArray, threshold: float) -> Drawing:
    useful = present(scores, "fss_useful", THRESHOLD)
    names, (leads, unit) = defined(fss), lead_values(fss)
    figure, grid = _maps(len(names))
    told = []
    for axes, name in zip(grid.flat, names, strict=False):
        field = fss.sel(nowcaster=name).transpose("scale", LEAD)
        drawn = _draw_field(axes, field.values, SKILL_COLOURS, (0.0, 1.0))
        name_plot(axes, name)
        _tick(axes, "x", leads)
        _tick(axes, "y", fss["scale"].values)
        told.append(f"{name} {field.min().item():.2f} to {field.max().item():.2f}")
        if useful is not None:
            limit = useful.sel({THRESHOLD: threshold})
            limit = limit.sel(nowcaster=name) if NOWCASTER in limit.dims else limit
            _draw_useful(axes, (field - limit).transpose("scale", LEAD).values)
    title = f"FSS by scale, {at_threshold(scores, threshold)}"
    _finish_maps(
        figure, grid, drawn, title, (f"lead time ({unit})", "scale (km)"), "fractions skill score"
    )
    alt = f"{title}: maps of the fractions skill score by scale and lead time: {'; '.join(told)}."
    return Drawing(f"fss-{threshold:g}", alt, figure, protocol_hash(scores))


def intensity_scale(scores: xr.Dataset) -> Iterator[Drawing]:
    """Draw the intensity-scale skill by threshold and component, a map per nowcaster.

    Of skill by lead time, that of the middle one is drawn. See doi:10.1017/S1350482704001239.
    """
    skill = present(scores, "intensity_scale_skill_pooled", NOWCASTER, THRESHOLD, COMPONENT)
    told = ""
    if skill is None:
        skill = present(scores, "intensity_scale_skill", NOWCASTER, THRESHOLD, COMPONENT)
    if skill is None:
        return
    if LEAD in skill.dims:
        leads, unit = lead_values(skill)
        middle = (len(leads) - 1) // 2
        skill, told = skill.isel({LEAD: middle}), f", +{leads[middle]:g} {unit}"
    names = defined(skill)
    if not names:
        return
    figure, grid = _maps(len(names))
    for axes, name in zip(grid.flat, names, strict=False):
        field = skill.sel(nowcaster=name).transpose(COMPONENT, THRESHOLD).values
        drawn = _draw_field(axes, field, SIGNED_COLOURS, (-1.0, 1.0))
        name_plot(axes, name)
        _tick(axes, "x", skill[THRESHOLD].values)
        _tick(axes, "y", skill[COMPONENT].values)
    title = f"Skill by intensity and scale{told}"
    units = spell_units(str(scores[THRESHOLD].attrs.get("units", "")))
    across = f"threshold ({units})" if units else "threshold"
    _finish_maps(figure, grid, drawn, title, (across, "scale (km)"), "skill; 0 is that of chance")
    ranges = "; ".join(
        f"{name} {skill.sel(nowcaster=name).min().item():.2f} to "
        f"{skill.sel(nowcaster=name).max().item():.2f}"
        for name in names
    )
    yield Drawing("intensity-scale", f"{title}: {ranges}.", figure, protocol_hash(scores))


def spectra(scores: xr.Dataset) -> Iterator[Drawing]:
    """Draw power spectra at the first, middle and last lead time, and their ratio to the observed.

    A card per lead time; observed in black.
    """
    power = present(scores, "power", NOWCASTER, LEAD, "wavelength")
    observed = present(scores, "observed_power", "wavelength")
    if power is None or observed is None:
        return
    count = power.sizes[LEAD]
    for place in sorted({int(part * (count - 1)) for part in SHOWN_LEADS}):
        at_lead = observed.isel({LEAD: place}) if LEAD in observed.dims else observed
        at_lead = at_lead.max(NOWCASTER) if NOWCASTER in at_lead.dims else at_lead
        if bool(at_lead.notnull().any()):
            yield _spectrum_card(scores, power.isel({LEAD: place}), at_lead, place)


def _spectrum_card(
    scores: xr.Dataset, power: xr.DataArray, observed: xr.DataArray, place: int
) -> Drawing:
    names, wavelength = defined(power), power["wavelength"].values
    figure, ((axes,), (below,)) = card(
        ["observed", *names],
        height=4.6,
        shape=(2, 1),
        sharex=True,
        gridspec_kw={"height_ratios": (1.5, 1)},
    )
    axes.plot(
        wavelength,
        observed.values,
        color=OBSERVED_COLOUR,
        linewidth=2.2,
        label="observed",
        zorder=3,
    )
    told = []
    for name in names:
        look = {**styles(scores)[name], "marker": ""}
        values = power.sel(nowcaster=name).values
        ratio = values / np.where(observed.values > 0, observed.values, np.nan)
        axes.plot(wavelength, values, label=spelled(name), **look)
        below.plot(wavelength, ratio, **look)
        shortest = ratio[np.nanargmin(np.where(np.isfinite(ratio), wavelength, np.inf))]
        told.append(f"{name} {shortest:.2g}")
    _draw_power_axes(axes, below, str(scores["power"].attrs.get("units", "")))
    leads, unit = lead_values(scores)
    title = f"Power spectra, +{leads[place]:g} {unit}"
    headline(axes, title)
    legend(figure, axes)
    alt = (
        f"{title}: power against wavelength, and its ratio to the observed; at the shortest "
        f"wavelength: {'; '.join(told)}."
    )
    name = f"spectra-{leads[place]:g}{unit}"
    return Drawing(name, alt, figure, protocol_hash(scores))


def _draw_power_axes(axes: "Axes", below: "Axes", units: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    for one in (axes, below):
        one.set_xscale("log")
        one.set_yscale("log")
    axes.invert_xaxis()  # shared: large scales at the left
    for axis in (axes.xaxis, below.xaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    low, high = below.get_ylim()
    below.set_yticks(RATIO_TICKS, labels=[f"{tick:g}" for tick in RATIO_TICKS])
    below.yaxis.set_minor_locator(NullLocator())
    below.set_ylim(np.clip(low, RATIO_TICKS[0], 0.25), np.clip(high, 1.6, RATIO_TICKS[-1]))
    reference_line(below, 1.0)
    reference_line(below, HALF_POWER, "--")
    below.set_xlabel("wavelength (km)", fontsize=8)
    known = units not in ("", "1")
    axes.set_ylabel(f"power ({spell_units(units)})" if known else "power", fontsize=8)
    below.set_ylabel("÷ observed", fontsize=8)


def effective_resolution(scores: xr.Dataset) -> Iterator[Drawing]:
    """Draw effective resolution against lead time; dashed, the shortest wavelength observed."""
    for drawing in by_lead_time(scores, EFFECTIVE_RESOLUTION):
        if "wavelength" in scores.coords:
            shortest = float(scores["wavelength"].min())
            reference_line(drawing.figure.axes[0], shortest, "--")
        yield drawing


def _maps(count: int) -> tuple["Figure", Any]:
    columns = min(count, 2)
    rows = -(-count // columns)
    return card(
        [],
        height=1.3 + MAP_HEIGHT_INCHES * rows,
        shape=(rows, columns),
        sharex=True,
        sharey=True,
    )


def _draw_field(axes: "Axes", values: Any, colours: str, limits: tuple[float, float]) -> Any:
    """Draw a field cell by cell; what is not defined is left in grey."""
    axes.grid(visible=False)
    axes.set_facecolor("#d9d9d9")
    return axes.imshow(
        np.ma.masked_invalid(values),
        origin="lower",
        aspect="auto",
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        interpolation="nearest",
    )


def _draw_useful(axes: "Axes", above: Any) -> None:
    from matplotlib.patheffects import withStroke

    if min(above.shape) < 2 or not np.isfinite(above).any():
        return
    if np.nanmin(above) < 0.0 <= np.nanmax(above):
        line = axes.contour(np.ma.masked_invalid(above), levels=[0.0], colors="white")
        line.set(linewidth=2.0, path_effects=[withStroke(linewidth=3.4, foreground="black")])


def _tick(axes: "Axes", side: str, values: Any) -> None:
    """Label the cells along a side, and leave out labels that would not fit."""
    places = np.arange(len(values))[:: -(-len(values) // MOST_TICKS)]
    if side == "x" and len(values) > 1:
        places = np.arange(len(values))[::-1][:: -(-len(values) // 5)][::-1]
    set_ticks = axes.set_xticks if side == "x" else axes.set_yticks
    set_ticks(places, labels=[f"{values[place]:g}" for place in places])


def _finish_maps(
    figure: "Figure", grid: Any, drawn: Any, title: str, sides: tuple[str, str], label: str
) -> None:
    for axes in grid.flat:
        if not axes.images:
            axes.set_axis_off()
    for column in grid.T:
        lowest = [axes for axes in column if axes.images][-1]
        lowest.set_xlabel(sides[0], fontsize=8)
        lowest.tick_params(labelbottom=True)
    for row in grid:
        row[0].set_ylabel(sides[1], fontsize=8)
    bar = figure.colorbar(
        drawn, ax=list(grid.flat), location="bottom", aspect=30, shrink=0.9, pad=0.02
    )
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=8)
    long_headline(figure, title)
