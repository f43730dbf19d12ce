"""A model in training: dense, or sparse in rounds."""

import math

import torch
from torch import Tensor, nn

import ecospa_fx
from gpt.measure import loss_of, training_bytes


class Run:
    """A model, its optimizer and its learning rate over `steps` steps."""

    def __init__(self, model: nn.Module, steps: int) -> None:
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.1)
        self.peak = 0.0
        warmup = max(1, steps // 20)

        def rate(step: int) -> float:
            return min((step + 1) / warmup, 0.55 + 0.45 * math.cos(math.pi * min(1, step / steps)))

        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, rate)

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        self.optimizer.zero_grad()
        loss_of(self.model, inputs, targets).backward()
        self.read_gradients()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.peak = max(self.peak, self.megabytes)

    def read_gradients(self) -> None:
        """Called in each step, before the gradients are clipped."""

    def after(self, step: int) -> str | None:
        """Do what is due after a step, and say it in a line."""
        return None

    @property
    def parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def megabytes(self) -> float:
        """Megabytes of parameters, gradients and moments as they are now."""
        return training_bytes(self.model, self.optimizer) / 1e6


class SparseRun(Run):
    """A run that removes `ratio` of the coupled parameters, in rounds between 1/5 and 3/5 of its steps.

    The Fisher information gathered since the last round says how much each couple loses.
    """

    def __init__(self, model: nn.Module, steps: int, ratio: float, rounds: int) -> None:
        self.compiled = ecospa_fx.compile(model)
        super().__init__(self.compiled, steps)
        rounds = max(1, min(rounds, 2 * steps // 5))
        self.rounds = [steps // 5 + steps * 2 * r // (5 * max(1, rounds - 1)) for r in range(rounds)]
        self.ratio_a_round = 1 - (1 - ratio) ** (1 / rounds)
        self.fisher = ecospa_fx.FisherAccumulator(self.compiled)
        self.reports: list[ecospa_fx.SparsifyReport] = []

    def read_gradients(self) -> None:
        if len(self.reports) < len(self.rounds):
            self.fisher.update()

    def after(self, step: int) -> str | None:
        if step not in self.rounds:
            return None
        before = self.megabytes
        report = self.compiled.sparsify(self.fisher, ratio=self.ratio_a_round, optimizer=self.optimizer)
        self.reports.append(report)
        return (
            f"step {step}: {report.params_before:,} -> {report.params_after:,} parameters, "
            f"{before:.1f} -> {self.megabytes:.1f} MB of training memory"
        )

    @property
    def coupled(self) -> tuple[int, int]:
        """Parameters held by couples before the first round and after the last."""
        return self.reports[0].coupled_before, self.reports[-1].coupled_after
