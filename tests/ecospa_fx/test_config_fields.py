"""Fields of a config: which there are, and what a change writes."""

from __future__ import annotations

import pytest
import transformers as hf

from ecospa_fx.config_fields import Change, changed, numbers, of_layer, spoken, takes_layers

CONFIG = hf.LlavaConfig(
    text_config=hf.Gemma3nTextConfig(num_hidden_layers=3, intermediate_size=8, head_dim=6),
    vision_config=hf.CLIPVisionConfig(num_hidden_layers=2, intermediate_size=20),
)
TEXT = ("text_config", "intermediate_size")
VISION = ("vision_config", "intermediate_size")


def test_numbers() -> None:
    found = dict(numbers(CONFIG))
    assert (found[TEXT], found[VISION]) == (8, 20)
    assert not [path for path in found if str(path[-1]).startswith("_") or path[-1] == "tie_word_embeddings"]


CASES: dict[str, tuple[Change, str]] = {
    "scalar": ({VISION: 9}, "intermediate_size=9"),
    "list": ({TEXT: 5}, "intermediate_size=5"),
    "entry": ({(*TEXT, 1): 5}, "intermediate_size of layer 1=5"),
    "layer": ({("vision_config", 1, "intermediate_size"): 7}, "intermediate_size of layer 1=7"),
}
WRITTEN = {
    "scalar": ([8, 8, 8], [9, 9]),
    "list": ([5, 5, 5], [20, 20]),
    "entry": ([8, 5, 8], [20, 20]),
    "layer": ([8, 8, 8], [20, 7]),
}


@pytest.mark.parametrize("case", CASES)
def test_changes(case: str) -> None:
    change, words = CASES[case]
    made = changed(CONFIG, change)
    layers = [layer.intermediate_size for layer in made.vision_config.per_layer_config]
    assert (made.text_config.intermediate_size, layers) == WRITTEN[case]
    assert CONFIG.text_config.intermediate_size == [8, 8, 8]
    assert spoken(change) == words


def test_layers() -> None:
    assert of_layer(CONFIG, TEXT, 1) == (*TEXT, 1)
    assert of_layer(CONFIG, VISION, 1) == ("vision_config", 1, "intermediate_size")
    assert takes_layers(CONFIG, TEXT, 3)
    assert takes_layers(CONFIG, VISION, 2)
    assert not takes_layers(CONFIG, VISION, 3)
