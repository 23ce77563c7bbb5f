"""Buttons for a walk in a notebook: the current step with its picture, and the commands that apply to it.

    walk = vlm.walk("How many circles?", images="scene.png")
    walk                # the last line of a cell shows the buttons, if anywidget is installed: pip install "minivl[widgets]"

Buttons and code move the same walk: `next(walk)` in another cell changes what the buttons show. buttons.js is the browser's
half; it sends {"command": ..., "text": ...}, and shows the traits.
"""

import html
from pathlib import Path

import anywidget
import traitlets

from minivl.errors import Error
from minivl.tensors.catalogue import LEVELS, names_of
from minivl.walk.changes import CHANGES, change, format_usage

FOLDER = Path(__file__).parent


class Buttons(anywidget.AnyWidget):
    """The widget of one walk.

    html      the current step, or the answer;  explanation  the paragraph on it
    message   what was wrong with the last command, "" if nothing was
    stops     names of the stops so far, to go back to;  ended  whether the answer is there;  count  commands that were done
    names     of tensors, to go to;  level  where the walk stops;  changes  [name, usage, meaning] of each
    """

    _esm = (FOLDER / "buttons.js").read_text(encoding="utf-8")
    _css = (FOLDER / "buttons.css").read_text(encoding="utf-8")
    html = traitlets.Unicode().tag(sync=True)
    explanation = traitlets.Unicode().tag(sync=True)
    message = traitlets.Unicode().tag(sync=True)
    stops = traitlets.List(traitlets.Unicode()).tag(sync=True)
    ended = traitlets.Bool(False).tag(sync=True)
    count = traitlets.Int(0).tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    level = traitlets.Unicode().tag(sync=True)
    levels = traitlets.List(traitlets.Unicode()).tag(sync=True)
    changes = traitlets.List().tag(sync=True)

    def __init__(self, walk):
        super().__init__(
            names=sorted(names_of(walk.vlm.config)), level=walk.level, levels=list(LEVELS),
            changes=[[name, format_usage(name), CHANGES[name].meaning] for name in CHANGES],
        )  # fmt: skip
        self.walk = walk
        self.on_msg(lambda _, content, __: self.run(content.get("command"), content.get("text", "")))
        self.show()

    def run(self, command, text=""):
        """Run a command of the browser's: a key of COMMANDS, or of CHANGES. Errors are shown."""
        self.message = ""
        try:
            if command in CHANGES:
                self.walk.replace(change(self.walk.here(), command, text))
            elif command in COMMANDS:
                COMMANDS[command](self.walk, text.strip())
            else:
                raise Error(f"there is no command {command!r}.")
        except Error as error:
            self.message = str(error)
        except Exception as error:  # the browser waits for an answer, whatever happened
            self.message = f"{type(error).__name__}: {error}"
        self.show()
        self.count += 1

    def show(self):
        """Show where the walk is."""
        walk, step = self.walk, self.walk.step
        with self.hold_sync():
            self.ended, self.level, self.stops = walk.answer is not None, walk.level, walk.stops
            self.explanation = "" if step is None else step.explain()
            if step is not None:
                self.html = step._repr_html_()
            elif self.ended:
                self.html = f"<p><b>Answer:</b> {html.escape(str(walk.answer))}</p>"
            else:
                self.html = "<p>At the start: nothing has been computed.</p>"


def set_level(walk, name):
    walk.level = name


def until(walk, name):
    if not name:
        raise Error("which tensor? Give its name or a glob, such as visual.merger.")
    walk.until(name)


COMMANDS = {
    "next": lambda walk, _: next(walk, None),
    "stage": lambda walk, _: walk.next_stage(),
    "until": until,
    "back": lambda walk, name: walk.back(name or None),
    "finish": lambda walk, _: walk.finish(),
    "level": set_level,
}
