"""Walk through a run: stop at a tensor, look at it, change it, continue or go back.

    walk = vlm.walk("How many circles?", images="scene.png")
    for step in walk: print(step.name, step.shape, step.explain())     # stages, blocks and layers
    step = walk.until("visual.blocks.1.attn.probs")                    # on to this tensor; a glob will do
    step.value, step.stats()                                           # in a notebook `step` alone shows a picture
    walk.replace(step.value * 0)                                       # the run continues with this instead
    walk.back("visual.patch_embed")                                    # run again up to there, with the same changes
    answer = walk.finish()

A walk consumes the stream of `VLM.answer`: tensors are computed when it reaches them, none is kept, and without replacements
the answer is that of `ask`, bit for bit. `narrate` is a walk as lines of text.
"""

import secrets
from collections import namedtuple
from fnmatch import fnmatchcase

from tqdm import tqdm

from minivl.errors import Error
from minivl.helpers import Text
from minivl.processing.messages import build_messages
from minivl.stream import Lazy, read_only, replacement, value_of
from minivl.tensors.catalogue import LEVELS, check_name, level
from minivl.tensors.explain import SPECIFIC, Narrator, explain
from minivl.tensors.names import parse
from minivl.trace.maps import MAPPED
from minivl.trace.stats import stats_of

Passed = namedtuple("Passed", "name shape dtype")
LATER_TOKENS = "steps.*"  # tensors of the answer's tokens after the first
BROKEN = "this run was ended by an error or an interrupt: walk.back() runs it again, to the stop before."


class Step:
    """The tensor at which a walk has stopped.

    name, shape, dtype  of the tensor;  replaced  whether `walk.replace` changed it
    """

    def __init__(self, walk, name, tensor, replaced=False):
        self.name, self.shape, self.dtype, self.replaced = name, tuple(tensor.shape), tensor.dtype, replaced
        self._walk, self._tensor = walk, tensor

    @property
    def value(self):
        """The array, read-only. Attention scores and probabilities are computed only when this is read."""
        return read_only(value_of(self._tensor))

    @property
    def lazy(self):
        """Whether the model itself never computes it (attention scores and probabilities)."""
        return isinstance(self._tensor, Lazy)

    def sentence(self):
        """One line on what happened; "" for tensors inside a block."""
        return self._walk.narrator.sentence(self.name, self._tensor) or ""

    def explain(self):
        """A paragraph: what happened, the formula, the shapes, the reason."""
        sentence = self.sentence().removeprefix("-> ") if parse(self.name).general in SPECIFIC else ""
        end = f" In this run: {sentence}." if sentence else ""
        return Text(explain(self._walk.vlm.config, self.name, self._tensor) + end)

    def stats(self):
        """min, max, mean, rms, NaN and infinite values, outlier channels: `stats.Stats`."""
        return stats_of(self.name, self.value)

    def __repr__(self):
        return f"<{self.name} {self.dtype} {list(self.shape)}{', replaced' if self.replaced else ''}>"

    def _repr_html_(self):
        from minivl.walk.notebook import render_step

        return render_step(self, self._walk)


class Walk:
    """An iterator of `Step`s. It stops at each "stage", at each "block" (and layer) too, or at each "tensor" (`level`).

    step    the current `Step`; None before the first and after the last
    passed  (name, shape, dtype) of every tensor so far
    edits   {name: array} of replaced tensors
    level   where it stops; assigned, it holds from the next step on
    stops   the names of the tensors at which it stopped
    answer  the `Answer`, once the run has ended
    In a notebook it shows buttons, if anywidget is installed (buttons.py).
    """

    def __init__(self, vlm, messages, level="block", **options):
        if options.get("cache") is not None:
            raise Error("a walk changes tensors and runs again; a cache would keep what was changed: leave cache= out.")
        if options.get("seed") is None:
            options["seed"] = secrets.randbits(64)  # going back must draw the same tokens again
        self.vlm, self.level, self.narrator = vlm, level, Narrator(vlm)
        self.edits, self._skipped, self._stops, self._buttons = {}, [], [], None
        self._make = lambda: vlm.answer(messages, **options)
        self._start()

    def _start(self):
        self.step, self.answer, self.passed, self.context = None, None, [], {}
        self._stage, self._reply = self._make(), None

    def __iter__(self):
        return self

    def __next__(self):
        """Run to the next tensor of this level. -> Step"""
        while True:
            step = self._advance()
            if LEVELS.index(level(step.name)) > LEVELS.index(self.level):
                continue
            if not self._is_skipped(step.name):
                return self._stop()

    def until(self, name):
        """Run to the next tensor with this name, or matching this glob, whatever the level. -> Step"""
        check_name(self.vlm.config, name)
        if any(tensor.name == name for tensor in self.passed):
            raise Error(f"the walk has already passed {name}: walk.back({name!r}) goes there; in a terminal, b {name}.")
        for step in self._run_to(name):
            if fnmatchcase(step.name, name):
                return self._stop()
        raise Error(f"the run ended before a tensor named {name}. walk.back() goes to earlier ones.")

    def next_stage(self):
        """Run past blocks and layers to the next stage. -> Step, or None at the end"""
        for _ in self._run_to("the next stage"):
            if level(self.step.name) == "stage" and not self._is_skipped(self.step.name):
                return self._stop()
        return None

    def skip(self, pattern):
        """Do not stop at tensors that match this glob from now on."""
        check_name(self.vlm.config, pattern)
        self._skipped.append(pattern)

    def _is_skipped(self, name):
        return any(fnmatchcase(name, pattern) for pattern in self._skipped)

    def replace(self, value):
        """Replace the current tensor by an array of the same shape and dtype. -> Step"""
        step = self.here()
        self._reply = self.edits[step.name] = replacement(step.name, step._tensor, value)
        self.step = Step(self, step.name, self._reply, replaced=True)
        self._remember(step.name, self._reply)
        self._show()
        return self.step

    def back(self, name=None):
        """Run again from the start to the stop before, or to the last earlier tensor with this name or glob. -> Step

        Replacements up to that tensor, its own included, are kept; later ones are dropped.
        """
        earlier = [tensor.name for tensor in self.passed]
        if self.step is not None and self.answer is None:
            earlier = earlier[:-1]  # without the current one
        stops = [stop for stop in self._stops if stop in earlier]
        candidates = stops if name is None else [tensor for tensor in earlier if fnmatchcase(tensor, name)]
        if not candidates:
            what = "there is no earlier stop" if name is None else f"no tensor before this one is called {name}"
            raise Error(f"{what}: {len(self.passed)} have passed; walk.passed lists them.")
        target = candidates[-1]
        count = earlier.index(target) + 1
        self._stage.close()
        self.edits = {edit: value for edit, value in self.edits.items() if edit in earlier[:count]}
        self._stops = [stop for stop in self._stops if stop in earlier[: count - 1]]
        self._start()
        for step in self._run_to(target):
            if step.name == target:
                return self._stop()

    def finish(self):
        """Run to the end. -> Answer"""
        for _ in self._run_to("the answer"):
            pass
        return self.answer

    def _advance(self):
        """Run to the next tensor. -> Step"""
        if self.answer is not None:
            raise StopIteration
        try:
            name, tensor = self._stage.send(self._reply)
        except StopIteration as finished:
            if finished.value is None:
                raise Error(BROKEN) from None
            self.answer, self.step = finished.value, None
            self._show()
            raise
        replaced = name in self.edits
        self._reply = replacement(name, tensor, self.edits[name]) if replaced else tensor
        self.step = Step(self, name, self._reply, replaced)
        self.passed.append(Passed(name, self.step.shape, self.step.dtype))
        self._remember(name, self._reply)
        return self.step

    def _run_to(self, where):
        """Yield every tensor up to the end, with a progress bar on stderr if that takes long."""
        with tqdm(desc=f"to {where}", unit=" tensors", leave=False, delay=1, disable=None) as bar:
            while True:
                try:
                    yield self._advance()
                except StopIteration:
                    return
                bar.update()

    def _stop(self):
        self._stops.append(self.step.name)
        self._show()
        return self.step

    @property
    def stops(self):
        return list(self._stops)

    @property
    def level(self):
        return self._level

    @level.setter
    def level(self, name):
        if name not in LEVELS:
            raise Error(f"level={name!r}: choose one of {', '.join(LEVELS)}.")
        self._level = name

    def _show(self):
        """Show the current step in the buttons, where there are any."""
        if self._buttons is not None:
            self._buttons.show()

    def _repr_mimebundle_(self, **options):
        """Buttons for a notebook; None without anywidget, and a notebook then shows the repr."""
        if self._buttons is None:
            try:
                from minivl.walk.buttons import Buttons
            except ImportError:
                return None
            self._buttons = Buttons(self)
        return self._buttons._repr_mimebundle_(**options)

    def _remember(self, name, tensor):
        """Keep the images, and the tensors that map rows to them."""
        if name in MAPPED or name.endswith(".resized"):
            self.context[name] = tensor

    def here(self):
        """The current `Step`; an Error before the first and after the last."""
        if self.step is None:
            raise Error("the walk is not at a tensor: take a step first, with next(walk) or walk.until(name).")
        return self.step

    def __repr__(self):
        where = "at its start" if not self.passed else f"at {self.step.name}" if self.step else "at its end"
        return f"<Walk {where}, {len(self.passed)} tensors so far>"


def format_step(step):
    """Format a step as one line."""
    return f"{step.name:<25} {str(list(step.shape)):<15} {step.sentence()}".rstrip()


def narrate(vlm, question, images=None, videos=None, brief=False, **options):
    """Yield the walk as lines of text while it runs; returns the `Answer`. Arguments as in `VLM.ask`.

    brief  one line for all tokens of the answer after the first
    """
    walk = Walk(vlm, build_messages(question, images, videos), **options)
    if brief:
        walk.skip(LATER_TOKENS)
    for step in walk:
        yield format_step(step)
    last = parse(walk.passed[-1].name).step
    if brief and last > 0:
        steps = "steps.1" if last == 1 else f"steps.1 to steps.{last}"
        yield f"{steps:<25} {'[1, ...]':<15} each further token of the answer goes through the same layers"
    return walk.answer
