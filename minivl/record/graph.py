"""Shared by the recorders of graphs: the module that a node came from, runs, and the names of what they return."""

from minivl.errors import Error
from minivl.record.recording import Recording, module_name
from minivl.record.watch import NO_TENSOR, append_to_tower, are_equal, is_tower, without_batch
from minivl.tensors import catalogue


class GraphRecording(Recording):
    """A `Recording` that runs a graph. Of a decoder, the second run is `steps.1.`, a token of the answer, and so on.

    Of a tower, it adds rows of further images, or nothing if its results are the same.

    outputs  {name in the recording: name of the extended graph's output}
    """

    def __init__(self, keep, versions):
        super().__init__(keep, versions)
        self.outputs, self.runs = {}, 0
        self.towers = []  # outputs of the tower's runs so far

    def choose(self, nodes, name, every):
        """Set `outputs`: of each module the output of its last node; every node's, if asked for or if none tells its module.

        nodes  (output, module's path or None), in the order of the computation
        """
        last = {}
        for output, path in nodes:
            words = module_name(path, name).split(".") if path else []
            last |= {".".join(words[:end]): output for end in range(1, len(words) + 1)}  # of those around it, too
        known = {own: output for own, output in last.items() if catalogue.of(own)}
        rest = {
            own: output for own, output in last.items() if output not in known.values() and not NO_TENSOR.search(own)
        }
        innermost = {output: own for own, output in rest.items()}
        outputs = known | {own: output for output, own in innermost.items()}
        if every or not outputs:
            outputs |= {output: output for output, _ in nodes if output not in outputs.values()}
        self.outputs = {own: output for own, output in outputs.items() if self.wants(own)}
        if not self.outputs:
            raise Error(f"keep={self._globs} matches none of {len(outputs)} tensors, such as {next(iter(outputs))!r}.")

    def keep_run(self, arrays):
        """Keep the outputs of a run, {output: NumPy array}."""
        prefix = f"steps.{self.runs}." if self.runs else ""
        tower = [arrays[output] for own, output in self.outputs.items() if is_tower(own) and output in arrays]
        is_new = not any(are_equal(tower, earlier) for earlier in self.towers)
        self.towers += [tower] if is_new else []
        for own, output in self.outputs.items():
            if output in arrays:
                array = without_batch(own, arrays[output])
                array = array[-1:] if own == "lm_head" else array
                if is_tower(own) and own in self and not is_new:
                    continue  # a warm-up run, or the tower once more for a token of the answer
                array = append_to_tower(self, own, array) if is_tower(own) else array
                self.add(own if is_tower(own) else prefix + own, array)
        self.runs += 1


def join_scopes(scopes):
    """The path of the innermost of nested modules: ["merger", "mlp", "mlp.0"] -> "merger.mlp.0"."""
    path = []
    for scope in scopes:
        if path and scope.startswith(path[-1] + "."):
            path.pop()
        path.append(scope)
    return ".".join(path)
