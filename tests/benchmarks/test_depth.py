"""The benchmark of compile time against depth counts what it says."""

import json
from pathlib import Path

import pytest

from benchmarks import depth


def test_every_depth_is_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "depth.json"
    shape = ["--width", "64", "--hidden", "96", "--heads", "4"]
    depth.main(["--layers", "1", "3", *shape, "--json", str(file)])
    rows = json.loads(file.read_text())["rows"]
    assert [row["layers"] for row in rows] == [1, 3]
    assert [row["couples"] for row in rows] == [4, 10]  # one stream; one KV head's two and the hidden units
    assert rows[1]["nodes"] > 2 * rows[0]["nodes"]
    assert capsys.readouterr().out.count("\n| 1 |") == 1
