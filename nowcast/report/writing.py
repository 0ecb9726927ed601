"""Writing a report: the figures drawn once, beside the page and inside it."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from xml.etree.ElementTree import Element

import numpy as np
import pandas as pd
import xarray as xr

from nowcast.durable import replacing
from nowcast.plots.style import STAMP_DIGITS, at_threshold, protocol_hash
from nowcast.report import standing, tables
from nowcast.report.checks import flagged
from nowcast.report.page import Content, element, embedded, page, paragraphs, section
from nowcast.report.sections import SECTIONS, Section

TITLE = "Verification of nowcasts"
MOST_ANIMATION_BYTES = 4_500_000  # in one page, which as text are a third more
Worst = Sequence[tuple[pd.Timestamp, str, Path]]
Shown = tuple[Section, list[tuple[Path, str]]]  # the figures of a section, with what they show


def write_report(
    scores: xr.Dataset, path: Path | str, *, worst: Worst = (), title: str = TITLE
) -> Path:
    """Write a report of scores as one HTML file that needs nothing else.

    Parameters
    ----------
    scores
        As `nowcast.verification.verify` gives them. Any part of it may be absent or undefined:
        what cannot be shown is left out.
    path
        Of the HTML file, replaced if there. The figures it holds are also written one by one, into
        the folder of its name with ``_figures``.
    worst
        Cases to be shown, the worst first: base time, caption and GIF file of each.
    title
        Of the page.

    Returns
    -------
    Path
        The HTML file.

    Raises
    ------
    ValueError
        If the scores are not by nowcaster and lead time, as those of labels are not.

    Examples
    --------
    >>> import tempfile
    >>> leads = pd.to_timedelta([10, 20], unit="min")
    >>> coordinates = {"nowcaster": ["persistence"], "lead_time": leads}
    >>> scores = xr.Dataset({"rmse": (("nowcaster", "lead_time"), [[0.5, 0.7]])}, coordinates)
    >>> report = write_report(scores, Path(tempfile.mkdtemp()) / "report.html")
    >>> sorted(item.name for item in report.parent.rglob("*.*"))
    ['report.html', 'rmse.png']
    """
    path = Path(path)
    _check(scores)
    shown = list(_drawn(scores, figures_of(path)))
    body = [
        *_head(scores, title),
        _navigation(shown, bool(worst)),
        _verdict(scores),
        _checks(scores),
        _tables(scores),
        *_chapters(scores, shown),
        *_worst(worst),
        _uncertainty(scores),
        _protocol(scores),
        section("definitions", "Definitions", tables.definitions(scores)),
        _footer(shown, worst),
    ]
    with replacing(path) as temporary:
        temporary.write_text(page(title, body), encoding="utf-8")
    return path


def figures_of(report: Path) -> Path:
    """Give the folder in which the figures and animations of a report lie.

    Examples
    --------
    >>> figures_of(Path("out/scores.html")).name
    'scores_figures'
    """
    return report.with_name(f"{report.stem}_figures")


def figures(scores: xr.Dataset, folder: Path | str) -> list[Path]:
    """Draw every figure of a report as a PNG file.

    Parameters
    ----------
    scores
        See `write_report`.
    folder
        Made if absent; files of the same names are replaced.

    Returns
    -------
    list of Path
        In the order of the report.
    """
    _check(scores)
    return [path for _, drawn in _drawn(scores, Path(folder)) for path, _ in drawn]


def _check(scores: xr.Dataset) -> None:
    if not {"nowcaster", "lead_time"} <= set(scores.dims):
        raise ValueError(
            "a report is of scores by nowcaster and lead time; received scores by "
            f"{', '.join(map(str, scores.dims)) or 'nothing'}; give those of frames, series or "
            "places, as `nowcast verify` writes them"
        )


def _drawn(scores: xr.Dataset, folder: Path) -> Iterator[Shown]:
    for one in SECTIONS:
        drawn = []
        for drawing in one.draw(scores):
            path = folder / f"{drawing.name}.png"
            with replacing(path) as temporary:
                temporary.write_bytes(drawing.png())
            drawn.append((path, drawing.alt))
        if drawn:
            yield one, drawn


def _key(chapter: str) -> str:
    return chapter.lower().replace(" ", "-")


def _head(scores: xr.Dataset, title: str) -> list[Element]:
    record = standing.protocol(scores)
    told = [
        f"{record['cases']} cases" if "cases" in record else "",
        " to ".join(_minute(time) for time in record.get("period", "").split("/") if time),
        f"split {record['split']}" if "split" in record else "",
        f"protocol {protocol_hash(scores)[:STAMP_DIGITS]}" if protocol_hash(scores) else "",
    ]
    line = " \N{MIDDLE DOT} ".join(part for part in told if part)
    return [element("header", element("h1", title), element("p", line, class_="quiet"))]


def _minute(time: str) -> str:
    return f"{pd.Timestamp(time):%Y-%m-%d %H:%M}"


def _navigation(shown: Sequence[Shown], worst: bool) -> Element:
    chapters = dict.fromkeys(one.chapter for one, _ in shown)
    links = {
        "checks": "Checks",
        "tables": "Tables",
        **{_key(chapter): chapter for chapter in chapters},
        **({"worst-cases": "Worst cases"} if worst else {}),
        "uncertainty": "Uncertainty",
        "protocol": "Protocol",
        "definitions": "Definitions",
    }
    items = (element("li", element("a", words, href=f"#{key}")) for key, words in links.items())
    return element("nav", element("ul", *items), aria_label="Contents")


def _verdict(scores: xr.Dataset) -> Element:
    found = standing.standings(scores)
    parts: list[Content] = [
        element("p", standing.headline(scores, found), class_="lead"),
    ]
    if found:
        parts += [
            element(
                "p",
                f"CSI {standing.how_pooled(scores)}; bands and tests are of blocks of cases.",
                class_="quiet",
            ),
            element("ul", *(_at_threshold(scores, one) for one in found)),
        ]
    parts += [
        element("p", f"{name} {' and '.join(shorts)}: {_consequence(shorts)}", class_="warning")
        for name, shorts in _warned(scores, found).items()
    ]
    return element("section", *parts, class_="verdict", id="verdict", aria_label="Verdict")


def _at_threshold(scores: xr.Dataset, one: standing.Standing) -> Element:
    besides, close = standing.besides(scores, one), standing.close(scores, one)
    notes = [f" {one.rival} {'; '.join(besides)}."] if besides else []
    if close:
        notes.append(f" Within the band of {one.best}, their order not tested: {', '.join(close)}.")
    return element(
        "li",
        element("strong", f"{at_threshold(scores, one.threshold)}: {standing.conclusion(one)}."),
        f" {standing.evidence(scores, one)}.",
        element("small", *notes) if notes else None,
    )


def _warned(scores: xr.Dataset, found: Sequence[standing.Standing]) -> dict[str, list[str]]:
    """Give the flags of those that the verdict speaks of, and of those it must leave out."""
    spoken = {name for one in found for name in (one.best, one.rival)} | set(standing.seers(scores))
    named = set(standing.baselines(scores))
    return {
        name: [_spoken(short) for short in shorts]
        for name, shorts in flagged(scores).items()
        if name in spoken - named or name in standing.seers(scores)
    }


def _spoken(short: str) -> str:
    return (
        f"is {short}"
        if short.startswith("blurred")
        else (f"has a {short}" if short.startswith("frequency") else short)
    )


def _consequence(shorts: Sequence[str]) -> str:
    if any("saw the future" in short for short in shorts):
        return "its scores are not those of a forecast, and it is not ranked."
    if any("blurred" in short for short in shorts):
        return (
            "part of its score may be had by smoothing alone; hold it against smoothed "
            "extrapolation."
        )
    return "part of its score may come from that; see the checks."


def _checks(scores: xr.Dataset) -> Element:
    return section(
        "checks",
        "Checks",
        *paragraphs(
            "What a good score can hide. A flagged cell does not make a nowcaster bad: it says "
            "what to look at before its scores are believed. Missing forecasts count as no rain; "
            "effective resolution is flagged from 1.5 times that of extrapolation on, frequency "
            "bias outside 2/3 to 1.5."
        ),
        tables.check_table(scores),
    )


def _tables(scores: xr.Dataset) -> Element:
    return section(
        "tables",
        "Tables",
        *paragraphs(
            "Highlighted is the best of a column, which need not be better than the next one by "
            "more than chance. Small figures are bands. A dash is a score that is not defined. "
            "POD, FAR, SEDI, ROC area and bias are not ranked: forecasting too much or too little "
            "improves them."
        ),
        element("div", *tables.csi_tables(scores), class_="pairs"),
        *tables.pooled_tables(scores),
    )


def _chapters(scores: xr.Dataset, shown: Sequence[Shown]) -> Iterator[Element]:
    for chapter, parts in groupby(shown, key=lambda one: one[0].chapter):
        groups = [_figure(one, drawn) for one, drawn in parts]
        if chapter == SECTIONS[-1].chapter:
            groups += _regime_bounds(scores)
        yield section(_key(chapter), chapter, *groups)


def _figure(one: Section, drawn: Sequence[tuple[Path, str]]) -> Element:
    caption = element(
        "figcaption",
        element("h3", one.heading),
        element("p", element("b", "How to read it. "), one.read),
        element("p", element("b", "Suspicious. "), one.doubt),
    )
    cards = (element("img", src=embedded(path), alt=alt, **_size(path)) for path, alt in drawn)
    return element("figure", caption, element("div", *cards, class_="cards"), class_="figures")


def _size(path: Path) -> dict[str, str]:
    from PIL import Image

    with Image.open(path) as picture:
        return {"width": str(picture.width), "height": str(picture.height)}


def _regime_bounds(scores: xr.Dataset) -> list[Element]:
    if "definition" not in scores.coords:
        return []
    parts = []
    for name, words in zip(scores["regime"].values, scores["definition"].values, strict=True):
        parts += [element("dt", str(name)), element("dd", str(words))]
    return [element("dl", *parts)]


def _worst(worst: Worst) -> list[Element]:
    if not worst:
        return []
    room, cases = MOST_ANIMATION_BYTES, []
    for number, (base_time, caption, path) in enumerate(worst, start=1):
        told = f"{number}. {pd.Timestamp(base_time):%Y-%m-%d %H:%M} UTC: {caption}"
        room -= Path(path).stat().st_size
        inside: Content = element("p", f"Left out to keep this file small: {Path(path).name}")
        if room >= 0:
            picture = element(
                "img",
                src=embedded(Path(path)),
                alt=f"Animation of case {told}",
                **_size(Path(path)),
            )
            inside = element(
                "div", picture, class_="scroll", tabindex="0", role="region", aria_label=told
            )
        opened = {"open": ""} if number == 1 else {}
        cases.append(element("details", element("summary", told), inside, **opened))
    intro = paragraphs(
        "Cases with many observed events in which the score was lowest; observed beside nowcast. "
        "They are the worst, not typical: look for what they have in common."
    )
    return [section("worst-cases", "Worst cases", *intro, *cases)]


def _uncertainty(scores: xr.Dataset) -> Element:
    tests = int(scores["csi_gain_p"].notnull().sum()) if "csi_gain_p" in scores else 0
    resampled = scores.attrs.get("resampled", "")
    chance = (
        f"{tests} paired tests of CSI were made. At a level of 0.05 about "
        f"{max(1, round(0.05 * tests))} of them would come out significant if nothing differed, so "
        "each p-value is corrected by Holm's method for all tests of the same nowcaster. Who "
        "picks the best of several nowcasters, thresholds or scores after the fact has made more "
        "tests than these: let a claim rest on one nowcaster, one score and one threshold that "
        "were chosen before, or on new cases."
        if tests
        else "No paired test was made: differences between nowcasters are described, and whether "
        "they are more than chance is not told."
    )
    return section(
        "uncertainty",
        "Uncertainty and many tests",
        *paragraphs(
            "Bands hold nine of ten values that other cases of the same kind would give: blocks "
            "of cases are drawn again and again (block bootstrap), since neighbouring pixels and "
            "hours are no independent evidence."
            + (f" Resampled here: {resampled}." if resampled else ""),
            "They tell of other days like these. They do not tell of other seasons, places or "
            "radars, nor of how a network trained anew would do.",
            chance,
        ),
    )


def _protocol(scores: xr.Dataset) -> Element:
    return section(
        "protocol",
        "Protocol",
        *paragraphs(
            "What these scores depend on besides the nowcasters. Scores of another protocol, "
            "another hash, are not comparable with these."
        ),
        tables.protocol_table(scores),
    )


def _footer(shown: Sequence[Shown], worst: Worst) -> Element:
    from nowcast import __version__

    pictures = [path.stat().st_size for _, drawn in shown for path, _ in drawn]
    told = f"{len(pictures)} figures, {np.sum(pictures, dtype=float) / 1e6:.1f} MB"
    if worst:
        moving = sum(Path(path).stat().st_size for _, _, path in worst)
        told += f"; {len(worst)} animations, {moving / 1e6:.1f} MB"
    return element(
        "footer",
        *paragraphs(
            f"Written by nowcast {__version__}. {told}. This file needs nothing else and asks "
            "nothing of any network; links to sources are followed only if clicked."
        ),
    )
