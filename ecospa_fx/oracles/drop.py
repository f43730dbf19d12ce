"""The drop oracle: deleting entries equals zeroing them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, fx

from ecospa_fx.errors import RewriteError, VerifyError
from ecospa_fx.labels import Ids, Nature, Value
from ecospa_fx.layout import layout_of
from ecospa_fx.oracles.trial import Trial, require_equal, restrict
from ecospa_fx.passes.rewrite import rewrite

Tensors = list[Tensor]


def drop(trial: Trial, seed: int = 0, tries: int = 6) -> int:
    """Delete entries, against zeroing them in every operand.

    The smaller call, written by the rule's own second half, must give the surviving entries of the
    masked call, and the same gradients. Where the rule promises that removed entries are zero, the masked
    call has to show zeros; where a removed entry need not be zero, it is noise, and must not matter.

    Args:
        trial: the call.
        seed: of the removals.
        tries: how many removals.

    Returns:
        How many different removals were compared.

    Raises:
        VerifyError: the rule is wrong; the message says where.
    """
    rng = np.random.default_rng(seed)
    done: set[bytes] = set()
    for number in range(tries):
        dead = _removal(trial, rng, number)
        if dead is not None and dead.tobytes() not in done:
            done.add(dead.tobytes())
            _compare_drop(trial, dead[trial.component], rng)
    return len(done)


def _removal(trial: Trial, rng: np.random.Generator, number: int) -> Ids | None:
    """Random dead components that leave a box of every value, or None."""
    for attempt in range(8):
        dead = np.zeros(trial.analysis.partition.num_components, bool)
        if number % 3 == 2:
            _kill_row(trial, dead, rng)
        else:
            count = 1 + int(len(trial.free) * (0.7 * rng.random() if number else 0) / (attempt + 1))
            dead[rng.permutation(trial.free)[:count]] = True
        dead = _levelled(trial, dead, rng)
        if dead.any() and _is_box(trial, dead[trial.component]):
            return dead
    return None


def _kill_row(trial: Trial, dead: Ids, rng: np.random.Generator) -> None:
    """One whole outer index, such as a head."""
    free = np.isin(np.arange(len(dead)), trial.free)
    rows = [r for table in trial.rows() if len(table) > 1 for r in table if free[r].all()]
    if rows:
        dead[rows[rng.integers(len(rows))]] = True


def _levelled(trial: Trial, dead: Ids, rng: np.random.Generator) -> Ids:
    """Remove more, until all rows of every joint array keep equally many."""
    free = np.zeros(len(dead), bool)
    free[trial.free] = True
    tables = [t for t in trial.rows() if len(t) > 1]
    for _ in range(20):
        level = True
        for table in tables:
            rows = [r for r in table if not dead[r].all()]
            most = max((int(dead[r].sum()) for r in rows), default=0)
            for row in rows:
                while dead[row].sum() < most and (more := row[free[row] & ~dead[row]]).size:
                    dead[rng.choice(more)] = True
                    level = False
        if level:
            break
    return trial.analysis.partition.close(dead)


def _is_box(trial: Trial, dead: Ids) -> bool:
    try:
        layouts = [
            layout_of(v, dead) for v in [*trial.given, *trial.got, *(j.joint for j in trial.call.joins)]
        ]
    except RewriteError:
        return False
    return all(n > 0 for layout in layouts for n, m in zip(layout.shape, layout.dense, strict=True) if m)


def _compare_drop(trial: Trial, dead: Ids, rng: np.random.Generator) -> None:
    wide = [_masked(t, v, dead, rng).requires_grad_(_learns(t, v)) for t, v in _pairs(trial)]
    small = [restrict(w.detach(), layout_of(v, dead)) for w, v in zip(wide, trial.given, strict=True)]
    small = [s.clone().requires_grad_(w.requires_grad) for s, w in zip(small, wide, strict=True)]
    expected = trial.results(wide)
    got = _run(trial, dead, small)
    what = f"without {_described(trial, dead)}"
    for full, result, value in zip(expected, got, trial.got, strict=True):
        layout = layout_of(value, dead)
        if tuple(result.shape) != layout.shape:
            raise VerifyError(
                trial.name(f"{what} gives {list(result.shape)} instead of {list(layout.shape)}")
            )
        if not trial.sample.shape_only:
            _require_zeros(trial, full.detach(), value, dead, what)
            require_equal(trial, restrict(full, layout), result, what)
    if not trial.sample.shape_only:
        _compare_gradients(trial, dead, (wide, expected), (small, got), what)


def _pairs(trial: Trial) -> Iterator[tuple[Tensor, Value]]:
    return zip(trial.tensors, trial.given, strict=True)


def _learns(tensor: Tensor, value: Value) -> bool:
    """Whether a gradient is asked of an operand; of buffers it is not."""
    return tensor.is_floating_point() and value.nature > Nature.CONSTANT


def _masked(tensor: Tensor, value: Value, dead: Ids, rng: np.random.Generator) -> Tensor:
    """Noise in dead entries that need not be zero, then zeros in those that are."""
    tensor = tensor.clone()
    for array in sorted(value.arrays, key=lambda a: a.zero):
        gone = _entries(dead[array.ids], value)
        noise = torch.from_numpy(rng.uniform(1, 2, value.shape)).to(tensor.dtype)
        tensor = torch.where(gone, torch.zeros_like(tensor) if array.zero else noise, tensor)
    return tensor


def _entries(flags: Ids, value: Value) -> Tensor:
    """Flags of labels as flags of the value's entries."""
    return torch.from_numpy(np.broadcast_to(flags, value.shape).copy())


def _run(trial: Trial, dead: Ids, small: Sequence[Tensor]) -> list[Tensor]:
    try:
        written = rewrite(trial.analysis, dead)
        module = torch.nn.Module()
        for name, tensor in written.constants.items():
            module.register_buffer(name, tensor)
        return list(fx.Interpreter(module, graph=written.graph).run(*small))
    except Exception as error:
        raise VerifyError(
            trial.name(f"cannot be rewritten without {_described(trial, dead)}: {error}")
        ) from error


def _described(trial: Trial, dead: Ids) -> str:
    """Which entries are gone."""
    found = []
    for i, value in enumerate(trial.given):
        for array in value.arrays:
            if dead[array.ids].any():
                axes = sorted(array.axes)
                gone = np.argwhere(dead[array.ids])[:, axes]
                where = [g.tolist() if len(axes) > 1 else int(g[0]) for g in gone[:6]]
                found.append(f"{where} on axis {', '.join(map(str, axes))} of operand {i}")
    return "; ".join(found) or "any entry"


def _require_zeros(trial: Trial, full: Tensor, value: Value, dead: Ids, what: str) -> None:
    for array in value.arrays:
        gone = _entries(dead[array.ids], value)
        if array.zero and gone.any() and (full[gone] != 0).any():
            raise VerifyError(
                trial.name(
                    f"what is removed should be zero by the rule, but is not in the masked call {what}"
                )
            )


def _compare_gradients(
    trial: Trial, dead: Ids, dense: tuple[Tensors, Tensors], small: tuple[Tensors, Tensors], what: str
) -> None:
    """Gradients of the survivors; nothing flows into what is removed."""
    generator = torch.Generator().manual_seed(3)
    wide, narrow, into_wide, into_narrow = [], [], [], []
    for full, result, value in zip(dense[1], small[1], trial.got, strict=True):
        if full.requires_grad and result.requires_grad:
            if "NotImplemented" in str(full.grad_fn):
                return
            flow = torch.randn(full.shape, generator=generator, dtype=full.dtype)
            for array in value.arrays:
                flow = flow.masked_fill(_entries(dead[array.ids], value), 0)
            wide.append(full)
            narrow.append(result)
            into_wide.append(flow)
            into_narrow.append(restrict(flow, layout_of(value, dead)))
    leaves = [(w, s, v) for w, s, v in zip(dense[0], small[0], trial.given, strict=True) if w.requires_grad]
    if wide and leaves:
        first = torch.autograd.grad(wide, [w for w, _, _ in leaves], into_wide, allow_unused=True)
        second = torch.autograd.grad(narrow, [s for _, s, _ in leaves], into_narrow, allow_unused=True)
        for (w, s, value), a, b in zip(leaves, first, second, strict=True):
            expected = restrict(torch.zeros_like(w) if a is None else a, layout_of(value, dead))
            require_equal(trial, expected, torch.zeros_like(s) if b is None else b, f"{what} (gradient)")
