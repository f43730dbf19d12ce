"""Origin: what comes from transformers, and that nobody loads it to find out."""

import subprocess
import sys
from pathlib import Path

from torch import nn
from transformers import LlamaConfig, LlamaModel

from ecospa_fx.origin import holds_parts, holds_pretrained

CONFIG = LlamaConfig(
    hidden_size=8, intermediate_size=6, num_hidden_layers=1, num_attention_heads=2, vocab_size=9
)
ROOT = Path(__file__).resolve().parents[2]
PLAIN = """
import sys, torch, ecospa_fx
model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3))
compiled = ecospa_fx.compile(model, args=(torch.randn(5, 3),))
assert [c.num_units for c in compiled.couplings] == [4]
print("transformers" in sys.modules)
"""


def test_a_model_within_another() -> None:
    model = nn.Sequential(LlamaModel(CONFIG))
    assert holds_pretrained(model)
    assert holds_parts(model)


def test_a_layer_alone_is_no_model() -> None:
    layer = LlamaModel(CONFIG).layers[0]
    assert not holds_pretrained(layer)
    assert holds_parts(layer)


def test_a_plain_model() -> None:
    assert not holds_pretrained(nn.Linear(2, 2))
    assert not holds_parts(nn.Linear(2, 2))


def test_a_plain_model_is_compiled_without_the_library() -> None:
    result = subprocess.run(
        [sys.executable, "-c", PLAIN], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert result.stdout == "False\n"
