"""How figures of scores look: one style per nowcaster, one card per figure.

A card is as wide as a phone shows without shrinking its letters; a wide screen sets several of
them side by side.
"""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

# Okabe and Ito (2008), without the yellow, which is faint on white, and with black kept for what
# was observed.
LINE_COLOURS = ("#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6e6e6e")
OBSERVED_COLOUR = "#000000"
LINE_STYLES = ("-", "--", "-.", ":")
MARKERS = "os^DvPX*"  # one more than colours, so that the eighth line has another
REFERENCE_COLOUR = "#707070"  # of lines to compare with
GRID_COLOUR = "#e5e5e5"
BAND_ALPHA, BANDS_ALPHA = 0.15, 0.45  # at most of one band, and of all that may lie over each other

CARD_INCHES = 4.2  # width
CARD_DPI = 170  # 714 pixels: sharp where a phone shows 360 points of them
CARD_COLOURS = 256  # of the palette: less than half of the bytes
COMPRESSION = 8  # of 9: a third of the time of the last, for one byte in a hundred
REFINEMENTS = 2  # of the palette; without them faint bands may take the hue of others
POINTS_PER_INCH = 72.0
LEGEND_ROW_INCHES = 0.17
STAMP_DIGITS = 12  # of the protocol's hash

MOST_LETTERS = 42  # of a name in a legend

LEAD, NOWCASTER, THRESHOLD = "lead_time", "nowcaster", "threshold"


@dataclass(frozen=True)
class Drawing:
    """One figure of scores.

    Parameters
    ----------
    name
        Of its file, without suffix.
    alt
        What it shows, for those who do not see it.
    figure
        Drawn and not yet saved.
    protocol
        Hash of the protocol of its scores.
    """

    name: str
    alt: str
    figure: "Figure"
    protocol: str

    def png(self, dpi: int = CARD_DPI) -> bytes:
        """Give it as PNG, with the protocol's hash at its edge and in its text chunks."""
        from PIL.PngImagePlugin import PngInfo

        stamp(self.figure, self.protocol)
        self.figure.set_dpi(dpi)
        small, about = io.BytesIO(), PngInfo()
        about.add_text("Description", self.alt.encode("ascii", "replace").decode())
        about.add_text("protocol_sha256", self.protocol)
        picture = _with_palette(painted(self.figure))
        picture.save(small, "PNG", compress_level=COMPRESSION, pnginfo=about)
        return small.getvalue()


def painted(figure: "Figure") -> "Image":
    """Draw a figure once; `savefig` draws it twice, and compresses the picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas: Any = FigureCanvasAgg(figure)  # its methods are not typed
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _with_palette(picture: "Image") -> "Image":
    """Give a picture in few colours.

    They are chosen among the colours that it has, a few thousand, and not among its pixels, a
    hundred times as many: each colour counts by the root of how often it is there.
    """
    from PIL import Image

    pixels = np.asarray(picture)
    found: Any = picture.getcolors(picture.width * picture.height)
    colours = np.array([colour for _, colour in found], np.uint8)
    times = np.ceil(np.sqrt([count for count, _ in found])).astype(int)
    chosen = Image.fromarray(np.repeat(colours, times, axis=0)[np.newaxis]).quantize(
        CARD_COLOURS,
        method=Image.Quantize.MAXCOVERAGE,
        kmeans=REFINEMENTS,
        dither=Image.Dither.NONE,
    )
    place = np.zeros(1 << 24, np.uint8)
    place[_whole(colours)] = np.asarray(chosen)[0, np.cumsum(times) - 1]
    small = Image.fromarray(place[_whole(pixels)])
    small.putpalette(chosen.getpalette() or [])
    return small


def _whole(colours: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Give red, green and blue, in the last dim, as one number."""
    return colours.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)


def stamp(figure: "Figure", protocol: str) -> None:
    """Write the first digits of a protocol's hash up the right edge of a figure."""
    if protocol:
        figure.text(
            0.998,
            0.02,
            f"protocol {protocol[:STAMP_DIGITS]}",
            fontsize=5.5,
            color=REFERENCE_COLOUR,
            rotation=90,
            ha="right",
            va="bottom",
        )


def protocol_hash(scores: xr.Dataset) -> str:
    """Give the hash of the protocol that scores are stamped with; empty if they are not."""
    return str(scores.attrs.get("protocol_sha256", ""))


def line_style(number: int) -> dict[str, Any]:
    """Give colour, dashes and marker of the line of a number; the first 56 differ.

    Examples
    --------
    >>> line_style(1)["color"], line_style(8)["color"], line_style(8)["linestyle"]
    ('#0072b2', '#0072b2', '-')
    """
    return {
        "color": LINE_COLOURS[number % len(LINE_COLOURS)],
        "linestyle": LINE_STYLES[number % len(LINE_STYLES)],
        "marker": MARKERS[number % len(MARKERS)],
        "markersize": 3.5,
        "linewidth": 1.4,
    }


def styles(scores: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Give the style of each nowcaster, the same in every figure of these scores."""
    return {str(name): line_style(number) for number, name in enumerate(scores[NOWCASTER].values)}


def band_alpha(count: int) -> float:
    """Give the opacity of each of so many bands: all together must leave the lines to be seen."""
    return min(BAND_ALPHA, BANDS_ALPHA / max(count, 1))


def spelled(name: str) -> str:
    r"""Give a name as matplotlib shows it letter by letter: no formula, not hidden, not too long.

    Examples
    --------
    >>> spelled("a$b$"), spelled("_first"), len(spelled("x" * 99))
    ('a\\$b\\$', ' _first', 42)
    """
    short = (
        name if len(name) <= MOST_LETTERS else f"{name[: MOST_LETTERS - 1]}\N{HORIZONTAL ELLIPSIS}"
    )
    return (" " if short.startswith("_") else "") + short.replace("$", r"\$")


def present(scores: xr.Dataset, name: str, *dims: str) -> xr.DataArray | None:
    """Give a score if it is there, has all of these dims, and is defined anywhere.

    The dims named come first, in this order.
    """
    if name not in scores or not set(dims) <= set(scores[name].dims):
        return None
    score = scores[name]
    return score.transpose(*dims, ...) if bool(score.notnull().any()) else None


def defined(score: xr.DataArray) -> list[str]:
    """Name the nowcasters for whom a score is defined anywhere."""
    others = [dim for dim in score.dims if dim != NOWCASTER]
    there = score.notnull().any(others)
    return [str(name) for name in score[NOWCASTER].values[there.values]]


def thresholds(score: xr.DataArray) -> list[float]:
    """Give the thresholds for which a score is defined anywhere."""
    there = score.notnull().any([dim for dim in score.dims if dim != THRESHOLD])
    return [float(at) for at in score[THRESHOLD].values[there.values]]


def at_threshold(scores: xr.Dataset, threshold: float) -> str:
    """Say which events are meant, as in ``≥ 1 mm h⁻¹``."""
    units = spell_units(str(scores[THRESHOLD].attrs.get("units", "")))
    return f"≥ {threshold:g} {units}".rstrip()


def lead_values(score: xr.DataArray | xr.Dataset) -> tuple[npt.NDArray[np.float64], str]:
    """Give lead times as numbers, and their unit."""
    leads = pd.TimedeltaIndex(score[LEAD].to_index())
    unit = lead_unit(leads)
    return np.asarray(leads / pd.Timedelta(1, unit), np.float64), unit


def lead_unit(lead_times: pd.TimedeltaIndex) -> str:
    """Give the unit that lead times are told in: hours if all are whole hours, else minutes."""
    return "min" if (lead_times % pd.Timedelta(1, "h")).any() else "h"


def spell_units(units: str) -> str:
    """Give units with raised powers.

    Examples
    --------
    >>> spell_units("mm h-1"), spell_units("(mm h-1)2")
    ('mm h⁻¹', '(mm h⁻¹)²')
    """
    raised = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
    return re.sub(r"(?<=[A-Za-z)])-?\d+", lambda found: found.group().translate(raised), units)


def card(
    names: Sequence[str], *, height: float = 2.9, shape: tuple[int, int] = (1, 1), **settings: Any
) -> tuple["Figure", npt.NDArray[Any]]:
    """Open a figure of one card's width.

    Parameters
    ----------
    names
        What its legend will list, which needs room.
    height
        Of all but the legend, in inches.
    shape
        Rows and columns of plots.
    settings
        Of `matplotlib.figure.Figure.subplots`.

    Returns
    -------
    figure, axes
        The second with dims ``(row, column)``.
    """
    from matplotlib.figure import Figure

    rows = -(-len(names) // _columns(names)) if names else 0
    size = (CARD_INCHES, height + LEGEND_ROW_INCHES * rows)
    figure = Figure(size, dpi=CARD_DPI, layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0, 0, 0.975, 1), h_pad=0.07)  # the rest of the width is for the stamp
    axes = figure.subplots(*shape, squeeze=False, **settings)
    for one in axes.flat:
        one.tick_params(labelsize=8)
        one.grid(color=GRID_COLOUR, linewidth=0.6)
        one.set_axisbelow(True)
    return figure, axes


def legend(figure: "Figure", axes: "Axes") -> None:
    """Name the lines of a card below it, each once."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=_columns(labels),
            fontsize=8,
            frameon=False,
            borderaxespad=0.1,
            columnspacing=1.2,
            handlelength=2.6,
            labelspacing=0.25,
        )


def _columns(names: Sequence[str]) -> int:
    room = CARD_INCHES * POINTS_PER_INCH - 12.0
    return int(np.clip(room // (max(map(len, names)) * 4.7 + 38.0), 1, 3))


def headline(axes: "Axes", title: str) -> None:
    """Write the title of a card; a long one in smaller letters."""
    room = CARD_INCHES * POINTS_PER_INCH - 45.0
    size = min(10.0, room / (0.6 * max(len(title), 1)))
    axes.set_title(title, fontsize=size, fontweight="bold", loc="left")


def name_plot(axes: "Axes", name: str) -> None:
    """Write a name above one of two plots of a row; a long one in smaller letters."""
    room = CARD_INCHES * POINTS_PER_INCH / 2 - 30.0
    size = min(8.5, room / (0.6 * max(len(name), 1)))
    axes.set_title(spelled(name), fontsize=size, loc="left")


def long_headline(figure: "Figure", title: str) -> None:
    """Write the title of a card of several plots, or of one with labels above its plot."""
    figure.suptitle(title, x=0.02, ha="left", fontsize=10, fontweight="bold")


def reference_line(axes: "Axes", value: float, style: str = "-") -> None:
    """Draw a level to compare with, behind the lines."""
    axes.axhline(value, color=REFERENCE_COLOUR, linewidth=0.9, linestyle=style, zorder=1)


def label_leads(axes: "Axes", unit: str) -> None:
    """Name the axis of lead times, at round numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(f"lead time ({unit})", fontsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 1.5, 2, 3, 5, 6, 10]))


def label_columns(grid: npt.NDArray[Any], lengths: list[int], label: str) -> None:
    """Hide the axes beyond the end of each row; label the lowest left in each column."""
    for column, line in enumerate(grid.T):
        drawn = [axes for axes, length in zip(line, lengths, strict=True) if column < length]
        for axes in set(line) - set(drawn):
            axes.set_axis_off()
        drawn[-1].set_xlabel(label, fontsize=8)
        drawn[-1].tick_params(labelbottom=True)
