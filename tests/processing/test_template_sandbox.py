"""Chat templates of fine-tunes: the variables that transformers gives them, and limits on memory and time."""

import json
import shutil
import time

import pytest

from minivl import Error
from minivl.processing.chat_template import Template
from minivl.processing.tokenizer import Tokenizer
from minivl.tiny import CHECKPOINT

MESSAGES = [{"role": "user", "content": "Hi"}]

HUNGRY = [
    "{{ 'a' * 10**10 }}", "{{ 10**10 * 'a' }}", "{{ [1] * 10**9 }}", "{{ '\\n' * 99999999 }}", "{{ 10**(10**9) }}",
    "{{ 'a'|center(10**10) }}", "{{ 'a'.center(10**10) }}", "{{ 'a'.ljust(10**10) }}", "{{ '1'.zfill(10**10) }}",
    "{{ '\\t'.expandtabs(10**9) }}", "{{ 'a'|indent(10**9, true) }}", "{{ messages|tojson(indent=10**9) }}",
    "{{ '%10000000000d' % 1 }}", "{{ '%*d' % (10**9, 1) }}", "{{ '%999999999d'|format(1) }}", "{{ '%.999999999f' % 1 }}",
    "{{ '{:10000000000}'.format(1) }}", "{{ '{0:{1}}'.format(1, 10**9) }}", "{{ '{a:999999999}'.format_map({'a': 1}) }}",
    "{{ 'a'.join(['b' * 100000] * 100000) }}", "{{ (['b' * 100000] * 100000)|join }}",
    "{{ ('a' * 10000000).replace('a', 'b' * 1000) }}", "{{ ('a' * 10000000)|replace('a', 'b' * 1000) }}",
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
    "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% set x = range(99999)|list %}{% for a in x %}{% for b in x %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "{{ range(99999)|map('string')|map('center', 90000)|list|length }}",
    "{% for i in range(99999) %}{{ 'a' * 10000 }}{% endfor %}",
]  # fmt: skip


@pytest.mark.parametrize("source", HUNGRY)
def test_memory_and_time_have_limits(source):
    start = time.process_time()
    with pytest.raises(Error, match="too much memory or time|recursion"):
        Template(source, "a.jinja").render(MESSAGES)
    assert time.process_time() - start < 60


def test_limits_leave_ordinary_templates_alone():
    """A conversation of a megabyte, and every operation that templates use."""
    source = (
        "{%- set n = namespace(s='', i=0) -%}{%- for m in messages -%}{%- set n.i = n.i + 1 -%}{{ '%s: %d' % (m.role, n.i) }}"
        "{{ m.content|trim ~ '\\n' }}{{ '{:>5}'.format(n.i) }}{{ ['a', 'b']|join(', ') }}{{ '-' * 20 }}"
        "{{ m.content.split('x')|length }}"
        "{{ m.content.replace('x', '') | length }}{{ 'ab'|center(6) }}{{ m|tojson(indent=2)|length }}{%- endfor -%}"
    )
    messages = [{"role": "user", "content": "x" * 10_000}] * 100
    text = Template(source, "a.jinja").render(messages)
    assert text.startswith("user: 1" + "x" * 10_000 + "\n    1a, b--------------------10001" + "0  ab  ")
    assert Template("{{ 'a' }}", "a.jinja").render(MESSAGES * 3) == "a"  # a new budget each time


@pytest.mark.parametrize(
    "source, text",
    [
        ("{{ eos_token }}{{ bos_token }}", "<|im_end|>"),
        ("{{ pad_token }}", "<|endoftext|>"),
        ("{% if tools is not none %}# Tools{% endif %}{{ documents is none }}", "True"),
    ],
)
def test_variables_of_transformers(source, text, tmp_path):
    (tmp_path / "chat_template.jinja").write_text(source)
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"eos_token": {"content": "<|im_end|>"}, "bos_token": None, "chat_template": "no"})
    )
    assert Template.read(tmp_path).render(MESSAGES) == text


def test_a_template_that_is_no_text(tmp_path):
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe{{ 1 }}")
    with pytest.raises(Error, match="is not text in UTF-8"):
        Template.read(tmp_path)


def test_added_tokens_have_the_flags_of_the_configuration(tmp_path):
    """A fine-tune that wants a mark in its text declares "special": false in tokenizer_config.json alone."""
    shutil.copy(CHECKPOINT / "tokenizer.json", tmp_path)
    id = Tokenizer.read(tmp_path).id("<|box_start|>")
    decoder = {str(id): {"content": "<|box_start|>", "special": False, "normalized": False, "unknown": 5}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    tokenizer = Tokenizer.read(tmp_path)
    ids = tokenizer.encode("<|box_start|>(1,2)<|box_end|>")
    assert ids[0] == id and tokenizer.decode(ids) == "<|box_start|>(1,2)"


@pytest.mark.parametrize(
    "decoder", [{"abc": {}}, {"5": {}}, {"5": 5}, {"-1": {"content": "a"}}, {"5": {"content": "a", "special": 1}}]
)
def test_added_tokens_that_are_none(decoder, tmp_path):
    shutil.copy(CHECKPOINT / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    with pytest.raises(Error, match="added_tokens_decoder holds"):
        Tokenizer.read(tmp_path)


@pytest.mark.parametrize(
    "form", ["{{ '%s' % m.content }}", "{{ '%s' | format(m.content) }}", "{{ '{}'.format(m.content) }}"]
)
@pytest.mark.parametrize("question", ["What is 2 * 3?", "In the year 1234567?", "{a{b}}"])
def test_what_is_filled_into_a_format_may_say_anything(form, question):
    source = f"{{% for m in messages %}}{form}{{% endfor %}}"
    assert Template(source, "a.jinja").render([{"role": "user", "content": question}]) == question


@pytest.mark.parametrize(
    "source", ["{{ '%9999999d' | format(1) }}", "{{ '%*d' | format(9999999, 1) }}", "{{ '{:9999999}'.format(1) }}"]
)
def test_a_format_may_not_pad_without_end(source):
    with pytest.raises(Error, match="too much memory or time"):
        Template(source, "a.jinja").render(MESSAGES)
