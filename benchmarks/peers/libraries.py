"""What a user of each library writes to lose half of the units, by the magnitude of weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from benchmarks.peers.models import Shape, logits

Prune = Callable[[nn.Module, Tensor, Shape], nn.Module]
HALF = 0.5


def ecospa_fx(model: nn.Module, tokens: Tensor, shape: Shape) -> nn.Module:
    """Half of what couples hold goes; the capture is compared with the model, as by default."""
    import ecospa_fx

    score = "random" if tokens.is_meta else "magnitude"
    compiled = ecospa_fx.compile(model, args=(tokens,))
    compiled.sparsify(ratio=HALF, score=score, allocation="uniform")
    return compiled


def torch_pruning(model: nn.Module, tokens: Tensor, shape: Shape) -> nn.Module:
    """As in the library's own script for language models: whole heads, hidden units and the width.

    Settings are those of ``examples/LLMs/prune_llm.py``: local pruning, group norms, ``round_to=4``, and
    afterwards the numbers of heads are set anew.
    """
    import torch_pruning as tp

    heads = dict.fromkeys(_layers(model, "q_proj", "query"), shape.heads)
    heads |= dict.fromkeys(_layers(model, "k_proj", "v_proj", "key", "value"), shape.kv_heads)
    heads |= dict.fromkeys(_layers(model, "c_attn"), shape.heads)
    last: Any = getattr(model, "lm_head", None) or model.head
    pruner = tp.pruner.BasePruner(
        model, example_inputs=tokens, importance=tp.importance.GroupMagnitudeImportance(p=2),
        global_pruning=False, pruning_ratio=HALF, ignored_layers=[last], num_heads=heads,
        prune_num_heads=True, prune_head_dims=False, head_pruning_ratio=HALF, round_to=4,
        output_transform=logits,
    )  # fmt: skip
    pruner.step()
    for module in model.modules():
        _set_heads(module, shape)
    return model


def torch_kirigami(model: nn.Module, tokens: Tensor, shape: Shape) -> nn.Module:
    """As in the library's quick start, with half of each width for a budget."""
    return _kirigami(model, tokens, None)


def torch_kirigami_hidden(model: nn.Module, tokens: Tensor, shape: Shape) -> nn.Module:
    """The same for hidden units of feed-forward parts alone, which are far fewer candidates."""
    return _kirigami(model, tokens, ["*gate*", "*up*"])


def _kirigami(model: nn.Module, tokens: Tensor, targets: list[str] | None) -> nn.Module:
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import ChannelRatio, Greedy, GroupMagnitude, Pruner

    graph = DependencyGraph.build(model, args=(tokens,))
    pruner = Pruner(model, graph=graph)
    strategy, candidates = Greedy(GroupMagnitude(p=2)), pruner.discover_candidates(targets=targets)
    smaller, _ = pruner.prune(candidates, budget=ChannelRatio(HALF), strategy=strategy)
    return smaller


LIBRARIES: dict[str, tuple[str, Prune]] = {
    "ecospa-fx": ("", ecospa_fx),
    "torch-pruning": ("torch-pruning==1.6.1", torch_pruning),
    "torch-kirigami": ("torch-kirigami==0.2.1", torch_kirigami),
    "torch-kirigami, hidden units": ("torch-kirigami==0.2.1", torch_kirigami_hidden),
}
"""By name: what to install, and the code."""


def _layers(model: nn.Module, *names: str) -> list[nn.Module]:
    return [m for n, m in model.named_modules() if n.rpartition(".")[2] in names]


def _set_heads(module: nn.Module, shape: Shape) -> None:
    """The numbers that attention modules keep beside their weights, after whole heads have gone."""
    found: Any = module
    if isinstance(getattr(module, "q_proj", None), nn.Linear):
        found.num_heads = found.q_proj.out_features // found.head_dim
        found.num_key_value_groups = found.q_proj.out_features // found.k_proj.out_features
    elif hasattr(module, "query"):
        found.heads = found.query.out_features // (shape.width // shape.heads)
    elif hasattr(module, "c_attn"):
        weight: nn.Parameter = found.c_attn.weight
        rows = weight.shape[0 if isinstance(found.c_attn, nn.Linear) else 1]
        found.split_size = rows // 3
        found.num_heads = found.split_size // found.head_dim
