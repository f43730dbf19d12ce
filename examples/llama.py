"""A tiny LLaMA of transformers: what is coupled with what, what may not shrink and why, and a removal."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import ecospa_fx


def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=211,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=False,  # a cache that the model returns holds keys and values at their full size
    )
    model = LlamaForCausalLM(config)
    tokens = torch.randint(config.vocab_size, (2, 13))
    compiled = ecospa_fx.compile(model, kwargs={"input_ids": tokens, "labels": tokens})

    for couple in compiled.couplings.couples:
        if couple.name.startswith("model.layers.0."):
            weights = ", ".join(str(weight).removeprefix("model.layers.0.") for weight in couple.weights)
            print(f"{couple.name}: {couple.num_units} units of {weights}")
    print(compiled.explain("model.layers.0.self_attn.k_proj.weight"))
    print(compiled.explain("lm_head.weight"))

    compiled(input_ids=tokens, labels=tokens).loss.backward()
    print(compiled.sparsify(ratio=0.5))
    print(compiled.verify(input_ids=tokens, labels=tokens))


if __name__ == "__main__":
    main()
