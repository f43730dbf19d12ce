"""One plain-PyTorch transformer with many faces, for properties over random architectures."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.config import Config


class Norm(nn.Module):
    def __init__(self, kind: str, size: int) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.ones(size) + 0.1 * torch.randn(size))
        self.bias = nn.Parameter(0.1 * torch.randn(size)) if kind == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        shape = self.weight.shape
        if self.kind == "layer":
            return F.layer_norm(x, shape, self.weight, self.bias)
        if self.kind == "rms":
            return F.rms_norm(x, shape, self.weight, 1e-6)
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class Conv1D(nn.Module):
    def __init__(self, ins: int, outs: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(ins, outs) * ins**-0.5)
        self.bias = nn.Parameter(torch.randn(outs) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        flat = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return flat.view((*x.size()[:-1], self.weight.shape[-1]))


class Raw(nn.Module):
    """``x @ w.T`` on a bare parameter."""

    def __init__(self, ins: int, outs: int, bias: bool) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(outs, ins) * ins**-0.5)
        self.b = nn.Parameter(torch.randn(outs) * 0.1) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = x @ self.w.T
        return y if self.b is None else y + self.b


class Heads(nn.Module):
    """A projection to (or from) heads by einsum."""

    def __init__(self, width: int, heads: int, dim: int, back: bool = False) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(heads, dim, width) * width**-0.5)
        self.back = back

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bhsd,hdi->bsi" if self.back else "bsi,hdi->bhsd", x, self.w)


def dense(c: Config, ins: int, outs: int) -> nn.Module:
    kinds = {"raw": Raw, "conv1d": Conv1D}
    return kinds.get(c.projection, nn.Linear)(ins, outs, c.bias)


def rotate_half(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


def rotate(kind: str, x: Tensor) -> Tensor:
    """Rotary embedding of queries or keys, shape ``[batch, heads, time, dim]``."""
    if kind == "none":
        return x
    dim = 4 if kind == "partial" else x.shape[-1]
    frequency = 1.0 / (100.0 ** (torch.arange(0, dim, 2, device=x.device).to(x.dtype) / dim))
    angle = torch.arange(x.shape[-2], device=x.device).to(x.dtype)[:, None] * frequency
    if kind == "complex":
        pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)
    if kind == "interleaved":
        cos, sin = angle.cos().repeat_interleave(2, -1), angle.sin().repeat_interleave(2, -1)
        turned = torch.stack((-x[..., 1::2], x[..., ::2]), -1).flatten(-2)
        return x * cos + turned * sin
    cos, sin = torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin()
    turned, passed = x[..., :dim], x[..., dim:]
    turned = turned * cos + rotate_half(turned) * sin
    return torch.cat((turned, passed), -1) if dim < x.shape[-1] else turned


class Attention(nn.Module):
    def __init__(self, c: Config, causal: bool, cross: bool = False) -> None:
        super().__init__()
        self.c, self.causal, self.is_cross = c, causal, cross
        inner, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        if c.projection == "einsum":
            self.q, self.k, self.v = (
                Heads(c.width, n, c.head_dim) for n in (c.heads, c.kv_heads, c.kv_heads)
            )
            self.o: nn.Module = Heads(c.width, c.heads, c.head_dim, back=True)
        elif c.projection in ("fused", "conv1d") and not cross:
            self.qkv = dense(c, c.width, inner + 2 * kv)
            self.o = dense(c, inner, c.width)
        elif c.projection in ("per_head", "stacked"):
            self.qkv = nn.Linear(c.width, inner + 2 * kv, c.bias)
            self.o = nn.Linear(inner, c.width, c.bias)
        else:
            self.q, self.k, self.v = (dense(c, c.width, n) for n in (inner, kv, kv))
            self.o = dense(c, inner, c.width)
        flat = c.qk_norm == "flat"
        if c.qk_norm != "none":
            kind = "layer" if c.qk_norm == "layer" else "rms_by_hand" if c.norm == "rms_by_hand" else "rms"
            self.q_norm = Norm(kind, inner if flat else c.head_dim)
            self.k_norm = Norm(kind, kv if flat else c.head_dim)
        if c.lora:
            self.down, self.up = nn.Linear(c.width, c.lora, False), nn.Linear(c.lora, inner, False)
        if c.gate:
            self.gate = nn.Linear(c.width, inner)
        if c.position == "relative" and not cross:
            self.relative = nn.Embedding(8, c.heads)
        if c.position == "alibi":
            self.register_buffer("slopes", torch.linspace(0.1, 0.7, c.heads).view(-1, 1, 1))
        if c.sinks:
            self.sink = nn.Parameter(torch.randn(c.heads))

    def project(self, x: Tensor, memory: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        c, (batch, time, _) = self.c, x.shape
        flat = c.qk_norm == "flat"
        if c.projection == "einsum":
            q, k, v = self.q(x), self.k(memory), self.v(memory)
        elif hasattr(self, "qkv") and c.projection == "stacked":
            q, k, v = (
                self.qkv(x).reshape(batch, time, 3, c.heads, c.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
            )
        elif hasattr(self, "qkv") and c.projection == "per_head":
            parts = self.qkv(x).view(batch, time, c.kv_heads, c.group + 2, c.head_dim)
            q = parts[..., :-2, :].reshape(batch, time, c.heads, c.head_dim).transpose(1, 2)
            k, v = (parts[..., i, :].transpose(1, 2) for i in (-2, -1))
        else:
            if hasattr(self, "qkv"):
                kv = c.kv_heads * c.head_dim
                q, k, v = self.qkv(x).split([c.heads * c.head_dim, kv, kv], -1)
            else:
                q, k, v = self.q(x), self.k(memory), self.v(memory)
            if c.lora:
                q = q + self.up(self.down(x)) * 0.5
            if flat:
                q, k = self.q_norm(q), self.k_norm(k)
            q, k, v = (
                y.view(batch, -1, y.shape[-1] // c.head_dim, c.head_dim).transpose(1, 2) for y in (q, k, v)
            )
        if c.projection == "einsum" and c.lora:
            q = q + self.up(self.down(x)).view(batch, time, c.heads, c.head_dim).transpose(1, 2) * 0.5
        if c.qk_norm != "none" and not flat:
            q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if self.is_cross else (rotate(c.rope, q), rotate(c.rope, k), v)

    def bias(self, q: Tensor, k: Tensor) -> Tensor:
        """What is added to the scores: ``[heads or 1, time, memory]``."""
        times, others = (torch.arange(y.shape[-2], device=q.device) for y in (q, k))
        distance = times[:, None] - others[None, :]
        bias = torch.zeros(distance.shape, dtype=q.dtype, device=q.device)
        if self.c.position == "alibi":
            bias = -self.slopes * distance.abs()
        if self.c.position == "relative" and not self.is_cross:
            bias = self.relative(distance.abs().clamp(max=7)).permute(2, 0, 1)
        return bias.masked_fill(distance < 0, float("-inf")) if self.causal else bias

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        c = self.c
        if c.repeat in ("grouped", "unmerged") and c.group > 1:
            q = q.unflatten(1, (c.kv_heads, c.group))
            k, v = k.unsqueeze(2), v.unsqueeze(2)
            if c.repeat == "unmerged":
                k, v = (y.expand(-1, -1, c.group, -1, -1) for y in (k, v))
            scores = (q @ k.transpose(-1, -2)).flatten(1, 2)
            return (self.weights(scores, q, k).unflatten(1, (c.kv_heads, c.group)) @ v).flatten(1, 2)
        inside = c.repeat == "enable_gqa"
        if c.group > 1 and not inside:
            k, v = self.repeated(k), self.repeated(v)
        if c.attention == "sdpa":
            if c.position == "none":
                return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, enable_gqa=inside)
            return F.scaled_dot_product_attention(q, k, v, self.bias(q, k), enable_gqa=inside)
        if c.attention == "einsum":
            weights = self.weights(torch.einsum("bhld,bhsd->bhls", q, k), q, k)
            return torch.einsum("bhls,bhsd->bhld", weights, v)
        return self.weights(q @ k.transpose(-1, -2), q, k) @ v

    def weights(self, scores: Tensor, q: Tensor, k: Tensor) -> Tensor:
        scores = scores * self.c.head_dim**-0.5
        if self.c.softcap:
            scores = 5.0 * torch.tanh(scores / 5.0)
        scores = scores + self.bias(q, k)
        if not self.c.sinks:
            return scores.softmax(-1)
        sink = self.sink.view(1, -1, 1, 1).expand(scores.shape[0], -1, scores.shape[2], 1)
        return torch.cat((scores, sink), -1).softmax(-1)[..., :-1]

    def repeated(self, x: Tensor) -> Tensor:
        if self.c.repeat == "interleave":
            return x.repeat_interleave(self.c.group, 1)
        batch, heads, time, dim = x.shape
        return x[:, :, None].expand(batch, heads, self.c.group, time, dim).reshape(batch, -1, time, dim)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        mixed = self.mix(*self.project(x, x if memory is None else memory))
        if self.c.gate:
            gate = torch.sigmoid(self.gate(x)).view(*x.shape[:2], -1, self.c.head_dim).transpose(1, 2)
            mixed = mixed * gate
        if self.c.projection == "einsum":
            return self.o(mixed)
        return self.o(mixed.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))


class FeedForward(nn.Module):
    def __init__(self, c: Config) -> None:
        super().__init__()
        self.kind = c.activation
        double = c.activation in ("geglu_fused", "maxout")
        self.up = dense(c, c.width, c.hidden * (2 if double else 1))
        self.down = dense(c, c.hidden, c.width)
        if c.activation == "swiglu":
            self.gate = dense(c, c.width, c.hidden)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        if self.kind == "swiglu":
            return self.down(F.silu(self.gate(x)) * h)
        if self.kind == "geglu_fused":
            gate, h = h.chunk(2, -1)
            return self.down(F.gelu(gate) * h)
        if self.kind == "maxout":
            return self.down(h.unflatten(-1, (2, -1)).amax(-2))
        if self.kind == "gelu_by_hand":
            return self.down(0.5 * h * (1.0 + torch.tanh(0.8 * (h + 0.044715 * torch.pow(h, 3.0)))))
        functions = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu, "relu2": lambda y: F.relu(y).square()}
        return self.down(functions[self.kind](h))


class Block(nn.Module):
    def __init__(self, c: Config, causal: bool, cross: bool = False) -> None:
        super().__init__()
        self.c = c
        parts: list[nn.Module] = [Attention(c, causal)]
        parts += [Attention(c, False, cross=True)] if cross else []
        parts += [FeedForward(c)]
        self.parts = nn.ModuleList(parts)
        self.norms = nn.ModuleList(Norm(c.norm, c.width) for _ in range(2 * len(parts)))

    def forward(self, x: Tensor, memory: Tensor | None) -> Tensor:
        if self.c.parallel and len(self.parts) == 2:
            normed = self.norms[0](x)
            return x + self.parts[0](normed) + self.parts[1](normed)
        for i, part in enumerate(self.parts):
            more = (memory,) if isinstance(part, Attention) and part.is_cross else ()
            if self.c.place == "post":
                x = self.norms[2 * i](x + part(x, *more))
            else:
                y = part(self.norms[2 * i](x), *more)
                x = x + (self.norms[2 * i + 1](y) if self.c.place == "sandwich" else y)
        return x


class Transformer(nn.Module):
    """Tokens in, logits out; with ``cross`` an encoder and a decoder."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.embed = nn.Embedding(c.vocab, c.width)
        if c.position == "learned":
            self.places = nn.Embedding(40, c.width)
        count = 1 if c.shared else c.layers
        self.encoder = nn.ModuleList(Block(c, causal=False) for _ in range(count if c.cross else 0))
        self.decoder = nn.ModuleList(Block(c, causal=True, cross=c.cross) for _ in range(count))
        self.norm = Norm(c.norm, c.width)
        self.head = nn.Linear(c.width, c.vocab, bias=False)
        if c.tied:
            self.head.weight = self.embed.weight

    def embedded(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        if self.c.position == "learned":
            x = x + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        return x

    def forward(self, tokens: Tensor, source: Tensor | None = None) -> Tensor:
        memory = None
        if source is not None:
            memory = self.embedded(source)
            for i in range(self.c.layers):
                memory = self.encoder[i % len(self.encoder)](memory, None)
        x = self.embedded(tokens)
        for i in range(self.c.layers):
            x = self.decoder[i % len(self.decoder)](x, memory)
        return self.head(self.norm(x))


def build(c: Config, seed: int = 0) -> Transformer:
    """A model with random weights, in double precision."""
    torch.manual_seed(seed)
    return Transformer(c).double()


def tokens(c: Config, batch: int = 2, time: int = 7, seed: int = 0) -> tuple[Tensor, ...]:
    """A call's arguments; the source has another length."""
    generator = torch.Generator().manual_seed(seed)
    sizes = [(batch, time), (batch, time + 2)] if c.cross else [(batch, time)]
    return tuple(torch.randint(0, c.vocab, size, generator=generator) for size in sizes)
