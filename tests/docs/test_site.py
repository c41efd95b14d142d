"""The documents hold together: the site builds without a warning, links lead somewhere, and the README stays short."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
# What a forge shows as it is, beside the site.
FILES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "CHANGELOG.md",
    ROOT / "examples" / "porting" / "README.md",
    *sorted(DOCS.glob("*.md")),
]
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.M | re.S)


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {page.stem for page in DOCS.glob("*.md")}
    assert pages <= {page.stem for page in tmp_path.glob("*.html")}


def anchors(file: Path) -> set[str]:
    """Return the anchors of a document's headings, as a forge and MyST name them."""
    headings = re.findall(r"^#+ (.*)$", CODE.sub("", file.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(file: Path) -> None:
    dead = []
    for match in LINK.finditer(CODE.sub("", file.read_text(encoding="utf-8"))):
        path, _, anchor = match["target"].partition("#")
        if re.match(r"[a-z]+:", path):
            continue
        target = (file.parent / path).resolve() if path else file
        if not target.exists() or (anchor and anchor not in anchors(target)):
            dead.append(match["target"])
    assert not dead


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_every_file_that_a_document_names_is_there(file: Path) -> None:
    # A path in backticks counts if it begins with a name of the root's folder or of the core's.
    text = file.read_text(encoding="utf-8")
    paths = re.findall(r"`((?:[\w.]+/)+[\w.]*|\w+\.py)`", text) + re.findall(r"(?:\w+/)+\w+\.py\b", text)
    roots = (ROOT, ROOT / "tlx")
    ours = [path for path in paths if any((root / path.split("/")[0]).exists() for root in roots)]
    assert [path for path in ours if not any((root / path).exists() for root in roots)] == []


def test_the_recipe_page_is_what_its_fields_say() -> None:
    spec = importlib.util.spec_from_file_location("make_recipe", DOCS / "make_recipe.py")
    assert spec and spec.loader
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    written = (DOCS / "recipe.md").read_text(encoding="utf-8")
    assert maker.page() == written, "run `python docs/make_recipe.py`"


def test_the_readme_has_at_most_a_thousand_words() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1000
