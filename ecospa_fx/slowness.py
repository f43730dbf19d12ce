"""Slowness: shapes that kernels dislike, so that a smaller model may not be a faster one, and what to do."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import fx

from ecospa_fx import ops

if TYPE_CHECKING:
    from ecospa_fx.executable import Executable
    from ecospa_fx.plan import CoupleLoss, Plan

EVEN = 8  # entries of 16 bits: the 16 bytes that tensor cores read at once
_UNEVEN = (
    "{} matrices have a width that is no multiple of 8 any more; on GPUs that can cost more than it saves: "
    "round_to=8"
)
_STACKS = (
    "{} stacks of experts have a width that grouped products do not take, so that each call copies them with "
    "zeros around: round_to=8"
)
_HEADS = (
    "heads of {} layers have values whose width is no multiple of 8 (such as {}), which fused attention on "
    "GPUs pads at each call: round_to=8"
)
_UNLIKE = (
    "in {} layers queries and keys keep another share than values; fused attention wants one width, so that "
    'the narrower ones get zeros at each call: ratio={{"qk": r, "vo": r, ...}}, or remove_heads=True'
)
_RAGGED = (
    "heads of {} layers keep different counts, and run as wide as the widest of their layer: parameters go, "
    'time hardly: heads="uniform"'
)
_MASKS = (
    "in {} places attention runs with a mask that is written out, which keeps it off the fastest kernels: "
    "leave attention_mask out where nothing is padded"
)
_NORMS = (
    "{} norms over an axis that has become smaller divide by its dense width, which fused kernels do not: "
    "torch.compile fuses them, or leave out the kinds that cut them"
)


def uneven(plan: Plan) -> tuple[str, ...]:
    """Matrices of which a plan makes a width odd that was a multiple of 8 (see :class:`SparsifyReport`)."""
    if plan.settings.round_to % EVEN == 0:
        return ()
    removal, found = plan.removal, []
    for name, dense in removal.shapes.items():
        sizes = list(zip(dense, removal.shape(name, dense), strict=True)) if len(dense) > 1 else []
        if any(new != old and new % EVEN and not old % EVEN for old, new in sizes):
            found.append(name)
    return tuple(found)


def slow_shapes(plan: Plan, odd: Sequence[str]) -> tuple[str, ...]:
    """What may keep a plan's smaller model from being a faster one: the reason, and what to do about it.

    Args:
        plan: what goes.
        odd: its :func:`uneven` matrices.
    """
    layers = _layers(plan.losses)
    stacks = [n for n in odd if len(plan.removal.shapes[n]) == 3]
    heads = [
        w for kinds in layers.values() for w in kinds.get("vo", ()) if w.after % EVEN and not w.dense % EVEN
    ]
    unlike = [
        1 for kinds in layers.values() if len({_share(kinds.get(k, ())) for k in ("qk", "vo")} - {None}) > 1
    ]
    ragged = [1 for kinds in layers.values() if any(len({w.after for w in ws}) > 1 for ws in _parts(kinds))]
    told = (
        (_UNEVEN, len(odd), ""),
        (_STACKS, len(stacks), ""),
        (_HEADS, len({_layer(w) for w in heads}), str(heads[0].after) if heads else ""),
        (_UNLIKE, len(unlike), ""),
        (_RAGGED, len(ragged), ""),
    )
    return tuple(text.format(count, example) for text, count, example in told if count)


def slow_graphs(executables: Iterable[Executable]) -> tuple[str, ...]:
    """What runs slower than in eager mode in the graphs as they are now."""
    count: Counter[str] = Counter()
    for made in executables:
        count |= Counter(_marks(made))
    return tuple(text.format(number) for text, number in count.items() if number)


def _marks(made: Executable) -> Iterator[str]:
    for node in made.nodes():
        if node.target in (ops.rms_norm, ops.layer_norm):
            yield _NORMS
        elif node.target is ops.attention and _mask(node) is not None and not made.has_shortcuts:
            yield _MASKS


def _mask(node: fx.Node) -> object:
    return node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")


def _layer(loss: CoupleLoss) -> str:
    return loss.couple.split("[")[0].rpartition(".")[0]


def _layers(losses: Iterable[CoupleLoss]) -> dict[str, dict[str, list[CoupleLoss]]]:
    """Losses of heads by the path of their attention, and by kind."""
    found: dict[str, dict[str, list[CoupleLoss]]] = {}
    for loss in losses:
        if loss.kind in ("qk", "vo") and loss.after:
            found.setdefault(_layer(loss), {}).setdefault(loss.kind, []).append(loss)
    return found


def _share(losses: Iterable[CoupleLoss]) -> float | None:
    """The fraction of its width that the widest head keeps; None without heads."""
    return max((w.after / w.dense for w in losses), default=None)


def _parts(kinds: dict[str, list[CoupleLoss]]) -> list[list[CoupleLoss]]:
    """Couples that are parts of like heads: their names differ in the head's number alone."""
    found: dict[str, list[CoupleLoss]] = {}
    for losses in kinds.values():
        for loss in losses:
            found.setdefault(re.sub(r"\[\d+\]$", "", loss.couple), []).append(loss)
    return list(found.values())
