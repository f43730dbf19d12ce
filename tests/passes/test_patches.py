"""Patches: what a capture cannot follow as it is written, and what it follows instead."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaModel

import ecospa_fx
from ecospa_fx.errors import CaptureError, InputError
from ecospa_fx.origin import exporter
from ecospa_fx.passes.patches import traceable
from ecospa_fx.testing import random_removal

X = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
MASK = torch.ones(3, 5, dtype=torch.long)


class Read(nn.Module):
    """Does what ``read`` does with the result of two layers and a mask."""

    def __init__(self, read: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.up, self.down, self.read = nn.Linear(4, 8), nn.Linear(8, 4), read
        self.double()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.read(self.down(torch.relu(self.up(x))), mask)


def branch(h: Tensor, mask: Tensor) -> Tensor:
    if mask.sum() == 0:
        return h * 2
    return h[mask.bool()] + 1


def length(h: Tensor, mask: Tensor) -> Tensor:
    return h[:, : int(mask.sum(1).max())].sin()


def sizes(h: Tensor, mask: Tensor) -> Tensor:
    count = h.detach().abs().amax((1, 2)).gt(-1.0).long() + mask.sum(1).clamp(max=2)
    if count.sum() == 9:
        count[count.sum() > 0] = 2
    return torch.stack([row[:n] for row, n in zip(h, count.tolist(), strict=True)])


def places(h: Tensor, mask: Tensor) -> Tensor:
    if mask[0, 0] == 7:
        return h
    hidden = torch.zeros_like(mask).bool()
    rows, columns = zip(*torch.stack([torch.arange(3), mask.argmin(1)], 1), strict=True)
    hidden[rows, columns] = True
    return h.masked_fill(hidden[..., None], 0.0)


def noise(h: Tensor, mask: Tensor) -> Tensor:
    return h + torch.randn(h.shape, generator=None, dtype=h.dtype) * mask[..., None]


def holes(*at: tuple[int, int]) -> Tensor:
    mask = MASK.clone()
    for row, column in at:
        mask[row, column] = 0
    return mask


READS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], list[Tensor], list[Tensor]]] = {
    "a branch": (branch, [holes((1, 2)), holes((0, 0), (2, 4))], [MASK * 0]),
    "a length": (length, [holes((0, 4))], [MASK * 0, holes((0, 1), (1, 1), (2, 1))]),
    "what layers compute": (sizes, [holes((0, 4))], [MASK * 0]),
    "a list of places": (places, [holes((1, 3), (2, 2))], [MASK * 7]),
    "noise": (noise, [MASK * 0], []),
}


@pytest.mark.parametrize(("read", "alike", "unlike"), READS.values(), ids=READS)
def test_calls_that_go_the_way_of_the_example_are_right_and_others_refused(
    read: Callable[[Tensor, Tensor], Tensor], alike: list[Tensor], unlike: list[Tensor]
) -> None:
    compiled = ecospa_fx.compile(Read(read), args=(X, MASK))
    assert [(c.kind, c.num_units) for c in compiled.couplings.couples] == [("ffn", 8)]
    compiled.apply(random_removal(compiled, 0.5))
    for mask in [MASK, *alike]:
        assert compiled.verify(X, mask).within(1e-9)
    for mask in unlike:
        with pytest.raises(InputError, match=r"another way\n  at .*test_patches.py:\d+"):
            compiled(X, mask)


def test_sizes_stay_free_beside_a_branch() -> None:
    compiled = ecospa_fx.compile(Read(branch), args=(X, MASK))
    assert compiled.verify(X[:2, :3], holes((0, 0))[:2, :3]).within(1e-9)


def test_tensors_are_as_they_were() -> None:
    before = {
        name: getattr(torch.Tensor, name) for name in ("__getitem__", "__setitem__", "__iter__", "nonzero")
    }
    ecospa_fx.compile(Read(places), args=(X, MASK))
    assert {name: getattr(torch.Tensor, name) for name in before} == before
    table = torch.zeros(2, 2)
    table[tuple(torch.tensor([0, 1])), tuple(torch.tensor([1, 0]))] = 1.0
    assert table.tolist() == [[0.0, 1.0], [1.0, 0.0]]


def llama() -> LlamaModel:
    return LlamaModel(LlamaConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=3,
                                  num_attention_heads=2))  # fmt: skip


def test_a_patch_of_transformers_that_computes_something_else_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = exporter()
    assert own
    monkeypatch.setitem(own.utils._PATCHES, "dynamo", [])
    own.utils.register_patch("dynamo", "transformers.models.llama.modeling_llama.LlamaMLP.forward")(doubled)
    model, ids = llama().double(), torch.tensor([[0, 2, 1]])
    compiled = ecospa_fx.compile(model, kwargs={"input_ids": ids, "use_cache": False})
    compiled.apply(random_removal(compiled, 0.5))
    assert compiled.verify(input_ids=ids, use_cache=False).within(1e-9)


def doubled(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda self, x: 2 * original(self, x)


def test_models_of_transformers_that_are_not_loaded_stay_so(monkeypatch: pytest.MonkeyPatch) -> None:
    other, own = "transformers.models.nllb_moe.modeling_nllb_moe", exporter()
    if not hasattr(own and own.utils, "import_dotted_path"):
        pytest.skip("transformers before 5.23 loads them with its exporter")
    monkeypatch.delitem(sys.modules, other, raising=False)
    model = llama()
    kernel = functional.scaled_dot_product_attention
    with traceable(model):
        assert functional.scaled_dot_product_attention is not kernel
        assert other not in sys.modules
    assert functional.scaled_dot_product_attention is kernel


def test_branches_on_random_numbers_are_refused() -> None:
    drawn = Read(lambda h, mask: h if torch.rand([]) < 0.5 else -h)
    state = torch.get_rng_state()
    with pytest.raises(CaptureError, match="cannot be captured"):
        ecospa_fx.compile(drawn, args=(X, MASK), check=False)
    assert torch.equal(torch.get_rng_state(), state)
