"""Walk through a run: stop at a tensor, look, change it, go on, go back.

    walk = vlm.walk("How many circles?", images="scene.png")
    for step in walk: print(step.name, step.shape, step.explain())     # stage by stage
    step = walk.until("visual.blocks.1.attn.probs")                    # on to this tensor; a glob will do
    step.value, step.stats()                                           # in a notebook `step` alone shows a picture
    walk.replace(step.value * 0)                                       # the run goes on from this instead
    walk.back("visual.patch_embed")                                    # runs again up to there, with the same changes
    answer = walk.finish()

Another consumer of the stream: nothing is computed before it is asked for, nothing is kept, and an answer that was walked to is
the one of a run that nobody watched, bit for bit, unless something was replaced. `narrate` is a walk in lines of text.
"""

import secrets
from collections import namedtuple
from fnmatch import fnmatchcase

from tqdm import tqdm

from minivl.errors import Error
from minivl.processing.messages import build_messages
from minivl.stream import Lazy, read_only, replacement, value_of
from minivl.tensors.catalogue import LEVELS, check_name, level
from minivl.tensors.explain import TOLD, Narrator, explain
from minivl.tensors.names import parse
from minivl.trace.maps import MAPPED
from minivl.trace.stats import Text, stats_of

Passed = namedtuple("Passed", "name shape dtype")
BROKEN = "this run was broken off by an error or an interrupt: walk.back() runs it again, to where it stopped before."


class Step:
    """A tensor at which a walk stands.

    name, shape, dtype  its own;  replaced  whether it is another one than the model made
    """

    def __init__(self, walk, name, tensor, replaced=False):
        self.name, self.shape, self.dtype, self.replaced = name, tuple(tensor.shape), tensor.dtype, replaced
        self._walk, self._tensor = walk, tensor

    @property
    def value(self):
        """The array, read-only; attention scores and probabilities are built now."""
        return read_only(value_of(self._tensor))

    @property
    def lazy(self):
        """Whether the model goes on without ever making it."""
        return isinstance(self._tensor, Lazy)

    def sentence(self):
        """What happened, in a few words; "" inside a block."""
        return self._walk.narrator.sentence(self.name, self._tensor) or ""

    def explain(self):
        """A paragraph: what happened, the formula, the shapes, why."""
        told = self.sentence().removeprefix("-> ") if parse(self.name).general in TOLD else ""
        end = f" In this run: {told}." if told else ""
        return Text(explain(self._walk.vlm.config, self.name, self._tensor) + end)

    def stats(self):
        """min, max, mean, rms, NaN and infinite values, outlier channels: `stats.Stats`."""
        return stats_of(self.name, self.value)

    def __repr__(self):
        return f"<{self.name} {self.dtype} {list(self.shape)}{', replaced' if self.replaced else ''}>"

    def _repr_html_(self):
        from minivl.walk.notebook import html_of

        return html_of(self, self._walk)


class Walk:
    """An iterator of `Step`s. `level` says at which tensors it stops: "stage", "block" (and layer), or every "tensor".

    step    where it stands; None before the first
    steps   (name, shape, dtype) of every tensor that has passed
    edits   {name: array} of what was put in a tensor's place
    answer  the `Answer`, once it has come to the end
    """

    def __init__(self, vlm, messages, level="stage", **options):
        if level not in LEVELS:
            raise Error(f"level={level!r}: choose one of {', '.join(LEVELS)}.")
        if options.get("cache") is not None:
            raise Error("a walk goes back and changes things, which a cache would remember: leave cache= out.")
        if options.get("seed") is None:
            options["seed"] = secrets.randbits(64)  # going back must draw the same tokens again
        self.vlm, self.level, self.narrator = vlm, level, Narrator(vlm)
        self.edits, self._skipped, self._stops = {}, [], []
        self._make = lambda: vlm.answer(messages, **options)
        self._start()

    def _start(self):
        self.step, self.answer, self.steps, self.context = None, None, [], {}
        self._stage, self._reply = self._make(), None

    def __iter__(self):
        return self

    def __next__(self):
        """On to the next tensor at which this level stops."""
        while True:
            step = self._advance()
            if LEVELS.index(level(step.name)) > LEVELS.index(self.level):
                continue
            if not any(fnmatchcase(step.name, pattern) for pattern in self._skipped):
                return self._stop()

    def until(self, name):
        """On to the next tensor of this name, or that matches this glob, whatever the level. -> Step"""
        check_name(self.vlm.config, name)
        if any(one.name == name for one in self.steps):
            raise Error(f"the walk has come by {name} already: walk.back({name!r}) goes there.")
        for step in self._running(name):
            if fnmatchcase(step.name, name):
                return self._stop()
        raise Error(f"the run ended before a tensor was called {name}. walk.back() goes to earlier ones.")

    def skip(self, pattern):
        """From now on do not stop at tensors that match this glob."""
        check_name(self.vlm.config, pattern)
        self._skipped.append(pattern)

    def replace(self, value):
        """Put an array in the place of the tensor at which the walk stands: same shape and dtype. -> Step"""
        step = self.here()
        self._reply = self.edits[step.name] = replacement(step.name, step._tensor, value)
        self.step = Step(self, step.name, self._reply, replaced=True)
        self._remember(step.name, self._reply)
        return self.step

    def back(self, name=None):
        """Run again from the start to where the walk stopped before; or to the last earlier tensor of this name or glob.

        What was replaced before it, and in its place, stays replaced; what came later is forgotten, as it has not happened
        yet. -> Step
        """
        earlier = [one.name for one in self.steps]
        if self.step is not None and self.answer is None:
            earlier = earlier[:-1]  # not where it stands
        stops = [stop for stop in self._stops if stop in earlier]
        found = stops[-1:] if name is None else [one for one in earlier if fnmatchcase(one, name)][-1:]
        if not found:
            what = "there is no earlier stop" if name is None else f"no tensor before this one is called {name}"
            raise Error(f"{what}: the walk has seen {len(self.steps)}; walk.steps lists them.")
        place = earlier.index(found[0]) + 1
        self._stage.close()
        self.edits = {edit: value for edit, value in self.edits.items() if edit in earlier[:place]}
        self._stops = [stop for stop in self._stops if stop in earlier[: place - 1]]
        self._start()
        for step in self._running(found[0]):
            if step.name == found[0]:
                return self._stop()

    def finish(self):
        """On to the end. -> Answer"""
        for _ in self._running("the answer"):
            pass
        return self.answer

    def _advance(self):
        """One tensor further."""
        if self.answer is not None:
            raise StopIteration
        try:
            name, tensor = self._stage.send(self._reply)
        except StopIteration as finished:
            if finished.value is None:
                raise Error(BROKEN) from None
            self.answer, self.step = finished.value, None
            raise
        replaced = name in self.edits
        self._reply = replacement(name, tensor, self.edits[name]) if replaced else tensor
        self.step = Step(self, name, self._reply, replaced)
        self.steps.append(Passed(name, self.step.shape, self.step.dtype))
        self._remember(name, self._reply)
        return self.step

    def _running(self, where):
        """Every tensor to the end, with a bar on stderr if that takes long."""
        with tqdm(desc=f"to {where}", unit=" tensors", leave=False, delay=1, disable=None) as bar:
            while True:
                try:
                    yield self._advance()
                except StopIteration:
                    return
                bar.update()

    def _stop(self):
        self._stops.append(self.step.name)
        return self.step

    def _remember(self, name, tensor):
        """What pictures are drawn on, and what says which row of a tensor is where."""
        if name in MAPPED or name.endswith(".resized"):
            self.context[name] = tensor

    def here(self):
        """The `Step` at which the walk stands; an Error where it stands at none."""
        if self.step is None:
            raise Error("the walk stands at no tensor: take a step with next(walk) or walk.until(name) before.")
        return self.step

    def __repr__(self):
        where = "at its start" if not self.steps else f"at {self.step.name}" if self.step else "at its end"
        return f"<Walk {where}, {len(self.steps)} tensors so far>"


def line(step):
    """A step in one line."""
    return f"{step.name:<25} {str(list(step.shape)):<15} {step.sentence()}".rstrip()


def narrate(vlm, question, images=None, videos=None, **options):
    """Lines of the walk, as they happen; returns the `Answer`. The same arguments as `VLM.ask`."""
    walk = Walk(vlm, build_messages(question, images, videos), "block", **options)
    for step in walk:
        yield line(step)
    return walk.answer
