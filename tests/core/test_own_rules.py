"""Rules of a user's own: asked like any other, their answers looked at, their rows never stored."""

import pytest
import torch

import calib_utils as cu
from calib_utils.core import processors
from calib_utils.errors import InvalidRuleError


def own(n_kept, **attributes):
    """A rule as a user may write it."""
    body = {"name": "own", "n_kept": lambda self, step: n_kept(step)}
    return type("Own", (cu.Rule,), body | attributes)()


def ten(step):
    return step.size.clamp(max=10)


ALIKE = {"alone": lambda rule: rule, "in a chain": lambda rule: cu.Chain([rule, cu.TopP(0.95)])}


@pytest.mark.parametrize("place", ALIKE)
def test_a_rule_of_ones_own_gives_the_numbers_of_the_same_rule(tiny, place):
    mine, ours = (ALIKE[place](rule) for rule in (own(ten), cu.TopK(10)))
    for measured in (cu.evaluate, cu.step_losses):
        found, wanted = (
            measured(tiny("llama"), "rng-2", [rule], [0.7, 2.0]).drop(columns=["rule", "parameter"])
            for rule in (mine, ours)
        )
        assert len(found) and found.equals(wanted)


@pytest.mark.parametrize("place", ALIKE)
def test_its_rows_are_never_stored(tiny, tmp_path, place):
    """Its code may change under its name."""
    arguments = {"results_dir": tmp_path, "temperatures": [2.0]}
    for n_kept in (ten, lambda step: step.size):
        rule = ALIKE[place](own(n_kept))
        found = cu.evaluate(tiny("llama"), "rng-1", ["none", rule], **arguments)
        fresh = cu.evaluate(tiny("llama"), "rng-1", [rule], [2.0])
        assert found.validity[1] == fresh.validity[0]
        stored = cu.stored_measurement(tiny("llama"), "rng-1", tmp_path)
        assert list(stored.settings.rule) == ["none"]


@pytest.mark.parametrize("place", ALIKE)
def test_a_known_name_is_refused(tiny, tmp_path, place):
    rule = ALIKE[place](own(ten, name="top_k"))
    with pytest.raises(InvalidRuleError, match="'top_k': rename it"):
        cu.evaluate(tiny("llama"), "rng-1", [rule], results_dir=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("n_kept", "said"),
    [
        (lambda step: step.size + 1, r"gave 263 of 262 tokens"),
        (lambda step: step.size * 0, r"gave 0 of 262 tokens"),
        (lambda step: step.size > 3, r"gave torch\.bool of shape"),
        (lambda step: step.size.double(), r"gave torch\.float64 of shape"),
        (
            lambda step: torch.full((1, 1), 3),
            r"gave torch\.int64 of shape torch\.Size\(\[1, 1\]",
        ),
        (
            lambda step: step.size[:1].repeat(7),
            r"gave torch\.int64 of shape torch\.Size\(\[7\]",
        ),
        (lambda step: 5, r"gave int of shape None"),
        (lambda step: [5], r"gave list of shape None"),
        (lambda step: None, r"gave NoneType of shape None"),
    ],
)
@pytest.mark.parametrize("place", ALIKE)
def test_a_number_of_tokens_that_is_none_is_named(tiny, place, n_kept, said):
    with pytest.raises(InvalidRuleError, match=f"rule 'own': n_kept {said}"):
        cu.evaluate(tiny("llama"), "rng-1", [ALIKE[place](own(n_kept))])


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"name": None}, "name=None: give its class a name"),
        ({"name": ""}, "name='': give its class a name"),
        ({"parameter": "x"}, "parameter='x': give a number"),
        ({"parameter": None}, "parameter=None: give a number"),
    ],
)
def test_a_rule_that_cannot_be_named_in_a_table_is_refused(attributes, said):
    with pytest.raises(InvalidRuleError, match=said):
        processors.check_rules([own(ten, **attributes)])


def test_a_whole_number_is_a_parameter_too():
    (rule,) = processors.check_rules([own(ten, parameter=1)])
    assert rule.key == "own=1"
    assert processors.check_rules([rule]) == [rule]


def test_a_rule_that_keeps_no_top_prefix_says_so_itself(tiny):
    def second(self, step):
        return step.within(step.start + 1, step.start + 2)

    rule = own(ten, keep=second, is_rank_cutoff=False)
    validity = cu.evaluate(tiny("llama"), "rng-1", [rule]).validity
    assert len(validity) == 1
    with pytest.raises(InvalidRuleError, match="keeps no top prefix"):
        cu.step_losses(tiny("llama"), "rng-1", [rule])
