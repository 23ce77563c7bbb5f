"""Match a port's tensors to minivl's by their values, where the names do not tell.

    matched = match_values(ours, theirs, left, matches, model)
    matched.layouts                   # {"visual.blocks.0.attn.qkv": ("onnx::Add_412", Layout)}
    matched.notes                     # what was ambiguous

Theirs is one of ours if it has as many values and, with its axes in some order, is at most NEAR away from it, and at least
CLEAR times closer than any other tensor. With a model, ours is computed from the tensors of theirs that were matched before
it, so this works behind a bug and in lower precision. The tensor that is wrong is close to none of ours: it takes the place
of a sibling in another layer, or the one place from which the tensors after it come out as theirs. Equal tensors
(aliases) are matched in the order of the data flow, and reported as equal; what stays ambiguous is not matched.

Each place that is tried for a wrong tensor takes a run of the model. How many are tried depends on the size of a run, not on
the clock: a note says what is left unmatched for that.
"""

import math
import re
from dataclasses import dataclass, field

import numpy as np
from tqdm import tqdm

from minivl.compare.layouts import FEWEST, NEAR, closest_layout, layouts_between, with_processor_rows
from minivl.compare.measure import are_equal, to_float64
from minivl.stream import run, value_of
from minivl.tensors.catalogue import in_data_flow
from minivl.tensors.names import parse

CLEAR = 4
EXACT = 1e-5  # tensors as close as this are equal
ROUNDS = 6  # runs of the model to take matches back
MOST_PLACES = 12  # in which a wrong tensor is tried, each with a run of the model
FEWEST_RUNS, MOST_RUNS = MOST_PLACES, 60  # to place wrong tensors
MOST_VALUES = 10**9  # made by these runs together, if they are more than FEWEST_RUNS


@dataclass
class ValueMatches:
    """layouts {our name: (their name, Layout)};  notes  sentences on equal and ambiguous tensors;  equal  their aliases"""

    layouts: dict = field(default_factory=dict)
    notes: list = field(default_factory=list)
    equal: set = field(default_factory=set)


def match_values(ours, theirs, left, matches, in_processor_order=False, model=None, inputs=None, runs=None):
    """The `ValueMatches` of their tensors `left`.

    matches  {our name: their name} of those that are known;  model, inputs  to compute ours from theirs, or None
    runs  most runs of the model to place wrong tensors; None: by the size of a run
    in_processor_order  whether their tower's rows are in the image processor's order
    """
    if not any(theirs[name].size >= FEWEST for name in left):
        return ValueMatches()
    matcher = Matcher(ours, theirs, left, matches, in_processor_order, model, inputs)
    known, banned = {}, set()
    for _ in range(ROUNDS):
        matched = matcher.run(known, banned)
        pairs = {(mine, name) for mine, (name, _) in matched.items() if mine not in known}
        closer = {pair for pair in pairs if matcher.is_other(*pair)}
        if not closer:
            break
        banned |= closer
    matched = {mine: pair for mine, pair in matched.items() if mine in known or not matcher.is_other(mine, pair[0])}
    if model is not None:
        matched = matcher.place_wrong_ones(matched, banned, runs)
    else:
        matched |= matcher.siblings(matched)
    return matcher.report(matched)


class Matcher:
    def __init__(self, ours, theirs, left, matches, in_processor_order, model, inputs):
        self.ours, self.theirs, self.model, self.inputs = ours, theirs, model, inputs
        self.left = [name for name in left if theirs[name].size >= FEWEST]
        self.matches, self.seen = matches, {}
        self.values, self.unplaced = 0, ""  # how many a run makes; a note on what was left
        self.norms = {name: norm(theirs[name]) for name in self.left}
        self.in_processor_order = in_processor_order

    # ---- distances ----

    def layouts(self, mine, shape, name):
        """[Layout] in which their tensor may be ours, by its shape."""
        layouts = layouts_between(shape, self.theirs[name].shape)
        return with_processor_rows(layouts, mine, self.ours) if self.in_processor_order else layouts

    def may_be(self, value, size, name):
        """Whether the norms of both, `size` that of ours, allow them to be close."""
        other = value.size != self.theirs[name].size or value.dtype.kind != "f"
        return other or abs(size - self.norms[name]) <= NEAR * size

    # ---- a run ----

    def run(self, known, banned):
        """{our name: (their name, Layout)}: `known` and those that are close, each from the inputs that theirs had."""
        matched, self.seen, self.values = dict(known), {}, 0
        taken = {name for name, _ in known.values()}
        theirs = {mine: self.theirs[name] for mine, name in self.matches.items()}

        def see(mine, tensor):
            self.values += math.prod(tensor.shape)
            if mine not in self.ours:
                return tensor
            if mine not in theirs and mine not in matched and (pair := self.match(mine, tensor, taken, banned)):
                matched[mine] = pair
                taken.add(pair[0])
            there = theirs.get(mine)
            if mine in matched:
                name, layout = matched[mine]
                there = layout.apply(self.theirs[name])
            usable = there is not None and there.shape == tensor.shape and there.dtype.kind == "f" == tensor.dtype.kind
            return np.ascontiguousarray(there, tensor.dtype) if usable and np.isfinite(there).all() else tensor

        if self.model is None:
            for mine in in_data_flow(self.ours):
                see(mine, self.ours[mine])
        else:
            steps = max((parse(name).step for name in self.ours), default=0) + 1
            with np.errstate(all="ignore"):
                run(self.model.answer(self.inputs, max_new_tokens=steps), see)
        return matched

    def match(self, mine, tensor, taken, banned):
        """(their name, Layout) of the tensor that is ours, or None."""
        names = [name for name in self.left if self.layouts(mine, tensor.shape, name)]
        if not names:
            return None
        value, near = value_of(tensor), []
        size = norm(value)
        for name in names:
            if not self.may_be(value, size, name):
                continue
            distance, layout = closest_layout(value, self.theirs[name], self.layouts(mine, value.shape, name))
            if distance <= NEAR:
                near.append((distance, name, layout))
                self.seen.setdefault(name, {})[mine] = distance
        near = [one for one in near if one[1] not in taken and (mine, one[1]) not in banned]
        if not near:
            return None
        best, name, layout = min(near, key=lambda one: one[0])
        rivals = [other for distance, other, _ in near if other != name and distance <= max(CLEAR * best, EXACT)]
        if any(not are_equal(self.theirs[name], self.theirs[other]) for other in rivals):
            return None
        first = min([name, *rivals], key=self.left.index)
        layout = next(one[2] for one in near if one[1] == first)
        return first, layout

    def is_other(self, mine, name):
        """Whether their tensor is much closer to another of ours than to this one."""
        distances = self.seen.get(name, {})
        own = distances.get(mine, 0.0)
        others = [distance for other, distance in distances.items() if other != mine]
        return bool(others) and own > EXACT and min(others) < own / CLEAR

    # ---- tensors that are close to none ----

    def siblings(self, matched):
        """More matches, {our name: (their name, Layout)}: names that differ from a matched one only in the layer's number."""
        patterns, more = {}, {}
        for mine, (name, layout) in matched.items():
            general, index = parse(mine).general, parse(mine).index
            for at, number in enumerate(numbers(name)):
                if number == index:
                    patterns.setdefault(without(name, at), set()).add((general, at, layout.order, len(layout.shape)))
        taken = {name for name, _ in matched.values()}
        general_names = {}
        for mine in self.ours:
            if mine not in matched and mine not in self.matches:
                general_names[parse(mine).general, parse(mine).index] = mine
        for name in self.left:
            meanings = set()
            for at, number in enumerate(numbers(name)):
                for general, place, order, axes in patterns.get(without(name, at), ()):
                    if place == at and (general, number) in general_names:
                        meanings.add((general_names[general, number], order, axes))
            if name in taken or len(meanings) != 1:
                continue
            mine, order, axes = meanings.pop()
            fitting = self.layouts(mine, self.ours[mine].shape, name)
            same = [layout for layout in fitting if layout.order == order and len(layout.shape) == axes]
            if same and mine not in more:
                more[mine] = (name, same[0])
        return more

    def place_wrong_ones(self, matched, banned, runs=None):
        """`matched` and more: each tensor that is close to none is placed where the ones after it come out as theirs."""

        def settle(matched):
            more = self.siblings(matched)
            while True:
                matched = self.run(matched | more, banned)
                if not (more := self.siblings(matched)):
                    return matched

        matched, hopeless = settle(matched), set()
        left = max(FEWEST_RUNS, min(MOST_RUNS, MOST_VALUES // max(self.values, 1))) if runs is None else runs
        seen = self.seen
        while (name := self.next_left(matched, hopeless)) is not None:
            places = self.places(name, matched)
            if len(places) > left:
                self.unplaced = self.describe_left(matched)
                break
            left -= len(places)
            gains = {
                mine: len(self.run({**matched, mine: (name, layout)}, banned)) - len(matched) - 1
                for mine, layout in tqdm(places, desc=f"placing {name}", leave=False, delay=1, disable=None)
            }
            best = max(gains.values(), default=0)
            winners = [pair for pair in places if gains[pair[0]] == best]
            if best < 1 or len(winners) > 1:
                hopeless.add(name)
                continue
            ((mine, layout),) = winners
            matched = settle({**matched, mine: (name, layout)})
            seen = self.seen
        self.seen = seen
        return matched

    def describe_left(self, matched):
        """A note on their tensors that stay unmatched when the search for their places stops at its limit."""
        taken = {name for name, _ in matched.values()} | self.aliases(matched)
        left = [name for name in self.left if name not in taken]
        some = ", ".join(left[:3]) + (" ..." if len(left) > 3 else "")
        return (
            f"the search for the places of wrong tensors stopped at its limit of runs: {len(left)} of theirs stay unmatched "
            f"({some}); runs= raises it, names= may say what they are"
        )

    def next_left(self, matched, hopeless):
        taken = {name for name, _ in matched.values()} | self.aliases(matched)
        left = (name for name in self.left if name not in taken and name not in hopeless)
        return next((name for name in left if self.theirs[name].dtype.kind == "f"), None)

    def places(self, name, matched):
        """[(our name, Layout)] where their tensor may belong: of its size, before the next of theirs that is matched."""
        order = {mine: at for at, mine in enumerate(in_data_flow(self.ours))}
        ours_of = {there: mine for mine, (there, _) in matched.items()}
        ours_of |= {there: mine for mine, there in self.matches.items()}
        names = list(self.theirs)
        at = names.index(name)
        after = [order[ours_of[other]] for other in names[:at] if other in ours_of]
        before = [order[ours_of[other]] for other in names[at:] if other in ours_of]
        low, high = after[-1] if after else -1, before[0] if before else len(order)
        low, high = (low, high) if low < high else (-1, len(order))
        places = []
        for mine in list(order)[low + 1 : high]:
            if mine in matched or mine in self.matches or self.ours[mine].dtype.kind != "f":
                continue
            layouts = self.layouts(mine, self.ours[mine].shape, name)
            if layouts:
                places.append((mine, layouts[0]))
        return places[:MOST_PLACES]

    # ---- notes ----

    def aliases(self, matched):
        """Names of theirs that are equal to a matched one."""
        taken = {name for name, _ in matched.values()}
        near = {}
        for name in taken:
            near.setdefault(self.theirs[name].size, []).append(name)
        return {
            other for other in self.left if other not in taken
            and any(are_equal(self.theirs[name], self.theirs[other]) for name in near.get(self.theirs[other].size, ()))
        }  # fmt: skip

    def report(self, matched):
        notes, equal = [self.unplaced] if self.unplaced else [], self.aliases(matched)
        if equal:
            some = ", ".join(sorted(equal)[:3]) + (" ..." if len(equal) > 3 else "")
            notes.append(f"{len(equal)} of theirs have the same values as a matched one and were left out: {some}")
        taken = {name for name, _ in matched.values()}
        for name in self.left:
            close = sorted(self.seen.get(name, {}).items(), key=lambda pair: pair[1])
            if name in taken and (mine := next(mine for mine, pair in matched.items() if pair[0] == name)):
                others = [
                    other for other, distance in close if other != mine and distance <= EXACT and other not in matched
                ]
                if others:
                    notes.append(f"{name} is {mine}, or {', '.join(others[:3])}, which have the same values here")
            elif close and name not in equal:
                some = ", ".join(other for other, _ in close[:3])
                notes.append(f"{name} is ambiguous: close to {some}; not compared")
        return ValueMatches(matched, notes, equal)


def norm(array):
    """Euclidean norm of the finite values."""
    if array.dtype.kind != "f":
        return 0.0
    values = to_float64(array)
    return float(np.linalg.norm(values[np.isfinite(values)]))


def numbers(name):
    return [int(number) for number in re.findall(r"\d+", name)]


def without(name, at):
    """A name without its number at this place."""
    parts = re.split(r"(\d+)", name)
    parts[2 * at + 1] = "{}"
    return "".join(parts)
