"""Parameters and optimizers that cannot follow a cut are refused, and nothing changes."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from ecospa_fx.cut import ParameterCut
from ecospa_fx.errors import OptimizerError, OptimizerStateError, RewriteError
from ecospa_fx.passes.remap import prepare
from tests.models.cutting import UNITS, Network, cut, cuts_of, everything, same, train

o = torch.optim


def swapped(params: list[nn.Parameter], index: int, other: nn.Parameter) -> list[nn.Parameter]:
    return [*params[:index], other, *params[index + 1 :]]


def refuses(model: nn.Module, cuts: dict[str, ParameterCut], optimizers: list[Optimizer], message: str,
            error: type[Exception] = RewriteError) -> None:  # fmt: skip
    before = everything(model, *optimizers) if not any(p.is_meta for p in model.parameters()) else []
    with pytest.raises(error, match=message):
        prepare(dict(model.named_parameters(remove_duplicate=False)), cuts, optimizers)
    assert not before or same(everything(model, *optimizers), before)


def test_optimizer_of_another_copy_is_refused() -> None:
    model = Network()
    optimizer = o.Adam(copy.deepcopy(model).parameters())
    refuses(
        model,
        cuts_of(),
        [optimizer],
        "Adam holds none of the model's parameters.*another copy",
        OptimizerError,
    )


def test_optimizer_of_something_else_is_refused() -> None:
    model = Network()
    refuses(
        model,
        cuts_of(),
        [o.Adam(nn.Linear(7, 7).parameters())],
        "none of the model's parameters$",
        OptimizerError,
    )


def test_missing_parameters_are_all_named() -> None:
    model = Network()
    optimizer = o.Adam([model.down.bias])
    refuses(
        model,
        cuts_of(),
        [optimizer],
        "holds 'up.weight', 'up.bias', 'down.weight'. Pass every",
        OptimizerError,
    )


def test_one_replaced_parameter_is_named() -> None:
    model = Network()
    params = swapped(list(model.parameters()), 0, nn.Parameter(model.up.weight.detach().clone()))
    refuses(
        model,
        cuts_of(),
        [o.Adam(params)],
        "holds 'up.weight', only others of the same shapes",
        OptimizerError,
    )


def test_something_else_than_an_optimizer_is_refused() -> None:
    model = Network()
    with pytest.raises(OptimizerError, match="got dict"):
        prepare(dict(model.named_parameters()), cuts_of(), [{}])


def test_lbfgs_is_refused_only_if_it_holds_what_is_cut() -> None:
    model = Network()
    refuses(model, cuts_of(), [o.LBFGS(model.parameters())], "LBFGS cannot follow", OptimizerError)
    rest = o.SGD([p for name, p in model.named_parameters() if name != "down.bias"], lr=0.1)
    assert cut(model, rest, o.LBFGS([model.down.bias])).changes


def test_state_without_a_place_is_refused() -> None:
    model = Network()
    optimizer = o.Adam(model.parameters())
    train(model, optimizer, 1)
    for param in model.parameters():
        optimizer.state[param]["blocks"] = torch.zeros(3)
    first, others = (
        r"'blocks' of shape \(3,\) for 'up.weight'",
        "'blocks' of 'up.bias', 'blocks' of 'down.weight'",
    )
    message = f"(?s){first}.*The same goes for {others}"
    refuses(model, cuts_of(), [optimizer], message, OptimizerStateError)


def test_cut_for_another_shape_is_refused() -> None:
    model = Network()
    cuts = cuts_of() | {"down.bias": ParameterCut(UNITS, (4,))}
    refuses(model, cuts, [], r"'down.bias' has shape \(5,\), its cut is for \(8,\)")


def test_unknown_names_are_all_listed() -> None:
    both = {"a": ParameterCut(UNITS, (4,)), "b": ParameterCut(UNITS, (4,))}
    refuses(Network(), both, [], "no parameter 'a'; the model has no parameter 'b'")


def test_different_cuts_of_a_tied_parameter_are_refused() -> None:
    model = nn.ParameterDict()
    model["a"] = model["b"] = nn.Parameter(torch.zeros(8))
    cuts = {"a": ParameterCut(UNITS, (4,)), "b": ParameterCut(~UNITS, (4,))}
    refuses(model, cuts, [], "'a' and 'b' are one parameter, and their cuts differ")


def test_tied_by_memory_alone_is_refused() -> None:
    model = nn.ParameterDict({"a": torch.zeros(8), "b": torch.zeros(8)})
    model["b"].data = model["a"].data
    refuses(model, {"a": ParameterCut(UNITS, (4,))}, [], "share memory .*: 'a', 'b'. Tie them")


def lazy() -> nn.Parameter:
    return nn.UninitializedParameter()


def quantised() -> nn.Parameter:
    return nn.Parameter(torch.zeros(8, dtype=torch.int8), requires_grad=False)


def sparse() -> nn.Parameter:
    return nn.Parameter(torch.eye(8).to_sparse())


def wrapped() -> nn.Parameter:
    from torch.testing._internal.two_tensor import TwoTensor

    return nn.Parameter(TwoTensor(torch.zeros(8), torch.zeros(8)))


def frozen_in_inference_mode() -> nn.Parameter:
    with torch.inference_mode():
        return nn.Parameter(torch.zeros(8), requires_grad=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lazy, "'a' is not initialised yet"),
        (quantised, "'a' is quantised .torch.int8.: sparsify before"),
        (sparse, "'a' is sparse .*to_dense"),
        (wrapped, "'a' is a TwoTensor: sparsify before"),
        (frozen_in_inference_mode, "'a' is no leaf"),
    ],
)
def test_parameter_that_cannot_be_cut_is_refused(make: Callable[[], nn.Parameter], message: str) -> None:
    parameters = {"a": make(), "b": nn.Parameter(torch.ones(8))}
    with pytest.raises(RewriteError, match=message):
        prepare(parameters, dict.fromkeys("ab", ParameterCut(UNITS, (4,))))
    assert torch.equal(parameters["b"], torch.ones(8))
