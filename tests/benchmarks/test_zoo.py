"""A stratified sample of the zoo, and the zoo's own machinery."""

import inspect
import json

import pytest

pytest.importorskip("transformers")

from benchmarks.zoo import __main__ as command
from benchmarks.zoo import models, pool, report
from benchmarks.zoo.examine import EXACT, Finding, examine
from benchmarks.zoo.families import FAMILIES, family_of

SAMPLE = (
    "llama",
    "phi3",
    "gpt2",
    "gpt_neox",
    "mixtral",
    "deepseek_v3",
    "falcon_mamba",
    "bert",
    "t5",
    "blip",
    "vit",
    "segformer",
    "whisper",
)


@pytest.mark.parametrize("name", SAMPLE)
def test_half_of_the_units_of_every_couple_can_go(name: str) -> None:
    finding = Finding(**examine(name))
    assert finding.passed, finding.message
    assert finding.removed > 0


def test_sample_has_every_large_family() -> None:
    sampled = {models.info(name).family for name in SAMPLE}
    assert sampled == set(FAMILIES) - {"other"}


@pytest.mark.parametrize("name", ["llama", "t5", "clip"])
def test_the_same_seed_gives_the_same_model_of_its_family(name: str) -> None:
    first, inputs = models.build(name)
    second, _ = models.build(name)
    assert all(a.equal(b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert set(inputs) <= set(inspect.signature(first.forward).parameters)
    assert family_of(first, models.info(name).head) == models.info(name).family


def test_workers_return_results_and_survive_a_death() -> None:
    def job(name: str) -> dict[str, str]:
        if name == "dies":
            raise SystemExit(1)
        return {"name": name}

    found = dict(pool.run(job, ["a", "dies", "b"], workers=2, limit=60))
    assert found == {"a": {"name": "a"}, "b": {"name": "b"}, "dies": None}


def test_results_are_kept_and_resumed(tmp_path, monkeypatch, capsys) -> None:
    path = tmp_path / "zoo.json"
    done = Finding("llama", "dense decoder RoPE", "done", couples={"ffn": 2}, worst=1e-16)
    path.write_text(json.dumps({"environment": "", "findings": [vars(done)]}))
    monkeypatch.setattr(command, "warm_up", lambda: None)
    monkeypatch.setattr(command, "examine", lambda name: vars(Finding(name, "encoder", "capture", "no")))
    status = command.main(["llama", "bert", "--resume", "--json", str(path), "--workers", "1"])
    kept = {f["name"]: f["stage"] for f in json.loads(path.read_text())["findings"]}
    assert (status, kept) == (1, {"llama": "done", "bert": "capture"})
    assert "| bert | encoder | capture | no |" in capsys.readouterr().out


def test_the_table_counts_what_passes() -> None:
    good = Finding("a", "MoE", "done", couples={"ffn": 2}, tolerance=EXACT)
    odd = Finding("b", "MoE", "remove", "differs", couples={"ffn": 2})
    assert report.by_family([good, odd])[0][:3] == ("MoE", "2", "2 (100%)")
    assert report.by_family([good, odd])[0][5] == "1 (50%)"
    assert report.failures([good, odd]) == [("b", "MoE", "remove", "differs")]
