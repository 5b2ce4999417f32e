"""`visgrpo sweep language`: stages side by side, also those that train nothing."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml
from running import read_json, refused

from visgrpo.cli import main
from visgrpo.models.parts import Parts
from visgrpo.models.save import save
from visgrpo.models.small import build_language
from visgrpo.models.tokenizers import make_tokenizer

Capture = pytest.CaptureFixture[str]
DOCUMENTS = [f"{number} little birds sat on a wire, and sang." for number in range(60)]
POLICY = {"steps": 2, "batch_size": 4, "group_size": 2, "learning_rate": 1e-2, "eval_every": 2}
DRAWING = {"reward": ["gold"], "max_new_tokens": 4, "prompt_tokens": 6, "eval_prompts": 4}


@pytest.fixture(autouse=True)
def one_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw one curve on the page of the sweep: all of them take longer than its runs."""
    from visgrpo.reporting import compare_runs

    def compare(runs: list[Path], metrics: None, page: Path) -> Path:
        return compare_runs(runs, ["eval/reward"], page)

    monkeypatch.setattr("visgrpo.tasks.sweep.compare_runs", compare)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The options that all variants share: a random model, and the text of its characters."""
    folder = tmp_path_factory.mktemp("language")
    (folder / "birds.txt").write_text("\n\n".join(DOCUMENTS))
    tokenizer = make_tokenizer("char", DOCUMENTS)
    model = build_language(
        tokenizer, architecture="gpt2", layers=1, width=16, heads=2, context=32, seed=0
    )
    save(model, Parts("", None, tokenizer), folder / "start")
    return {
        "init": str(folder / "start"),
        "data": str(folder / "birds.txt"),
        "validation_fraction": 0.1,
        "report": False,
        "device": "cpu",
    }


def sweep(plan: dict[str, Any], folder: Path, *options: str) -> Path:
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    words = ["sweep", "language", "--config", str(folder / "plan.yaml"), "--seeds", "2"]
    main([*words, "--output", str(folder / "sweep"), *options])
    return folder / "sweep"


def test_policies_beside_the_best_of_n(
    shared: dict[str, Any], tmp_path: Path, capsys: Capture
) -> None:
    variants = {
        "grpo": {"stage": "grpo", **POLICY},
        "ppo": {"stage": "ppo", "critic_warmup": 1, **POLICY},
        "best-of-n": {"stage": "best-of-n", "samples": 4},
    }
    output = sweep({**shared, **DRAWING, "variants": variants}, tmp_path)
    rows = read_json(output / "sweep.json")["rows"]
    assert [row["variant"] for row in rows] == list(variants)
    for row in rows:
        assert list(row["measures"]) == ["gold_reward", "reward", "kl"]  # all that they have
        for name, cell in row["measures"].items():
            found = [
                read_json(output / row["name"] / f"seed-{seed}" / "summary.json")["after"][name]
                for seed in (0, 1)
            ]
            assert cell["values"] == found
            assert cell["mean"] == pytest.approx(fmean(found))
    table = (output / "table.md").read_text()
    assert table.splitlines()[2] == "| variant | seeds | gold_reward | reward | kl |"
    assert "their curves: compare.html" in table
    assert capsys.readouterr().out.splitlines()[-1] == str(output / "compare.html")
    assert "best-of-n" in (output / "compare.html").read_text()


def test_pairs_have_no_curves_and_can_be_counted(
    shared: dict[str, Any], tmp_path: Path, capsys: Capture
) -> None:
    drawing = {"max_new_tokens": 24, "prompt_tokens": 6, "pairs": 8, "batch_size": 4}
    plan = {**shared, **drawing, "stage": "preferences", "sweep": {"noise": [0.0, 10.0]}}
    output = sweep(plan, tmp_path, "--measure", "judge_accuracy")
    rows = read_json(output / "sweep.json")["rows"]
    assert rows[0]["measures"]["judge_accuracy"]["values"] == [1.0, 1.0]  # without noise
    assert rows[1]["measures"]["judge_accuracy"]["mean"] < 1
    assert not (output / "compare.html").exists()
    assert "their curves" not in (output / "table.md").read_text()

    again = ["sweep", "--resume", "--output", str(output)]
    main([*again, "--measure", "gold_reward"])  # nothing is left to run
    for row in read_json(output / "sweep.json")["rows"]:
        summary = read_json(output / row["name"] / "seed-0" / "summary.json")
        assert row["measures"]["gold_reward"]["values"][0] == summary["gold_reward"]
    line = refused(capsys, [*again, "--measure", "judge_acuracy"], notes=True)
    assert 'No run measured "judge_acuracy". Did you mean "judge_accuracy"?' in line


def test_a_stage_that_only_some_variants_have(shared: dict[str, Any], tmp_path: Path) -> None:
    """SFT is measured by its likelihood, rewards have none: a dash, and no break."""
    sft = {"stage": "sft", "steps": 2, "batch_size": 4, "learning_rate": 1e-3}
    best = {"stage": "best-of-n", "samples": 2, **DRAWING}
    output = sweep({**shared, "variants": {"sft": sft, "best": best}}, tmp_path)
    lines = (output / "table.md").read_text().splitlines()[2:6]
    assert lines[0] == "| variant | seeds | gold_reward | reward | kl | nll | accuracy |"
    assert lines[2].startswith("| sft | 2 | – | – | – | ")
    assert lines[3].endswith(" | – | – |")
