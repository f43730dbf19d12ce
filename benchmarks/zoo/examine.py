"""Examine one architecture: capture, couples, two rounds of removal and optimizer steps."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

import ecospa_fx
from benchmarks.zoo.models import build, info
from ecospa_fx.compiled import CompiledModel
from ecospa_fx.coupling import DEFAULT_KINDS
from ecospa_fx.errors import CaptureError
from ecospa_fx.labels import Nature, Value
from ecospa_fx.masked import floats
from ecospa_fx.testing import random_removal

EXACT, UPCAST = 1e-9, 1e-4
ROUNDS = 2


@dataclass
class Finding:
    """What was found for one architecture.

    Attributes:
        name: model type.
        family: its family in the zoo.
        stage: how far it came: build, capture, couple, remove, step, done.
        message: the user-facing message of what stopped it.
        couples: number of couples by kind.
        units: number of units by kind.
        unknown: operators without a rule, with how often they occur.
        frozen: frozen weight axes, those of residual streams aside: parameter, axis, reason, operator,
            source line.
        removed: share of the parameters that the rounds removed.
        worst: largest relative difference from the masked model, outputs and gradients.
        tolerance: what it is compared with.
        seconds: wall time.
    """

    name: str
    family: str = ""
    stage: str = "build"
    message: str = ""
    couples: dict[str, int] = field(default_factory=dict)
    units: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)
    frozen: list[tuple[str, int, str, str, str]] = field(default_factory=list)
    removed: float = 0.0
    worst: float = 0.0
    tolerance: float = EXACT
    seconds: float = 0.0

    @property
    def captured(self) -> bool:
        """Whether the capture equals the eager model."""
        return self.stage not in ("build", "capture")

    @property
    def coupled(self) -> bool:
        """Whether couples were found."""
        return sum(n for kind, n in self.couples.items() if kind in DEFAULT_KINDS) > 0

    @property
    def passed(self) -> bool:
        """Whether every removal equals the masked model, and the optimizer steps on."""
        return self.stage == "done" and self.coupled


def examine(name: str) -> dict[str, Any]:
    """Examine the architecture ``name``; whatever goes wrong is part of the result."""
    finding = Finding(name, info(name).family)
    start = time.perf_counter()
    try:
        _examine(finding)
    except Exception as error:
        finding.message = f"{type(error).__name__}: {error}"
    finding.seconds = round(time.perf_counter() - start, 2)
    return asdict(finding)


def warm_up() -> None:
    """Import and compile what every architecture needs, so that forked workers need not."""
    model, inputs = build("llama")
    ecospa_fx.compile(model, kwargs=inputs)


def _examine(finding: Finding) -> None:
    finding.stage = "capture"
    compiled, inputs = _compiled(finding)
    finding.stage = "couple"
    _describe(finding, compiled)
    finding.stage = "remove"
    before = _size(compiled)
    optimizer = torch.optim.AdamW(compiled.parameters(), lr=1e-3)
    for round_number in range(ROUNDS):
        _step(compiled, optimizer, inputs)
        compiled.apply(random_removal(compiled, 0.5, round_number), optimizer)
        _compare(finding, compiled, inputs, f"after round {round_number + 1}")
    finding.removed = 1 - _size(compiled) / before
    finding.stage = "step"
    _step(compiled, optimizer, inputs)
    _compare(finding, compiled, inputs, "after the last step")
    finding.stage = "done"


def widened(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs in float64."""
    return {
        k: v.double() if isinstance(v, torch.Tensor) and v.is_floating_point() else v
        for k, v in inputs.items()
    }


def _compiled(finding: Finding) -> tuple[CompiledModel, dict[str, Any]]:
    """The compiled model and its inputs: in float64, or in float32 where something knows no float64."""
    model, inputs = build(finding.name)
    double, wide = copy.deepcopy(model).double(), widened(inputs)
    if _runs(double, wide):
        try:
            return ecospa_fx.compile(double, kwargs=wide), wide
        except CaptureError as error:
            if not any(word in str(error) for word in ("float", "dtype")):
                raise
    finding.tolerance = UPCAST
    return ecospa_fx.compile(model, kwargs=inputs), inputs


def _runs(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether the eager model takes these inputs."""
    try:
        with torch.no_grad():
            model(**inputs)
    except Exception:
        return False
    return True


def _describe(finding: Finding, compiled: CompiledModel) -> None:
    graph, analysis = compiled.couplings, compiled.analysis
    finding.couples = dict(Counter(c.kind for c in graph.couples))
    finding.units = {k: sum(c.num_units for c in graph.couples if c.kind == k) for k in finding.couples}
    finding.unknown = dict(analysis.unknown)
    for axis in graph.frozen:
        if len(graph.shapes[axis.parameter]) > 1 and axis.kind != "residual":
            reason = axis.reason
            finding.frozen.append((axis.parameter, axis.axis, reason.text, reason.op, reason.source))
    if any(_is_upcast(node.meta.get("val"), analysis.values.get(node)) for node in analysis.calls):
        finding.tolerance = UPCAST


def _is_upcast(tensor: Any, value: Any) -> bool:
    """Whether an activation is computed in less than float64."""
    return (
        isinstance(tensor, torch.Tensor)
        and isinstance(value, Value)
        and value.nature == Nature.ACTIVATION
        and tensor.dtype in (torch.float32, torch.float16, torch.bfloat16, torch.complex64)
    )


def _size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _step(compiled: CompiledModel, optimizer: torch.optim.Optimizer, inputs: Mapping[str, Any]) -> None:
    loss = sum(o.abs().pow(2).mean() for o in floats(compiled(**inputs)) if o.requires_grad)
    assert isinstance(loss, torch.Tensor), "no output depends on a parameter"
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def _compare(finding: Finding, compiled: CompiledModel, inputs: Mapping[str, Any], when: str) -> None:
    difference = compiled.verify(**inputs)
    finding.worst = max(finding.worst, difference.output_relative, difference.gradient_relative)
    if not difference.within(finding.tolerance):
        raise ArithmeticError(f"{when}: {difference}")
