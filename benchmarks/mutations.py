"""Break the compiler on purpose, and see which test notices.

``python -m benchmarks.mutations [name ...]`` runs the oracle tests once for every mutation, each in a process
of its own, and prints what caught it. The exit status is 1 if one survived.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from itertools import chain
from typing import Any
from unittest import mock

import numpy as np
import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ecospa_fx import CompiledModel, ops
from ecospa_fx.labels import LabelArray
from ecospa_fx.passes import cuts, propagate, remap, rewrite
from ecospa_fx.rules import TABLE, attention, contractions, pointwise, reductions
from ecospa_fx.rules.call import Arrays, Call
from ecospa_fx.rules.registry import Flow, Rule

VARIABLE = "ECOSPA_FX_MUTATION"
RULES = ("tests/ecospa_fx/rules/test_oracles.py",)
BLOCKS = ("tests/models/test_blocks.py",)
STEPS = ("tests/models/test_random_architectures.py::test_steps_after_a_removal_equal_masked_steps",)

Install = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Mutation:
    """One mistake.

    Attributes:
        install: a context in which the compiler makes it.
        tests: what runs, in this order, until something fails.
    """

    install: Install
    tests: tuple[str, ...] = (*BLOCKS, *RULES)


def patched(owner: Any, name: str, change: Callable[[Any], Any]) -> Install:
    """Replace an attribute by what ``change`` makes of it."""
    return lambda: mock.patch.object(owner, name, change(getattr(owner, name)))


def ruled(change: Callable[[Rule], Rule], *targets: str) -> Install:
    """Replace the rules of operators."""

    @contextmanager
    def install() -> Iterator[None]:
        before = [rule for rule in TABLE if rule.target in targets]
        for rule in before:
            TABLE.add(change(rule), replace=True)
        try:
            yield
        finally:
            for rule in before:
                TABLE.add(rule, replace=True)

    return install


def flowing(change: Callable[[Flow, Call], Arrays], *targets: str) -> Install:
    """Replace the first half of rules."""
    return ruled(lambda rule: replace(rule, flow=lambda call: change(rule.flow, call)), *targets)


def rolled(axis: int) -> Callable[[Flow, Call], Arrays]:
    """Labels of the result moved by one along an axis."""

    def flow(original: Flow, call: Call) -> Arrays:
        return tuple(LabelArray(np.roll(a.ids, 1, axis), a.zero) for a in _flat(original(call)))

    return flow


def heads_rolled(original: Flow, call: Call) -> Arrays:
    """Every copy of a key head takes the labels of the head before it."""
    arrays, x = _flat(original(call)), call.value("self")
    copied = [a for a, n in enumerate(x.shape) if n == 1 and call.out.shape[a] > 1]
    if x.rank < 5 or len(copied) != 1:
        return arrays
    return tuple(LabelArray(np.roll(a.ids, 1, copied[0] - 1), a.zero) for a in arrays)


def _flat(flow: Any) -> Arrays:
    return tuple(chain(*flow)) if isinstance(flow, list) else flow


def tiled(original: Callable[..., Any]) -> Callable[..., Any]:
    """Copies of key heads in the order of ``tile`` instead of ``repeat_interleave``."""

    def grouped(value: Any, heads: int) -> Any:
        times = heads // value.shape[-3]
        order = np.arange(heads).reshape(-1, times).T.ravel()
        result = original(value, heads)
        move = [
            LabelArray(a.ids.take(order, -3) if a.ids.shape[-3] > 1 else a.ids, a.zero) for a in result.arrays
        ]
        return replace(result, arrays=tuple(move))

    return grouped


def narrow_statistics(original: Callable[..., Any]) -> Callable[..., Any]:
    """Divide by the entries that are left."""

    @wraps(original)
    def narrow(x: torch.Tensor, axes: Any, *rest: Any) -> torch.Tensor:
        dims = range(-axes, 0) if isinstance(axes, int) else axes
        width = int(np.prod([x.shape[d] for d in dims]))
        result: torch.Tensor = original(x, axes, *rest[:-1], width)
        return result

    return narrow


def other_rows(original: Callable[..., Any]) -> Callable[..., Any]:
    """Gather the neighbours of the entries that are wanted."""

    def gather(self: Any, site: Any, name: str, axes: Any, place: int, at: np.ndarray) -> None:
        original(self, site, name, axes, place, np.roll(at, 1, place))

    return gather


def deaf_linear(original: Callable[..., Any]) -> Callable[..., Any]:
    """Forget that a linear layer's input and its weight's columns go together."""

    def contract(call: Call, *args: Any) -> Arrays:
        if call.target != "aten.linear.default":
            return original(call, *args)
        with mock.patch.object(call.space, "union"):
            return original(call, *args)

    return contract


def moved_moments(original: Callable[..., Any]) -> Callable[..., Any]:
    """Give each row the moments of the row before it."""

    def move(state_move: Any, *args: Any) -> None:
        original(state_move, *args)
        state = state_move.state
        state.update({k: v.roll(1, 0) for k, v in state.items() if torch.is_tensor(v) and v.dim()})

    return move


def moved_mask(original: Callable[..., Any]) -> Callable[..., Any]:
    """Report the rows after those that are left."""
    return lambda self, name: original(self, name).roll(1, 0)


def dense_indices(original: Callable[..., Any]) -> Callable[..., Any]:
    """Take the second round's indices for those of the dense parameter."""

    def narrow(mask: torch.Tensor, name: str, before: Any) -> torch.Tensor:
        small = original(mask, name, before)
        return small.flip(0) if before.removed.get(name) else small

    return narrow


def everything(original: Flow, call: Call) -> Arrays:
    """Pass every label, pinning none."""
    return tuple(LabelArray(a.ids, False) for a in call.value("self").arrays)


def silent(original: Flow, call: Call) -> Arrays:
    """Let a rule pin nothing."""
    with mock.patch.object(call.space, "pin"):
        return _flat(original(call))


SOFTMAX = ("aten.softmax.int", "aten._softmax.default")
MUTATIONS = {
    "rope-partner": Mutation(flowing(rolled(-1), "aten.neg.default")),
    "rope-slice": Mutation(flowing(rolled(-1), "aten.slice.Tensor")),
    "rope-cat": Mutation(flowing(rolled(-1), "aten.cat.default")),
    "gqa-interleave": Mutation(flowing(rolled(1), "aten.repeat_interleave.self_int")),
    "gqa-expand": Mutation(flowing(heads_rolled, "aten.expand.default")),
    "gqa-kernel": Mutation(patched(attention, "_grouped", tiled)),
    "sdpa-scale": Mutation(
        ruled(lambda r: replace(r, rewrite=None), "aten.scaled_dot_product_attention.default")
    ),
    "mean-size": Mutation(patched(ops, "mean", narrow_statistics)),
    "var-size": Mutation(patched(ops, "var", narrow_statistics), RULES),
    "rms-norm-size": Mutation(patched(ops, "rms_norm", narrow_statistics)),
    "layer-norm-size": Mutation(patched(ops, "layer_norm", narrow_statistics)),
    "layer-norm-shift": Mutation(
        flowing(lambda _, call: reductions._norm(call, shift=False), "aten.layer_norm.default")
    ),
    "constants-whole": Mutation(patched(rewrite._Rewriter, "_gather", lambda _: lambda *args: None)),
    "constants-other-rows": Mutation(patched(rewrite._Rewriter, "_gather", other_rows)),
    "linear-union": Mutation(patched(contractions, "contract", deaf_linear)),
    "bias-whole": Mutation(patched(contractions, "plus", lambda _: lambda call, arrays, *args: arrays)),
    "softmax-free": Mutation(flowing(everything, *SOFTMAX), (*RULES, *BLOCKS)),
    "embedding-free": Mutation(flowing(silent, "aten.embedding.default"), (*RULES, *BLOCKS)),
    "sigmoid-zero": Mutation(
        flowing(lambda _, call: pointwise.through(call), "aten.sigmoid.default"), (*RULES, *BLOCKS)
    ),
    "outputs-free": Mutation(patched(propagate.Interpreter, "_output", lambda _: lambda self, node: None)),
    "moments": Mutation(patched(remap, "_move_state", moved_moments), STEPS),
    "second-round": Mutation(patched(cuts, "narrow", dense_indices)),
    "kept-mask": Mutation(patched(CompiledModel, "kept_mask", moved_mask)),
}


def pytest_configure(config: Any) -> None:
    """Install the mutation that the environment names, for a whole run of pytest."""
    name = os.environ.get(VARIABLE)
    if name:
        installed = MUTATIONS[name].install()
        installed.__enter__()
        config.add_cleanup(lambda: installed.__exit__(None, None, None))


def run_tests(tests: Iterable[str], mutation: str = "") -> tuple[str | None, str]:
    """The first test that fails, None if none does, and what pytest printed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "--tb=line", "-rfE", "--show-capture=no"]
    done = subprocess.run(
        [*command, "-p", "benchmarks.mutations", *tests],
        env=os.environ | {VARIABLE: mutation},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"^(?:FAILED|ERROR) (\S+)(.*)$", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1) or (done.returncode and not found):
        raise RuntimeError(f"pytest did not run under {mutation!r}:\n{done.stdout}{done.stderr}")
    return (found[1] if found else None), done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the mutations that are named, or all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(MUTATIONS))
    names = parser.parse_args(arguments).names or list(MUTATIONS)
    if strangers := set(names) - MUTATIONS.keys():
        parser.error(f"no such mutation: {', '.join(sorted(strangers))}")
    caught: dict[str, str | None] = {}
    table = Table("mutation", "caught by", "seconds")
    for name in names:
        start = time.perf_counter()
        caught[name], _ = run_tests(MUTATIONS[name].tests, name)
        table.add_row(name, escape(caught[name] or "SURVIVED"), f"{time.perf_counter() - start:.0f}")
        print(name, caught[name] or "SURVIVED", file=sys.stderr, flush=True)
    Console(width=160 if not sys.stdout.isatty() else None).print(table)
    healthy = sorted({test for test in caught.values() if test})
    broken, output = run_tests(healthy) if healthy else (None, "")
    if broken:
        print(f"fails without any mutation too:\n{output}")
    return int(bool(broken) or None in caught.values())


if __name__ == "__main__":
    sys.exit(main())
