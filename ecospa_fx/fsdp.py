"""``fully_shard`` (FSDP2): cut parameters of which every rank holds a part.

A tensor is gathered, cut, and each rank keeps its part of what is left, one tensor after the other. What
``fully_shard`` noted about the parameter is noted anew by its own code; its hooks, mesh and policies stay.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ecospa_fx.blocks import bare
from ecospa_fx.cut import ParameterCut
from ecospa_fx.exchange import set_hooks
from ecospa_fx.sharded import is_sharded, whole

Shard = Any
"""What ``fully_shard`` keeps for one parameter, an ``FSDPParam``; torch has no public name for it."""
_PARTS = ("_local_tensor", "_spec")  # what a DTensor holds beside the tensor inside


def sharded_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Modules on which ``fully_shard`` was called, by name."""
    return {n: m for n, m in model.named_modules() if hasattr(m, "_get_fsdp_state")}


def shards(model: nn.Module) -> dict[int, Shard]:
    """What ``fully_shard`` keeps for each parameter, by the parameter's id.

    Parameters that are whole since a forward pass are sharded again first.
    """
    found: dict[int, Shard] = {}
    for module in sharded_modules(model).values():
        module.reshard()  # type: ignore[operator]
        found.update({id(shard.sharded_param): shard for shard in _kept(module)})
    return found


def _kept(module: nn.Module) -> list[Shard]:
    state: Any = module._get_fsdp_state()  # type: ignore[operator]
    several = getattr(state, "_fsdp_param_groups", None)
    groups = [g for g in [state._fsdp_param_group] if g is not None] if several is None else several
    return [shard for group in groups for shard in group.fsdp_params]


def compute_dtypes(model: nn.Module) -> dict[int, torch.dtype]:
    """In which type ``fully_shard`` computes with a parameter, by its id, where its policy says one."""
    held = [shard for module in sharded_modules(model).values() for shard in _kept(module)]
    dtypes = {id(shard.sharded_param): shard.mp_policy.param_dtype for shard in held}
    return {parameter: dtype for parameter, dtype in dtypes.items() if dtype is not None}


def obstacle(shard: Shard | None, cut: ParameterCut) -> str | None:
    """Why a sharded parameter cannot be cut, if so."""
    if shard is None:
        return "is sharded (DTensor), and not by fully_shard: sparsify before distributing it"
    if shard.is_dtensor:
        return "is sharded by fully_shard and by tensor parallelism as well: sparsify before"
    if _has_pending(shard):
        return "has gradients that ranks have not added up yet: sparsify after a backward pass that does so"
    if hasattr(shard._sharded_local_tensor, "fsdp_pre_all_gather"):
        return "is gathered by code of its own (fsdp_pre_all_gather): sparsify before"
    axis, ranks = shard.fsdp_placement.dim, shard.shard_mesh.size()
    if axis and cut.new_shape[axis] % ranks:
        return (
            f"would be {cut.new_shape[axis]} wide on axis {axis}, along which {ranks} ranks share it and "
            f"fully_shard wants equal parts: pass round_to={ranks}"
        )
    return None


def _has_pending(shard: Shard) -> bool:
    """Whether a rank holds gradients of its own, after ``set_requires_gradient_sync(False)``."""
    param = getattr(shard, "_unsharded_param", None)
    return shard.unsharded_accumulated_grad is not None or (param is not None and param.grad is not None)


@dataclass(eq=False)
class Smaller:
    """What this rank will hold of a parameter, its gradient and its state; nothing has changed yet.

    Attributes:
        shard: what ``fully_shard`` keeps for the parameter.
        param: the parameter.
        shape: of the whole smaller parameter.
        own: this rank's part of it.
        grad: this rank's part of the gradient.
        states: for every optimizer its state of the parameter, and what changes in it.
    """

    shard: Shard
    param: nn.Parameter
    shape: tuple[int, ...]
    own: torch.Tensor
    grad: torch.Tensor | None
    states: list[tuple[dict[str, Any], dict[str, torch.Tensor]]]

    def install(self, undo: ExitStack) -> None:
        """Put it in place; ``undo`` takes it back."""
        former, values = dict(self.shard.__dict__), list(self.states)
        undo.callback(self._restore, former, [(s, {k: s[k] for k in new}) for s, new in values])
        made = _sharded_anew(self.shard, _spread(self.shard, self.own, self.shape))
        made_grad = None if self.grad is None else self.shard.to_sharded_dtensor(self.grad)
        made.grad = made_grad
        _swap(self.param, made)
        undo.callback(_swap, self.param, made)
        self._registered(self.param)
        for state, new in values:
            state.update({key: self.shard.to_sharded_dtensor(local) for key, local in new.items()})

    def _registered(self, param: nn.Parameter) -> None:
        self.shard.sharded_param = param
        self.shard._setattr_on_modules(param)

    def _restore(self, former: dict[str, Any], states: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
        self.shard.__dict__.clear()
        self.shard.__dict__.update(former)
        self._registered(self.param)
        for state, values in states:
            state.update(values)


def smaller(
    shard: Shard,
    param: nn.Parameter,
    cut: ParameterCut,
    states: list[tuple[dict[str, Any], list[str]]],
    cutting: Callable[[Callable[[], Any]], Any],
) -> Smaller:
    """Gather, cut and share a parameter and what has its shape, one tensor after the other.

    Args:
        shard: what ``fully_shard`` keeps for the parameter.
        param: the parameter.
        cut: its cut.
        states: for every optimizer its state of the parameter, and the entries that are cut like it.
        cutting: runs what may fail on this rank alone; all ranks gather all tensors in any case.
    """

    def part(tensor: torch.Tensor) -> torch.Tensor:
        full = _gathered(tensor, shard)
        return cutting(lambda: _own(shard, cut.apply(full)).to(tensor.device))  # type: ignore[no-any-return]

    own = part(param.detach())
    grad = None if param.grad is None else part(param.grad)
    values = [(state, {key: part(state[key]) for key in keys}) for state, keys in states]
    return Smaller(shard, param, cut.new_shape, own, grad, values)


def _gathered(tensor: torch.Tensor, shard: Shard) -> torch.Tensor:
    """All of it, on the device on which ranks talk; parameters may rest on the CPU."""
    return whole(tensor.to(shard.device) if tensor.device != shard.device else tensor)


def _own(shard: Shard, full: torch.Tensor) -> torch.Tensor:
    """This rank's part, as ``fully_shard`` cuts it: equal chunks, of which the last ones may be short."""
    axis, (start, length) = shard.fsdp_placement.dim, _range(shard, full.shape)
    return full.narrow(axis, start, length).clone(memory_format=torch.contiguous_format)


def _spread(shard: Shard, own: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """A whole tensor in which only this rank's part has values: ``fully_shard`` takes no other."""
    full = torch.zeros(shape, dtype=own.dtype, device=shard.device)
    full.narrow(shard.fsdp_placement.dim, *_range(shard, shape)).copy_(own)
    return full


def _range(shard: Shard, shape: tuple[int, ...]) -> tuple[int, int]:
    """Where this rank's part begins, and how long it is."""
    size = shape[shard.fsdp_placement.dim]
    count = getattr(shard.mesh_info, "shard_mesh_size", 1)
    chunk = -(-size // count)
    start = min(getattr(shard.mesh_info, "shard_mesh_rank", 0) * chunk, size)
    return start, min(chunk, size - start)


def _sharded_anew(shard: Shard, full: torch.Tensor) -> nn.Parameter:
    """A sharded parameter from a whole one; what was noted about the former one is noted anew."""
    axis, uid = shard.fsdp_placement, getattr(shard, "_orig_param_uid", None)  # torch 2.11 has none
    plain = nn.Parameter(full, requires_grad=shard.sharded_param.requires_grad)
    _begin(shard, plain, axis)
    shard._orig_param_uid = uid
    shard.__dict__["unsharded_accumulated_grad"] = None  # a property since torch 2.15
    if shard.post_forward_mesh_info is not None:
        shard._init_sharded_post_forward_param_metadata(full)
    shard.all_gather_outputs = []  # of the former size
    shard.__dict__.pop("_unsharded_param", None)
    shard._init_extensions()
    made: nn.Parameter = shard.sharded_param
    return made


def _begin(shard: Shard, plain: nn.Parameter, axis: Any) -> None:
    """Let ``fully_shard`` take a parameter for its own; torch 2.11 keeps the mesh that it has."""
    begin = shard._init_sharded_param
    mesh = (shard.mesh_info,) if "mesh_info" in inspect.signature(begin).parameters else ()
    begin(plain, shard.device, lambda _: axis, *mesh)


def _swap(a: nn.Parameter, b: nn.Parameter) -> None:
    """Exchange what two sharded parameters hold; each stays the same object, with its hooks."""
    hooks = a._backward_hooks, a._post_accumulate_grad_hooks
    torch._C._swap_tensor_impl(a, b)
    for name in _PARTS:
        mine, theirs = getattr(a, name), getattr(b, name)
        setattr(a, name, theirs)
        setattr(b, name, mine)
    set_hooks(b, None, None)
    set_hooks(a, *hooks)


@contextlib.contextmanager
def whole_parameters(model: nn.Module) -> Iterator[None]:
    """Inside, every parameter is a whole plain tensor. All ranks must enter; a rank holds the whole model."""
    shards(model)
    made: dict[int, nn.Parameter] = {}
    undo: list[tuple[dict[str, Any], str, nn.Parameter]] = []
    for module in model.modules():
        for leaf, p in list(module._parameters.items()):
            if p is not None and is_sharded(p):
                if id(p) not in made:
                    made[id(p)] = nn.Parameter(whole(p.detach()), requires_grad=p.requires_grad)
                undo.append((module._parameters, leaf, p))
                module._parameters[leaf] = made[id(p)]
    try:
        yield
    finally:
        for table, leaf, p in undo:
            table[leaf] = p


@contextlib.contextmanager
def plain_model(model: nn.Module, blocks: Collection[str]) -> Iterator[None]:
    """Inside, parameters are whole and blocks bare, so that anyone can call the model's own code."""
    with bare(model, blocks), whole_parameters(model):
        yield


def misplaced(model: nn.Module, called: Collection[str]) -> str | None:
    """What is wrong about where ``fully_shard`` was called, if anything.

    Args:
        model: the model.
        called: names of its modules that are called, ``""`` for the model itself.
    """
    odd = [
        n or type(m).__name__.removeprefix("FSDP")
        for n, m in sharded_modules(model).items()
        if n not in called
    ]
    return _not_called(odd) if odd else None


def _not_called(names: list[str]) -> str:
    return (
        f"fully_shard was called on {', '.join(map(repr, names[:3]))}, which the compiled model does not "
        "call. Call it after compile, on modules in compiled.called_blocks and on the compiled model "
        "(compile(blocks=...) names other modules)"
    )


def still_sharded(tensors: Mapping[str, torch.Tensor]) -> str | None:
    """Why a graph cannot run on these parameters, if some are in parts where they should be whole."""
    owners = [
        n.rpartition(".")[0] for n, t in tensors.items() if isinstance(t, torch.Tensor) and is_sharded(t)
    ]
    return _not_called(list(dict.fromkeys(owners))) if owners else None
