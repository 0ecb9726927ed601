import io

import numpy as np
import pytest
import xarray as xr
from PIL import Image
from plausible_scores import MADE, plausible_scores

from nowcast.plots import curves, diagrams, scales, style
from nowcast.report.sections import SECTIONS

FEW = {name: MADE[name] for name in ("persistence", "extrapolation", "steps", "convlstm")}


@pytest.fixture(scope="module")
def scores():
    return plausible_scores(FEW, thresholds=(1.0,), leads=3)


def axes_of(drawing, number=0):
    return drawing.figure.axes[number]


def lines_of(drawing, number=0):
    """Give the labelled lines of a plot by their label."""
    lines = axes_of(drawing, number).lines
    return {one.get_label(): one for one in lines if not one.get_label().startswith("_")}


def drawn(scores):
    return [drawing for section in SECTIONS for drawing in section.draw(scores)]


def test_nothing_is_drawn_of_scores_that_are_nowhere_defined(scores):
    undefined = scores.map(
        lambda score: score * np.nan if score.dtype.kind == "f" else score, keep_attrs=True
    )
    assert drawn(undefined.assign(rank_count=scores["rank_count"] * np.nan)) == []
    assert drawn(scores[["number"]]) == []


def test_one_nowcaster_and_one_lead_time_can_be_drawn(scores):
    one = scores.isel(nowcaster=[2], lead_time=[0], threshold=[0], reference=[0])
    names = []
    for drawing in drawn(one):
        drawing.figure.set_dpi(30)
        drawing.figure.canvas.draw()
        names.append(drawing.name)
    assert {"csi-1", "performance-1", "fss-1", "spectra-5min", "rank-histogram"} <= set(names)


def test_a_single_lead_time_has_its_band_as_a_bar(scores):
    one = scores.isel(lead_time=[0])
    (drawing,) = curves.by_lead_time(one, curves.CSI)
    low, high = axes_of(drawing).collections[0].get_segments()[0][:, 1]
    band = one["csi_band"].sel(nowcaster="persistence", threshold=1.0).isel(lead_time=0)
    assert [low, high] == pytest.approx(list(band.values))


def test_a_nowcaster_has_one_style_in_every_figure(scores):
    colour = style.styles(scores)["steps"]["color"]
    (ensembles,) = diagrams.reliability(scores)  # steps alone gives probabilities
    (all_of_them,) = curves.by_lead_time(scores, curves.CSI)
    assert list(lines_of(ensembles)) == ["steps"]
    assert list(lines_of(all_of_them)) == list(FEW)
    assert lines_of(ensembles)["steps"].get_color() == colour
    assert lines_of(all_of_them)["steps"].get_color() == colour


def test_the_first_eight_nowcasters_differ_in_colour_or_marker_alone():
    looks = [style.line_style(number) for number in range(8)]
    assert len({(look["color"], look["marker"]) for look in looks}) == 8
    assert style.OBSERVED_COLOUR not in style.LINE_COLOURS


def test_a_name_is_shown_letter_by_letter_whatever_it_is(scores):
    names = ["_first", r"$\bad$", "x" * 99, "convlstm"]
    odd = scores.assign_coords(nowcaster=names)
    (drawing,) = curves.by_lead_time(odd, curves.CSI)
    drawing.figure.canvas.draw()
    ((legend),) = drawing.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        " _first", r"\$\bad\$", "x" * 41 + "\N{HORIZONTAL ELLIPSIS}", "convlstm",
    ]  # fmt: skip
    for draw in (scales.fss_map, diagrams.rank_histogram):
        next(draw(odd)).figure.canvas.draw()


def test_a_card_is_stamped_with_the_protocol_and_says_what_it_shows(scores):
    (drawing,) = curves.by_lead_time(scores, curves.CSI)
    csi = scores["csi"].sel(nowcaster="convlstm", threshold=1.0)
    assert f"convlstm {csi[0]:.3g} at 5 min, {csi[-1]:.3g} at 15 min" in drawing.alt
    picture = Image.open(io.BytesIO(drawing.png(dpi=60)))
    sha256 = scores.attrs["protocol_sha256"]
    assert picture.text["protocol_sha256"] == sha256
    assert picture.convert("RGB").getpixel((2, 2)) == (255, 255, 255)
    assert drawing.figure.texts[-1].get_text() == f"protocol {sha256[:12]}"


def test_the_palette_of_a_card_keeps_its_colours(scores):
    """Those of bands over each other among them: faint, many and easily taken for each other."""
    (drawing,) = curves.by_lead_time(scores, curves.CSI)
    small = Image.open(io.BytesIO(drawing.png()))
    buffer = io.BytesIO()
    drawing.figure.savefig(buffer, format="png", dpi=style.CARD_DPI)
    whole = np.asarray(Image.open(buffer).convert("RGB")).astype(int)
    wrong = abs(np.asarray(small.convert("RGB")) - whole).max(axis=-1)
    assert small.mode == "P"
    assert wrong.max() < 24
    assert (wrong > 6).mean() < 0.01


def test_bands_are_as_the_dataset_has_them(scores):
    (drawing,) = curves.by_lead_time(scores, curves.CSI)
    edge = axes_of(drawing).collections[0].get_paths()[0].vertices[:, 1]
    band = scores["csi_band"].sel(nowcaster="persistence", threshold=1.0)
    assert [edge.min(), edge.max()] == pytest.approx([band.min().item(), band.max().item()])


def test_frequency_bias_has_a_logarithmic_axis_with_its_limits(scores):
    (drawing,) = curves.frequency_bias(scores)
    axes = axes_of(drawing)
    assert axes.get_yscale() == "log"
    level = [line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert pytest.approx(2 / 3) in level
    assert 1.5 in level
    assert axes.get_ylim()[0] < 2 / 3 < 1.5 < axes.get_ylim()[1]


def test_a_bias_of_thirty_is_on_the_axis_and_a_bias_of_none_at_all_harms_nothing(scores):
    far_off = scores.copy(deep=True)
    far_off["frequency_bias"].loc[{"nowcaster": "steps"}] = 30.0
    far_off["frequency_bias"].loc[{"nowcaster": "convlstm"}] = 0.0
    (drawing,) = curves.frequency_bias(far_off)
    drawing.figure.canvas.draw()
    low, high = axes_of(drawing).get_ylim()
    assert 0.01 <= low < high
    assert high > 30.0


def test_one_very_bad_nowcaster_leaves_room_for_the_others_and_the_title_says_so(scores):
    bad = scores.copy(deep=True)
    bad["brier_skill"].loc[{"nowcaster": "convlstm"}] = -25.0
    (drawing,) = curves.by_lead_time(bad, curves.BRIER_SKILL)
    assert axes_of(drawing).get_ylim()[0] == -1.0
    assert axes_of(drawing).get_title(loc="left").endswith("(axis from -1)")
    assert "convlstm -25 at 5 min" in drawing.alt


def test_a_gain_that_is_not_significant_has_an_empty_marker(scores):
    p = xr.full_like(scores["csi_gain_p_holm"], 0.5)
    p.loc[{"nowcaster": "convlstm", "reference": "extrapolation"}] = [[0.5, 0.01, 0.2]]
    (drawing,) = curves.gains(scores.assign(csi_gain_p_holm=p))
    below = axes_of(drawing, 1)
    assert below.get_title(loc="left") == "over extrapolation"
    hollow = [line for line in below.lines if line.get_markerfacecolor() == "white"]
    (convlstm,) = [
        line
        for line in hollow
        if line.get_markeredgecolor() == lines_of(drawing, 1)["convlstm"].get_color()
    ]
    assert list(convlstm.get_xdata()) == [5.0, 15.0]


def test_a_pair_of_references_is_drawn_once(scores):
    (drawing,) = curves.gains(scores)
    over = {axes.get_title(loc="left"): axes for axes in drawing.figure.axes}
    drawn = {
        title: [line.get_label() for line in axes.lines if np.isfinite(line.get_ydata()).all()
                and not line.get_label().startswith("_")]
        for title, axes in over.items()
    }  # fmt: skip
    assert drawn["over persistence"] == ["extrapolation", "steps", "convlstm"]
    assert drawn["over extrapolation"] == ["steps", "convlstm"]
    assert drawn["over steps"] == ["convlstm"]
    bands = [axes.collections for axes in over.values() if axes.get_title(loc="left")]
    drawn_bands = [sum(len(one.get_paths()) for one in some) for some in bands]
    assert drawn_bands == [3, 2, 1]


def test_a_line_of_the_performance_diagram_joins_the_lead_times(scores):
    (drawing,) = diagrams.performance(scores)
    at = scores.sel(nowcaster="convlstm", threshold=1.0)
    line = lines_of(drawing)["convlstm"]
    assert list(line.get_xdata()) == pytest.approx(list(1 - at["far"].values))
    assert list(line.get_ydata()) == pytest.approx(list(at["pod"].values))


def test_reliability_adds_the_forecasts_of_all_lead_times():
    dims = ("nowcaster", "threshold", "lead_time", "probability_bin")
    parts = {
        "forecast_probability": [[[[0.1, 0.5, 0.7], [0.3, 0.5, np.nan]]]],
        "observed_frequency": [[[[0.0, 0.5, 0.6], [0.2, 0.5, np.nan]]]],
        "probability_count": [[[[30, 2, 10], [10, 2, 0]]]],
    }
    coordinates = {
        "nowcaster": ["steps"],
        "threshold": [1.0],
        "lead_time": np.array([5, 10], "timedelta64[m]"),
    }
    scores = xr.Dataset({name: (dims, values) for name, values in parts.items()}, coordinates)
    (drawing,) = diagrams.reliability(scores)
    line = lines_of(drawing)["steps"]
    assert list(line.get_xdata()) == pytest.approx([(30 * 0.1 + 10 * 0.3) / 40, 0.5, 0.7])
    assert list(line.get_ydata()) == pytest.approx([(30 * 0.0 + 10 * 0.2) / 40, 0.5, 0.6])
    assert list(axes_of(drawing, 1).lines[0].get_ydata()) == [40, 4, 10]
    climate = next(line for line in axes_of(drawing).lines if line.get_linestyle() == ":")
    assert climate.get_ydata()[0] == pytest.approx((10 * 0.2 + 4 * 0.5 + 10 * 0.6) / 54)
    assert not axes_of(drawing).collections


def test_the_band_of_an_observed_frequency_is_drawn_as_bars(scores):
    (drawing,) = diagrams.reliability(scores)
    (bars,) = axes_of(drawing).collections
    band = scores["observed_frequency_pooled_band"].sel(nowcaster="steps", threshold=1.0)
    ends = [segment[:, 1] for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, band.values)


def test_who_only_says_yes_or_no_is_in_no_diagram_of_probabilities(scores):
    """In the counts of a single-valued forecast only the lowest and the highest bin are filled."""
    yes_or_no = scores.copy(deep=True)
    ends = np.r_[90.0, np.zeros(8), 10.0]
    for name in (*diagrams.RELIABILITY, *diagrams.ROC):
        yes_or_no[name].loc[{"nowcaster": "convlstm"}] = 0.5
    yes_or_no["probability_count"].loc[{"nowcaster": "convlstm"}] = ends
    for draw in (diagrams.reliability, diagrams.roc):
        ((label, _),) = lines_of(next(draw(yes_or_no))).items()
        assert label.startswith("steps")


def test_a_roc_curve_reaches_both_corners_and_tells_its_area(scores):
    (drawing,) = diagrams.roc(scores)
    ((label, line),) = lines_of(drawing).items()
    area = scores["roc_area_pooled"].sel(nowcaster="steps", threshold=1.0).item()
    assert label == f"steps ({area:.2f})"
    x, y = line.get_xdata(), line.get_ydata()
    assert (x[0], y[0]) == (0.0, 0.0)
    assert (x[-1], y[-1]) == (1.0, 1.0)
    assert (np.diff(x) >= 0).all()


def test_tied_pixels_do_not_flatten_a_rank_histogram():
    """Of 9 + 30 pixels 30 were tied, which added 10 to each of the three ranks."""
    counts = np.array([[16.0, 12.0, 11.0, np.nan]])
    scores = xr.Dataset(
        {"rank_count": (("nowcaster", "rank"), counts), "rank_tied": ("nowcaster", [30.0])},
        {"nowcaster": ["steps"], "rank": range(4)},
    )
    (drawing,) = diagrams.rank_histogram(scores)
    heights = [bar.get_height() for bar in axes_of(drawing).patches]
    assert heights == pytest.approx([2.0, 2 / 3, 1 / 3])


def test_the_error_beside_the_spread_is_what_their_ratio_says(scores):
    (drawing,) = diagrams.spread_skill(scores)
    solid, dotted = axes_of(drawing).lines
    ratio = np.array(dotted.get_ydata()) / np.array(solid.get_ydata())
    assert list(ratio) == pytest.approx(list(scores["spread_skill"].sel(nowcaster="steps").values))


def test_regimes_tell_their_number_of_cases(scores):
    (drawing,) = diagrams.regimes(scores)
    labels = [label.get_text() for label in axes_of(drawing).get_yticklabels()]
    assert labels[0] == "advection: slow\n210 cases"
    assert labels[-1] == "initiation: new rain\n7 cases (few)"
    best = scores["csi_by_regime"].sel(regime="advection: slow", threshold=1.0).max().item()
    assert f"advection: slow 210 cases: convlstm {best:.2f}" in drawing.alt


def test_the_line_of_useful_skill_divides_the_map_and_is_left_out_where_it_cannot(scores):
    def contours(scores):
        (drawing,) = scales.fss_map(scores)
        maps = [axes for axes in drawing.figure.axes if axes.images]
        assert [axes.get_title(loc="left") for axes in maps] == list(FEW)
        return [len(axes.collections) for axes in maps]

    fss = xr.full_like(scores["fss"], 0.9)
    assert contours(scores.assign(fss=fss)) == [0, 0, 0, 0]
    fss.loc[{"nowcaster": "steps", "scale": [1.0, 2.0]}] = 0.1
    assert contours(scores.assign(fss=fss)) == [0, 0, 1, 0]


def test_spectra_show_the_observed_in_black_and_the_ratio_to_it(scores):
    first, _, last = scales.spectra(scores)
    assert (first.name, last.name) == ("spectra-5min", "spectra-15min")
    lines = lines_of(last)
    assert lines["observed"].get_color() == style.OBSERVED_COLOUR
    at = scores.isel(lead_time=-1)
    ratio = at["power"].sel(nowcaster="convlstm") / at["observed_power"]
    drawn = axes_of(last, 1).lines[list(FEW).index("convlstm")]
    assert list(drawn.get_ydata()) == pytest.approx(list(ratio.values))
