"""A plan as JSON, a smaller model on disk, and going on from there."""

import tempfile
from pathlib import Path

import torch
from torch import nn

import ecospa_fx


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(24, 96), nn.GELU(), nn.Linear(96, 24))


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(7, 24)
    compiled = ecospa_fx.compile(network(), args=(x,))
    compiled(x).square().mean().backward()

    plan = compiled.plan(ratio=0.5)
    print(plan)
    again = ecospa_fx.Plan.from_json(plan.to_json())
    print("same plan:", again == plan)
    compiled.apply(again)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "half"
        compiled.save(path)
        print("saved:", *sorted(file.name for file in path.rglob("*")))
        loaded = ecospa_fx.load(path, network())
    print("same output:", torch.equal(loaded(x), compiled(x)))

    loaded(x).square().mean().backward()
    print(loaded.sparsify(ratio=0.5))


if __name__ == "__main__":
    main()
