"""Number of model runs that the searches of a comparison may take: by the size of a run, not by the clock.

budget = RunBudget.of(None, values=3_000_000)      # for a run that makes this many values
budget.left                                        # 600
"""

from dataclasses import dataclass, field

from minivl.helpers import check_kind, plain_number

FEWEST, MOST = 100, 600  # to search for causes, in all; each known mistake takes one
MOST_VALUES = 10**10  # made by these runs together, if they are more than FEWEST


@dataclass
class RunBudget:
    """Model runs left for the search for causes.

    untried  {name of a tensor without a cause: (names of mistakes not tried, how many were, how many pairs were, of how many)}
    """

    left: int
    untried: dict = field(default_factory=dict)

    @classmethod
    def of(cls, most, values):
        """`most` runs; if None, as many as MOST_VALUES allows for a run that makes this many `values`."""
        return cls(max(FEWEST, min(MOST, MOST_VALUES // max(values, 1))) if most is None else most)

    def notes(self):
        """Sentences on what was not tried."""
        for name, (mistakes, tried, pairs, of_pairs) in self.untried.items():
            if mistakes:
                some = ", ".join(list(dict.fromkeys(mistakes))[:3])
                yield (
                    f"{name}: {len(mistakes)} of {len(mistakes) + tried} known mistakes before it were not tried ({some} ...), "
                    "for the limit of runs, which runs= sets"
                )
            if pairs < of_pairs:
                yield (
                    f"{name}: of two mistakes at once before it only {pairs:,} of {of_pairs:,} pairs were tried; "
                    "tensors recorded before it say which part is wrong"
                )


def check_runs(runs):
    """The option `runs`: None, or an integer."""
    if runs is not None:
        check_kind("runs", [plain_number(runs)], int, "an integer, the most runs of the model to search with", 0)
    return plain_number(runs)
