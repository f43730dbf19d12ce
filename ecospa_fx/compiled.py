"""The compiled model."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from ecospa_fx.blocks import Blocks, find_blocks, plain_name
from ecospa_fx.caches import plain_arguments, plain_output
from ecospa_fx.coupling import CouplingGraph
from ecospa_fx.errors import CaptureError
from ecospa_fx.fsdp import plain_model
from ecospa_fx.generation import generator, with_open_caches
from ecospa_fx.masked import Difference
from ecospa_fx.modes import modes_kept
from ecospa_fx.parts import Parts
from ecospa_fx.passes.check import check_supported
from ecospa_fx.passes.verify import verify
from ecospa_fx.program import Analysis
from ecospa_fx.removal import Removal
from ecospa_fx.removing import Removing
from ecospa_fx.route import Routes
from ecospa_fx.signature import bind, speaking
from ecospa_fx.signatures import Signature, Signatures
from ecospa_fx.storing import Storing


class CompiledModel(Removing, Storing, nn.Module):
    """A model as a graph that can become smaller.

    It has the model's own parameters, buffers and submodules under their own names, and computes what the
    model computes until :meth:`sparsify` removes something. The original module shares the parameters; once
    they have shrunk only the compiled model can run.

    Args:
        model: the module.
        args: example inputs; without any, capture waits for the first call.
        kwargs: example keyword inputs.
        check: compare every capture once with the eager model.
        blocks: names of the modules that are called for their part of the graph, see :attr:`called_blocks`.
    """

    def __init__(
        self,
        model: nn.Module,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        check: bool = True,
        blocks: Collection[str] | None = None,
    ) -> None:
        super().__init__()
        check_supported(model)
        found = find_blocks(model, blocks)
        for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            self.__dict__[name] = model.__dict__[name]
        self.__dict__["source"] = model
        self.__dict__["forward"] = speaking(partial(CompiledModel.forward, self), model.forward)
        self.training = model.training
        self.removal = Removal()
        self._shapes = {n: tuple(p.shape) for n, p in self.named_parameters(remove_duplicate=False)}
        self._signatures = Signatures(model, self, self._shapes, check, found)
        self._routes = Routes(model.forward)
        self._parts = Parts(self)
        if args or kwargs:
            named = bind(model.forward, args, kwargs or {})
            signature, _ = self._signatures.of(plain_arguments(named)[0], self.removal)
            self._routes.remember(signature, self.training, args, kwargs or {}, named)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Same inputs and outputs as the model; a new kind of call is captured when it first comes.

        Raises:
            InputError: the call does not fit the model, or a size that the capture had to fix.
            CaptureError: this kind of call cannot be captured.
        """
        if torch.compiler.is_dynamo_compiling():
            return self._traced(args, kwargs)
        named = bind(self.source.forward, args, kwargs)
        output, signature = self._answer(named)
        self._routes.remember(signature, self.training, args, kwargs, named)
        return output

    def _traced(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call while ``torch.compile`` looks on, who does not understand how a signature is found."""
        found = self._routes.find(self.training, args, kwargs)
        return self._untraced(*args, **kwargs) if found is None else found[0].run(found[1])

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _untraced(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """``generate`` of a transformers model, with the smaller graph and its smaller cache.

        Raises:
            CaptureError: the model has no ``generate``.
        """
        if not hasattr(self.source, "generate"):
            raise CaptureError(f"{type(self.source).__name__} has no generate()")
        return generator(self.source, self, self._parts.run).generate(*args, **with_open_caches(kwargs))

    def _answer(self, named: Mapping[str, Any]) -> tuple[Any, Signature]:
        plain, held = plain_arguments(named)
        with self._signatures.lock:  # a capture puts other parameters in place for a while
            signature, leaves = self._signatures.of(plain, self.removal)
            executable = signature.executable.best(leaves)
            arguments = executable.arguments(leaves)
        try:
            output = signature.program.output(executable.run(arguments))
        except RuntimeError:
            if held and self.removal.removed:
                self._signatures.check_caches(plain, self.removal)
            raise
        return plain_output(output, held), signature

    def train(self, mode: bool = True) -> CompiledModel:
        """Set the mode of the model and of everything in it."""
        super().train(mode)
        self.source.training = mode
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledModel:
        """A copy with parameters of its own; dense graphs are never changed, so both share them."""
        twin = CompiledModel(copy.deepcopy(self.source, memo), blocks=self._signatures.blocks)
        twin._shapes, twin.removal = self._shapes, self.removal
        twin._signatures = self._signatures.copy(twin.source, twin, self.removal)
        memo[id(self)] = twin
        return twin

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            source = self.__dict__.get("source")
            private = name.startswith("__") or (name.startswith("_") and not hasattr(type(source), name))
            if source is None or private:  # what a class says of itself, others ask for: generate() does
                raise
            return getattr(source, name)

    @property
    def couplings(self) -> CouplingGraph:
        """Every couple of weight matrices, and every axis that is frozen, with its reason."""
        return self._signatures.first(self.removal).coupled[0]

    @property
    def analysis(self) -> Analysis:
        """Labels of every node of the dense graph."""
        return self._signatures.first(self.removal).coupled[1]

    @property
    def signatures(self) -> Signatures:
        """Every way in which the model has been called."""
        return self._signatures

    @property
    def dense_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shape of every parameter before anything was removed, by all its names."""
        return self._shapes

    @property
    def called_blocks(self) -> Blocks:
        """The modules that are called for their part of the graph: hooks and wrappers act on them."""
        return Blocks(self, self._signatures.blocks, self._signatures.flat)

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """As of any module; what wrappers around blocks add to a name is left out."""
        for name, parameter in super().named_parameters(prefix, recurse, remove_duplicate):
            yield plain_name(name), parameter

    def explain(self, parameter: str) -> str:
        """What holds and what moves one parameter."""
        return self.couplings.explain(parameter)

    def kept_mask(self, name: str) -> torch.Tensor:
        """Which entries of the dense parameter are still there, over all rounds: bool, dense shape.

        Raises:
            KeyError: no such parameter.
        """
        if name not in self._shapes:
            raise KeyError(f"{name!r} is not a parameter of the model")
        known = dict(self.named_parameters(remove_duplicate=False))
        first = next(n for n, p in known.items() if p is known[name])  # of those that a tied one has
        return self.removal.mask(first, self._shapes[name])

    def verify(self, *args: Any, **kwargs: Any) -> Difference:
        """Compare with the masked model, without hooks: outputs and gradients of one call in evaluation mode.

        Of the caches that a call returns, the keys and values that are left count as outputs. Those that it
        brings are not changed.

        Args:
            args: the call's positional arguments; without any, those of the first capture.
            kwargs: its keyword arguments.

        Returns:
            The largest differences.

        Raises:
            InputError: a cache was made before a removal.
        """
        named = (
            bind(self.source.forward, args, kwargs)
            if args or kwargs
            else dict(self._signatures.first(self.removal).inputs)
        )
        with modes_kept(self.source, self), plain_model(self.source, self._signatures.blocks):
            self.eval()
            small, dense, kept = self._signatures.compared(named, self.removal)
            without = self._signatures.without_experts(dense, self.removal)
            return verify(
                lambda: self._answer(small)[0], self.source, dense, self.removal, self._shapes, without, kept
            )
