"""Collectors: hooks with which transformers gathers hidden states, and that stay on the model afterwards."""

from __future__ import annotations

from torch import nn

_INSTALLED = "_output_capturing_hooks_installed"
_MODULE = "transformers.utils.output_capturing"


def forget_collectors(model: nn.Module) -> None:
    """Take these hooks off; transformers puts them back at the next eager call that asks for such outputs.

    A graph returns hidden states by itself, while a hook on a block that is called would run for nothing, and
    reads a context variable, which ``torch.compile`` cannot follow.
    """
    for module in model.modules():
        if module.__dict__.pop(_INSTALLED, False):
            _forget(module)


def _forget(model: nn.Module) -> None:
    for module in model.modules():
        hooks = module._forward_hooks
        for key in [k for k, hook in hooks.items() if getattr(hook, "__module__", "") == _MODULE]:
            del hooks[key]
