"""Save and load: going on where one stopped, and what is refused before anything is read."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import SGD

import ecospa_fx
from ecospa_fx import CompiledModel
from ecospa_fx.errors import LoadError, PlanError
from ecospa_fx.storage import REMOVAL, WEIGHTS
from tests.models.config import Config
from tests.models.damage import put
from tests.models.masked import MaskedModel, assert_same
from tests.models.snapshot import identical, untouched
from tests.models.transformer import build, tokens

X = torch.randn(5, 10, generator=torch.Generator().manual_seed(0))


def ffn(hidden: int = 34, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = nn.Linear(10, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, 10)
    return nn.Sequential(*layers).eval()


def smaller(hidden: int = 34) -> CompiledModel:
    compiled = ecospa_fx.compile(ffn(hidden), args=(X,))
    compiled.sparsify({n: torch.randn_like(p) for n, p in compiled.named_parameters()}, ratio=0.5)
    return compiled


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    smaller().save(tmp_path / "new" / "folder")
    return tmp_path / "new" / "folder"


def step(compiled: CompiledModel) -> None:
    optimizer = SGD(compiled.parameters(), 0.1)
    compiled.zero_grad()
    compiled(X).square().mean().backward()
    optimizer.step()


def test_training_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    compiled = smaller()
    compiled.save(tmp_path)
    loaded = ecospa_fx.load(tmp_path, ffn(seed=7))
    for net in (compiled, loaded):
        step(net)
        net.sparsify(ratio=0.3)
        step(net)
    assert identical(dict(loaded.state_dict()), dict(compiled.state_dict()))
    assert torch.equal(loaded(X), compiled(X))
    assert torch.equal(loaded.kept_mask("0.weight"), compiled.kept_mask("0.weight"))
    assert loaded.verify(X).within(1e-4)


def test_the_loaded_model_equals_the_masked_one(tmp_path: Path) -> None:
    c = Config(kv_heads=2, group=2, rope="half", tied=True)
    model = build(c)
    masked, compiled = MaskedModel(model), ecospa_fx.compile(model, args=tokens(c))
    compiled.sparsify({n: torch.randn_like(p) for n, p in compiled.named_parameters()}, ratio=0.4)
    compiled.save(tmp_path)
    loaded = ecospa_fx.load(tmp_path, build(c, seed=3))
    assert loaded.get_parameter("head.weight") is loaded.get_parameter("embed.weight")
    assert_same(loaded, masked, lambda m: m(*tokens(c)))


def test_a_model_on_the_meta_device_is_filled(folder: Path) -> None:
    with torch.device("meta"):
        model = nn.Sequential(*ffn())
    loaded = ecospa_fx.load(folder, model.eval())
    assert not any(t.is_meta for t in loaded.state_dict().values())
    assert identical(dict(loaded.state_dict()), dict(ecospa_fx.load(folder, ffn()).state_dict()))
    assert loaded(X).shape == (5, 10)


def test_a_model_that_lost_nothing(tmp_path: Path) -> None:
    compiled = ecospa_fx.compile(ffn())
    compiled.save(tmp_path)
    assert torch.equal(ecospa_fx.load(tmp_path, ffn(seed=7))(X), compiled(X))


Json = dict[str, Any]


def torn(data: Json) -> None:
    """Another row of ``0.weight``, the bias and the columns as they are."""
    rows = data["removed"]["0.weight"]["0"]
    rows[-1] = next(i for i in range(34) if i not in rows)


DAMAGE: dict[str, tuple[Callable[[Json], Any], str]] = {
    "another version": (put("version", 2), "version 2, not 'ecospa_fx' 1"),
    "another format": (put("format", "other"), "format 'other'"),
    "no version": (lambda d: d.pop("version"), "version None"),
    "out of range": (put("removed", "0.weight", "0", 0, 34), r"within axis 0 of '0\.weight' \(size 34\)"),
    "below zero": (put("removed", "0.weight", "0", 0, -1), "each once, within"),
    "twice": (lambda d: d["removed"]["0.bias"]["0"].append(d["removed"]["0.bias"]["0"][0]), "each once"),
    "everything": (put("removed", "0.bias", "0", list(range(34))), "would leave axis 0 of '0.bias' empty"),
    "no such axis": (put("removed", "0.bias", "1", [0]), "names axis 1 of '0.bias'"),
    "no axis at all": (put("removed", "0.bias", "x", [0]), "malformed"),
    "no shape": (lambda d: d["shapes"].pop("0.bias"), "'0.bias' without giving its shape"),
    "another shape": (put("shapes", "0.bias", [35]), r"another model: 0\.bias: saved from \[35\], .* \[34\]"),
    "unknown parameter": (lambda d: [put(k, "9.bias", v)(d) for k, v in (("shapes", [3]), ("removed", {}))],
                          r"another model: 9\.bias"),
    "fewer rows": (lambda d: d["removed"]["0.bias"]["0"].pop(), r"0\.bias has shape \[17\]"),
    "no mapping": (put("removed", []), "malformed"),
    "a word": (put("removed", "0.bias", "0", 0, "first"), "malformed"),
}  # fmt: skip


def refused(folder: Path, words: str) -> None:
    model = ffn(seed=7)
    with untouched(model), pytest.raises(LoadError, match=words):
        ecospa_fx.load(folder, model)


@pytest.mark.parametrize(("change", "words"), DAMAGE.values(), ids=DAMAGE)
def test_removals_that_are_refused(folder: Path, change: Callable[[Json], Any], words: str) -> None:
    data = json.loads((folder / REMOVAL).read_text())
    change(data)
    (folder / REMOVAL).write_text(json.dumps(data))
    refused(folder, words)


@pytest.mark.parametrize("change", [lambda i: i + 0.5, lambda i: [i], str], ids=["half", "nested", "text"])
def test_indices_that_are_no_whole_numbers(folder: Path, change: Callable[[int], Any]) -> None:
    data = json.loads((folder / REMOVAL).read_text())
    data["removed"]["0.bias"]["0"] = [change(i) for i in data["removed"]["0.bias"]["0"]]
    (folder / REMOVAL).write_text(json.dumps(data))
    refused(folder, "malformed")


def test_a_removal_that_tears_units_apart(folder: Path) -> None:
    """Nothing is captured at load, so it shows at the first call."""
    data = json.loads((folder / REMOVAL).read_text())
    torn(data)
    (folder / REMOVAL).write_text(json.dumps(data))
    compiled = ecospa_fx.load(folder, ffn(seed=7))
    with pytest.raises(PlanError, match="ties"):
        compiled(X)


Tensors = dict[str, Tensor]
WRONG: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "missing": (lambda t: t.pop("0.bias"), r"0\.bias is missing"),
    "unknown": (lambda t: t.update(more=torch.ones(1)), "more is unknown"),
    "dense": (lambda t: t.update({"0.bias": torch.ones(34)}), r"0\.bias has shape \[34\], not \[17\]"),
    "several": (
        lambda t: [t.pop(n) for n in ("0.bias", "3.bias")],
        r"0\.bias is missing; 3\.bias is missing",
    ),
}


@pytest.mark.parametrize(("change", "words"), WRONG.values(), ids=WRONG)
def test_weights_that_are_refused(folder: Path, change: Callable[[Tensors], Any], words: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    refused(folder, words)


def test_files_of_another_model(folder: Path) -> None:
    model = ffn(21)
    with untouched(model), pytest.raises(LoadError, match=r"another model: 0\.weight: saved from \[34, 10\]"):
        ecospa_fx.load(folder, model)


@pytest.mark.parametrize("name", [REMOVAL, WEIGHTS])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refused(folder, f"there is no {name}")


@pytest.mark.parametrize("name", [REMOVAL, WEIGHTS])
@pytest.mark.parametrize("keep", [0, 4, 0.5, 0.99])
def test_a_truncated_file(folder: Path, name: str, keep: float) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: int(keep if keep >= 1 else len(content) * keep)])
    refused(folder, "malformed|damaged")


class Bomb:
    """Does something when it is unpickled."""

    def __reduce__(self) -> Any:
        return pytest.fail, ("a file was unpickled",)


@pytest.mark.parametrize("name", [REMOVAL, WEIGHTS])
def test_nothing_is_unpickled(folder: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    refused(folder, "malformed|damaged")


def test_a_removal_of_absurd_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ecospa_fx.storage._MOST_JSON", 10)
    refused(folder, "larger than any removal can be")
