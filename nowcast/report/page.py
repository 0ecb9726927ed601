"""HTML from nested elements: whatever is text in them is escaped when it is written."""

import base64
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

STYLE = Path(__file__).with_name("page.css")
RESOLVERS = {"doi:": "https://doi.org/", "arxiv:": "https://arxiv.org/abs/"}
MEDIA_TYPES = {".png": "image/png", ".gif": "image/gif"}

Content = str | Element | None


def element(tag: str, *content: Content, **attributes: str) -> Element:
    """Make an element.

    Parameters
    ----------
    tag
        Its name.
    content
        Texts and elements; None is left out.
    attributes
        A trailing underscore is dropped and others become hyphens: ``class_``, ``aria_label``.

    Examples
    --------
    >>> tostring(element("p", "a < b ", element("b", "&"), class_="note"), encoding="unicode")
    '<p class="note">a &lt; b <b>&amp;</b></p>'
    """
    made = Element(tag, {name.rstrip("_").replace("_", "-"): v for name, v in attributes.items()})
    for part in content:
        if isinstance(part, Element):
            made.append(part)
        elif part is not None and len(made):
            made[-1].tail = (made[-1].tail or "") + part
        elif part is not None:
            made.text = (made.text or "") + part
    return made


def page(title: str, body: Iterable[Element]) -> str:
    """Give a whole page, with its style inside."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("style", STYLE.read_text(encoding="utf-8")),
    )
    whole = element("html", head, element("body", *body), lang="en")
    return "<!doctype html>\n" + tostring(whole, encoding="unicode", method="html") + "\n"


def section(key: str, heading: str, *content: Content) -> Element:
    """Make a section with a heading, to which a link can lead."""
    return element("section", element("h2", heading), *content, id=key)


def table(
    caption: str, header: Sequence[Content], rows: Iterable[tuple[Content, Sequence[Element]]]
) -> Element:
    """Make a table that scrolls by itself where it is wider than the screen.

    Parameters
    ----------
    caption
        What it holds.
    header
        Of each column, that of the names among them.
    rows
        Name and cells (``td``) of each.
    """
    head = element("thead", element("tr", *(element("th", one, scope="col") for one in header)))
    body = element(
        "tbody",
        *(element("tr", element("th", name, scope="row"), *cells) for name, cells in rows),
    )
    whole = element("table", element("caption", caption), head, body)
    return element("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption)


def paragraphs(*texts: str) -> list[Element]:
    """Make a paragraph of each text that is not empty."""
    return [element("p", text) for text in texts if text]


def embedded(path: Path) -> str:
    """Give a picture as a data URI."""
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{MEDIA_TYPES[path.suffix]};base64,{content}"


def cited(reference: str) -> Element:
    """Give a source: a link where it is a DOI, an arXiv number or an address, else text.

    Examples
    --------
    >>> link = cited("Efron (1993), doi:10.1002/x<1>").find("a")
    >>> link.get("href"), link.text
    ('https://doi.org/10.1002/x%3C1%3E', 'doi:10.1002/x<1>')
    """
    parts: list[Content] = []
    for word in re.split(r"(\s+)", reference):
        address = _address(word.rstrip(",;"))
        link = (
            element("a", word, href=address, rel="noreferrer", target="_blank") if address else word
        )
        parts.append(link)
    return element("span", *parts)


def _address(word: str) -> str:
    for prefix, resolver in RESOLVERS.items():
        if word.lower().startswith(prefix):
            return resolver + word[len(prefix) :].replace("<", "%3C").replace(">", "%3E")
    return word if word.startswith("https://") else ""
