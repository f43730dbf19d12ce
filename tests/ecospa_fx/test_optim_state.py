"""Which entry of an optimizer's state goes where."""

import pytest
import torch
from torch import nn

from ecospa_fx import optim_state
from ecospa_fx.cut import ParameterCut
from ecospa_fx.errors import OptimizerError, OptimizerStateError
from ecospa_fx.optim_state import StateRules, cut_entry, keep_entry, register_optimizer_state
from tests.models.states import CUT, follow


class Odd(torch.optim.SGD):
    """An optimizer that nobody knows."""


class Odder(Odd):
    """Its subclass."""


@pytest.fixture(autouse=True)
def _own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim_state, "_RULES", dict(optim_state._RULES))


def odd(*params: torch.Tensor, cls: type[Odd] = Odd, **state: object) -> Odd:
    """An optimizer with the given entries for its first parameter."""
    optimizer = cls(list(params), lr=0.1)
    optimizer.state[params[0]].update(state)
    return optimizer


@pytest.mark.parametrize(
    "value", [None, True, 3, 0.5, "linear", torch.tensor(2.0), torch.zeros(1), torch.zeros(1, 1)]
)
def test_one_number_stays(value: object) -> None:
    param = nn.Parameter(torch.zeros(4, 4))
    rules = StateRules(odd(param, entry=value))
    assert rules.find("weight", param, "entry", CUT) is keep_entry
    assert follow(rules.optimizer, param, "entry", CUT) is value


def test_the_parameter_s_shape_is_cut() -> None:
    param, entry = nn.Parameter(torch.zeros(4, 4)), torch.randn(4, 4)
    rules = StateRules(odd(param, entry=entry))
    assert rules.find("weight", param, "entry", CUT) is cut_entry
    assert torch.equal(follow(rules.optimizer, param, "entry", CUT), entry[[0, 2]][:, 1:])


@pytest.mark.parametrize(
    "value", [torch.zeros(4), torch.zeros(4, 1), torch.zeros(16), [torch.zeros(4, 4)], {}, ()]
)
def test_what_nobody_can_place_is_refused(value: object) -> None:
    param = nn.Parameter(torch.zeros(4, 4))
    with pytest.raises(OptimizerStateError, match=r"@register_optimizer_state\(Odd\)") as caught:
        StateRules(odd(param, entry=value)).find("fc.weight", param, "entry", CUT)
    for word in ("'entry'", "'fc.weight'", "(4, 4)", "(2, 3)", "before sparsify"):
        assert word in str(caught.value)


def test_equal_shape_by_chance_is_refused() -> None:
    square, other = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4, 7))
    optimizer = odd(square, other, preconditioner=torch.eye(4))
    assert StateRules(optimizer).find("weight", square, "preconditioner", CUT) is cut_entry
    optimizer.state[other]["preconditioner"] = torch.eye(4)
    with pytest.raises(OptimizerStateError, match="'preconditioner'"):
        StateRules(optimizer).find("weight", square, "preconditioner", CUT)


def test_registered_rule_comes_before_the_shape() -> None:
    @register_optimizer_state(Odd)
    def rule(key: str, value: torch.Tensor, param: torch.Tensor, cut: ParameterCut) -> torch.Tensor:
        return value[cut.axis_kept(0)][:, cut.axis_kept(0)] if key == "entry" else NotImplemented

    param, entry = nn.Parameter(torch.zeros(4, 4)), torch.randn(4, 4)
    optimizer = odd(param, entry=entry, other=entry)
    assert torch.equal(follow(optimizer, param, "entry", CUT), entry[[0, 2]][:, [0, 2]])
    assert torch.equal(follow(optimizer, param, "other", CUT), entry[[0, 2]][:, 1:])


def test_a_subclass_falls_back_on_its_base() -> None:
    register_optimizer_state(Odd)(lambda key, value, param, cut: "base")
    register_optimizer_state(Odder)(lambda key, *_: "derived" if key == "mine" else NotImplemented)
    param = nn.Parameter(torch.zeros(4, 4))
    optimizer = odd(param, cls=Odder, mine=torch.zeros(3), base=torch.zeros(3))
    assert follow(optimizer, param, "mine", CUT) == "derived"
    assert follow(optimizer, param, "base", CUT) == "base"


def test_a_dotted_name_spares_the_import() -> None:
    register_optimizer_state(f"{Odd.__module__}.{Odd.__qualname__}", whole_state=True)(
        lambda *args: args[4]["other"]
    )
    param = nn.Parameter(torch.zeros(4, 4))
    assert follow(odd(param, entry=torch.zeros(3), other=7), param, "entry", CUT) == 7


def test_a_second_rule_is_refused() -> None:
    with pytest.raises(OptimizerStateError, match="has a rule"):
        register_optimizer_state(torch.optim.Adafactor)


def test_a_wrapped_optimizer_counts() -> None:
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer: torch.optim.Optimizer) -> None:
            self.optimizer = optimizer

    optimizer = odd(nn.Parameter(torch.zeros(4, 4)))
    assert StateRules(Wrapper(optimizer)).optimizer is optimizer


def test_lbfgs_is_refused() -> None:
    with pytest.raises(OptimizerError, match="LBFGS cannot follow a cut: it keeps one flat history"):
        StateRules(torch.optim.LBFGS([nn.Parameter(torch.zeros(4, 4))]))
