"""A catalogue of bad inputs: each gives a minivl.Error that names cause and fix, soon, and leaves no file behind."""

import os

import pytest
from bad_inputs import checkpoints, prompts, recordings

from minivl import Error

pytest.importorskip("av")
pytest.importorskip("jinja2")
CASES = [*checkpoints.CASES, *prompts.CASES, *recordings.CASES]
LONGEST = 1000  # characters of a message


def test_the_catalogue_has_no_case_twice():
    assert len({bad.name for bad in CASES}) == len(CASES) > 500


@pytest.mark.parametrize("bad", CASES, ids=[bad.name for bad in CASES])
@pytest.mark.filterwarnings("ignore")
def test_a_bad_input_gives_an_error_that_says_what_to_do(bad, tmp_path):
    if bad.prepare is not None:
        bad.prepare(tmp_path)
    before = sorted(os.walk(tmp_path))
    with pytest.raises(Error) as caught:
        bad.act(tmp_path)
    message = str(caught.value)
    assert bad.cause in message and bad.fix in message and len(message) < LONGEST
    assert sorted(os.walk(tmp_path)) == before
