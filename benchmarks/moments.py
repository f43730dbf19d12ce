"""What an optimizer's moments should do after a repair: ``python -m benchmarks.moments``.

A small character model is trained with AdamW, loses half of its coupled parameters, and trains on. The
moments of the repaired weights are kept, or set back to zero; the row without repair tells what it is worth
beside training.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

import ecospa_fx
from benchmarks.smollm2 import NARRATIVES

WIDTH, LENGTH, BATCH, RATE = 64, 64, 16, 2e-3
MARKS = (0, 1, 5, 20, 100)
"""Steps after the removal at which the loss is measured."""


class Block(nn.Module):
    """Pre-norm attention of four heads and an MLP, with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norms[0](x)
        q, k, v = (f(y).unflatten(-1, (4, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(mixed.transpose(1, 2).flatten(-2))
        return x + self.down(F.gelu(self.up(self.norms[1](x))))


class Characters(nn.Module):
    """Next-character logits."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(vocabulary, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, vocabulary)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x) + self.place.weight[: x.shape[1]]
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def loss_of(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten())


def batches(text: torch.Tensor, seed: int) -> Iterator[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - LENGTH, (BATCH,), generator=generator)
        yield torch.stack([text[s : s + LENGTH] for s in starts])


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, found: Iterator[torch.Tensor], steps: int
) -> None:
    for x in itertools.islice(found, steps):
        optimizer.zero_grad()
        loss_of(model(x), x).backward()
        optimizer.step()


def course(
    model: ecospa_fx.CompiledModel, state: dict[str, object], parts: tuple[torch.Tensor, torch.Tensor],
    repaired: bool, reset: bool,
) -> list[float]:  # fmt: skip
    """Losses on held-out text at the marks, from one trained model and its optimizer's state."""
    training, held_out = parts
    twin = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(twin.parameters(), RATE)
    optimizer.load_state_dict(copy.deepcopy(state))
    seen = list(itertools.islice(batches(training, 7), 32))
    statistics = twin.calibrate(seen, loss_of)
    plan = twin.plan(ratio=0.5, score="gate", allocation="global", calibration=statistics)
    repair = twin.repair(plan, seen) if repaired else None
    twin.apply(plan, optimizer, repair)
    changed = dict(twin.named_parameters())
    for name in repair.deltas if repair and reset else ():
        optimizer.state.pop(changed[name], None)
    return list(_losses(twin, optimizer, batches(training, 8), held_out))


def _losses(
    model: nn.Module, optimizer: torch.optim.Optimizer, found: Iterator[torch.Tensor], held_out: torch.Tensor
) -> Iterator[float]:
    for before, mark in itertools.pairwise((0, *MARKS)):
        train(model, optimizer, found, mark - before)
        with torch.no_grad():
            yield float(loss_of(model(held_out), held_out))


def main() -> None:
    torch.manual_seed(0)
    text = NARRATIVES.read_text(encoding="utf-8")
    letters = {c: i for i, c in enumerate(sorted(set(text)))}
    codes = torch.tensor([letters[c] for c in text])
    held_out = codes[-200 * LENGTH :].view(-1, LENGTH)
    training = codes[: -200 * LENGTH]
    model = ecospa_fx.compile(Characters(len(letters)), args=(held_out[:2],))
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    train(model, optimizer, batches(training, 0), 600)
    with torch.no_grad():
        print(f"trained: {float(loss_of(model(held_out), held_out)):.4f}")
    print("| repair | moments of repaired weights | " + " | ".join(f"{m} steps" for m in MARKS) + " |")
    print("|---|---|" + "---:|" * len(MARKS))
    for repaired, reset in ((False, False), (True, False), (True, True)):
        found = course(model, optimizer.state_dict(), (training, held_out), repaired, reset)
        words = ("yes" if repaired else "no"), ("set to zero" if reset else "kept")
        print(f"| {words[0]} | {words[1]} | " + " | ".join(f"{loss:.4f}" for loss in found) + " |")


if __name__ == "__main__":
    main()
