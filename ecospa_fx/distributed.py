"""DistributedDataParallel around a compiled model: find the model inside, and rebuild what knew old sizes."""

from __future__ import annotations

from typing import Any, cast

from torch import nn
from torch._C._distributed_c10d import _register_comm_hook
from torch.nn.parallel import DistributedDataParallel

from ecospa_fx.compiled import CompiledModel
from ecospa_fx.errors import RewriteError, ScheduleError
from ecospa_fx.fsdp import misplaced


def unwrap(model: nn.Module) -> CompiledModel:
    """The compiled model inside ``DistributedDataParallel``, ``AveragedModel`` or ``torch.compile``.

    Raises:
        ScheduleError: there is none.
    """
    inner: object = model
    while isinstance(inner, nn.Module) and not isinstance(inner, CompiledModel):
        inner = inner._modules.get("module") or inner._modules.get("_orig_mod")
    if not isinstance(inner, CompiledModel):
        raise ScheduleError(
            f"there is no compiled model in {type(model).__name__}: call ecospa_fx.compile(model) first, and "
            "wrap what it returns"
        )
    return inner


def check_placed(compiled: CompiledModel) -> None:
    """Refuse ``fully_shard`` on modules that are not called.

    Raises:
        RewriteError: there are some.
    """
    if problem := misplaced(compiled, ["", *compiled.called_blocks]):
        raise RewriteError(problem)


def rebuild(model: nn.Module) -> None:
    """Give every ``DistributedDataParallel`` in ``model`` a new reducer, after parameters have shrunk.

    Its buckets have the old sizes, and its hooks are on the parameters' former tensors. The wrapper stays the
    same object, with its settings and communication hooks; nothing is sent. A schedule does this itself for
    the wrapper that it was given. Every rank must call it.

    Args:
        model: the wrapper.
    """
    for module in model.modules():
        if isinstance(module, DistributedDataParallel):
            _new_reducer(module)


def _new_reducer(ddp: DistributedDataParallel) -> None:
    """What ``DistributedDataParallel`` does itself when it is unpickled."""
    parameters, expect_sparse_gradient = ddp._build_params_for_reducer()  # type: ignore[no-untyped-call]
    names = ddp._build_debug_param_to_name_mapping(parameters)  # type: ignore[no-untyped-call]
    ddp._remove_autograd_hooks()  # type: ignore[no-untyped-call]
    del ddp.reducer, ddp.logger  # frees the former tensors
    ddp._has_rebuilt_buckets = False
    ddp._ddp_init_helper(  # type: ignore[no-untyped-call]
        parameters, expect_sparse_gradient, names, ddp.static_graph
    )
    if ddp.static_graph:
        ddp.reducer._set_static_graph()
        cast(Any, ddp.logger)._set_static_graph()
        ddp._static_graph_delay_allreduce_enqueued = False  # the first step learns the order anew
    for hook, state in ddp._comm_hooks:
        _register_comm_hook(ddp.reducer, state, hook)
