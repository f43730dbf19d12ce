"""Custom ``torch.autograd.Function`` as one operator of the graph, with its own backward."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch._ops import HigherOrderOperator, _get_dispatch_mode_pre_dispatch
from torch.fx.experimental.proxy_tensor import track_tensor_tree

Function = type[torch.autograd.Function]


class CustomFunction(HigherOrderOperator):
    """Applies one of the functions that captures have met, by its number.

    Labels stop there: what a function of Python code does to an axis is not known, so it freezes.
    """

    def __init__(self) -> None:
        super().__init__("ecospa_custom_function")  # type: ignore[no-untyped-call]
        self.known: list[Function] = []

    def __call__(self, number: int, *args: Any) -> Any:
        """``apply`` of function ``number``."""
        return self.known[number].apply(*args)  # type: ignore[no-untyped-call]

    def number(self, function: Function) -> int:
        """The number that stands for ``function`` in graphs."""
        if function not in self.known:
            self.known.append(function)
        return self.known.index(function)


CUSTOM_FUNCTION = CustomFunction()


@contextlib.contextmanager
def kept_whole() -> Iterator[None]:
    """Inside, a capture writes custom functions down as they are, instead of following their forward."""
    original = torch.autograd.Function.__dict__["apply"]  # torch 2.15 wrote it in C

    def apply(cls: Function, *args: Any, **kwargs: Any) -> Any:
        mode = _get_dispatch_mode_pre_dispatch(torch._C._TorchDispatchModeKey.PROXY)  # type: ignore[no-untyped-call]
        if mode is None or kwargs:
            return original.__get__(None, cls)(*args, **kwargs)
        with _below_the_tracer():
            out = original.__get__(None, cls)(*args)
        proxies = torch.utils._pytree.tree_map(mode.tracer.unwrap_proxy, args)
        call = (CUSTOM_FUNCTION.number(cls), *proxies)
        proxy = mode.tracer.create_proxy("call_function", CUSTOM_FUNCTION, call, {})
        return track_tensor_tree(out, proxy, constant=None, tracer=mode.tracer)

    with mock.patch.object(torch.autograd.Function, "apply", classmethod(apply)):
        yield


def _below_the_tracer() -> Any:
    """Run on fake tensors without writing anything into the graph."""
    pre_dispatch = torch._C.DispatchKey.PreDispatch
    include = torch._C._dispatch_tls_local_include_set().remove(pre_dispatch)
    exclude = torch._C._dispatch_tls_local_exclude_set() | torch._C.DispatchKeySet(pre_dispatch)
    return torch._C._ForceDispatchKeyGuard(include, exclude)
