"""What a random architecture may be made of."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, fields

from hypothesis import strategies as st


@dataclass(frozen=True)
class Config:
    """An architecture. Sizes are small, and unlike each other."""

    width: int = 14
    kv_heads: int = 3
    group: int = 1
    head_dim: int = 6
    hidden: int = 11
    layers: int = 1
    vocab: int = 17
    rope: str = "none"
    norm: str = "rms"
    place: str = "pre"
    qk_norm: str = "none"
    projection: str = "split"
    bias: bool = False
    activation: str = "gelu"
    repeat: str = "expand"
    attention: str = "eager"
    position: str = "none"
    softcap: bool = False
    sinks: bool = False
    gate: bool = False
    cross: bool = False
    parallel: bool = False
    shared: bool = False
    tied: bool = False
    lora: int = 0

    @property
    def heads(self) -> int:
        return self.kv_heads * self.group

    def __str__(self) -> str:
        changed = (f for f in fields(self) if getattr(self, f.name) != f.default)
        return "-".join(f"{f.name}={getattr(self, f.name)}" for f in changed) or "plain"

    def units(self) -> Counter[str]:
        """How many units of each kind the model must offer."""
        pairs = {"none": self.head_dim, "partial": self.head_dim - 2}.get(self.rope, self.head_dim // 2)
        heads = 1 if self.qk_norm == "layer" else self.kv_heads
        blocks = 1 if self.shared else self.layers
        own, across = blocks * (2 if self.cross else 1), blocks * self.cross
        found = Counter(qk=heads * (own * pairs + across * self.head_dim))
        found["vo"] = (own + across) * self.kv_heads * self.head_dim
        if self.activation != "maxout":
            found["ffn"] = own * self.hidden
        if self.lora:
            found["lowrank"] = (own + across) * self.lora
        return found


CHOICES = {
    "kv_heads": (3, 1, 2),
    "group": (1, 2, 3),
    "head_dim": (6, 4),
    "layers": (1, 2),
    "rope": ("none", "half", "interleaved", "partial", "complex"),
    "norm": ("rms", "layer", "rms_by_hand"),
    "place": ("pre", "post", "sandwich"),
    "qk_norm": ("none", "head", "flat", "layer"),
    "projection": ("split", "fused", "per_head", "stacked", "einsum", "raw", "conv1d"),
    "bias": (False, True),
    "activation": ("gelu", "relu", "silu", "swiglu", "geglu_fused", "relu2", "gelu_by_hand", "maxout"),
    "repeat": ("expand", "interleave", "enable_gqa", "grouped", "unmerged"),
    "attention": ("eager", "sdpa", "einsum"),
    "position": ("none", "alibi", "relative", "learned"),
    "softcap": (False, True),
    "sinks": (False, True),
    "gate": (False, True),
    "cross": (False, True),
    "parallel": (False, True),
    "shared": (False, True),
    "tied": (False, True),
    "lora": (0, 2),
}


def possible(c: Config) -> bool:
    """Whether the choices go together."""
    fused = c.attention == "sdpa"
    return not (
        (c.repeat == "enable_gqa" and not fused)
        or (c.repeat in ("grouped", "unmerged") and c.attention != "eager")
        or (fused and (c.softcap or c.sinks))
        or (c.projection == "stacked" and (c.group > 1 or c.cross or c.lora))
        or (c.projection in ("per_head", "einsum") and c.lora)
        or (c.projection == "per_head" and c.cross)
        or (c.qk_norm == "flat" and c.projection in ("per_head", "stacked", "einsum"))
        or (c.layers == 2 and not c.shared)
        or (c.layers == 1 and c.shared)
        or (c.activation == "maxout" and c.bias)
    )


def covering(seed: int = 0) -> list[Config]:
    """A few architectures in which every choice occurs."""
    draw = random.Random(seed)
    missing = {(k, v) for k, values in CHOICES.items() for v in values}
    found = [Config()]
    while missing := missing - {(k, getattr(found[-1], k)) for k in CHOICES}:
        tries = [Config(**{k: draw.choice(v) for k, v in CHOICES.items()}) for _ in range(400)]
        new = [sum((k, getattr(c, k)) in missing for k in CHOICES) if possible(c) else -1 for c in tries]
        found.append(tries[new.index(max(new))])
    return found


def configs() -> st.SearchStrategy[Config]:
    """Random architectures."""
    return st.builds(Config, **{k: st.sampled_from(v) for k, v in CHOICES.items()}).filter(possible)
