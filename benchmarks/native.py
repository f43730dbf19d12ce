"""``python -m benchmarks.native``: which classes a smaller model can go back to, with a config of their own.

Every causal language model of the zoo loses a part of its coupled parameters under ``layout="native"``; then
``to_native``, ``save_pretrained`` and ``from_pretrained`` of its own class, and the outputs are compared.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import ecospa_fx
from benchmarks.zoo import models, pool

TOLERANCE = 1e-4  # relative


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line for each class; the exit status says whether all of them go."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.native", description=__doc__)
    parser.add_argument("names", nargs="*", help="model types (default: every causal language model)")
    parser.add_argument("--ratio", type=float, default=0.2)
    parser.add_argument("--round-to", type=int, default=4, help="grouped products want even widths")
    parser.add_argument("--heads", action="store_true", help="let whole heads go, too")
    parser.add_argument("--workers", type=int, default=1, help="processes at a time")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one architecture")
    options = parser.parse_args(arguments)
    chosen = options.names or [n for n in models.names() if models.info(n).head == "CAUSAL_LM"]
    settings = {"ratio": options.ratio, "round_to": options.round_to, "remove_heads": options.heads}
    print("| model type | class | to_native |\n|---|---|---|")
    done = []
    job = functools.partial(trial, settings=settings)
    for name, found in pool.run(job, chosen, options.workers, options.timeout):
        outcome = (
            found["outcome"] if found else f"the worker died, or was stopped after {options.timeout:.0f} s"
        )
        done.append(outcome.startswith("yes"))
        print(f"| {name} | {models.info(name).cls} | {outcome} |", flush=True)
    print(f"\n{sum(done)} of {len(done)}")
    return 0 if all(done) else 1


def trial(name: str, settings: dict[str, Any]) -> dict[str, str]:
    """What comes of one architecture, in words."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        return {"outcome": _trial(name, **settings)}
    except Exception as error:  # whatever a model does
        return {"outcome": f"no: {type(error).__name__}: {str(error).splitlines()[0][:200]}"}


def _trial(name: str, ratio: float, **settings: Any) -> str:
    model, inputs = models.build(name)
    compiled = ecospa_fx.compile(model, kwargs=inputs)
    _logits(compiled(**inputs)).square().mean().backward()
    compiled.sparsify(ratio=ratio, layout="native", **settings)
    plain: Any = compiled.to_native()
    with tempfile.TemporaryDirectory() as folder:
        plain.save_pretrained(folder)
        loaded: nn.Module = type(plain).from_pretrained(folder).eval()
    with torch.no_grad():
        expected, found = (_logits(m.eval()(**inputs)) for m in (compiled, loaded))
    error = float((found - expected).abs().max() / expected.abs().max())
    share = 1 - sum(p.numel() for p in plain.parameters()) / models.info(name).parameters
    return f"{'yes' if error <= TOLERANCE else 'no'}, -{100 * share:.0f} %, error {error:.0e}"


def _logits(output: Any) -> torch.Tensor:
    found = output.logits if hasattr(output, "logits") else output[0]
    assert isinstance(found, torch.Tensor)
    return found


if __name__ == "__main__":
    raise SystemExit(main())
