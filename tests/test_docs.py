"""What the pages say about files, settings and commands is true."""

import re
from pathlib import Path

import pytest

from tests import settings_page

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
ANCHOR = re.compile(r"\]\((?!https?:)([^)#]*)#([^)]+)\)")
PATH = re.compile(r"`([\w.]+(?:/[\w.]+)+/?)`")
TEST = re.compile(r"(?<![\w/])tests/[\w./]*\w")
VARIABLE = re.compile(r"DIPTYCH_[A-Z0-9_]*[A-Z0-9]\b")
TARGET = re.compile(r"(?:`|^)make ([a-z-]+)", re.MULTILINE)
MODULE = re.compile(r"python -m ((?:gateway|services|cli|models|benchmarks|tests)[\w.]*)")
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@each_page
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    """Every relative link, and every path in backquotes that starts with a folder of the project, exists."""
    text = page.read_text()
    missing = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir()}
    paths = [path for path in PATH.findall(text) if path.split("/")[0] in rooms]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


@each_page
def test_links_into_a_page_lead_to_a_heading(page: Path) -> None:
    """What stands behind the # is a heading there, as it is written in links."""
    linked = [(page.parent / (name or page.name), anchor) for name, anchor in ANCHOR.findall(page.read_text())]
    pages = [(other, anchor) for other, anchor in linked if other.suffix == ".md"]
    assert [anchor for other, anchor in pages if anchor not in anchors(other)] == []


@each_page
def test_commands_can_be_given(page: Path) -> None:
    """Targets of make, modules that are run and tests that are named exist."""
    text = page.read_text()
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    wrong = [target for target in TARGET.findall(text) if target not in targets]
    modules = [ROOT / module.replace(".", "/") for module in MODULE.findall(text)]
    wrong += [path.name for path in modules if not (path.with_suffix(".py").exists() or path.is_dir())]
    wrong += [path for path in TEST.findall(text) if not (ROOT / path).exists()]
    assert wrong == []


@each_page
def test_settings_are_those_that_there_are(page: Path) -> None:
    """Every variable that a page names is one of docs/configuration.md, or stands for an argument of `diptych`."""
    known = set(VARIABLE.findall(settings_page.page() + (ROOT / "cli" / "main.py").read_text()))
    assert set(VARIABLE.findall(page.read_text())) - known == set()


def test_configuration_lists_the_settings() -> None:
    """docs/configuration.md is what `python -m tests.settings_page` writes."""
    assert settings_page.PAGE.read_text() == settings_page.page(), "run: python -m tests.settings_page"


def anchors(page: Path) -> set[str]:
    """The headings of a page as links spell them: lower case, spaces as hyphens, no other marks."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings: list[str] = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
