"""Memory of a round stays below the goal on a small model."""

import json

import pytest

from benchmarks import rounds


@pytest.mark.parametrize("name", ["AdamW", "Adafactor"])
def test_a_round_takes_less_than_twice_the_largest_couple(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["--layers", "2", "--width", "64", "--hidden", "160", "--vocabulary", "64"]
    rounds.main([*shape, "--optimizers", name])
    row = json.loads(capsys.readouterr().out)
    assert 0 < row["over_largest_couple"] < 2
    assert row["above_mib"] < row["steady_mib"] / 2
    held = 4 if name == "AdamW" else 2  # Adafactor's moments are factored
    assert row["largest_couple_mib"] == pytest.approx(held * 3 * 64 * 160 * 4 / 2**20, rel=0.1)
