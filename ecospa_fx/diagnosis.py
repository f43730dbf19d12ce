"""What to tell a user whose model cannot be captured."""

from __future__ import annotations

import re
import traceback
from pathlib import Path

import torch
from torch import fx, nn

_OWN = tuple(str(p) for p in (Path(__file__).parent, Path(__file__).parents[1] / "passes"))


def explain_failure(model: nn.Module, error: Exception) -> str:
    """What could not be captured, where in the user's code, and what to do about it."""
    text = str(error)
    head = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    where = _user_frame(error) or _frame_in(text)
    message = f"{type(model).__name__} cannot be captured: {head}"
    if where:
        message += f"\n  at {where}"
    return f"{message}\n  {_remedy(text)}"


def _remedy(text: str) -> str:
    hints = {
        "data-dependent": "a Python branch or size depends on the values of a tensor: use torch.where, "
        "torch.cond or a mask there, or torch._check to state what always holds",
        ".item()": "a tensor's value is read into Python: keep it a tensor",
        "unexpected keyword": "the inputs do not match forward()",
        "missing": "the inputs do not match forward()",
    }
    low = text.lower()
    return next(
        (v for k, v in hints.items() if k in low),
        "see the error above; torch.export must be able to trace the model",
    )


def _frame_in(text: str) -> str:
    found = re.findall(r'File "([^"]+)", line (\d+), in (\w+)\n\s*(.+)', text)
    found = [f for f in found if "/torch/" not in f[0]]
    return "{0}:{1}: {3}".format(*found[-1]) if found else ""


def is_users(file: str) -> bool:
    """Whether code is neither torch's nor of this package."""
    return "/torch/" not in file and not file.startswith(_OWN)


def _user_frame(error: BaseException) -> str:
    """The innermost line of the traceback that is the user's, not torch's."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""


_FRAME = re.compile(r'File "(.+)", line (\d+), in .*\n\s*(.*)')
_TORCH = torch.__path__[0]


def source_line(node: fx.Node) -> str:
    """The user's own line: the innermost frame of the capture outside torch, as ``file:line: code``."""
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if not frame[0].startswith((_TORCH, *_OWN))]
    return next((f"{file}:{line}: {code}" for file, line, code in reversed(own or frames)), "")
