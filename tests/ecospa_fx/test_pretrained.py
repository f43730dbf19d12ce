"""Folders of transformers models: they come back smaller, without their dense weights and without code."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from torch import nn
from torch.optim import AdamW

import ecospa_fx
from ecospa_fx import CompiledModel, LoadError
from ecospa_fx.testing import random_removal

TOKENS = torch.randint(3, 31, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(name="compiled", scope="module")
def _compiled() -> CompiledModel:
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        hidden_size=24, intermediate_size=44, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=31, tie_word_embeddings=True,
    )  # fmt: skip
    compiled = ecospa_fx.compile(hf.LlamaForCausalLM(config).double())
    compiled.generation_config.temperature = 0.5
    compiled.generation_config.do_sample = True
    compiled(TOKENS, labels=TOKENS)
    compiled.apply(random_removal(compiled, 0.5))
    return compiled


@pytest.fixture(name="folder")
def _folder(compiled: CompiledModel, tmp_path: Path) -> Path:
    compiled.save_pretrained(tmp_path)
    return tmp_path


def step(compiled: Any, optimizer: AdamW) -> float:
    optimizer.zero_grad()
    loss = compiled(TOKENS, labels=TOKENS).loss
    loss.backward()
    optimizer.step()
    return float(loss.detach())


def test_training_goes_on(compiled: CompiledModel, tmp_path: Path) -> None:
    optimizer = AdamW(compiled.parameters(), 0.1)
    step(compiled, optimizer)
    compiled.save_pretrained(tmp_path)
    saved = copy.deepcopy(optimizer.state_dict())
    loaded = ecospa_fx.from_pretrained(tmp_path).train()
    other = AdamW(loaded.parameters(), 0.1)
    other.load_state_dict(saved)
    assert not any(t.is_meta for t in [*loaded.parameters(), *loaded.buffers()])
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert loaded.generation_config.temperature == 0.5
    found = [step(loaded, other) for _ in range(2)]
    compiled.train()
    assert found == pytest.approx([step(compiled, optimizer) for _ in range(2)], abs=1e-12)


def test_the_dense_model_is_never_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.Tensor] = []
    register = nn.Module.register_parameter

    def spy(self: nn.Module, name: str, parameter: Any) -> None:
        made.append(parameter)
        register(self, name, parameter)

    monkeypatch.setattr(nn.Module, "register_parameter", spy)
    ecospa_fx.from_pretrained(folder)
    assert made
    assert all(p.device.type == "meta" for p in made if p is not None)


DAMAGE = {
    "another class": ({"architectures": ["Linear"]}, "names no model class"),
    "a function": ({"architectures": ["pipeline"]}, "names no model class"),
    "no class": ({"architectures": None}, "names no model class"),
    "no dtype": ({"dtype": "nn"}, "names no dtype"),
    "another size": ({"hidden_size": 28}, "made from another model"),
    "no size": ({"hidden_size": "x"}, "does not describe a LlamaForCausalLM"),
}


@pytest.mark.parametrize(("change", "words"), DAMAGE.values(), ids=DAMAGE)
def test_configs_that_are_refused(folder: Path, change: dict[str, Any], words: str) -> None:
    data = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**data, **change}))
    with pytest.raises(LoadError, match=words):
        ecospa_fx.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "[]", "{" * 9])
def test_config_files_that_are_refused(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    with pytest.raises(LoadError, match="malformed"):
        ecospa_fx.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(LoadError, match=r"no config\.json"):
        ecospa_fx.from_pretrained(folder)


def test_code_beside_the_weights_does_not_run(folder: Path) -> None:
    data = json.loads((folder / "config.json").read_text())
    data["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    (folder / "config.json").write_text(json.dumps(data))
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    assert ecospa_fx.from_pretrained(folder)(TOKENS).logits.shape == (2, 7, 31)


def test_models_of_ones_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"Linear is not a model class of transformers.* use save"):
        ecospa_fx.compile(nn.Linear(3, 3)).save_pretrained(tmp_path)
