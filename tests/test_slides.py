"""The slides: one file that needs no other, one section for each slide, code as it is in the source."""

import html
import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def slides():
    for package in ("markdown_it", "pygments"):
        pytest.importorskip(package, reason='the slides need pip install ".[docs]"')
    spec = importlib.util.spec_from_file_location("slides", DOCS / "slides.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_course_slides_are_one_file(slides, tmp_path):
    source, page = DOCS / "teaching" / "slides.md", tmp_path / "made" / "slides.html"
    slides.main([str(source), str(page)])
    text, wanted = page.read_text(encoding="utf-8"), source.read_text(encoding="utf-8")
    assert list(tmp_path.rglob("*.*")) == [page]
    sections = re.findall(r'<section class="slide (?:title|body)" id="(\d+)">', text)
    assert sections == [str(n) for n in range(1, wanted.count("\n---\n") + 2)] and len(sections) > 25
    assert text.count("<aside>") == wanted.count("<!-- say:") > 3 and "say:" not in text
    assert not re.findall(r'(?:src|href)="(?!data:)', text) and "{{" not in text and "@import" not in text
    assert text.count('src="data:image/png;base64,') == wanted.count("![")
    code = [
        re.sub(r"<[^>]+>", "", block)
        for block in re.findall(r"<pre[^>]*><code[^>]*>(.*?)</code></pre>", text, re.DOTALL)
    ]
    assert [html.unescape(block) for block in code] == re.findall(
        r"^```\w+\n(.*?)^```", wanted, re.DOTALL | re.MULTILINE
    )


def test_letters_of_code_are_as_large_as_its_lines_allow(slides):
    short, long, longer = (slides.enlarge(f"<code>a\n{'&lt;' * count}\n</code>") for count in (5, 75, 200))
    assert "font-size: 28px" in short and "font-size: 24px" in long and "font-size: 21px" in longer


def test_slides_of_ones_own(slides, tmp_path):
    (tmp_path / "mine.md").write_text(
        "# One\n\nwith a line\n\n---\n\n## Two <b>\n\n<!-- say: a & b -->\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
    )
    page = slides.make(tmp_path / "mine.md")
    assert page.count("<section") == 2 and "<aside>a &amp; b</aside>" in page and "<td>2</td>" in page
    assert 'class="slide title" id="1"' in page and 'class="slide body" id="2"' in page
