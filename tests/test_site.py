"""The site: built from today's pages and notebooks without a warning, and everything in it leads somewhere on the same disk.

Runs where Sphinx is installed: pip install ".[docs]".
"""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

for package in ("sphinx", "myst_nb", "furo", "latex2mathml"):
    pytest.importorskip(package, reason='the site needs pip install ".[docs]"')

ROOT = Path(__file__).parents[1]
LOADED = {("script", "src"), ("img", "src"), ("link", "href"), ("iframe", "src"), ("source", "src"), ("video", "src")}
LED_TO = LOADED | {("a", "href")}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs", ".", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and not run.stderr, run.stdout + run.stderr
    return folder


class Page(HTMLParser):
    """What a page refers to, as (tag, attribute, value), and its anchors."""

    def __init__(self, path):
        super().__init__()
        self.references, self.anchors = [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.anchors |= {attributes.get("id"), attributes.get("name")} - {None}
        self.references += [(tag, key, attributes[key]) for of, key in LED_TO if of == tag and attributes.get(key)]


@pytest.fixture(scope="module")
def pages(site):
    return {path.resolve(): Page(path) for path in site.rglob("*.html")}


def test_every_page_and_notebook_is_there(site):
    sources = [
        ROOT / "README.md",
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("docs/teaching/*.md"),
        *ROOT.glob("notebooks/*.ipynb"),
    ]
    for source in sources:
        page = site / source.relative_to(ROOT).with_suffix(".html")
        assert page.is_file(), source
        home = page.read_text(encoding="utf-8")
        assert 'class="sidebar-tree"' in home
    assert "docs/README.html" in (site / "index.html").read_text(encoding="utf-8")


def test_links_and_anchors_lead_somewhere(pages):
    """Of each page, to files of the site and to places in them."""
    broken = []
    for path, page in pages.items():
        for _, _, value in page.references:
            parts = urlsplit(value)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.is_file() or (anchor and target in pages and anchor not in pages[target].anchors):
                broken.append(f"{path.name}: {value}")
    assert not broken
    assert sum(len(page.references) for page in pages.values()) > 1000


def test_nothing_is_loaded_from_a_network(site, pages):
    loaded = [value for page in pages.values() for tag, key, value in page.references if (tag, key) in LOADED]
    assert loaded and not [
        value for value in loaded if urlsplit(value).scheme not in ("", "data") or value.startswith("//")
    ]
    for sheet in site.rglob("*.css"):
        assert not re.findall(r"url\(\s*['\"]?(?:https?:)?//", sheet.read_text(encoding="utf-8")), sheet
    assert "SHOW_SEARCH_SUMMARY: false" in (site / "_static" / "documentation_options.js").read_text(encoding="utf-8")


def test_search_finds_names_errors_and_words(site):
    """The index is a script, which a browser loads from disk, too."""
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(re.fullmatch(r"Search\.setIndex\((.*)\)", text, re.DOTALL)[1])

    def documents(word):
        found = [index[terms].get(word, []) for terms in ("terms", "titleterms")]
        return {index["docnames"][i] for at in found for i in ([at] if isinstance(at, int) else at)}

    assert {"minivl.studies", "minivl.plots"} <= set(index["objects"])
    assert "docs/errors" in documents("safetensor") and "notebooks/02_windows" in documents("window")


def test_reference_has_every_public_name(pages, site):
    import minivl
    from minivl import plots, studies

    anchors = pages[(site / "docs" / "api.html").resolve()].anchors
    for package in (minivl, plots, studies):
        names = {f"{package.__name__}.{name}" for name in package.__all__} - {
            "minivl.__version__",
            "minivl.lab",
            "minivl.record",
        }
        assert names <= anchors


def test_formulas_are_drawn_without_scripts(site):
    notebook = (site / "notebooks" / "05_decoding.html").read_text(encoding="utf-8")
    assert notebook.count("<math") > 5 and "\\frac" not in re.sub(r"<(code|pre).*?</\1>", "", notebook, flags=re.DOTALL)
