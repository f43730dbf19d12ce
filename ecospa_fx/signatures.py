"""Every way in which a model has been called: its dense program, and the graph that runs now."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from ecospa_fx.blocks import bare, callable_for_parts, has_hooks, unwrapped
from ecospa_fx.caches import plain_arguments, with_dense_caches, with_plain_states, with_room
from ecospa_fx.collectors import forget_collectors
from ecospa_fx.coupling import CouplingGraph
from ecospa_fx.errors import CaptureError, InputError, SizeError
from ecospa_fx.executable import Executable
from ecospa_fx.fsdp import misplaced
from ecospa_fx.passes.analyse import analyse
from ecospa_fx.passes.follow import dead_labels
from ecospa_fx.passes.kernels import kernels
from ecospa_fx.passes.level import level
from ecospa_fx.passes.open import open_signature
from ecospa_fx.passes.recast import states
from ecospa_fx.passes.rewrite import rewrite
from ecospa_fx.passes.without import without_experts
from ecospa_fx.program import Analysis, Program
from ecospa_fx.regions import regions
from ecospa_fx.removal import Removal
from ecospa_fx.signature import bind, key_of, required_arguments


@dataclass(eq=False)
class Signature:
    """One way to call the model, its dense program, and the graph that runs now.

    The inputs are those of the capture, with caches as wide as those of the dense model.
    """

    inputs: Mapping[str, Any]
    program: Program
    _coupled: tuple[CouplingGraph, Analysis] | None = None
    executable: Executable = field(init=False)

    def run(self, leaves: list[Any]) -> Any:
        """The model's own output for flat inputs."""
        return pytree.tree_unflatten(self.executable.best(leaves)(leaves), self.program.out_spec)

    @property
    def coupled(self) -> tuple[CouplingGraph, Analysis]:
        """Coupling graph and analysis, made when they are first asked for."""
        if self._coupled is None:
            self._coupled = analyse(self.program)
        return self._coupled


class Signatures:
    """Signatures by structure of the inputs, mode, dtype and device; captured when they first come.

    Args:
        model: the original module.
        owner: the module whose parameters the graphs read.
        shapes: dense shape of every parameter.
        check: compare every capture once with the eager model.
        blocks: names of the modules that are called for their part of a graph.

    Attributes:
        flat: name of a block that is not called in some graph → why.
    """

    def __init__(
        self,
        model: nn.Module,
        owner: nn.Module,
        shapes: Mapping[str, tuple[int, ...]],
        check: bool,
        blocks: Collection[str] = (),
    ) -> None:
        self.shapes, self.check = shapes, check
        self.blocks = tuple(blocks)
        self.flat: dict[str, str] = {}
        self._model, self._owner = model, owner
        self._modules = list(model.modules())
        self._known: dict[tuple[Any, ...], list[Signature]] = {}
        self.lock = threading.RLock()

    def __iter__(self) -> Iterator[Signature]:
        return (signature for variants in self._known.values() for signature in variants)

    def of(self, named: Mapping[str, Any], removal: Removal) -> tuple[Signature, list[Any]]:
        """The signature of a call, captured and shrunk if it is new, and the call's flat inputs.

        Graphs tell sizes of 1 from all others, so there may be one for one token and one for many.

        Raises:
            InputError: the call does not fit, or has another size than the capture had to fix.
            CaptureError: this kind of call cannot be captured.
        """
        with self.lock:
            return self._of(named, removal)

    def _of(self, named: Mapping[str, Any], removal: Removal) -> tuple[Signature, list[Any]]:
        variants = self._known.setdefault(
            key_of(named, self._modules, next(self._model.parameters(), None)), []
        )
        for signature in variants:
            try:
                return signature, signature.program.leaves(named)
            except SizeError as error:
                if not error.one:
                    raise
        signature = self._opened(named, removal)
        variants.append(signature)
        return signature, signature.program.leaves(named)

    def first(self, removal: Removal) -> Signature:
        """The signature whose couples count: the first of those that read the most parameters.

        Without any call so far it is captured from what the model offers.

        Raises:
            CaptureError: the model has not been called and offers no inputs of its own.
        """
        if not any(self._known.values()):
            self.of(bind(self._model.forward, (), self._offered()), removal)
        return max(self, key=lambda s: len(s.program.parameters))

    def shrunk(self, signature: Signature, removal: Removal, whole: bool = False) -> Executable:
        """The graph of a signature after a removal; ``whole`` for one graph that calls no blocks.

        Raises:
            RewriteError: a node cannot take its smaller shape.
        """
        graph, analysis = signature.coupled
        dead = dead_labels(analysis, removal)
        written = rewrite(analysis, dead, level(graph, analysis, dead))
        constants = {**signature.program.constants, **written.constants}
        if whole:
            return Executable(written.graph, constants, self._owner)
        return self._executable(written.graph, constants)

    def compared(
        self, named: Mapping[str, Any], removal: Removal
    ) -> tuple[dict[str, Any], dict[str, Any], Callable[[Any], list[torch.Tensor]]]:
        """One call for the smaller model, the same for the masked one, and what to compare of their caches.

        Raises:
            InputError: a cache was made before a removal.
        """
        plain, _ = plain_arguments(named)
        placed = states(*self.of(plain, removal)[0].coupled, removal)
        return placed.small(plain), placed.dense(plain), placed.kept

    def check_caches(self, named: Mapping[str, Any], removal: Removal) -> None:
        """Refuse a call whose caches are wider than the model.

        Raises:
            InputError: a cache was made before a removal.
        """
        states(*self.of(named, removal)[0].coupled, removal).check(named)

    def without_experts(
        self, named: Mapping[str, Any], removal: Removal
    ) -> Callable[[Mapping[str, torch.Tensor]], Any] | None:
        """From dense parameters to the output of a call without the experts that are gone; None with all."""
        if not removal.removed:
            return None
        signature, leaves = self.of(plain_arguments(named)[0], removal)
        analysis = signature.coupled[1]
        if all(router.refused is not None for router in analysis.program.routers):
            return None
        run = without_experts(analysis, dead_labels(analysis, removal), self._model)
        return None if run is None else lambda parameters: run(parameters, leaves)

    def _executable(self, graph: fx.Graph, constants: Mapping[str, torch.Tensor]) -> Executable:
        for name in self.blocks:
            callable_for_parts(unwrapped(self._owner, name))
        called, shortcuts = kernels(graph)
        made = Executable(called, constants, self._owner, self.blocks, shortcuts)
        self.flat.update(made.refused)
        return made

    def copy(self, model: nn.Module, owner: nn.Module, removal: Removal) -> Signatures:
        """The same for a copy of the model; dense programs are never changed, so both share them."""
        twin = Signatures(model, owner, self.shapes, self.check, self.blocks)
        for key, variants in self._known.items():
            twin._known[key] = [
                twin._made(mine.inputs, mine.program, removal, mine._coupled) for mine in variants
            ]
        return twin

    def _made(
        self,
        inputs: Mapping[str, Any],
        program: Program,
        removal: Removal,
        coupled: tuple[CouplingGraph, Analysis] | None = None,
    ) -> Signature:
        """A signature that runs its dense program, or as much of it as is left."""
        signature = Signature(inputs, program, coupled)
        signature.executable = (
            self.shrunk(signature, removal)
            if removal.removed
            else self._executable(program.graph, program.constants)
        )
        return signature

    def _opened(self, named: Mapping[str, Any], removal: Removal) -> Signature:
        if torch.compiler.is_compiling():
            raise CaptureError(
                "the model has not been called in this way yet, and torch is tracing, so that it cannot be "
                "captured now; call the model once before torch.compile, torch.export or torch.onnx.export"
            )
        forget_collectors(self._model)
        if problem := misplaced(self._model, self.blocks):
            raise CaptureError(problem)
        named = with_plain_states(named)
        example = with_dense_caches(named, (s.program for s in self)) if removal.removed else named
        program = self._traced(example, self.blocks)
        refused = regions(program.graph, self.blocks).refused
        if any(
            has_hooks(unwrapped(self._model, name)) for name in refused
        ):  # they act as a part of the graph
            program = self._traced(example, [n for n in self.blocks if n not in refused])
        forget_collectors(self._model)
        signature = self._made(named, program, removal)
        if removal.removed:  # the next one makes its caches narrower still
            signature.inputs = states(*signature.coupled, removal).dense(named)
        return signature

    def _traced(self, example: Mapping[str, Any], blocks: Collection[str]) -> Program:
        """The dense program of a call, traced without what lies around the calls of ``blocks``."""
        with bare(self._model, blocks):
            program = open_signature(self._model, with_room(example), self.shapes, self.check)
            if _fits(program, example):
                return program
            return open_signature(self._model, example, self.shapes, self.check)

    def _offered(self) -> dict[str, Any]:
        """Inputs that the model itself offers, on its device."""
        offered = getattr(self._model, "dummy_inputs", None)
        if not isinstance(offered, Mapping):
            raise CaptureError(
                "the model has not been called yet, so nothing is captured; pass example inputs: "
                f"ecospa_fx.compile(model, args=({required_arguments(self._model.forward)},))"
            )
        device = next((p.device for p in self._model.parameters()), None)
        return {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in offered.items()}


def _fits(program: Program, named: Mapping[str, Any]) -> bool:
    try:
        program.leaves(named)
    except InputError:
        return False
    return True
