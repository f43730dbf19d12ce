"""The tools for others' tests: they accept what is right and refuse what is wrong."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import ecospa_fx
from ecospa_fx import CompiledModel
from ecospa_fx.errors import RuleError, VerifyError
from ecospa_fx.rules import TABLE
from ecospa_fx.rules.pointwise import through
from ecospa_fx.rules.registry import Rule
from ecospa_fx.testing import (
    activation,
    assert_equals_masked,
    prove,
    random_removal,
    removal_of,
    sample,
    weight,
)

X = torch.randn(3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def ffn() -> CompiledModel:
    model = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 5)).double()
    return ecospa_fx.compile(model, args=(X,))


@pytest.fixture(name="wrong_rule")
def _wrong_rule() -> Iterator[None]:
    """As if a cumulative sum worked entry by entry."""
    right = TABLE.find("aten.cumsum.default")
    assert right is not None
    TABLE.add(Rule("aten.cumsum.default", lambda call: through(call, "self")), replace=True)
    yield
    TABLE.add(right, replace=True)


def test_a_right_rule_is_proved() -> None:
    proof = prove("aten.relu.default", sample(activation(3, 5, on=1)), sample(weight(4, 3)))
    assert proof.target == "aten.relu.default"
    assert proof.drops > 0
    assert proof.rolls > 0


@pytest.mark.usefixtures("wrong_rule")
def test_a_wrong_rule_is_refused() -> None:
    with pytest.raises(VerifyError, match=r"aten\.cumsum\.default"):
        prove("aten.cumsum.default", sample(activation(3, 5, on=1), 1))


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("aten.no_such.default", "no operator"),
        ("relu", "names look like"),
        ("aten.relu.default", "at least one"),
    ],
)
def test_nothing_to_prove(target: str, words: str) -> None:
    with pytest.raises(RuleError, match=words):
        prove(target)


def test_a_frozen_sample_must_be_frozen() -> None:
    with pytest.raises(VerifyError, match="everything is frozen, but something can go"):
        prove("aten.relu.default", sample(activation(3, 5, on=1), frozen=True))


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.99])
def test_random_removals_leave_a_unit(fraction: float) -> None:
    compiled = ffn()
    removal = random_removal(compiled, fraction, seed=1)
    assert removal.shape("0.bias", (9,)) == (9 - int(9 * fraction),)
    assert removal.to_dict() == random_removal(compiled, fraction, seed=1).to_dict()


def test_random_removals_go_on_from_what_is_gone() -> None:
    compiled = ffn()
    compiled.apply(random_removal(compiled, 0.3, seed=1))
    gone = ~compiled.kept_mask("0.bias")
    compiled.apply(random_removal(compiled, 0.5, seed=2))
    assert not (gone & compiled.kept_mask("0.bias")).any()
    assert compiled.get_parameter("0.bias").shape == (4,)


def test_a_chosen_unit_goes() -> None:
    compiled = ffn()
    dead = torch.zeros(compiled.analysis.partition.num_components, dtype=torch.bool).numpy()
    dead[compiled.couplings["ffn"].units[3]] = True
    removed = removal_of(compiled, dead).removed
    assert {n: {a: i.tolist() for a, i in axes.items()} for n, axes in removed.items()} == {
        "0.weight": {0: [3]}, "0.bias": {0: [3]}, "2.weight": {1: [3]},
    }  # fmt: skip


def test_masking_is_asserted() -> None:
    compiled = ffn()
    assert_equals_masked(compiled)
    assert compiled.get_parameter("0.bias").shape == (4,)


def test_a_wrong_model_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = ffn()
    assert compiled.verify(X).within(1e-9)  # captured before the model goes wrong
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: torch.relu(x) * 1.01)
    with pytest.raises(VerifyError, match="after 0 rounds of removal: outputs differ"):
        assert_equals_masked(compiled)
