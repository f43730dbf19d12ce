"""Exchange the tensor inside a Parameter, while the Parameter stays the same object."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge

from ecospa_fx.errors import RewriteError

Deliver = Callable[[torch.Tensor], torch.Tensor]
"""From a gradient for a parameter's former tensor to one for its new tensor."""


def exchange(
    param: nn.Parameter, other: torch.Tensor, grad: torch.Tensor | None, deliver: Deliver
) -> weakref.ref[torch.Tensor]:
    """Exchange what ``param`` and ``other`` hold. The shapes may differ.

    ``torch.utils.swap_tensors`` refuses a parameter with weak references or one that a live graph has saved,
    and loses hooks, which belong to the tensor inside. Assigning ``param.data`` would change what live graphs
    have saved. Here a graph recorded before keeps the former tensor, and what it computes for that goes to
    ``param`` by way of ``deliver``, through all later exchanges.

    Args:
        param: keeps its class, attributes, weak references, hooks and ``requires_grad``.
        other: a plain tensor, which no one else uses; afterwards it holds the former tensor.
        grad: the new ``.grad`` of ``param``.
        deliver: from a gradient of the former shape to one of the new.

    Returns:
        A reference to the former tensor, which lives on only where a graph or a view uses it.

    Raises:
        RewriteError: torch holds a weak reference to the tensor inside; nothing has changed.

    Example:
        >>> param = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))
        >>> loss = (param**2).sum()
        >>> _ = exchange(param, torch.tensor([1.0, 3.0]), None, lambda gradient: gradient[[0, 2]])
        >>> loss.backward()
        >>> param.grad
        tensor([2., 6.])
    """
    hooks, after_hooks = param._backward_hooks, param._post_accumulate_grad_hooks
    other.requires_grad_(param.requires_grad)
    if param.grad_dtype != param.dtype:  # once set it no longer follows `.to(dtype)`
        other.grad_dtype = param.grad_dtype
    other.grad = grad
    try:
        torch._C._swap_tensor_impl(param, other)
    except RuntimeError as error:
        raise RewriteError(
            "torch itself refers to the tensor inside a parameter. A torch.profiler.profile that recorded "
            "shapes or memory does so for as long as it lives: write its results, then `del` it (and what it "
            f"gave out), or record without them ({error})"
        ) from error
    set_hooks(other, None, None)
    set_hooks(param, hooks, after_hooks)
    other.grad = None
    if param.requires_grad:
        _forward_gradients(other, param, deliver)
    return weakref.ref(other)


def set_hooks(tensor: torch.Tensor, hooks: Any, after_hooks: Any) -> None:
    """The tensor's hooks, and those that run after its gradient is accumulated; handles stay valid."""
    tensor._backward_hooks = hooks
    # None would leave the tensor inside with the hooks that it has: an empty dict takes their place.
    tensor._post_accumulate_grad_hooks = OrderedDict() if after_hooks is None else after_hooks


def _forward_gradients(former: torch.Tensor, param: nn.Parameter, deliver: Deliver) -> None:
    """Send every gradient that still arrives at ``former`` on to what ``param`` holds now.

    The target is a place in the autograd graph and not ``param``, which may be exchanged again; that
    exchange forwards in its turn.
    """
    edge = get_gradient_edge(param)

    def forward(tensor: torch.Tensor) -> None:
        gradient, tensor.grad = tensor.grad, None
        torch.autograd.backward([edge], [deliver(cast(torch.Tensor, gradient))])

    former.register_post_accumulate_grad_hook(forward)  # type: ignore[no-untyped-call]
