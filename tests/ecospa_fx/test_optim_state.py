"""Which entry of an optimizer's state goes where."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor as TransformersAdafactor

from ecospa_fx import optim_state
from ecospa_fx.cut import ParameterCut
from ecospa_fx.errors import OptimizerError, OptimizerStateError
from ecospa_fx.optim_state import StateRules, cut_entry, keep_entry, register_optimizer_state

Build = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class Odd(torch.optim.SGD):
    """An optimizer that nobody knows."""


class Odder(Odd):
    """Its subclass."""


@pytest.fixture(autouse=True)
def _own_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim_state, "_RULES", dict(optim_state._RULES))


def rows_and_columns(rows: list[int], columns: list[int], shape: tuple[int, ...]) -> ParameterCut:
    kept = torch.zeros(shape, dtype=torch.bool)
    kept[..., torch.tensor(rows)[:, None], torch.tensor(columns)] = True
    return ParameterCut(kept, (*shape[:-2], len(rows), len(columns)))


def odd(*params: torch.Tensor, cls: type[Odd] = Odd, **state: object) -> Odd:
    """An optimizer with the given entries for its first parameter."""
    optimizer = cls(list(params), lr=0.1)
    optimizer.state[params[0]].update(state)
    return optimizer


def follow(
    optimizer: torch.optim.Optimizer, param: torch.Tensor, key: str, cut: ParameterCut
) -> torch.Tensor:
    state = StateRules(optimizer).optimizer.state[param]
    rule = StateRules(optimizer).find("weight", param, key, cut)
    return rule(key, state[key], param, cut, state)


CUT = rows_and_columns([0, 2], [1, 2, 3], (4, 4))


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


# Adafactor, as torch and transformers have it, keeps the mean squared gradient over rows and over columns.

FACTORED = [
    pytest.param(lambda params: torch.optim.Adafactor(params, lr=0.1), "row_var", "col_var", id="torch"),
    pytest.param(
        lambda params: TransformersAdafactor(params, lr=0.1, relative_step=False),
        "exp_avg_sq_row",
        "exp_avg_sq_col",
        id="transformers",
    ),
]
SHAPES = [(6, 4), (6, 1), (1, 4), (4, 4), (3, 6, 4), (2, 3, 3, 3)]


def stepped(build: Build, param: nn.Parameter, gradients: list[torch.Tensor]) -> torch.optim.Optimizer:
    optimizer = build([param])
    for gradient in gradients:
        param.grad = gradient.clone()
        optimizer.step()
    return optimizer


def estimate(row: torch.Tensor, column: torch.Tensor, dim: int) -> torch.Tensor:
    """The second moment as Adafactor puts it together."""
    row, column = (row, column) if row.dim() == dim else (row.unsqueeze(-1), column.unsqueeze(-2))
    return row * column / row.mean(-2, keepdim=True)


def some_cut(shape: tuple[int, ...]) -> ParameterCut:
    rows, columns = ([0] if size == 1 else list(range(1, size)) for size in shape[-2:])
    return rows_and_columns(rows, columns, shape)


@pytest.mark.parametrize(("build", "row", "column"), FACTORED)
@pytest.mark.parametrize("shape", SHAPES)
def test_factored_estimate_of_survivors_stays(
    build: Build, row: str, column: str, shape: tuple[int, ...]
) -> None:
    cut, param = some_cut(shape), nn.Parameter(torch.randn(shape, dtype=torch.float64))
    optimizer = stepped(build, param, [torch.randn_like(param) for _ in range(3)])
    dense = estimate(*(optimizer.state[param][key] for key in (row, column)), len(shape))
    small = estimate(*(follow(optimizer, param, key, cut) for key in (row, column)), len(shape))
    torch.testing.assert_close(small, cut.apply(dense), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("build", "row", "column"), FACTORED)
@pytest.mark.parametrize("shape", SHAPES)
def test_factored_state_of_zero_pairs_is_exact(
    build: Build, row: str, column: str, shape: tuple[int, ...]
) -> None:
    cut = some_cut(shape)
    param = nn.Parameter(torch.randn(shape, dtype=torch.float64))
    small = nn.Parameter(cut.apply(param.detach()))
    gradients = [torch.randn_like(param) * cut.kept for _ in range(3)]
    optimizer = stepped(build, param, gradients)
    reference = stepped(build, small, [cut.apply(gradient) for gradient in gradients])
    for key in (row, column):
        torch.testing.assert_close(
            follow(optimizer, param, key, cut), reference.state[small][key], rtol=1e-12, atol=1e-28
        )


@pytest.mark.parametrize(("build", "row", "column"), FACTORED)
def test_factored_state_may_differ_by_expert(build: Build, row: str, column: str) -> None:
    kept = torch.zeros(2, 3, 4, dtype=torch.bool)
    kept[0, :2, 1:] = kept[1, 1:, :3] = True
    cut, param = ParameterCut(kept, (2, 2, 3)), nn.Parameter(torch.randn(2, 3, 4, dtype=torch.float64))
    optimizer = stepped(build, param, [torch.randn_like(param)])
    dense = estimate(*(optimizer.state[param][key] for key in (row, column)), 3)
    small = estimate(*(follow(optimizer, param, key, cut) for key in (row, column)), 3)
    torch.testing.assert_close(small, cut.apply(dense), rtol=1e-12, atol=0)


@pytest.mark.parametrize(("build", "row", "column"), FACTORED)
def test_factored_state_of_zeros_stays_finite(build: Build, row: str, column: str) -> None:
    param = nn.Parameter(torch.ones(4, 4))
    optimizer = stepped(build, param, [torch.zeros(4, 4)])
    optimizer.state[param][row].zero_()
    optimizer.state[param][column].zero_()
    assert not follow(optimizer, param, row, CUT).any()
    assert not follow(optimizer, param, column, CUT).any()


@pytest.mark.parametrize(("build", "row", "column"), FACTORED)
def test_factored_state_without_a_common_column_set_is_refused(build: Build, row: str, column: str) -> None:
    param = nn.Parameter(torch.ones(2, 2))
    optimizer = stepped(build, param, [torch.ones(2, 2)])
    cut = ParameterCut(torch.eye(2, dtype=torch.bool), (2, 1))
    with pytest.raises(OptimizerStateError, match="of 'weight' cannot follow the cut"):
        StateRules(optimizer).find("weight", param, column, cut)
