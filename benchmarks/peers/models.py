"""The models that every library gets, with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    Attributes:
        family: ``"llama"`` and ``"gpt2"`` are those of transformers, ``"gpt2-linear"`` has ``nn.Linear`` for
            ``Conv1D``, and ``"plain"`` is :class:`Decoder`.
        tied: whether the embedding is the last layer's weight as well.
    """

    family: str
    layers: int
    width: int
    hidden: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False


SHAPES = {
    "gpt2": Shape("gpt2", 12, 768, 3072, 12, 12, 50257, tied=True),
    "gpt2-linear": Shape("gpt2-linear", 12, 768, 3072, 12, 12, 50257, tied=True),
    "llama-135m": Shape("llama", 30, 576, 1536, 9, 3, 49152, tied=True),
    "llama-1b": Shape("llama", 22, 2048, 5632, 32, 4, 32000),
    "llama-1b-mha": Shape("llama", 22, 2048, 5632, 32, 32, 32000),
    "llama-7b": Shape("llama", 32, 4096, 11008, 32, 32, 32000),
    "llama-70b": Shape("llama", 80, 8192, 28672, 64, 8, 32000),
    "llama": Shape("llama", 2, 128, 352, 4, 4, 512),
    "llama-gqa": Shape("llama", 2, 128, 352, 4, 2, 512),
    "plain": Shape("plain", 2, 128, 352, 4, 4, 512),
}
"""By name; those of the last three are cheap, for runs of many depths."""


def build(shape: Shape, device: str = "cpu") -> nn.Module:
    """The model in evaluation mode; on ``meta`` it has no weights."""
    torch.manual_seed(0)
    with torch.device(device):
        return FAMILIES[shape.family](shape).eval()


def tokens(shape: Shape, device: str = "cpu") -> Tensor:
    """Example inputs: two texts of 16 tokens."""
    return torch.randint(0, shape.vocabulary, (2, 16), device="cpu").to(device)


def logits(output: Any) -> Tensor:
    """The tensor in what a model returns."""
    return output if isinstance(output, Tensor) else output.logits


def _llama(shape: Shape) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=shape.width, intermediate_size=shape.hidden, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.tied, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _gpt2(shape: Shape) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_embd=shape.width, n_inner=shape.hidden, n_layer=shape.layers, n_head=shape.heads,
        vocab_size=shape.vocabulary, use_cache=False,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def _gpt2_linear(shape: Shape) -> nn.Module:
    """Some libraries know ``nn.Linear`` only; the product is the same."""
    from transformers.pytorch_utils import Conv1D

    model = _gpt2(shape)
    for name, found in [(n, m) for n, m in model.named_modules() if isinstance(m, Conv1D)]:
        linear = nn.Linear(found.nx, found.nf)
        linear.weight, linear.bias = nn.Parameter(found.weight.detach().T.contiguous()), found.bias
        model.set_submodule(name, linear)
    return model


class Block(nn.Module):
    """Attention and a gated feed-forward part, written as anyone would."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.first, self.second = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.query, self.key, self.value, self.out = (
            nn.Linear(shape.width, shape.width, bias=False) for _ in range(4)
        )
        self.gate, self.up = (nn.Linear(shape.width, shape.hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(shape.hidden, shape.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        found = self.second(x)
        return x + self.down(functional.silu(self.gate(found)) * self.up(found))

    def attention(self, x: Tensor) -> Tensor:
        batch, length = x.shape[0], x.shape[1]
        parts = [
            layer(x).view(batch, length, self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        ]
        mixed = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2], is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


class Decoder(nn.Module):
    """A decoder without positions, whose Python any tracer can follow."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.blocks = nn.Sequential(*(Block(shape) for _ in range(shape.layers)))
        self.norm = nn.LayerNorm(shape.width)
        self.head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embedding(input_ids))))


FAMILIES = {"llama": _llama, "gpt2": _gpt2, "gpt2-linear": _gpt2_linear, "plain": Decoder}
