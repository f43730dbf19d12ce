"""Blocks remain blocks: what is put around a module's call acts when the compiled model calls it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.distributed._composable import checkpoint as checkpointed
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

import ecospa_fx
from ecospa_fx import CaptureError, CompiledModel
from ecospa_fx.testing import random_removal
from tests.models.config import Config
from tests.models.transformer import build, tokens

C = Config(kv_heads=2, group=2, rope="half", activation="swiglu", layers=3)
X = tokens(C)
BLOCKS = ["decoder.0", "decoder.1", "decoder.2"]


def fresh(c: Config = C, removed: float = 0.4, **options: Any) -> CompiledModel:
    compiled = ecospa_fx.compile(build(c), args=tokens(c), **options)
    if removed:
        compiled.apply(random_removal(compiled, removed))
    return compiled


ONCE: dict[Any, CompiledModel] = {}


def once(*key: Any, make: Callable[[], CompiledModel]) -> CompiledModel:
    """A copy of what is made once."""
    if key not in ONCE:
        ONCE[key] = make()
    return copy.deepcopy(ONCE[key])


@pytest.fixture(name="compiled", params=[0.0, 0.4], ids=["dense", "smaller"])
def _compiled(request: pytest.FixtureRequest) -> CompiledModel:
    return once(request.param, make=lambda: fresh(removed=request.param))


def flat(compiled: CompiledModel) -> CompiledModel:
    """The same model as one graph without blocks."""
    twin = once("flat", make=lambda: fresh(removed=0, blocks=()))
    twin.apply(compiled.removal)
    twin.load_state_dict(compiled.state_dict())
    return twin


def gradients(model: nn.Module, x: tuple[Tensor, ...] = X) -> dict[str, Tensor]:
    model.zero_grad()
    model(*x).square().sum().backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def same(a: CompiledModel, b: CompiledModel, x: tuple[Tensor, ...] = X) -> None:
    torch.testing.assert_close(a(*x), b(*x), rtol=1e-9, atol=1e-9)
    expected, found = gradients(b, x), gradients(a, x)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-9)


def test_the_modules_that_repeat_are_blocks(compiled: CompiledModel) -> None:
    assert list(compiled.called_blocks) == BLOCKS
    assert compiled.called_blocks["decoder.1"] is compiled.decoder[1]
    assert not compiled.called_blocks.flat
    same(compiled, flat(compiled))
    with pytest.raises(KeyError, match="is no block"):
        _ = compiled.called_blocks["embed"]


def test_blocks_that_compute_the_same_share_one_graph() -> None:
    compiled = fresh(removed=0.0)
    (signature,) = compiled.signatures
    stages = signature.executable.stages
    assert len(stages) == 3
    assert len({id(stage.module) for stage in stages}) == 1


def test_hooks_run_and_what_they_change_counts(compiled: CompiledModel) -> None:
    plain = flat(compiled)
    seen: list[tuple[int, ...]] = []
    block = compiled.called_blocks["decoder.1"]
    first = block.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    compiled(*X)
    assert seen == [(*X[0].shape, C.width)]
    first.remove()
    twice = block.register_forward_hook(lambda module, args, output: 2 * output)
    assert not torch.allclose(compiled(*X), plain(*X))
    assert gradients(compiled).keys() == gradients(plain).keys()
    twice.remove()
    same(compiled, plain)


def test_hooks_see_what_the_original_block_returns() -> None:
    model = build(C)
    found: list[Tensor] = []
    model.decoder[1].register_forward_hook(lambda module, args, output: found.append(output))
    compiled = ecospa_fx.compile(model, args=X)
    found.clear()
    expected = model(*X)
    torch.testing.assert_close(compiled(*X), expected)
    assert len(found) == 2
    torch.testing.assert_close(found[0], found[1])


def test_backward_hooks(compiled: CompiledModel) -> None:
    found: list[Tensor] = []
    compiled.called_blocks["decoder.2"].register_full_backward_hook(
        lambda m, into, out: found.append(into[0])
    )
    gradients(compiled)
    assert found[0].shape == (*X[0].shape, C.width)


def test_hooks_set_before_are_live_and_no_part_of_the_graph() -> None:
    model = build(C)
    handle = model.decoder[0].register_forward_hook(lambda module, args, output: 3 * output)
    tripled = model(*X)
    compiled = ecospa_fx.compile(model, args=X)
    torch.testing.assert_close(compiled(*X), tripled)
    handle.remove()
    torch.testing.assert_close(compiled(*X), build(C)(*X))
    assert not torch.allclose(compiled(*X), tripled)


def test_verify_looks_past_hooks(compiled: CompiledModel) -> None:
    handle = compiled.called_blocks["decoder.0"].register_forward_hook(
        lambda module, args, output: 2 * output
    )
    assert compiled.verify().within(1e-9)
    handle.remove()
    assert compiled.verify().within(1e-9)


def saved(model: nn.Module) -> int:
    """Entries that a forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(*X)
    return sum(kept.values())


def by_hooks(compiled: CompiledModel) -> None:
    for block in compiled.called_blocks.values():
        checkpointed(block)


def by_wrappers(compiled: CompiledModel) -> None:
    for i in range(C.layers):
        compiled.decoder[i] = checkpoint_wrapper(compiled.decoder[i])


@pytest.mark.parametrize("put", [by_hooks, by_wrappers])
def test_checkpointing(put: Callable[[CompiledModel], None], compiled: CompiledModel) -> None:
    plain = flat(compiled)
    before = saved(compiled)
    put(compiled)
    assert saved(compiled) < 0.6 * before
    same(compiled, plain)
    again = random_removal(compiled, 0.5, seed=1)
    compiled.apply(again)
    plain.apply(again)
    same(compiled, plain)
    same(compiled, plain, tokens(C, 1, 5))
    assert compiled.verify().within(1e-9)
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_checkpointing_of_transformers() -> None:
    config = hf.LlamaConfig(
        hidden_size=24, intermediate_size=44, num_hidden_layers=3, num_attention_heads=4, vocab_size=31
    )
    compiled = ecospa_fx.compile(hf.LlamaForCausalLM(config).double())
    x = torch.randint(31, (2, 7))

    def total() -> tuple[int, list[Tensor]]:
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
            loss = compiled(x, labels=x, use_cache=False).loss
        return sum(kept), list(torch.autograd.grad(loss, list(compiled.parameters())))

    kind = "activation" if hasattr(compiled, "activation_checkpointing_enable") else "gradient"  # before 5.23
    for _ in range(2):
        getattr(compiled, f"{kind}_checkpointing_disable")()
        plain, expected = total()
        getattr(compiled, f"{kind}_checkpointing_enable")()
        less, found = total()
        assert less < 0.6 * plain
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
        compiled.apply(random_removal(compiled, 0.3))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch._dynamo looks at it
def test_regional_compilation(compiled: CompiledModel) -> None:
    plain = flat(compiled)
    counter = CompileCounter()
    for block in compiled.called_blocks.values():
        block.compile(backend=counter, fullgraph=True)
    compiled(*X)
    same(compiled, plain)
    if not compiled.removal.removed:
        assert counter.frame_count == 1  # for all blocks
    again = random_removal(compiled, 0.5, seed=1)
    compiled.apply(again)
    plain.apply(again)
    same(compiled, plain)
    torch._dynamo.reset()


def test_compilation_of_the_whole_goes_through_blocks(compiled: CompiledModel) -> None:
    compiled(*X)
    fast = torch.compile(compiled, backend="eager", fullgraph=True)
    torch.testing.assert_close(fast(*X), compiled(*X))
    torch._dynamo.reset()


def test_a_copy_has_blocks_of_its_own(compiled: CompiledModel) -> None:
    twin = copy.deepcopy(compiled)
    calls: list[str] = []
    for name, block in twin.called_blocks.items():
        block.register_forward_hook(lambda *_, name=name: calls.append(name))
    compiled(*X)
    assert not calls
    twin(*X)
    assert calls == BLOCKS
    same(twin, compiled)


def test_the_original_model_can_still_be_called_copied_and_pickled() -> None:
    model = build(C)
    expected = model(*X)
    ecospa_fx.compile(model, args=X)
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        torch.testing.assert_close(other(*X), expected)


def test_a_block_that_runs_twice_is_called_twice() -> None:
    c = Config(layers=2, shared=True)
    compiled = fresh(c)
    calls: list[int] = []
    compiled.called_blocks["decoder.0"].register_forward_hook(lambda *_: calls.append(1))
    compiled(*tokens(c))
    assert len(calls) == 2
    assert compiled.verify().within(1e-9)


def test_encoder_and_decoder() -> None:
    c = Config(cross=True, layers=2)
    compiled = fresh(c)
    calls: list[str] = []
    for name, block in compiled.called_blocks.items():
        block.register_forward_hook(lambda *_, name=name: calls.append(name))
    compiled(*tokens(c))
    assert calls == ["encoder.0", "encoder.1", "decoder.0", "decoder.1"]
    assert compiled.verify().within(1e-9)


def test_modules_can_be_named() -> None:
    compiled = fresh(blocks=["decoder.0.parts.1", "decoder.2"])
    assert list(compiled.called_blocks) == ["decoder.0.parts.1", "decoder.2"]
    same(compiled, flat(compiled))
    with pytest.raises(CaptureError, match=r"the model has no module 'decoder\.7'"):
        fresh(blocks=["decoder.7"])
    with pytest.raises(CaptureError, match=r"'decoder\.0\.norms' lies within 'decoder\.0'"):
        fresh(blocks=["decoder.0", "decoder.0.norms"])


def test_what_others_have_put_in_place_of_forward_is_left_alone() -> None:
    model = build(C)
    block = model.decoder[0]
    own = block.forward
    block.forward = lambda *args: own(*args)
    compiled = ecospa_fx.compile(model, args=X)
    assert list(compiled.called_blocks) == BLOCKS[1:]
    torch.testing.assert_close(compiled(*X), model(*X))


@pytest.mark.parametrize("before", [True, False])
def test_hidden_states_are_recorded_whether_or_not_the_model_ran_before(before: bool) -> None:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=24, intermediate_size=44, num_hidden_layers=3, num_attention_heads=4, vocab_size=31
    )
    model, ids = hf.LlamaForCausalLM(config).double().eval(), torch.arange(10).view(2, 5)
    if before:
        model(ids, output_hidden_states=True)
    compiled = ecospa_fx.compile(model, kwargs={"input_ids": ids})
    compiled.apply(random_removal(compiled, 0.5))
    found = compiled(input_ids=ids, output_hidden_states=True)
    assert len(found.hidden_states) == 4
    assert compiled.verify(input_ids=ids, output_hidden_states=True).within(1e-9)
