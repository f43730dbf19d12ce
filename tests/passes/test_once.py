"""Once: blocks that are alike are not followed one by one, and what is not alike is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import ecospa_fx
from ecospa_fx.passes import capture as capturing
from ecospa_fx.passes.capture import capture
from ecospa_fx.passes.once import Repeats
from ecospa_fx.program import Program
from ecospa_fx.testing import assert_equals_masked, random_removal

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
DEPTH = 5
SEEN: list[int] = []
"""One entry for each block that has run."""
PLACE = [0]


class Block(nn.Module):
    """A feed-forward block that knows its place."""

    def __init__(self, place: int) -> None:
        super().__init__()
        self.place = place
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        SEEN.append(1)
        y = x + self.down(torch.relu(self.up(x))) * scale
        return y if mask is None else y * mask


class Stack(nn.Module):
    """Blocks in a row; ``call`` says with what arguments each is called."""

    def __init__(self, cls: type[Block], call: Callable[[int, Tensor], Any] | None = None) -> None:
        super().__init__()
        self.layers = nn.ModuleList(cls(i) for i in range(DEPTH))
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        PLACE[0] = 0
        for i, layer in enumerate(self.layers):
            x = layer(x) if self.call is None else layer(x, *self.call(i, x))
        return x


def followed(model: Stack, x: Tensor = X) -> int:
    """How many blocks of a model are followed in a capture, whose result is right."""
    SEEN.clear()
    compiled = ecospa_fx.compile(model, args=(x,), check=False)
    count = len(SEEN)
    torch.testing.assert_close(compiled(x), model(x))
    return count


def form(program: Program) -> list[Any]:
    """Nodes of a graph without their names."""
    number = {n: i for i, n in enumerate(n for n in program.graph.nodes if n.op != "get_attr")}

    def plain(value: Any) -> str:
        return str(torch.fx.node.map_arg(value, lambda n: number.get(n, str(n.target))))

    return [
        (n.op, str(n.target), plain(n.args), plain(n.kwargs), getattr(n.meta.get("val"), "shape", None),
         list(n.meta.get("nn_module_stack", {}).items()))
        for n in number
    ]  # fmt: skip


def whole(model: nn.Module, inputs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Program:
    """The capture that follows every block."""
    with monkeypatch.context() as patch:
        patch.setattr(capturing, "Repeats", lambda _: None)
        return capture(model, inputs)


def test_two_of_many_equal_blocks_are_followed() -> None:
    assert followed(Stack(Block)) == 3  # gradients flow into all but the first


def test_the_graph_is_that_of_a_whole_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Stack(Block, lambda i, x: (x.sum(-1, keepdim=True) > 0, 0.5))
    assert form(capture(model, {"x": X})) == form(whole(model, {"x": X}, monkeypatch))


def test_layers_of_a_transformer_are_followed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    model = llama()
    tokens = torch.randint(0, 17, (2, 5))
    assert form(capture(model, {"input_ids": tokens})) == form(
        whole(model, {"input_ids": tokens}, monkeypatch)
    )
    calls = count_calls(monkeypatch)
    capture(model, {"input_ids": tokens})
    assert calls == [f"model.layers.{i}" for i in range(DEPTH)]
    compiled = ecospa_fx.compile(model, args=(tokens,))
    assert list(compiled.called_blocks) == calls[:DEPTH]
    compiled.carry_out(random_removal(compiled, 0.4))
    assert_equals_masked(compiled, tokens)


def llama() -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=DEPTH, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=17, use_cache=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def count_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of blocks as they are called in captures."""
    calls: list[str] = []
    original = Repeats.call
    monkeypatch.setattr(
        Repeats, "call", lambda self, name, *rest: (calls.append(name), original(self, name, *rest))[1]
    )
    return calls


class ByPlace(Block):
    """The last one but one doubles."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * (2 if self.place == 3 else 1)


class ByHiddenPlace(Block):
    """The same, from an attribute whose reads do not show because its class has a default of it."""

    factor = 1.0

    def __init__(self, place: int) -> None:
        super().__init__(place)
        self.factor = 2.0 if place == 3 else 1.0

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * self.factor


class Counting(Block):
    """It changes an attribute at each call."""

    runs = 0

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        self.runs += 1
        return super().forward(x) * self.runs


class Shared(Block):
    """Blocks hand a value on through a list that they share, besides the one that they return."""

    handed: ClassVar[list[Tensor]] = []

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        before = self.handed.pop() if self.place else x
        y = super().forward(x)
        self.handed.append(y.tanh())
        return y + before


class GlobalPlace(Block):
    """What it does depends on a number that no attribute of it holds, and that the stack sets to zero."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        PLACE[0] += 1
        return super().forward(x) * (2 if PLACE[0] == 3 else 1)


class Writing(Block):
    """It writes to its argument."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) + x.mul_(0.5)


@pytest.mark.parametrize("cls", [ByPlace, ByHiddenPlace, Shared, GlobalPlace, Writing])
def test_blocks_that_are_not_alike_are_right(cls: type[Block]) -> None:
    model = Stack(cls)
    compiled = ecospa_fx.compile(model, args=(X.clone(),))
    torch.testing.assert_close(compiled(X.clone()), model(X.clone()))


@pytest.mark.parametrize("cls", [ByPlace, ByHiddenPlace])
def test_an_attribute_that_is_read_tells_blocks_apart(cls: type[Block]) -> None:
    assert 2 < followed(Stack(cls)) <= DEPTH


@pytest.mark.parametrize(
    "call",
    [
        lambda i, x: (None, float(i)),
        lambda i, x: (x > 0, 1.0) if i % 2 else (None, 1.0),
        lambda i, x: (x.sum(-1, keepdim=i < 3), 1.0) if i < 3 else (x, 1.0),
    ],
)
def test_other_arguments_are_other_calls(call: Callable[[int, Tensor], Any]) -> None:
    assert 2 < followed(Stack(Block, call)) <= DEPTH


def test_a_block_that_changes_itself_is_followed() -> None:
    model = Stack(Counting)
    SEEN.clear()
    capture(model, {"x": X})
    assert len(SEEN) == DEPTH


def test_hooks_inside_a_block_run_in_each() -> None:
    model = Stack(Block)
    model.layers[3].up.register_forward_hook(lambda m, args, out: out * 2)
    assert followed(model) > 2


def test_frozen_parameters_are_another_kind() -> None:
    model = Stack(Block)
    model.layers[3].up.weight.requires_grad_(False)
    assert followed(model) == 4


def test_tensors_that_blocks_share_stay_shared() -> None:
    model = Stack(Block)
    for layer in list(model.layers)[1:]:
        layer.down.weight = model.layers[0].down.weight
    compiled = ecospa_fx.compile(model, args=(X,))
    compiled(X).square().sum().backward()
    found = model.layers[0].down.weight.grad.clone()
    model.zero_grad()
    model(X).square().sum().backward()
    torch.testing.assert_close(found, model.layers[0].down.weight.grad)


def test_modules_are_left_as_they_were() -> None:
    model = Stack(Block)
    before = [dict(m.__dict__) for m in model.modules()]
    capture(model, {"x": X})
    assert [dict(m.__dict__) for m in model.modules()] == before
    assert not hasattr(Block, "place")


def test_gradients_flow_through_blocks_that_were_not_followed() -> None:
    model = Stack(Block).double()
    compiled = ecospa_fx.compile(model, args=(X.double(),))
    compiled.carry_out(random_removal(compiled, 0.5))
    assert_equals_masked(compiled, X.double())
