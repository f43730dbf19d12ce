"""A Parameter stays the same object while the tensor inside changes."""

import copy
import gc
import io
import weakref

import pytest
import torch
from torch import nn

from ecospa_fx.errors import RewriteError
from ecospa_fx.exchange import exchange

ROWS = slice(1, 3)


class Tagged(nn.Parameter):
    """A Parameter class of the user's own."""


def weight(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*(shape or (4, 3)), dtype=torch.float64))


def first_two(param: nn.Parameter) -> weakref.ref[torch.Tensor]:
    """Keep two rows."""
    return exchange(param, param.detach()[ROWS].clone(), None, lambda gradient: gradient[ROWS])


def test_the_object_stays() -> None:
    param = Tagged(torch.randn(4, 3))
    param.note = "mine"
    reference, values = weakref.ref(param), param.detach().clone()
    first_two(param)
    assert type(param) is Tagged
    assert param.note == "mine"
    assert reference() is param
    assert param.is_leaf
    assert param.requires_grad
    assert torch.equal(param, values[ROWS])


def test_gradient_is_the_one_given() -> None:
    param, gradient = weight(), torch.randn(2, 3, dtype=torch.float64)
    param.grad = torch.ones_like(param)
    exchange(param, param.detach()[ROWS].clone(), gradient, lambda gradient: gradient)
    assert param.grad is gradient or torch.equal(param.grad, gradient)


def test_hooks_stay_and_can_be_removed() -> None:
    param, seen = weight(), []
    hook = param.register_hook(lambda gradient: seen.append(("hook", gradient.shape)))
    after = param.register_post_accumulate_grad_hook(
        lambda tensor: seen.append((tensor is param, tensor.grad.shape))
    )
    first_two(param)
    param.sum().backward()
    assert seen == [("hook", (2, 3)), (True, (2, 3))]
    hook.remove()
    after.remove()
    param.sum().backward()
    assert len(seen) == 2


def test_hooks_may_change_the_gradient_after_the_exchange() -> None:
    param = weight()
    first_two(param)
    param.register_hook(lambda gradient: 2 * gradient)
    param.sum().backward()
    assert torch.equal(param.grad, torch.full_like(param, 2))


def test_hooks_of_a_frozen_parameter_fire_once_it_trains() -> None:
    param, seen = weight(), []
    param.register_hook(lambda gradient: seen.append(gradient.shape))
    param.requires_grad_(False)
    first_two(param)
    assert not param.requires_grad
    param.requires_grad_(True).sum().backward()
    assert seen == [(2, 3)]


def test_graph_from_before_delivers_its_gradient() -> None:
    param, x = weight(), torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad((x @ param.T).pow(2).sum() + param.pow(3).sum(), [param, x])
    loss = (x @ param.T).pow(2).sum() + param.pow(3).sum()
    seen: list[torch.Size] = []
    param.register_hook(lambda gradient: seen.append(gradient.shape))
    first_two(param)
    loss.backward()
    assert torch.equal(param.grad, expected[0][ROWS])
    assert torch.equal(x.grad, expected[1])  # from the weights that the graph was recorded with
    assert seen == [(2, 3)]


def test_gradients_from_before_and_after_add_up() -> None:
    param = weight()
    before = (2 * param).sum()
    first_two(param)
    (3 * param).sum().backward()
    before.backward()
    assert torch.equal(param.grad, torch.full_like(param, 5))


def test_gradient_from_before_is_not_delivered_again() -> None:
    param = weight()
    loss = (2 * param).sum()
    param.sum().backward()
    exchange(param, param.detach()[ROWS].clone(), param.grad[ROWS].clone(), lambda gradient: gradient[ROWS])
    loss.backward()
    assert torch.equal(param.grad, torch.full_like(param, 3))


def test_graph_from_before_reaches_through_two_exchanges() -> None:
    param = weight()
    loss, expected = param.pow(2).sum(), 2 * param.detach()
    first_two(param)
    between = param.pow(2).sum()
    exchange(param, param.detach()[:, :1].clone(), None, lambda gradient: gradient[:, :1])
    loss.backward()
    between.backward()
    assert torch.equal(param.grad, 2 * expected[ROWS, :1])


def test_grad_of_a_former_tensor_is_refused_by_autograd() -> None:
    param = weight()
    loss = param.sum()
    first_two(param)
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(loss, [param])


def test_former_tensor_lives_as_long_as_its_graph() -> None:
    param = weight()
    loss = param.pow(2).sum()
    former = first_two(param)
    assert former() is not None
    del loss
    gc.collect()
    assert former() is None
    assert first_two(weight())() is None


def test_reduced_precision_with_a_wider_gradient() -> None:
    param = nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16))
    param.grad_dtype = torch.float32
    exchange(param, param.detach()[ROWS].clone(), torch.zeros(2, 3), lambda gradient: gradient[ROWS])
    param.float().sum().backward()
    assert param.grad is not None
    assert param.grad.dtype is torch.float32


def test_copies_and_files_go_on() -> None:
    param = weight()
    first_two(param)
    param.sum().backward()
    assert torch.equal(copy.deepcopy(param), param)
    file = io.BytesIO()
    torch.save(param, file)
    file.seek(0)
    assert torch.equal(torch.load(file), param)


@pytest.mark.skipif(torch.__version__ < "2.12", reason="torch 2.11 asks nothing of a layer's parameters anew")
def test_compiled_function_sees_the_new_tensor() -> None:
    layer = nn.Linear(3, 4, bias=False)
    compiled = torch.compile(lambda x: layer(x).sum(), backend="aot_eager", dynamic=False)
    x = torch.randn(2, 3)
    compiled(x).backward()
    first_two(layer.weight)
    assert torch.allclose(compiled(x), layer(x).sum())
    compiled(x).backward()
    assert layer.weight.grad.shape == (2, 3)


def test_exported_parameter_can_be_exchanged() -> None:
    layer = nn.Linear(3, 4)
    program = torch.export.export(layer, (torch.randn(2, 3),))
    first_two(layer.weight)
    assert layer.weight.shape == (2, 3)
    assert program.state_dict["weight"] is layer.weight


def test_weak_reference_inside_torch_is_refused() -> None:
    param = weight()
    param.grad = torch.ones_like(param)
    values, seen = param.detach().clone(), []
    param.register_hook(lambda gradient: seen.append(gradient.shape))
    reference = torch._C._WeakTensorRef(param)
    with pytest.raises(RewriteError, match="torch itself refers"):
        first_two(param)
    assert not reference.expired()
    assert torch.equal(param, values)
    param.sum().backward()
    assert seen == [(4, 3)]
    assert torch.equal(param.grad, torch.full_like(param, 2))


@pytest.mark.filterwarnings("ignore")
def test_a_profile_that_recorded_shapes_has_to_go_first() -> None:
    param = weight()
    with torch.profiler.profile(record_shapes=True) as profile:
        param.sum().backward()
    with pytest.raises(RewriteError, match=r"record.* shapes or memory .* then `del` it"):
        first_two(param)
    del profile
    gc.collect()
    first_two(param)
    assert param.shape == (2, 3)
