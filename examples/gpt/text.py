"""The text: a byte-level BPE built on the spot, a held-out part, and batches that are alike for all runs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor

PATH = Path(__file__).parent.parent / "data" / "narratives.txt"
PARAGRAPHS_A_BLOCK = 32  # every tenth block of so many paragraphs is held out


@dataclass(frozen=True)
class Corpus:
    """Token ids of both parts of the text, each of shape `[tokens]`."""

    train: Tensor
    held_out: Tensor
    vocabulary: int


def load(vocabulary: int, share: float = 1.0) -> Corpus:
    """Read the first `share` of the text and encode it with a vocabulary built from its training part."""
    paragraphs = PATH.read_text(encoding="utf-8").splitlines()
    paragraphs = paragraphs[: int(share * len(paragraphs))]
    parts: dict[bool, list[str]] = {False: [], True: []}
    for index, paragraph in enumerate(paragraphs):
        parts[index // PARAGRAPHS_A_BLOCK % 10 == 9].append(paragraph)
    tokenizer = byte_pair_encoding(parts[False], vocabulary)
    train, held_out = (torch.tensor(tokenizer.encode("\n".join(parts[part])).ids) for part in (False, True))
    return Corpus(train, held_out, tokenizer.get_vocab_size())


def byte_pair_encoding(lines: list[str], vocabulary: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(lines, trainer)
    return tokenizer


def batches(tokens: Tensor, size: int, length: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random windows: `steps` pairs of inputs and targets, each of shape `[size, length]`."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        starts = torch.randint(len(tokens) - length, (size, 1), generator=generator)
        windows = tokens[starts + torch.arange(length + 1)]
        yield windows[:, :-1], windows[:, 1:]
