"""What the scale benchmark counts."""

from __future__ import annotations

import torch

from benchmarks.scale import CONFIGS, Live, communication, llama, removal


def test_live_counts_what_lives() -> None:
    held = torch.zeros(10)
    live = Live("cpu", [held, held[2:]])
    assert live.now == 40
    with live:
        one = torch.zeros(100)
        two = one[:50] + 1
        del one
    assert (live.now, live.peak) == (40 + 200, 40 + 400 + 200)
    del two
    assert live.now == 40


def test_a_round_needs_the_largest_parameter_and_its_gradient() -> None:
    model = llama(CONFIGS["tiny"])
    sent = communication(model)
    found = removal(model)
    assert sent["sent_by_each_rank"] == 8 * (1 + len(model.couplings.couples) + 2 * sent["components"])
    largest = found["largest_cut_parameter_bytes"]
    assert 2 * largest <= found["peak_above"] < 2 * largest + 4096
    assert found["bytes_after"] == 8 * found["parameters_after"]
