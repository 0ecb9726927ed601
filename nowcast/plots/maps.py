"""Maps: the nowcast from one base time beside what was observed, still and moving."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from nowcast.conventions import METRES, RAIN_RATE, check_nowcast, variable_of
from nowcast.durable import replacing
from nowcast.frames import step_of
from nowcast.plots.style import label_columns, lead_unit, painted, spell_units

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from PIL.Image import Image

# Blues for light, yellow to purple for heavy rain: neighbours differ for every colour vision, and
# none is near the grey of missing or the white of dry; a test measures it.
RAIN_THRESHOLDS = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)  # mm/h, where each colour begins
RAIN_COLOURS = (
    "#c9e3f8", "#86bdea", "#3d8fd1", "#14529c", "#ffe566", "#fb9a32", "#d33a2c", "#5c0f4f",
)  # fmt: skip
DRY_COLOUR = "#ffffff"
MISSING_COLOUR = "#bdbdbd"
HATCH_COLOUR = "#a0a0a0"
CONTINUOUS_COLOURS = "viridis"

MINUS = "\N{MINUS SIGN}"
MARGIN = 0.02  # of the longer side, left around what is not missing
MOST_COLUMNS = 6  # of a panel
FEWEST_INPUTS = 4  # frames up to the base time that are shown, even if fewer were used
MAP_INCHES = 2.3  # width of one map of a panel
POINTS_PER_INCH = 72.0
CHARACTER_WIDTH = 0.62  # of the font's size, on average and with a little room
PANEL_DPI = 110
ANIMATION_INCHES = 4.2  # width of one map of an animation
ANIMATION_DPI = 90
OBSERVED_MS, NOWCAST_MS, LAST_MS = 350, 500, 1500  # how long an animation shows a frame
_Cell: TypeAlias = tuple[str, npt.NDArray[Any] | None]  # a title and a field, if there is one
_Rows: TypeAlias = dict[str, list[_Cell]]


def panel(observed: xr.Dataset, nowcast: xr.Dataset, *, path: Path | str) -> Path:
    """Draw the nowcast from one base time beside what it was made from and what came.

    The first row shows the last frames up to the base time; below come, column by column for one
    valid time, what was observed afterwards (where `observed` holds it) and the nowcast. At most
    six lead times are shown, evenly spaced and the last among them. Of an ensemble the mean is
    drawn. Margins in which all is missing are cut off.

    Parameters
    ----------
    observed
        Dims ``(time, y, x)``.
    nowcast
        One base time; dims ``(base_time, [member,] lead_time, y, x)``.
    path
        Of the PNG file, replaced if there.

    Returns
    -------
    Path
        The PNG file.

    Examples
    --------
    >>> import tempfile
    >>> from nowcast.data.synthetic import synthesise
    >>> from nowcast.nowcasters import open_nowcaster
    >>> observed = synthesise(hours=1, size=16)
    >>> nowcast = open_nowcaster("persistence").nowcast(
    ...     observed,
    ...     base_times=observed["time"].to_index()[3:4],
    ...     lead_times=pd.to_timedelta([10], unit="min"),
    ... )
    >>> panel(observed, nowcast, path=Path(tempfile.mkdtemp()) / "panel.png").name
    'panel.png'
    """
    story = _Story(observed, nowcast)
    leads = _evenly(story.lead_times, MOST_COLUMNS)
    rows: _Rows = {}
    if len(story.inputs):
        rows["observed"] = [(story.label(time), story.observed_at(time)) for time in story.inputs]
    later = [(story.label(time), story.observed_at(time)) for time in story.base_time + leads]
    if any(field is not None for _, field in later):
        rows["observed later"] = later
    rows[story.made_by] = [
        (story.label(story.base_time + lead), story.nowcast_at(lead)) for lead in leads
    ]
    figure = _draw_rows(story, rows)
    with replacing(path) as temporary:
        painted(figure).save(temporary, "PNG")
    return Path(path)


def animation(observed: xr.Dataset, nowcast: xr.Dataset, *, path: Path | str) -> Path:
    """Draw the input frames and then the nowcast as an animated GIF that loops.

    Where `observed` holds frames after the base time, two maps run side by side: what was
    observed, and the nowcast. Of an ensemble the mean is drawn.

    Parameters
    ----------
    observed
        Dims ``(time, y, x)``.
    nowcast
        One base time; dims ``(base_time, [member,] lead_time, y, x)``.
    path
        Of the GIF file, replaced if there.

    Returns
    -------
    Path
        The GIF file.

    Examples
    --------
    >>> import tempfile
    >>> from nowcast.data.synthetic import synthesise
    >>> from nowcast.nowcasters import open_nowcaster
    >>> observed = synthesise(hours=1, size=16)
    >>> nowcast = open_nowcaster("persistence").nowcast(
    ...     observed,
    ...     base_times=observed["time"].to_index()[3:4],
    ...     lead_times=pd.to_timedelta([10], unit="min"),
    ... )
    >>> animation(observed, nowcast, path=Path(tempfile.mkdtemp()) / "loop.gif").name
    'loop.gif'
    """
    from PIL.Image import Dither

    story = _Story(observed, nowcast)
    palette = _palette(story.scale)
    first, *rest = [
        frame.quantize(palette=palette, dither=Dither.NONE) for frame in _animation_frames(story)
    ]
    inputs, leads = len(story.inputs), len(story.lead_times)
    durations = [OBSERVED_MS] * inputs + [NOWCAST_MS] * (leads - 1) + [LAST_MS]
    with replacing(path) as temporary:
        first.save(
            temporary, format="GIF", save_all=True, append_images=rest, duration=durations, loop=0
        )
    return Path(path)


@dataclass(frozen=True)
class _Scale:
    """Which colour a value has, the same in every map of a figure."""

    colours: "Colormap"
    norm: "Normalize"
    label: str


@dataclass(frozen=True)
class _Grid:
    """Where a map lies: its edges, what to write at its axes, and height over width."""

    extent: tuple[float, float, float, float]
    labels: tuple[str, str]
    stretch: float  # of y against x, so that a degree of longitude has its true length

    @property
    def shape(self) -> float:
        left, right, bottom, top = self.extent
        return (top - bottom) / (right - left) * self.stretch


class _Story:
    """One nowcast with the observations around it: the fields, their times and their names."""

    def __init__(self, observed: xr.Dataset, nowcast: xr.Dataset) -> None:
        _check_drawable(observed, check_nowcast(nowcast))
        name = variable_of(nowcast)
        fields = nowcast[name].isel(base_time=0).compute()
        self.made_by = "ensemble mean" if "member" in fields.dims else "nowcast"
        self.quantity = fields.attrs.get("long_name", name)
        self.nowcaster = nowcast.attrs.get("nowcaster", "")
        self.base_time = nowcast["base_time"].to_index()[0]
        self.lead_times = pd.TimedeltaIndex(nowcast["lead_time"].to_index())
        times = pd.DatetimeIndex(observed["time"].to_index())
        self.inputs = _inputs(observed, self.base_time, nowcast.attrs.get("input_frames", ""))
        there = times.intersection(self.inputs.union(self.base_time + self.lead_times))
        self.unit = lead_unit(self.lead_times)
        self.compared = bool((there > self.base_time).any())
        past = observed[name].sel(time=there).compute()
        future = fields.mean("member") if "member" in fields.dims else fields
        seen = past.notnull().any("time").values | future.notnull().any("lead_time").values
        self._observed, self._nowcast = past[:, *_window(seen)], future[:, *_window(seen)]
        self.scale = _scale(name, fields.attrs, [self._observed, self._nowcast])
        self.grid = _grid(self._nowcast)

    @property
    def titles(self) -> list[str]:
        """What it is and by whom, and from when."""
        by = f" by {self.nowcaster}" if self.nowcaster else ""
        what = f"{self.quantity[:1].upper()}{self.quantity[1:]} nowcast{by}"
        return [what, f"base time {self.base_time:%Y-%m-%d %H:%M} UTC"]

    @property
    def blank(self) -> npt.NDArray[Any]:
        """A field with every pixel missing, for a frame that is not there."""
        return np.full((self._nowcast.sizes["y"], self._nowcast.sizes["x"]), np.nan)

    def label(self, time: pd.Timestamp) -> str:
        return f"{_lead_label(time - self.base_time, self.unit)}  {time:%H:%M} UTC"

    def observed_at(self, time: pd.Timestamp) -> npt.NDArray[Any] | None:
        if time not in self._observed["time"].to_index():
            return None
        return _upright(self._observed.sel(time=time))

    def nowcast_at(self, lead_time: pd.Timedelta) -> npt.NDArray[Any]:
        return _upright(self._nowcast.sel(lead_time=lead_time))


def _check_drawable(observed: xr.Dataset, nowcast: xr.Dataset) -> None:
    if nowcast.sizes["base_time"] != 1:
        raise ValueError(
            f"one base time is drawn at a time; the nowcast has {nowcast.sizes['base_time']}; "
            "select one, as in nowcast.isel(base_time=[0])"
        )
    for axis in ("y", "x"):
        there, here = observed[axis].values, nowcast[axis].values
        if there.shape != here.shape or not np.allclose(there, here):
            raise ValueError(
                f"observations and nowcast must be on one grid; {axis!r} has {there.size} values "
                f"from {there[0]} and {here.size} from {here[0]}"
            )


def _window(seen: npt.NDArray[np.bool_]) -> tuple[slice, slice]:
    """Give the rows and columns around what is not missing: no ink for an empty margin."""
    if not seen.any():
        return slice(None), slice(None)
    rows, columns = (np.flatnonzero(seen.any(axis)) for axis in (1, 0))
    margin = round(max(seen.shape) * MARGIN)
    around = [slice(max(line[0] - margin, 0), line[-1] + margin + 1) for line in (rows, columns)]
    return around[0], around[1]


def _inputs(observed: xr.Dataset, base_time: pd.Timestamp, used: str) -> pd.DatetimeIndex:
    """Give the times of the frames that were used; of a single one, or if unknown, the last few."""
    times = pd.DatetimeIndex(observed["time"].to_index())
    named = times.intersection(pd.to_datetime(used.split(), utc=True).tz_localize(None))
    if len(named) > 1:
        return named[-MOST_COLUMNS:]
    step = step_of(observed) if len(times) > 1 else pd.Timedelta(0)
    before = [base_time - step * back for back in range(FEWEST_INPUTS)]
    return times.intersection(pd.DatetimeIndex(before[::-1]))


def _evenly(lead_times: pd.TimedeltaIndex, most: int) -> pd.TimedeltaIndex:
    stride = -(-len(lead_times) // most)
    return lead_times[::-1][::stride][::-1]


def _lead_label(lead_time: pd.Timedelta, unit: str) -> str:
    length = lead_time / pd.Timedelta(1, unit)
    if length == 0:
        return "base time"
    return f"{'+' if length > 0 else MINUS}{abs(length):g} {unit}"


def _upright(field: xr.DataArray) -> npt.NDArray[Any]:
    return field.transpose("y", "x").sortby(["y", "x"]).values


def _scale(name: str, attrs: dict[str, Any], fields: Sequence[xr.DataArray]) -> _Scale:
    import matplotlib
    from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize

    label = f"{attrs.get('long_name', name)} ({spell_units(attrs['units'])})"
    if name == RAIN_RATE.name:
        colours = ListedColormap([DRY_COLOUR, *RAIN_COLOURS]).with_extremes(bad=(0, 0, 0, 0))
        norm = BoundaryNorm([0.0, *RAIN_THRESHOLDS], colours.N, extend="max")
        return _Scale(colours, norm, label)
    low, high = _limits(np.concatenate([field.values.ravel() for field in fields]))
    continuous = matplotlib.colormaps[CONTINUOUS_COLOURS].with_extremes(bad=(0, 0, 0, 0))
    return _Scale(continuous, Normalize(low, high), label)


def _limits(values: npt.NDArray[Any]) -> tuple[float, float]:
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _grid(field: xr.DataArray) -> _Grid:
    kilometres = field["x"].attrs["units"] in METRES
    unit = 1000.0 if kilometres else 1.0
    extent = (*_edges(field["x"].values / unit), *_edges(field["y"].values / unit))
    if kilometres:
        return _Grid(extent, ("x (km)", "y (km)"), 1.0)
    middle = np.deg2rad((extent[2] + extent[3]) / 2)
    return _Grid(extent, ("longitude (°)", "latitude (°)"), 1.0 / max(np.cos(middle), 0.1))


def _edges(values: npt.NDArray[Any]) -> tuple[float, float]:
    half = float(abs(np.diff(values).mean())) / 2 if len(values) > 1 else 0.5
    return float(values.min()) - half, float(values.max()) + half


def _draw_map(axes: "Axes", field: npt.NDArray[Any] | None, story: _Story) -> "AxesImage":
    """Draw one field; what is missing lets the hatched grey behind it be seen."""
    from matplotlib.ticker import MaxNLocator

    if field is None:
        axes.text(0.5, 0.5, "no frame", transform=axes.transAxes, ha="center", va="center")
    drawn = axes.imshow(
        story.blank if field is None else field,
        cmap=story.scale.colours,
        norm=story.scale.norm,
        extent=story.grid.extent,
        origin="lower",
        aspect=story.grid.stretch,
        interpolation="nearest",
    )
    axes.patch.set(facecolor=MISSING_COLOUR, edgecolor=HATCH_COLOUR, hatch="////", linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=7, length=2)
    return drawn


def _draw_rows(story: _Story, rows: _Rows) -> "Figure":
    from matplotlib.figure import Figure

    columns = max(map(len, rows.values()))
    height = len(rows) * (MAP_INCHES * story.grid.shape + 0.35) + 0.8
    width = columns * MAP_INCHES + 1.4
    figure = Figure((width, height), dpi=PANEL_DPI, layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, sharex=True, sharey=True)
    for line, (name, cells) in zip(grid, rows.items(), strict=True):
        for axes, (title, field) in zip(line, cells, strict=False):
            _draw_map(axes, field, story)
            axes.set_title(title, fontsize=9)
        _name_row(line[0], name, story.grid.labels[1])
    label_columns(grid, [len(cells) for cells in rows.values()], story.grid.labels[0])
    _draw_title(figure, [", ".join(story.titles)] if columns > 3 else story.titles, 12.0)
    _draw_legend(figure, story.scale, list(grid.flat))
    return figure


def _draw_title(figure: "Figure", lines: list[str], size: float) -> None:
    """Write the title, smaller where a long name would not fit the figure."""
    room = figure.get_figwidth() * POINTS_PER_INCH / (CHARACTER_WIDTH * max(map(len, lines)))
    figure.suptitle("\n".join(lines), fontsize=min(size, room))


def _name_row(axes: "Axes", name: str, label: str) -> None:
    axes.set_ylabel(label, fontsize=8)
    axes.annotate(
        name,
        xy=(0.0, 0.5),
        xycoords=axes.yaxis.label,
        xytext=(-4, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        rotation=90,
        fontsize=10,
        fontweight="bold",
    )


def _draw_legend(figure: "Figure", scale: _Scale, axes: list["Axes"]) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm
    from matplotlib.patches import Patch

    bar = figure.colorbar(
        ScalarMappable(scale.norm, scale.colours), ax=axes, location="right", aspect=30, pad=0.01
    )
    bar.set_label(scale.label, fontsize=9)
    bar.ax.tick_params(labelsize=8)
    if isinstance(scale.norm, BoundaryNorm):
        edges = scale.norm.boundaries.tolist()
        bar.set_ticks(edges, labels=[f"{edge:g}" for edge in edges])
    missing = Patch(
        facecolor=MISSING_COLOUR, edgecolor=HATCH_COLOUR, hatch="////", linewidth=0, label="missing"
    )
    figure.legend(handles=[missing], loc="outside lower right", fontsize=8, frameon=False)


def _animation_frames(story: _Story) -> "Iterator[Image]":
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    maps = 2 if story.compared else 1
    size = (maps * ANIMATION_INCHES + 1.0, ANIMATION_INCHES * story.grid.shape + 1.3)
    figure = Figure(size, dpi=ANIMATION_DPI, layout="constrained")
    line = figure.subplots(1, maps, squeeze=False, sharey=True)[0]
    for axes in line:
        axes.set_xlabel(story.grid.labels[0], fontsize=8)
        axes.set_title(" ", fontsize=10)  # room for it
    line[0].set_ylabel(story.grid.labels[1], fontsize=8)
    drawn = [_draw_map(axes, story.blank, story) for axes in line]
    _draw_title(figure, story.titles, 10.0)
    _draw_legend(figure, story.scale, list(line))
    canvas: Any = FigureCanvasAgg(figure)  # its methods are not typed
    canvas.draw()
    figure.set_layout_engine("none")  # keeps this layout, so that nothing jumps
    # What changes is drawn over what does not, with the frames around it, which it would cover.
    over = [
        (axes, (one, axes.title, *axes.spines.values()))
        for axes, one in zip(line, drawn, strict=True)
    ]
    for _, artists in over:
        for artist in artists:
            artist.set_animated(True)
    canvas.draw()
    ground = canvas.copy_from_bbox(figure.bbox)
    for shown in _animation_story(story):
        canvas.restore_region(ground)
        for (axes, artists), (label, field) in zip(over, shown[-maps:], strict=True):
            axes.set_title(label, fontsize=10)
            artists[0].set_data(story.blank if field is None else field)
            for artist in artists:
                axes.draw_artist(artist)
        yield Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _animation_story(story: _Story) -> list[list[_Cell]]:
    """Give, for each frame of the animation, what was observed and what was known or forecast."""
    shown: list[list[_Cell]] = []
    for time in story.inputs:
        shown.append([(f"observed  {story.label(time)}", story.observed_at(time))] * 2)
    for lead in story.lead_times:
        time = story.base_time + lead
        observed = story.observed_at(time)
        said = "observed" if observed is not None else "no frame observed"
        nowcast = (f"{story.made_by}  {story.label(time)}", story.nowcast_at(lead))
        shown.append([(f"{said}  {story.label(time)}", observed), nowcast])
    return shown


def _palette(scale: _Scale) -> "Image":
    """Give the few colours of an animation: those of the scale, of missing, and greys for text."""
    from matplotlib.colors import to_rgb
    from PIL import Image

    values = scale.colours(np.linspace(0.0, 1.0, min(scale.colours.N, 128)))[:, :3]
    named = np.array([to_rgb(colour) for colour in (MISSING_COLOUR, HATCH_COLOUR)])
    greys = np.linspace(0.0, 1.0, 16)[:, None].repeat(3, axis=1)
    colours = np.rint(np.concatenate([values, named, greys]) * 255).astype(np.uint8)
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours.tobytes())
    return palette
