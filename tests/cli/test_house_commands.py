"""init, info, runs and completion; help in groups, with an example."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from visgrpo.arguments import parse, takes
from visgrpo.cli import main
from visgrpo.commands.completion import CompletionConfig, completion
from visgrpo.commands.init import template
from visgrpo.commands.table import COMMANDS, options_of_command
from visgrpo.help import MOST_USED, grouped

Capture = pytest.CaptureFixture[str]
WITH_FILE = [name for name in COMMANDS if "config" not in takes(options_of_command(name))]


def help_of(words: str, capsys: Capture) -> str:
    with pytest.raises(SystemExit) as caught:
        main(words.split())
    assert not caught.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_and_options_that_there_are(name: str, capsys: Capture) -> None:
    options = options_of_command(name)
    assert options.example.replace("source <(", "").startswith(f"visgrpo {name}")
    assert set(options.common.split()) <= set(takes(options))
    short, whole = help_of(f"{name} --help", capsys), help_of(f"{name} --help-all", capsys)
    assert short == help_of(f"{name} help", capsys)
    assert options.example in short
    assert options.example in whole
    assert max(map(len, short.splitlines())) <= 100
    for noise in ("None", "|", "default: )", "(default: off)"):
        assert noise not in short.replace("bash|zsh|fish", "")
    for each, known in takes(options).items():
        flag = f"--{each.replace('_', '-')}"
        assert flag in short
        assert known.declared.help.split()[0] in whole
    assert len(short.splitlines()) <= len(whole.splitlines())


def test_most_used_options_come_first(capsys: Capture) -> None:
    text = help_of("clip --help", capsys)
    assert text.index("Most used:\n  --data") < text.index("More options")
    assert "--epsilon-low X" not in text  # named there, and explained in the whole help
    assert "--epsilon-low X\n      The ratio" in help_of("clip --help-all", capsys)
    headings = list(grouped(options_of_command("clip"), takes(options_of_command("clip"))))
    assert headings[0] == MOST_USED
    assert all(len(heading) < 30 for heading in headings)


def test_help_before_the_command(capsys: Capture) -> None:
    assert help_of("help clip", capsys) == help_of("clip --help", capsys)


@pytest.mark.parametrize("name", WITH_FILE)
def test_a_template_changes_nothing_and_holds_every_option(name: str, tmp_path: Path) -> None:
    options = options_of_command(name)
    text = template(name, options)
    file = tmp_path / "options.yaml"
    file.write_text(text, encoding="utf-8")
    assert parse(options, name, ["--config", str(file)]) == parse(options, name, [])
    lines = [line.removeprefix("#") for line in text.splitlines()]
    taken = takes(options)
    given = [line for line in lines if line.partition(":")[0] in taken]
    assert len(given) == len(taken)
    for line in given:  # whatever is taken out of a comment is a valid line
        ((key, value),) = yaml.safe_load(line).items()
        assert (tuple(value) if isinstance(value, list) else value) == taken[key].default


def test_a_template_of_a_command_that_there_is_not(capsys: Capture) -> None:
    for words, said in [("init clop", 'Did you mean "clip"'), ("init sweep", "a file of its own")]:
        with pytest.raises(SystemExit):
            main(words.split())
        assert said in capsys.readouterr().err


def completed(line: str, script: Path) -> set[str]:
    """What bash offers for the last word of a line."""
    words = line.split(" ")
    ask = (
        f"source {script}; COMP_WORDS=({' '.join(map(repr, words))}); "
        f"COMP_CWORD={len(words) - 1}; _visgrpo; echo ${{COMPREPLY[@]}}"
    )
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_bash_completes_commands_options_and_words(tmp_path: Path, capsys: Capture) -> None:
    main(["completion", "bash"])
    script = tmp_path / "complete.sh"
    script.write_text(capsys.readouterr().out)
    assert completed("visgrpo c", script) == {"clip", "compare", "completion"}
    assert completed("visgrpo pretrain ", script) == {"clip", "backbone"}
    assert completed("visgrpo clip --me", script) == {"--method"}
    assert completed("visgrpo clip --no-rep", script) == {"--no-report"}
    assert "--positives" in completed("visgrpo pretrain backbone --p", script)
    assert "supervised" in completed("visgrpo clip --method ", script)
    assert completed("visgrpo clip --augment crop f", script) == {"flip"}
    assert completed("visgrpo clip --data ", script) == set()  # files, by the shell itself


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_of_all_shells(shell: str, capsys: Capture) -> None:
    text = completion(CompletionConfig(shell=shell))
    assert capsys.readouterr().out == f"{text}\n"
    for word in ("clip", "--method" if shell != "fish" else "-l method", "dr-grpo"):
        assert word in text
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)


def test_info_says_versions_extras_and_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    feature_cache = tmp_path  # the session's own holds what other tests have kept
    monkeypatch.setenv("VISGRPO_CACHE", str(feature_cache))
    (feature_cache / "some.npy").write_bytes(b"0" * 2**20)
    main(["info"])
    text = capsys.readouterr().out
    for word in ("torch", "CPU", "extra dev", "cache of features", "1.0 MiB", "cache of the Hub"):
        assert word in text
    assert f"Clear the cache of features: rm -r {feature_cache}" in text


def test_runs_are_listed_with_what_came_out(tmp_path: Path, capsys: Capture) -> None:
    from visgrpo.training.run_directory import RunDirectory

    main(["runs", str(tmp_path)])
    assert "No runs lie in" in capsys.readouterr().out
    done = RunDirectory(tmp_path / "done")
    done.create("clip", {"data": "digits", "method": "grpo"})
    measures = {"before": {"accuracy": 0.5}, "after": {"accuracy": 0.75}}
    done.write_summary({"recipe": "clip", "seconds": 12.0, **measures})
    open_ = RunDirectory(tmp_path / "story" / "sft")
    open_.create("language", {"data": "topics", "method": "sft", "steps": 90})
    (open_.checkpoints / "step-000040").mkdir(parents=True)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.yaml").write_text("[")
    main(["runs", str(tmp_path)])
    text = " ".join(capsys.readouterr().out.split())
    for row in (
        "done │ clip grpo │ digits │ 12 s │ accuracy 50.0 % → 75.0 %",
        "story/sft │ language sft │ topics │ unfinished, step 40 of 90",
        "broken │ │ │ damaged",
    ):
        assert row in text
    with pytest.raises(SystemExit):
        main(["runs", str(tmp_path / "none")])
