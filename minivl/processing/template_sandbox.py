"""Run a checkpoint's own chat template, a Jinja program of unknown origin, within limits on access, memory and time.

    render = compile_template(source, path)
    render(messages=[...], add_generation_prompt=True)     # the text of the prompt

Jinja's sandbox keeps a template from Python's internals, but not from memory and time: {{ 'a' * 10**10 }} takes 10 GB. So
operations, filters and methods that make text are checked before they run and counted afterwards, and lines are counted too.
"""

import datetime
import functools
import json
import re
import sys
import time
from collections.abc import Sized

from minivl.errors import Error

LONGEST = 100_000  # of a number that multiplies text or pads it
MOST_TEXT = 50_000_000  # characters or items that all operations together may make
MOST_LINES, MOST_SECONDS = 1_000_000, 10.0  # lines and calls of the compiled template
FORMATS = {"format", "format_map", "%", "strftime_now"}
WIDTH = re.compile(r"\d{6,}|\*|\{[^}]*\{")  # in a format string: a width of 100,000 or more, or one from an argument

# marks the text that is trained on; without effect on a prompt
GENERATION = re.compile(r"(\{%[-+]?)\s*(end)?generation\s*([-+]?%\})")


class TooMuch(Exception):
    """A template exceeds a limit."""

    def __init__(self):
        super().__init__("it would take too much memory or time")


class Budget:
    """Text, lines and seconds that one rendering may still use."""

    def __init__(self):
        self.text, self.lines, self.end = MOST_TEXT, MOST_LINES, time.monotonic() + MOST_SECONDS

    def check(self, name, values):
        """Refuse a method or filter of strings whose arguments would pad, repeat or join without end."""
        if any(isinstance(value, int) and abs(value) > LONGEST for value in values):
            raise TooMuch
        form = values[0] if values and name in FORMATS else None  # what is filled in may say anything
        if isinstance(form, str) and WIDTH.search(form):
            raise TooMuch
        sizes = [len(value) if isinstance(value, Sized) else 0 for value in values]
        if name == "join" and sizes:
            longest = max(values, key=lambda v: len(v) if isinstance(v, (list, tuple)) else 0)
            items = longest if isinstance(longest, (list, tuple)) else ()
            self.check_size(sum(len(i) if isinstance(i, Sized) else 20 for i in items) + len(items) * min(sizes))
        elif name in ("replace", "translate"):
            self.check_size(sizes[0] * max(1, *sizes[1:], *map(text_size, values[1:])))

    def check_size(self, size):
        if size > self.text:
            raise TooMuch

    def spend(self, result):
        """Count the text that an operation has made; returns it."""
        if isinstance(result, Sized) and not isinstance(result, dict):
            self.text -= len(result)
        if self.text < 0:
            raise TooMuch
        return result

    def trace(self, frame, event, argument):
        """A trace function that counts lines of templates."""
        self.lines -= 1
        if self.lines < 0 or self.lines % 1000 == 0 and time.monotonic() > self.end:
            raise TooMuch
        return self.trace if frame.f_code.co_filename == "<template>" else None


def text_size(value):
    """Length of the longest text in the values of a dict."""
    return max((len(v) for v in value.values() if isinstance(v, str)), default=0) if isinstance(value, dict) else 0


def compile_template(source, path):
    """A function that renders a jinja2 template within the limits, with the settings and functions of transformers."""
    try:
        from jinja2.compiler import CodeGenerator
        from jinja2.exceptions import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise Error(
            f"{path} is not the published chat template, and running another one takes jinja2: pip install 'jinja2>=3.1.6'. "
            "Or remove the template from the file, for the published one."
        ) from None

    class Generator(CodeGenerator):
        def visit_Concat(self, node, frame):  # a ~ b ~ c
            self.write("environment.concatenate((")
            for operand in node.nodes:
                self.visit(operand, frame)
                self.write(", ")
            self.write("))")

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"+", "*", "%", "**"})
        code_generator_class = Generator
        budget = Budget()

        def call_binop(self, context, operator, left, right):
            if operator == "*":
                check_product(left, right)
            elif operator == "**":
                check_power(left, right)
            elif operator == "%" and isinstance(left, str):
                self.budget.check("%", [left])
            return self.budget.spend(super().call_binop(context, operator, left, right))

        def concatenate(self, operands):
            texts = [str(operand) for operand in operands]
            self.budget.check_size(sum(map(len, texts)))
            return self.budget.spend("".join(texts))

        def call(__self, __context, __function, *args, **options):
            method = getattr(__function, "__wrapped__", __function)  # the sandbox wraps str.format
            owner = getattr(method, "__self__", None)
            if isinstance(owner, (str, list, tuple)):
                __self.budget.check(method.__name__, [owner, *args, *options.values()])
            return __self.budget.spend(super().call(__context, __function, *args, **options))

    def raise_exception(message):
        raise TemplateError(message)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False} | options)
    for name, run in environment.filters.items():
        environment.filters[name] = limit_filter(name, run, environment)
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        program = environment.from_string(
            GENERATION.sub(lambda tag: f"{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}", source)
        )
    except (TemplateError, RecursionError, TooMuch) as cause:
        raise Error(
            f"the chat template of {path} is not valid Jinja: {str(cause).rstrip('.')}. Use the one of its model."
        ) from None
    return functools.partial(render_within_limits, program, environment)


def render_within_limits(program, environment, **variables):
    environment.budget = budget = Budget()
    pieces, previous = [], sys.gettrace()
    sys.settrace(budget.trace)
    try:
        for piece in program.generate(**variables):
            pieces.append(budget.spend(piece))
    finally:
        sys.settrace(previous)
    return "".join(pieces)


def limit_filter(name, run, environment):
    @functools.wraps(run)  # with jinja's own marks on it
    def run_limited(*args, **options):
        values = [value for value in (*args, *options.values()) if isinstance(value, (int, str, list, tuple))]
        environment.budget.check(name, values)
        return environment.budget.spend(run(*args, **options))

    return run_limited


def check_product(left, right):
    """Refuse a product that repeats a text or list too often, or has too many digits."""
    for factor, other in ((left, right), (right, left)):
        if isinstance(factor, int) and isinstance(other, Sized) and factor * len(other) > MOST_TEXT:
            raise TooMuch
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > 10_000:
        raise TooMuch


def check_power(base, exponent):
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * exponent > 10_000:
        raise TooMuch
