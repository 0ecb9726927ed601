"""The pages say what is true: settings, links, commands, examples, the direction of imports."""

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
from test_structure import LINES, ROOT

from nowcast import studies
from nowcast.cli import app
from nowcast.config import Config
from nowcast.networks import NETWORKS, settings_of
from pipelines import running

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "mlflow/*.md")
    for path in ROOT.glob(pattern)
    if path.is_file()
)
READ = {path: path.read_text(encoding="utf-8") for path in PAGES}
SHELL = ("console", "sh", "bash")
VERBS = {name for name in app if not name.startswith("-")}
ENDS_A_COMMAND = frozenset({"&&", "||", "|", ";", "&", ">"})

pages = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def _blocks(page, *languages):
    """Give the fenced blocks of a page that are in one of the languages."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", READ[page], re.MULTILINE | re.DOTALL)
    return [content for language, content in fenced if language in languages]


def _commands(page, *program):
    """Give every command of a page that starts with a program's words, as the words after them."""
    lines = "\n".join(_blocks(page, *SHELL)).replace("\\\n", " ").splitlines()
    prose = re.sub(r"^```.*?^```$", "", READ[page], flags=re.MULTILINE | re.DOTALL)
    for line in (*lines, *re.findall(rf"`({' '.join(program)} [^`]+)`", prose)):
        words = shlex.split(line, comments=True)
        if words[: len(program)] == [*program]:
            ends = [place for place, word in enumerate(words) if word in ENDS_A_COMMAND]
            yield words[len(program) : min(ends, default=len(words))]


def _anchors(page):
    headings = re.findall(r"^#+ (.+)$", READ[page], re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _options(verb):
    return {name for one in app[verb].assemble_argument_collection() for name in one.names}


def _settings(section=Config, prefix=""):
    for name, field in section.model_fields.items():
        if hasattr(field.annotation, "model_fields"):
            yield from _settings(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field.get_default(call_default_factory=True)


def _table(pattern):
    """Give name and default of each row of the page of settings whose name fits."""
    page = READ[ROOT / "docs" / "settings.md"]
    rows = re.findall(rf"^\| {pattern} \| `([^`]*)` \|", page, re.MULTILINE)
    return {name: tomllib.loads(f"value = {value}")["value"] for name, value in rows}


def test_every_setting_is_in_the_table_with_its_default():
    known = {name: json.loads(json.dumps(value)) for name, value in _settings()}
    assert _table(r"`(\w+\.\w+|experiment)`") == known


@pytest.mark.parametrize("name", NETWORKS)
def test_the_settings_of_each_network_are_in_the_table(name):
    known = json.loads(json.dumps(vars(settings_of(name, {}))))
    assert _table(rf"`{name}` \| `(\w+)`") == known


@pages
def test_relative_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", READ[page]):
        if target.startswith(("https://", "http://", "mailto:")):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), f"{page.name} links to {target}, which is not there"
        if anchor and linked in READ:
            assert anchor in _anchors(linked), f"{page.name} links to {target}: no such heading"


@pages
def test_every_command_would_be_understood(page):
    for verb, *arguments in _commands(page, "nowcast"):
        if verb == "VERB":  # stands for any
            continue
        assert verb in VERBS, f"{page.name}: there is no `nowcast {verb}`"
        if all(word.startswith("--") for word in arguments):  # named in a sentence, not to be typed
            assert set(arguments) <= _options(verb), f"{page.name}: nowcast {verb} {arguments}"
        else:
            app.parse_args([verb, *arguments], exit_on_error=False, print_error=False)


@pages
def test_every_scheduled_command_would_be_understood(page):
    for arguments in _commands(page, "python", "-m", "pipelines.cycle"):
        running.app.parse_args(arguments, exit_on_error=False, print_error=False)


def test_every_verb_is_in_the_readme_with_an_example():
    page = READ[ROOT / "README.md"]
    rows = dict(re.findall(r"^\| `(\w+)` \| .* \| `nowcast (\w+).*` \|$", page, re.MULTILINE))
    assert rows == {verb: verb for verb in VERBS}


@pages
def test_python_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in _blocks(page, "python"):
        exec(block, names)


@pages
def test_examples_of_settings_and_requests_are_valid(page):
    for block in _blocks(page, "toml"):
        content = tomllib.loads(block)
        if "variants" in content:
            studies.validate(content, source=page.name)
        else:
            Config.model_validate(content)
    for block in _blocks(page, "json"):
        json.loads(block)


def test_the_directions_on_the_page_are_those_that_are_tested():
    page = READ[ROOT / "docs" / "architecture.md"]
    listed = page.split("## Directions")[1].split("```")[1].split("\n")
    assert [set(line.split()) for line in listed if line] == LINES


@pages
def test_pages_name_no_place_of_one_machine(page):
    assert not re.search(r"(?<![\w.$~])/(work|home|root|Users)/", READ[page])


def test_the_story_is_linked():
    assert "notebooks/story.ipynb" in READ[ROOT / "README.md"]
    assert Path(ROOT / "notebooks" / "story.ipynb").is_file()
