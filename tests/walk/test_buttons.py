"""The buttons of a walk in a notebook: what each does, errors, and that code and buttons move one walk."""

import json
import sys

import numpy as np
import pytest
from chromium import SLOW, browser  # noqa: F401
from conftest import small_inputs, small_model

from minivl.walk.changes import CHANGES

VLM = small_model()
INPUTS = small_inputs(VLM.config)


@pytest.fixture
def walk():
    return VLM.walk(INPUTS, max_new_tokens=2)


def test_without_anywidget_a_walk_is_one_line(walk, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "minivl.walk.buttons", raising=False)
    assert walk._repr_mimebundle_() is None and repr(walk) == "<Walk at its start, 0 tensors so far>"


@pytest.fixture
def buttons(walk):
    pytest.importorskip("anywidget", reason="anywidget is not installed")
    from minivl.walk.buttons import Buttons

    walk._buttons = Buttons(walk)
    return walk._buttons


def test_a_notebook_shows_them(walk, buttons):
    bundle = walk._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "application/vnd.jupyter.widget-view+json" in data and walk._buttons is buttons
    assert "nothing has been computed" in buttons.html and not buttons.ended


def test_each_command_moves_the_walk(walk, buttons):
    buttons.run("next")
    buttons.run("next")
    assert walk.step.name == "visual.window_index" and f"<b>{walk.step.name}</b>" in buttons.html
    assert buttons.explanation == walk.step.explain() and buttons.stops == ["input_ids", "visual.window_index"]
    buttons.run("until", "visual.blocks.1.attn.probs")
    assert walk.step.name == "visual.blocks.1.attn.probs"
    buttons.run("stage")
    assert walk.step.name == "visual.merger"
    buttons.run("back")
    assert walk.step.name == "visual.blocks.1.attn.probs"
    buttons.run("back", "input_ids")
    assert walk.step.name == "input_ids"
    buttons.run("level", "tensor")
    buttons.run("next")
    assert walk.step.name == "pixel_values" and buttons.level == "tensor"
    buttons.run("finish")
    assert buttons.ended and "Answer:" in buttons.html and buttons.explanation == "" and buttons.count == 9
    buttons.run("back")
    assert not buttons.ended and walk.step.name == "pixel_values" and buttons.message == ""


def test_changes_are_those_of_the_terminal(walk, buttons):
    assert [name for name, _, _ in buttons.changes] == list(CHANGES)
    buttons.run("until", "visual.merger")
    before = walk.step.value
    buttons.run("swap", "0 3")
    assert np.array_equal(walk.step.value[[3, 0]], before[[0, 3]]) and "(replaced)" in buttons.html
    buttons.run("finish")
    edited = VLM.trace(
        INPUTS, edit={"visual.merger": lambda x: np.concatenate([x[[3, 1, 2, 0]], x[4:]])}, max_new_tokens=2
    )
    assert walk.answer.ids == edited.result.ids


def test_code_moves_them_too(walk, buttons):
    next(walk)
    assert "<b>input_ids</b>" in buttons.html
    walk.replace(walk.until("visual").value * 0)
    assert "<b>visual</b>" in buttons.html and "(replaced)" in buttons.html
    walk.finish()
    assert buttons.ended


@pytest.mark.parametrize(
    "command, text, words",
    [
        ("until", "", "Give its name"),
        ("until", "no.such", "no tensor is called no.such"),
        ("back", "", "there is no earlier stop"),
        ("scale", "2", "take a step first"),
        ("level", "atom", "choose one of"),
        ("dance", "", "there is no command 'dance'"),
    ],
)
def test_errors_are_shown(walk, buttons, command, text, words):
    buttons.run(command, text)
    assert words in buttons.message and buttons.count == 1
    buttons.run("next")
    assert buttons.message == ""


def test_they_work_in_a_browser(walk, buttons, browser):  # noqa: F811
    """buttons.js with the real widget behind it: what is clicked there is done here, and what is done here is shown there."""
    names = "html message stops ended level explanation count names levels changes".split()

    def state():
        return {name: getattr(buttons, name) for name in names}

    def receive(content):
        buttons._handle_custom_msg(content, [])
        return state()

    page, said = browser.new_page(), []
    page.set_default_timeout(SLOW)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.expose_function("python", receive)
    page.set_content(f"<style>{buttons._css}</style><div id=el></div>")
    code = str(buttons._esm).replace("export default { render };", "")
    page.add_script_tag(content=f"{{ {MODEL.replace('STATE', json.dumps(state()))} {code} {RENDER} }}")
    first = page.locator(".step b").first
    assert page.locator("[data-command=back]").is_disabled() and page.locator("[data-command=change]").is_hidden()
    page.click("[data-command=next]")
    page.locator(".step b", has_text="input_ids").wait_for()
    page.fill("input[list]", "visual.merger")
    page.keyboard.press("Enter")
    page.locator(".step b", has_text="visual.merger").wait_for()
    before = walk.step.value
    page.select_option("[aria-label='Change of this tensor']", "scale")
    page.fill("[aria-label='Arguments of the change']", "0.5")
    page.click("[data-command=change]")
    page.locator(".step", has_text="(replaced)").wait_for()
    assert np.array_equal(walk.step.value, before * np.float32(0.5))
    page.fill("[aria-label='Arguments of the change']", "much")
    page.click("[data-command=change]")
    page.locator(".message", has_text="not a finite number").wait_for()
    page.click("[data-command=finish]")
    page.locator(".step", has_text="Answer:").wait_for()
    assert first.inner_text() == "Answer:" and page.locator("[data-command=next]").is_disabled()
    page.click("[data-command=back]")
    page.locator(".step b", has_text="visual.merger").wait_for()
    assert page.evaluate("count_listeners()") == 7
    page.evaluate("close_view()")
    assert page.evaluate("count_listeners()") == 0 and said == []
    page.close()


# the browser's side of a widget: the traits, and a channel to Python
MODEL = """
    const listeners = [];
    const model = {
        state: STATE, get: (name) => model.state[name],
        on: (event, see) => listeners.push([event, see]),
        off: (event, see) => listeners.splice(listeners.findIndex((one) => one[0] === event && one[1] === see), 1),
        send: async (content) => { model.state = await python(content); listeners.forEach(([, see]) => see()); },
    };
    window.count_listeners = () => listeners.length;
"""
RENDER = "window.close_view = render({ model, el: document.getElementById('el') });"
