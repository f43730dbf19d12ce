"""Compile a block of your own, remove 30 % of what its couples hold, and check the result."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import ecospa_fx


class Block(nn.Module):
    """Attention with two query heads for each key head, then a gated feed-forward."""

    def __init__(self, width: int = 64, heads: int = 4, kv_heads: int = 2) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, width // heads
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, kv_heads * self.head_dim)
        self.v = nn.Linear(width, kv_heads * self.head_dim)
        self.o = nn.Linear(width, width)
        self.gate, self.up, self.down = nn.Linear(width, 160), nn.Linear(width, 160), nn.Linear(160, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2)
        k, v = (
            layer(x).unflatten(-1, (self.kv_heads, self.head_dim)).transpose(1, 2)
            for layer in (self.k, self.v)
        )
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        x = self.norm(x + self.o(y.transpose(1, 2).flatten(-2)))
        return x + self.down(F.silu(self.gate(x)) * self.up(x))


def main() -> None:
    torch.manual_seed(0)
    model = Block()
    x = torch.randn(2, 11, 64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    compiled = ecospa_fx.compile(model, args=(x,))
    for couple in compiled.couplings.couples:
        print(f"{couple.kind:4} {couple.name:24} {couple.num_units:4} units")

    compiled(x).square().mean().backward()
    optimizer.step()
    print(compiled.sparsify(ratio=0.3, optimizer=optimizer))

    print(compiled.verify(x))
    print(model.q.weight.shape, optimizer.state[model.q.weight]["exp_avg"].shape)


if __name__ == "__main__":
    main()
