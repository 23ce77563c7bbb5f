"""The site: Sphinx, MyST and the notebooks as they are committed. Needs pip install ".[docs]".

    python -m sphinx -c docs . docs/_build/html         # then open docs/_build/html/index.html, from disk

The source folder is the repository's root, so that a link of a page leads to the same file here and on a plain git host. The
contents are the lists of docs/README.md: a page that none of them names is a warning, which the tests take as an error.
What pages take from the code while the site is built stands in built.py. Nothing of a page is loaded from a network.
"""

import re
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]

import built  # noqa: E402
import latex2mathml.converter  # noqa: E402
import slides  # noqa: E402
from docutils import nodes  # noqa: E402

import minivl  # noqa: E402

project, author, release = "minivl", "the authors of minivl", minivl.__version__
copyright = "the authors of minivl, Apache-2.0"
extensions = ["myst_nb", "sphinx.ext.autodoc"]
root_doc = "docs/README"
include_patterns = ["README.md", "CONTRIBUTING.md", "docs/*.md", "docs/teaching/*.md", "notebooks/*.ipynb"]
language = "en"
smartquotes = False

myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "off"  # they are shown as they were committed; the tests run them
suppress_warnings = ["misc.highlighting_failure"]  # "..." in an example of JSON
highlight_language = "text"

autodoc_member_order = "bysource"
autodoc_typehints = "none"
python_maximum_signature_line_length = 100

html_theme = "furo"
html_title = f"minivl {release}"
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_show_search_summary = False  # would fetch the pages, which a browser refuses for files on disk
html_math_renderer = "mathml"
html_additional_pages = {"index": "redirect.html"}
templates_path = ["templates"]


def contents(text):
    """The lists of docs/README.md, each under a bold line, as (caption, files). A link to a folder stands for its notebooks."""
    for caption, links in re.findall(r"^\*\*(.+?)\*\*\n\n(.+?)\n(?=\n|\Z)", text, flags=re.DOTALL | re.MULTILINE):
        paths = [(DOCS / link).resolve() for link in re.findall(r"\]\(([^)#:]+)\)", links)]
        files = [file for path in paths for file in (sorted(path.glob("*.ipynb")) if path.is_dir() else [path])]
        yield caption, [file for file in files if file.suffix in (".md", ".ipynb")]


def toctrees(text):
    """The contents as hidden tables of contents, from which the side bar is made."""
    for caption, files in contents(text):
        entries = "\n".join(f"/{file.relative_to(ROOT).with_suffix('').as_posix()}" for file in files)
        yield f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{entries}\n```\n"


def fill(app, docname, source):
    """Put into a page what only the site shows: the contents, and what built.py makes where <!-- built: NAME --> stands."""
    text = re.sub(r"<!-- built: (.+?) -->", lambda match: built.make(match[1]), source[0])
    if docname == root_doc:
        text += "\n" + "\n".join(toctrees(text))
    if not docname.startswith("notebooks/"):
        text = without_folder_links(text, (ROOT / docname).parent)
    source[0] = text


def without_folder_links(text, folder):
    """Links to folders as their text: a page on disk has no listing to show for them."""
    return re.sub(r"\[([^\]]+)\]\(([^)#:]+)\)", lambda m: m[1] if (folder / m[2]).is_dir() else m[0], text)


def add_slideshow(app, error):
    """Write teaching/slides.md as the one file that is shown on a projector, too."""
    if error is None and app.builder.name == "html":
        page = Path(app.outdir) / "docs" / "teaching" / "slideshow.html"
        page.write_text(slides.make(DOCS / "teaching" / "slides.md"), encoding="utf-8")


def math(display):
    """A visitor that writes a formula as MathML, which browsers draw without scripts or fonts."""

    def visit(self, node):
        latex = node.astext()
        html = latex2mathml.converter.convert(latex, display="block" if display else "inline")
        self.body.append(f'<div class="math">{html}</div>' if display else html)
        raise nodes.SkipNode

    return visit


def setup(app):
    app.connect("source-read", fill)
    app.connect("build-finished", add_slideshow)
    app.connect("autodoc-process-docstring", built.process_docstring)
    app.add_html_math_renderer("mathml", (math(False), None), (math(True), None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
