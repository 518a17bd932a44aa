"""What the pages say about files is true."""

import re
from pathlib import Path

import pytest

from tests import settings_page

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)")
PATH = re.compile(r"`([\w.]+(?:/[\w.]+)+/?)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_paths_lead_somewhere(page: Path) -> None:
    """Every relative link, and every path in backquotes that starts with a folder of the project, exists."""
    text = page.read_text()
    missing = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir()}
    paths = [path for path in PATH.findall(text) if path.split("/")[0] in rooms]
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def test_configuration_lists_the_settings() -> None:
    """docs/configuration.md is what `python -m tests.settings_page` writes."""
    assert settings_page.PAGE.read_text() == settings_page.page(), "run: python -m tests.settings_page"
