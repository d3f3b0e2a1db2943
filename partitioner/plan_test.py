"""The pytest file that ``waferc compile --tests`` writes into a plan's folder."""

from __future__ import annotations

from partitioner.folder import TESTS

_HEAD = '''"""Tests of the plan in this folder, beside the original: run `pytest {name}` where waferc is installed.

Written by `waferc compile --tests`; change it as you like, it is no part of what `waferc check` looks at.
"""

from pathlib import Path

import pytest

import waferc


@pytest.fixture(scope="module")
def plan():
    """Opening a plan derives all of its claims again, as `waferc check` does."""
    return waferc.open_plan(Path(__file__).parent)


@pytest.fixture(scope="module")
def run(plan):
    {run}


def test_every_layer_computes_what_the_original_does(plan):
    found = plan.verify({verify})
    assert found.ok, f"first wrong in {{found.first_wrong}}"


def test_the_run_takes_what_the_cost_model_predicts(run):
    assert run.taken.miscounted is None, str(run.taken.miscounted)

'''

_TEXT = """
def test_tokens_are_the_originals(run):
    assert run.tokens == run.reference_tokens


def test_logits_are_within_tolerance(run):
    assert run.max_abs_logit_error <= run.tolerance
"""

_STEP = """
def test_outputs_are_within_tolerance(run):
    assert run.ok, f"{run.errors} beside {run.tolerances}"
"""


def plan_test(*, continues_text: bool) -> str:
    """The file's text; ``continues_text``: the plan is of a language model."""
    if continues_text:
        head = _HEAD.format(name=TESTS, run='return plan.generate(tokens=4, compare="auto")', verify="tokens=4")
        return head + _TEXT
    return _HEAD.format(name=TESTS, run='return plan.run(compare="auto")', verify="") + _STEP
