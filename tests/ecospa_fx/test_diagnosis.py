"""Diagnosis: what a user reads whose model cannot be captured."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

import ecospa_fx
from ecospa_fx.diagnosis import explain_failure, source_line
from ecospa_fx.errors import CaptureError


class Address(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(x.data_ptr() % 2 + 1)


def test_a_failure_names_the_model_the_line_and_a_remedy() -> None:
    with pytest.raises(CaptureError) as caught:
        ecospa_fx.compile(nn.Sequential(nn.Linear(3, 3), Address()), args=(torch.ones(2, 3),))
    head, where, remedy = str(caught.value).split("\n")
    assert head.startswith("Sequential cannot be captured: ")
    assert "test_diagnosis.py" in where
    assert "x.data_ptr()" in where
    assert remedy.strip()


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("Could not guard on data-dependent expression u0", "torch.where"),
        ("call to .item()", "keep it a tensor"),
    ],
)
def test_remedies(text: str, remedy: str) -> None:
    assert remedy in explain_failure(nn.Linear(2, 2), RuntimeError(text))


def test_lines_of_torch_and_of_this_library_are_not_the_users() -> None:
    node = fx.Graph().placeholder("x")
    files = ["mine.py", ecospa_fx.compiled.__file__, f"{torch.__path__[0]}/nn.py"]
    node.meta["stack_trace"] = "\n".join(f'File "{f}", line 3, in f\n    y = g(x)' for f in files)
    assert source_line(node) == "mine.py:3: y = g(x)"
