"""The zoo: a tiny random-weight model of every architecture of transformers.

    >>> from benchmarks import zoo
    >>> model, inputs = zoo.build("llama")
    >>> type(model).__name__, sorted(inputs)
    ('LlamaForCausalLM', ['attention_mask', 'input_ids'])

``python -m benchmarks.zoo`` examines all of them.
"""

from benchmarks.zoo.models import build, info, names

__all__ = ["build", "info", "names"]
