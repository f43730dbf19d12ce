"""Fashion-MNIST, a small DeiT, and a training run that lets a callback remove something after each epoch."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DeiTConfig, DeiTForImageClassification

FOLDER = Path("/usr/share/datasets/fashion-mnist")  # Debian package dataset-fashion-mnist
BATCH = 128


@dataclass(frozen=True)
class Images:
    """Pixels ``[images, 1, 28, 28]``, standardised, and classes ``[images]``."""

    pixels: Tensor
    classes: Tensor


def images(folder: Path, part: str, count: int) -> Images:
    """The first ``count`` images of ``train`` or ``t10k``."""
    raw = _bytes(folder / f"{part}-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)[:count]
    classes = _bytes(folder / f"{part}-labels-idx1-ubyte.gz", 8)[:count]
    pixels = (torch.from_numpy(raw.copy()).float() / 255 - 0.2860) / 0.3530
    return Images(pixels, torch.from_numpy(classes.astype(np.int64)))


def _bytes(path: Path, offset: int) -> np.ndarray:
    if not path.is_file():
        raise SystemExit(f"{path} is missing: install Debian's dataset-fashion-mnist, or pass --data FOLDER")
    with gzip.open(path) as file:
        return np.frombuffer(file.read(), np.uint8, offset=offset)


def deit(seed: int, width: int = 64) -> nn.Module:
    """A DeiT of four layers with patches of 7 x 7: 17 tokens and one for distillation's place."""
    torch.manual_seed(seed)
    config = DeiTConfig(
        hidden_size=width, num_hidden_layers=4, num_attention_heads=4, intermediate_size=4 * width,
        image_size=28, patch_size=7, num_channels=1, num_labels=10,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return DeiTForImageClassification(config)


@torch.no_grad()
def accuracy(model: nn.Module, data: Images) -> float:
    """Percent of the images whose class is found."""
    model.eval()
    right = sum(
        int((model(pixel_values=x).logits.argmax(-1) == y).sum())
        for x, y in zip(data.pixels.split(500), data.classes.split(500), strict=True)
    )
    model.train()
    return 100 * right / len(data.classes)


@dataclass
class Training:
    """Epochs over the same images in the same order for every run with the same seed."""

    train: Images
    test: Images
    epochs: int
    seed: int

    @property
    def steps_an_epoch(self) -> int:
        return len(self.train.classes) // BATCH

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)

    def rate(self, step: int) -> float:
        """Warm-up in the first tenth, then a cosine down to a tenth."""
        steps = self.epochs * self.steps_an_epoch
        return min((step + 1) / (0.1 * steps), 0.55 + 0.45 * float(np.cos(np.pi * step / steps)))

    def run(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        each_step: Callable[[], object] = lambda: None,
        each_epoch: Callable[[int], object] = lambda epoch: None,
        after_step: Callable[[], object] = lambda: None,
    ) -> list[float]:
        """Train, and return the accuracy after each epoch, after what ``each_epoch`` removed.

        Args:
            model: called with ``pixel_values``.
            optimizer: of :meth:`optimizer`.
            each_step: called after ``backward`` and before the optimizer's step.
            each_epoch: called after each epoch with its number, from 1.
            after_step: called after the optimizer's step.
        """
        generator = torch.Generator().manual_seed(self.seed)
        rate = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        found = []
        for epoch in range(1, self.epochs + 1):
            order = torch.randperm(len(self.train.classes), generator=generator)
            for chosen in order[: self.steps_an_epoch * BATCH].split(BATCH):
                optimizer.zero_grad()
                logits = model(pixel_values=self.train.pixels[chosen]).logits
                F.cross_entropy(logits, self.train.classes[chosen]).backward()
                each_step()
                optimizer.step()
                rate.step()
                after_step()
            each_epoch(epoch)
            found.append(accuracy(model, self.test))
        return found
