import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image
from plausible_scores import MADE, Made, plausible_scores

from nowcast.report import figures, standing, tables, write_report
from nowcast.report.checks import checks, flagged
from nowcast.report.page import element, page

HOSTILE = "<script>alert('x')</script>&\""
TO = "\N{EN DASH}"
MIXED = {
    **{name: MADE[name] for name in ("persistence", "extrapolation", "steps")},
    "convlstm": MADE["convlstm"],  # blurred, and leaves 2.1 % missing
    "peeking": Made(60.0, sees_future=True),
    "over-forecasting": Made(43.0, bias=2.0),
    HOSTILE: Made(40.0),
}


class Page(HTMLParser):
    """What a browser would make of a page: elements with attributes, and the text of cells."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.rows, self.text, self._style = [], [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._style = tag == "style"
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_data(self, data):
        if self._style:
            return
        self.text += data
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag):
        if tag == "table":
            self.rows.append([])

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]


def parsed(*elements):
    return Page(page("a table", elements))


@pytest.fixture(scope="module")
def scores():
    return plausible_scores(MIXED, thresholds=(1.0,), leads=6)


@pytest.fixture(scope="module")
def report(scores, tmp_path_factory):
    """The report of all scores, written once, with three cases of which two find room."""
    folder = tmp_path_factory.mktemp("report")
    worst = []
    for number, size in enumerate((8, 8, 4_500_000)):
        path = folder / f"case-{number}.gif"
        Image.new("P", (8, 8)).save(path)
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        worst.append((pd.Timestamp("2017-07-01T12:00"), f"CSI 0.1 of {HOSTILE}", path))
    title = f"Report of {HOSTILE}"
    path = write_report(scores, folder / "report.html", worst=worst, title=title)
    return path, Page(path.read_text())


def test_a_report_asks_nothing_of_the_network(report):
    path, made = report
    assert all(image["src"].startswith("data:image/") for image in made.all("img"))
    assert {tag for tag, _ in made.elements} & {"script", "link", "iframe", "object"} == set()
    assert all("src" not in attributes for tag, attributes in made.elements if tag != "img")
    identifiers = {attributes["id"] for _, attributes in made.elements if "id" in attributes}
    for link in made.all("a"):
        inside = link["href"].startswith("#") and link["href"][1:] in identifiers
        assert inside or link["href"].startswith("https://doi.org/")
    style = re.search(r"<style>(.*?)</style>", path.read_text(), re.S).group(1)
    assert "url(" not in style
    assert "@import" not in style


def test_names_and_titles_are_escaped(report):
    path, made = report
    assert "<script" not in re.sub(r'="[^"]*"', "", path.read_text())  # in alt texts it is no tag
    assert f"Report of {HOSTILE}" in made.text
    assert any(row and row[0] == HOSTILE for row in made.rows)


def test_every_picture_has_a_text_and_every_figure_says_how_to_read_it(report):
    _, made = report
    assert all(len(image["alt"]) > 20 for image in made.all("img"))
    assert len(made.all("figure")) == len(made.all("figcaption"))
    assert made.text.count("How to read it.") == made.text.count("Suspicious.") == len(
        made.all("figure")
    )  # fmt: skip


def test_figures_lie_beside_the_page_stamped_with_the_protocol(report, scores):
    path, made = report
    pictures = sorted(path.with_name("report_figures").iterdir())
    embedded = [image for image in made.all("img") if image["src"].startswith("data:image/png")]
    assert len(pictures) == len(embedded) > 15
    for picture in pictures:
        assert Image.open(picture).text["protocol_sha256"] == scores.attrs["protocol_sha256"]
    assert path.stat().st_size < 3_000_000 + 3 * 200


def test_animations_without_room_are_named_and_left_out(report):
    _, made = report
    moving = [image for image in made.all("img") if image["src"].startswith("data:image/gif")]
    assert len(moving) == 2
    assert "Left out to keep this file small: case-2.gif" in made.text
    assert f"1. 2017-07-01 12:00 UTC: CSI 0.1 of {HOSTILE}" in made.text


def test_the_table_holds_the_scores_with_their_bands(scores):
    (table,) = tables.csi_tables(scores)
    made = parsed(table)
    header, rows = made.rows[0], {row[0]: row[1:] for row in made.rows[1:] if row}
    assert header == ["", "5 min", "15 min", "30 min", "pooled"]
    at = scores.sel(nowcaster="steps", threshold=1.0)
    place = header.index("15 min") - 1
    low, high = (at["csi_band"][2].sel(bound=bound).item() for bound in ("low", "high"))
    assert rows["steps"][place] == f"{at['csi'][2]:.2f}{low:.2f}{TO}{high:.2f}"
    assert rows["steps"][-1].startswith(f"{at['csi_pooled']:.2f}")


def test_what_was_tested_is_not_called_untested(scores):
    (one,) = standing.standings(scores)
    assert scores["csi_pooled"].sel(nowcaster="steps", threshold=1.0) > scores[
        "csi_pooled_band"
    ].sel(nowcaster="convlstm", threshold=1.0, bound="low")
    assert standing.close(scores, one) == ["over-forecasting", HOSTILE]


def test_the_best_is_marked_and_who_saw_the_future_is_never_the_best(scores):
    csi = scores["csi_pooled"].sel(threshold=1.0)
    assert csi.idxmax("nowcaster").item() == "peeking"
    (table,) = tables.csi_tables(scores)
    best = {
        row.find("th").text for row in table.iter("tr") for cell in row.findall("td")
        if cell.get("class") == "best"
    }  # fmt: skip
    assert "peeking (saw the future)" in parsed(table).text
    assert best == {"convlstm"}
    assert "peeking" not in {one.best for one in standing.standings(scores)}


def test_other_lead_times_than_the_usual_are_evenly_chosen(scores):
    hours = scores.assign_coords(lead_time=scores["lead_time"] * 24)
    (table,) = tables.csi_tables(hours)
    assert parsed(table).rows[0] == ["", "2 h", "4 h", "6 h", "8 h", "10 h", "12 h", "pooled"]


def test_scores_that_bias_improves_are_not_ranked(scores):
    table = tables.pooled_tables(scores)[0]
    made = parsed(table)
    header = made.rows[0]
    best = {
        header[1 + place]
        for row in table.iter("tr") for place, cell in enumerate(row.findall("td"))
        if cell.get("class") == "best"
    }  # fmt: skip
    assert {"POD", "FAR", "bias"} <= set(header)
    assert {"CSI", "HSS"} <= best
    assert not {"POD", "FAR", "bias"} & best


def test_checks_expose_a_look_ahead_a_bias_blur_and_gaps(scores):
    found = checks(scores)
    assert found["Saw the future?"]["peeking"].flagged
    assert not found["Saw the future?"]["convlstm"].flagged
    bias = scores["frequency_bias"].sel(nowcaster="over-forecasting", threshold=1.0)
    assert bias.max() == pytest.approx(2.0)
    outside = [f"{5 * (1 + place)}" for place in np.flatnonzero(bias > 1.5)]
    told = f"≥ 1 mm h⁻¹: 2.00 (at {outside[0]}{TO}{outside[-1]} min)"
    assert found["Frequency bias"]["over-forecasting"].told == (told,)
    assert found["Frequency bias"]["over-forecasting"].flagged
    resolution = found["Effective resolution"]["convlstm"]
    assert resolution.told == (
        "4.33 km at 5 min, 16 km at 30 min",
        f"blurred at 10{TO}30 min: 4.0 times extrapolation",
    )
    assert found["Left missing"]["convlstm"].told == ("2.1 %",)
    assert found["Members"]["steps"].told == ("12",)
    assert set(flagged(scores)) == {"peeking", "over-forecasting", "convlstm"}


def test_a_forecast_of_no_events_at_all_is_flagged(scores):
    never = scores.copy(deep=True)
    never["frequency_bias"].loc[{"nowcaster": "steps"}] = 0.0
    check = checks(never)["Frequency bias"]["steps"]
    assert check.flagged
    assert check.told == (f"≥ 1 mm h⁻¹: 0.000 (at 5{TO}30 min)",)


def test_without_extrapolation_blur_is_told_against_what_was_observed(scores):
    alone = scores.sel(nowcaster=["convlstm"])
    check = checks(alone)["Effective resolution"]["convlstm"]
    assert check.told[1] == f"blurred at 10{TO}30 min: 4.0 times what was observed"


def verdict(gain=0.05, band=(0.01, 0.09), p=0.01, *, pooled=True):
    """Give how a network with CSI 0.4 + gain stands beside extrapolation with 0.4."""
    lead_time = pd.to_timedelta([5, 10, 15], unit="min")
    coordinates = {
        "nowcaster": ["extrapolation", "unet"],
        "reference": ["extrapolation"],
        "threshold": ("threshold", [1.0], {"units": "mm h-1"}),
        "lead_time": lead_time,
        "bound": ["low", "high"],
    }
    tested = ("nowcaster", "reference", "threshold")
    csi = np.array([[0.4], [0.4 + gain]])
    scores = xr.Dataset({"csi_pooled": (("nowcaster", "threshold"), csi)}, coordinates)
    untested = [[[np.nan]]]
    if pooled:
        scores["csi_gain_pooled"] = (tested, [*untested, [[gain]]])
        scores["csi_gain_pooled_p_holm"] = (tested, [*untested, [[p]]])
        bands = [[[[np.nan] * 2]], [[list(band)]]]
        scores["csi_gain_pooled_band"] = ((*tested, "bound"), bands)
    elif p is not None:
        by_lead = (*tested, "lead_time")
        scores["csi_gain"] = (by_lead, [[[[np.nan] * 3]], [[[gain] * 3]]])
        scores["csi_gain_p_holm"] = (by_lead, [[[[np.nan] * 3]], [[p]]])
        bands = [[[[[np.nan] * 2] * 3]], [[[list(band)] * 3]]]
        scores["csi_gain_band"] = ((*by_lead, "bound"), bands)
    return scores, standing.standings(scores)[0]


def test_a_gain_is_called_better_only_if_the_corrected_test_and_the_band_agree():
    assert verdict()[1].outcome == "better"
    assert verdict(p=0.06)[1].outcome == "untold"
    assert verdict(band=(-0.01, 0.11))[1].outcome == "untold"
    assert verdict(gain=-0.05, band=(-0.09, -0.01))[1].outcome == "worse"


def test_without_a_pooled_test_those_by_lead_time_decide():
    assert verdict(p=[0.01, 0.01, 0.5], pooled=False)[1].outcome == "better"
    scores, one = verdict(p=[0.01, 0.5, 0.5], pooled=False)
    assert one.outcome == "mixed"
    assert "better at 1, worse at 0 and not told apart at 2 of 3" in one.evidence
    assert "differ at some lead times only" in standing.conclusion(one)
    assert standing.headline(scores, [one]).startswith("No nowcaster is shown to beat")
    assert verdict(p=[0.5, 0.5, 0.5], pooled=False)[1].outcome == "untold"


def test_what_was_not_tested_is_not_claimed():
    scores, one = verdict(p=None, pooled=False)
    assert one.outcome == "untested"
    assert "is not tested" in standing.conclusion(one)
    assert standing.headline(scores, [one]).startswith("No nowcaster is shown to beat")


def test_the_headline_says_who_beats_whom_and_where():
    scores, one = verdict()
    assert standing.headline(scores, [one]) == ("unet beats extrapolation in CSI at ≥ 1 mm h⁻¹.")
    told = standing.evidence(scores, one)
    assert told == (
        "CSI 0.45 for unet, 0.40 for extrapolation, the better baseline; difference +0.050, "
        "band +0.010 to +0.090, p = 0.010 after Holm"
    )


def test_the_best_is_also_held_against_the_other_references(scores):
    (one,) = standing.standings(scores)
    assert standing.besides(scores, one) == ["beside steps: not told apart"]
    tested = {"nowcaster": "convlstm", "reference": "steps"}
    sure = scores.copy(deep=True)
    sure["csi_gain_pooled_p_holm"].loc[tested] = 0.001
    assert standing.besides(sure, one) == ["beside steps: significantly better"]


def test_a_verdict_warns_of_those_it_names(report):
    _, made = report
    assert "convlstm is blurred (16 km at 30 min) and left 2.1 % missing" in made.text
    assert "peeking saw the future: its scores are not those of a forecast" in made.text


def test_the_protocol_is_told_to_the_last_field(report, scores):
    _, made = report
    rows = dict(row for row in made.rows if len(row) == 2)
    assert rows["baselines.extrapolation.input_frames"] == "3"
    assert rows["measures.fss.scales"] == "1.0, 2.0, 4.0, 8.0, 16.0, 32.0"
    assert rows["hash of all of these (SHA-256)"] == scores.attrs["protocol_sha256"]
    assert rows["code, not in the hash"] == "0.1.0 8daa2a0"
    assert "Resampled here: 31 events." in made.text


def test_the_number_of_tests_is_told(report, scores):
    _, made = report
    tests = int(scores["csi_gain_p"].notnull().sum())
    assert f"{tests} paired tests of CSI were made" in made.text


def test_what_has_no_grid_has_no_sections_of_scale(scores, tmp_path):
    kept = ["csi", "pod", "far", "rmse", "number", "left_missing"]
    made = Page(write_report(scores[kept], tmp_path / "places.html").read_text())
    assert "Errors" in made.text
    assert "Fractions skill score" not in made.text
    assert "Scale and sharpness" not in made.text
    assert "Effective resolution" not in [cell for row in made.rows for cell in row]


def test_scores_that_are_nowhere_defined_give_a_page_without_a_claim(scores, tmp_path):
    undefined = scores.map(lambda one: one * np.nan if one.dtype.kind == "f" else one)
    path = write_report(undefined[["csi", "rmse", "sees_future"]], tmp_path / "report.html")
    made = Page(path.read_text())
    assert made.all("img") == []
    assert "nobody can be called best" in made.text


def test_scores_of_labels_are_refused(tmp_path):
    labels = xr.Dataset({"accuracy": ("nowcaster", [0.5])}, {"nowcaster": ["climatology"]})
    with pytest.raises(ValueError, match="received scores by nowcaster; give those of frames"):
        figures(labels, tmp_path)


def test_a_sign_in_a_text_stays_a_sign_and_text_after_an_element_its_place():
    made = page("<", [element("p", "a < b ", element("b", "&"), " > c", class_="note")])
    assert '<p class="note">a &lt; b <b>&amp;</b> &gt; c</p>' in made
    assert "<title>&lt;</title>" in made
