"""What pages of the site take from the code while the site is built: the names of the packages, the errors, the commands.

A page has <!-- built: NAME --> where a part goes, which a plain git host does not show. These parts change with every
docstring and every message, so that no file of the repository holds them: generate.py makes what the pages themselves keep.

    python docs/built.py errors        # print a part as Markdown: names, errors or commands
"""

import ast
import importlib
import inspect
import os
import re
import sys
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from minivl.helpers import format_table  # noqa: E402

# packages with public names, in the order of the page: those that a user meets first come first
PACKAGES = (
    "minivl", "minivl.tiny", "minivl.answer", "minivl.trace", "minivl.walk", "minivl.plots", "minivl.studies", "minivl.report",
    "minivl.compare", "minivl.record", "minivl.reference", "minivl.make", "minivl.plan", "minivl.lab",
)  # fmt: skip
MISSING_ALL = {"minivl.tiny": ("scene", "digit_picture")}
MODULES = ("minivl.trace.edits", "minivl.stream")  # modules whose functions are for users, under their own name


def public_names(package):
    """The public names of a package that are functions or classes, in its own order."""
    module = importlib.import_module(package)
    names = MISSING_ALL.get(package) or getattr(module, "__all__", None) or own_functions(module)
    return [name for name in names if callable(getattr(module, name))]


def own_functions(module):
    """Functions and classes that a module without __all__ defines, unless their names begin with an underscore."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def names():
    """Every public name, under the package from which it is imported, each object once."""
    first = {}
    for package in (*PACKAGES, *MODULES):
        module = importlib.import_module(package)
        yield f"\n## {package}\n"
        yield plain_sentence(module.__doc__) + "\n"
        for name in public_names(package):
            value, path = getattr(module, name), f"{package}.{name}"
            kind = "class" if inspect.isclass(value) else "func"
            if id(value) in first:
                yield f"`{name}` is {{py:{kind}}}`{first[id(value)]}`.\n"
                continue
            first[id(value)] = path
            directive = "autoclass" if kind == "class" else "autofunction"
            members = "\n   :members:" if kind == "class" else ""
            yield f"```{{eval-rst}}\n.. {directive}:: {path}{members}\n```\n"


def plain_sentence(docstring):
    """The first paragraph of a docstring as one line of Markdown."""
    return " ".join((docstring or "").strip().split("\n\n")[0].split())


# ---------------------------------------------------------------- docstrings


ITEM = re.compile(r"(\S.{0,60}?)\s{2,}(\S.*)")  # "size   tokens along a side"


def process_docstring(app, what, name, value, options, lines):
    """For autodoc: the plain text of a docstring as reStructuredText, in place."""
    lines[:] = to_rst(lines)


def to_rst(lines):
    """A docstring's lines as reStructuredText: indented blocks are code, "name  meaning" is a list, the rest is text."""
    result, block = [], []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line.rstrip())
        elif block:
            result += [*block_to_rst(block), ""]
            block = []
    return result


def block_to_rst(block):
    indents = [len(line) - len(line.lstrip()) for line in block]
    if min(indents) >= 2 or is_drawing(block):
        return ["::", "", *("    " + line[min(indents) :] for line in block)]
    items = []  # (term, lines) of lists, (None, lines) of paragraphs
    for line, indent, following in zip(block, indents, [*indents[1:], 0]):
        match = ITEM.fullmatch(line)
        if indent == 0 and match and not match[1].endswith((".", ":", ";")):
            items.append((match[1], [match[2]]))
        elif indent == 0 and following >= 4 and not line.endswith((".", ":")) and re.fullmatch(r"[\w, *]+", line):
            items.append((line, []))
        elif indent == 0 and not (items and items[-1][0] is None):
            items.append((None, [line]))
        else:
            items[-1][1].append(line.strip()) if items else items.append((None, [line.strip()]))
    result = []
    for term, texts in items:
        text = escape(" ".join(texts))
        result += [text, ""] if term is None else [escape(term), "    " + (text or "\\"), ""]
    return result


def is_drawing(block):
    """Whether a block is laid out in columns: three or more wide gaps inside its lines, or lines of boxes."""
    gaps = sum(len(re.findall(r"\S {2,}(?=\S)", line)) > 1 for line in block)
    return gaps >= 2 or any(set("│─┌└") & set(line) for line in block)


def escape(text):
    """Text in which `code` is literal and nothing else has a meaning."""
    plain = [re.sub(r"([\\*|_`])", r"\\\1", part) for part in re.split(r"`[^`]+`", text)]
    literal = [f"\\ ``{part.strip()}``\\ " for part in re.findall(r"`([^`]+)`", text)]  # "\ ": also within a word
    return "".join(part for pair in zip(plain, [*literal, ""]) for part in pair)


# ---------------------------------------------------------------- errors


def errors():
    """Every message of a minivl.Error as the source has it, by station and file: the cause, then what to do."""
    total = sum(1 for _ in all_errors())
    yield f"{total} messages. Words in ‹angle brackets› stand for what was given.\n"
    station = file = None
    for path, owner, message in all_errors():
        relative = path.relative_to(ROOT / "minivl")
        if station != (station := relative.parts[0].removesuffix(".py")):
            yield f"\n## {station}\n"
        if file != (file := relative.as_posix()):
            yield f"\n`minivl/{file}`\n"
        cause, fix = split_message(message)
        yield f"* {markdown(cause)}{f' **{markdown(fix)}**' if fix else ''} *({markdown(owner)})*"


def all_errors():
    """(path, function, message) of each call of Error in the package, file by file."""
    for path in sorted((ROOT / "minivl").rglob("*.py"), key=lambda p: (len(p.relative_to(ROOT).parts) > 2, p)):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        family = {"Error"} | {node.name for node in ast.walk(tree) if is_error_class(node)}
        yield from ((path, owner, message) for owner, message in errors_in(tree, "", family, tree))


def is_error_class(node):
    return isinstance(node, ast.ClassDef) and any(
        isinstance(base, ast.Name) and base.id == "Error" for base in node.bases
    )


def errors_in(node, owner, family, tree):
    for child in ast.iter_child_nodes(node):
        inner = owner
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            inner = f"{owner}.{child.name}".lstrip(".")
        if isinstance(child, ast.Call) and isinstance(child.func, ast.Name) and child.func.id in family and child.args:
            for message in messages(child.args[0], node_of(tree, owner), tree):
                yield owner, message
        yield from errors_in(child, inner, family, tree)


def node_of(tree, owner):
    """The function or class that a dotted name stands for; the module for ""."""
    for name in filter(None, owner.split(".")):
        tree = next(n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == name)
    return tree


def messages(node, function, tree):
    """The texts that an argument of Error can be: of a variable, what is assigned; of a function, what it returns."""
    if isinstance(node, ast.Name):
        values = [n.value for n in ast.walk(function) if assigns(n, node.id)] or [
            n.value for n in tree.body if assigns(n, node.id)
        ]
        texts = [text for value in values for text in messages(value, function, tree)]
        return texts or [f"‹{node.id}›"]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        made = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == node.func.id]
        returns = [n.value for f in made for n in ast.walk(f) if isinstance(n, ast.Return) and n.value is not None]
        return [text for value in returns for text in messages(value, made[0], tree)] or [template(node)]
    if isinstance(node, ast.IfExp):
        return messages(node.body, function, tree) + messages(node.orelse, function, tree)
    return [template(node)]


def assigns(node, name):
    return isinstance(node, ast.Assign) and any(
        isinstance(target, ast.Name) and target.id == name for target in node.targets
    )


def template(node):
    """An expression of text with ‹words› where values are put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(template(value) for value in node.values)
    if isinstance(node, ast.FormattedValue):
        return placeholder(node.value)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return template(node.left) + template(node.right)
    return placeholder(node)


def placeholder(node):
    """What stands in an f-string's braces, in a few words: did_you_mean(...) as its own sentence, else the last name of it."""
    if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "did_you_mean":
        return " Did you mean ‹the most like it›?"
    if isinstance(node, ast.Call) and node.args and getattr(node.func, "id", getattr(node.func, "attr", "")) in (
        "shorten", "sorted", "join", "str", "repr", "list", "tuple", "set", "type", "format_bytes",
    ):  # fmt: skip
        return placeholder(node.args[0])
    if isinstance(node, ast.BinOp) and not isinstance(node.op, ast.Add):
        return f"‹{ast.unparse(node)}›" if len(ast.unparse(node)) < 40 else "‹…›"
    if isinstance(node, ast.IfExp) and isinstance(node.body, (ast.Constant, ast.JoinedStr)):
        return f"‹{template(node.body).strip() or template(node.orelse).strip()}›".replace("‹‹", "‹").replace("››", "›")
    text = ast.unparse(node)
    return f"‹{text}›" if len(text) < 40 else "‹…›"


def split_message(message):
    """(cause, fix) of a message: what follows its first sentence, or its last colon or semicolon, says what to do."""
    message = " ".join(message.split())
    parts = re.split(r"(?<=[.?!])\s+(?=[A-Z\"'‹(])", message, maxsplit=1)
    return (parts[0], parts[1]) if len(parts) == 2 else (message, "")


def markdown(text):
    """Text in which nothing has a meaning in Markdown."""
    return re.sub(r"([\\`*_{}\[\]<>#|$~])", r"\\\1", text)


# ---------------------------------------------------------------- commands


def commands():
    """The help of every command, as the terminal shows it."""
    from minivl.cli import build_parser

    with mock.patch.dict(os.environ, COLUMNS="92", NO_COLOR="1"):
        top = build_parser()
        choices = next(action.choices for action in top._actions if action.choices)
        helps = {"": top.format_help(), **{name: parser.format_help() for name, parser in choices.items()}}
    for name, text in helps.items():
        if name:
            yield f"\n## minivl {name}\n"
        yield f"```text\n{text}```\n"


def slideshow():
    """A link to the slides as one HTML file, which conf.py puts beside this page."""
    yield 'On this site: <a href="slideshow.html">the slides, ready to be shown</a>.'


PARTS = {"names": names, "errors": errors, "commands": commands, "slideshow": slideshow}


def make(name):
    """A part as Markdown (MyST)."""
    return "\n".join(PARTS[name]())


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in PARTS:
        sys.exit(
            "\n".join(["usage: python docs/built.py NAME", *format_table([(n, f.__doc__) for n, f in PARTS.items()])])
        )
    print(make(sys.argv[1]))
