"""The report page: what it says, that it is one offline file, and that user text is only text."""

from __future__ import annotations

import base64
import io
import json
from functools import partial

import pytest
from fake_runs import write_lines
from html_pages import assert_offline, read_page, squeeze
from PIL import EpsImagePlugin, Image

from visgrpo.errors import UserError
from visgrpo.metrics import metric
from visgrpo.reporting import ended, outcome, read_run, write_report
from visgrpo.reporting.examples import examples, group_table
from visgrpo.reporting.figures import curve_values
from visgrpo.reporting.html import picture
from visgrpo.reporting.page import headline, repeat_command
from visgrpo.reporting.run import series

EVIL = ("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a & b", "$x^2$", "猫")


@pytest.fixture
def small_run(make_run):
    """Runs with two metrics only, so that their pages are drawn quickly."""
    return partial(make_run, keys=("kl", "eval/accuracy"))


def test_the_page_is_one_offline_file_beside_the_run(small_run):
    path = small_run(steps=4)
    before = {file.name for file in path.iterdir()}
    assert write_report(path) == path / "report.html"
    assert {file.name for file in path.iterdir()} - before == {"report.html", "plots"}
    assert_offline((path / "report.html").read_text())


def test_sections_come_in_order(small_run):
    words = read_page(write_report(small_run(steps=4))).words
    order = ["Before and after", "Accuracy of each class", "Confusion matrix", "Retention"]
    order += ["Curves", "Example groups", "Repeat this run", "Configuration", "Versions"]
    words = words[words.index("Before and after", words.index("Configuration")) :]  # contents first
    places = [words.index(title) for title in order]
    assert places == sorted(places)


def test_the_numbers_are_those_of_the_summary(small_run):
    baseline = {"name": "cross-entropy", "after": {"accuracy": 0.801, "ece": 0.0312}}
    summary = {
        "before": {"accuracy": 0.7, "ece": 0.1, "nll": 1.0, "kl": 0.0, "entropy": 0.9},
        "after": {"accuracy": 0.812, "ece": 0.05, "nll": 0.5, "kl": 0.31, "entropy": 0.4},
        "retention": {"food": {"before": 0.5, "after": 0.45}},
        "seconds": 200,
        "peak_memory_bytes": 2**30,
        "baseline": baseline,
    }
    text = squeeze(read_page(write_report(small_run(steps=2, summary=summary))).words)
    assert "Accuracy 70.0 % → 81.2 % (+11.2 points)" in text
    assert "before 70.0 % 0.100 1.000 0.000 0.900" in text
    assert "after 81.2 % 0.050 0.500 0.310 0.400" in text
    assert "change +11.2 points −0.050 −0.500 +0.310 −0.500" in text
    assert "cross-entropy (baseline) 80.1 % 0.031 – – –" in text
    assert "food" in text
    assert "−5.0" in text
    assert "3 min 20 s" in text
    assert "1.0 GiB" in text


def test_the_command_repeats_the_run_and_is_quoted_for_the_shell(small_run):
    path = small_run("my run", steps=2)
    command = f"visgrpo clip --config '{path}/config.yaml' --output '{path}-again'"
    assert command in read_page(write_report(path)).words


def test_a_recipe_of_two_words_is_two_words_of_the_command(small_run):
    run = read_run(small_run(steps=1, summary={"recipe": "pretrain clip"}))
    config, again = f"{run.path}/config.yaml", f"{run.path}-again"
    assert repeat_command(run) == f"visgrpo pretrain clip --config {config} --output {again}"


def test_class_names_and_options_are_text(small_run):
    path = small_run(steps=2, classes=EVIL, config={"note": EVIL[0], "model": EVIL[1]})
    page = read_page(write_report(path))
    assert "script" not in page.tags
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    for name in EVIL:
        assert name in page.words
    assert_offline((path / "report.html").read_text())


def test_sample_images_are_in_the_page(small_run):
    path = small_run(steps=2)
    uris = [value for name, value in read_page(write_report(path)).attributes if name == "src"]
    pictures = [Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) for uri in uris]
    small = [picture for picture in pictures if picture.size == (32, 32)]
    assert len(small) == 8
    first = Image.open(path / "samples" / "000002-0.png")
    assert small[0].convert("RGB").tobytes() == first.convert("RGB").tobytes()


def test_large_images_are_shrunk(tmp_path):
    Image.new("RGB", (1600, 800)).save(tmp_path / "large.png")
    shown = picture(tmp_path, "large.png")
    with Image.open(io.BytesIO(base64.b64decode(shown.uri.split(",")[1]))) as image:
        assert image.size == (384, 192)


def test_missing_damaged_and_foreign_images_are_named(small_run, tmp_path):
    path = small_run(steps=2, samples=False)
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    (path / "samples" / "bad.png").write_bytes(b"not an image")
    (path / "samples" / "cut.png").write_bytes((tmp_path / "secret.png").read_bytes()[:40])
    files = ["samples/gone.png", "samples/bad.png", "samples/cut.png", "../secret.png"]
    lines = [{"step": 1, "index": k, "image": f, "outputs": ["a"]} for k, f in enumerate(files)]
    write_lines(path / "samples.jsonl", lines)
    words = read_page(write_report(path)).words
    for file in files:
        assert f"Image cannot be shown: {file}" in words


def test_postscript_called_png_reaches_no_other_program(tmp_path, monkeypatch):
    def run(*_: object, **__: object) -> None:
        raise AssertionError("pillow handed a file to Ghostscript")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", run)
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.png").write_text(text)
    assert picture(tmp_path, "a.png").uri is None


def test_a_group_is_counted_by_distinct_output():
    table = group_table(
        {
            "step": 7,
            "label": "cat",
            "outputs": ["dog", "cat", "dog", "dog"],
            "rewards": [0.0, 1.0, 0.0, 0.5],
            "advantages": [-1.0, 3.0, -1.0, -1.0],
            "probabilities": [0.6, 0.3, 0.6, 0.6],
        }
    )
    dog, cat = table.rows
    assert (table.step, table.size, table.left_out) == (7, 4, 0)
    assert (dog.output, dog.count, dog.right, dog.reward) == ("dog", 3, False, pytest.approx(1 / 6))
    assert (cat.count, cat.right, cat.probability, cat.advantage) == (1, True, 0.3, 3.0)


def test_a_group_of_every_class_shows_the_likeliest():
    shares = [k / 45 for k in range(10)]
    outputs = [str(k) for k in range(10)]
    table = group_table({"step": 1, "outputs": outputs, "probabilities": shares})
    assert [row.output for row in table.rows] == ["9", "8", "7", "6", "5", "4", "3", "2"]
    assert table.left_out == 2
    assert table.rows[0].reward is None


def test_first_and_last_group_of_an_image_stand_together(small_run):
    words = squeeze(read_page(write_report(small_run(steps=40))).words)
    assert words.index("step 1 · 8 outputs") < words.index("step 40 · 8 outputs")
    assert "step 20 ·" not in words
    assert "8 of 10 logged inputs are shown." in words


def test_completions_without_images_are_shown(small_run):
    path = small_run(steps=2, samples=False)
    line = {"step": 1, "index": 0, "prompt": "To be", "outputs": ["or <b>not</b>"], "rewards": [1]}
    (path / "samples.jsonl").write_text(json.dumps(line) + "\n")
    words = read_page(write_report(path)).words
    assert "To be" in words
    assert "or <b>not</b>" in words


def test_a_run_without_samples_says_so(small_run):
    assert "logged no sample groups" in read_page(write_report(small_run(samples=False))).words


def test_an_unfinished_run_says_so(small_run):
    words = squeeze(read_page(write_report(small_run(steps=10, finished=False))).words)
    assert "Unfinished." in words
    assert "last logged step is 10" in words
    assert "latest 81.5 %" in words


def test_a_run_that_has_just_begun_has_a_page(small_run):
    path = small_run(finished=False, samples=False)
    (path / "metrics.jsonl").write_text("")
    words = read_page(write_report(path)).words
    assert "Nothing has been evaluated yet." in words
    assert "No metrics have been logged yet." in words


def test_a_single_step_has_a_page(small_run):
    assert "Before and after" in read_page(write_report(small_run(steps=1))).words


def test_a_run_without_a_recipe_has_no_command(small_run):
    path = small_run(steps=1, config={"recipe": None}, summary={"recipe": None})
    assert "does not record its recipe" in read_page(write_report(path)).words


def test_confusion_matrix_by_hand(small_run):
    after = {
        "accuracy": 0.75,
        "per_class_accuracy": {"a": 0.75, "b": None, "c": 0.75},
        "confusion": [[3, 0, 1], [0, 0, 0], [0, 1, 3]],
    }
    run = read_run(small_run(steps=1, summary={"after": after}))
    matrix = outcome.confusion(run)
    cells = [(cell.row, cell.column, cell.count, cell.share) for cell in matrix.cells]
    assert cells == [(0, 0, 3, 0.75), (0, 2, 1, 0.25), (2, 1, 1, 0.25), (2, 2, 3, 0.75)]
    assert matrix.largest == [("a", "c", 1, 0.25), ("c", "b", 1, 0.25)]
    assert write_report(run.path).is_file()


def test_the_plots_in_the_page_are_the_plots_on_disk(small_run):
    path = small_run(steps=3)
    html = write_report(path).read_text()
    plots = sorted((path / "plots").iterdir())
    assert [plot.name for plot in plots] == ["eval_accuracy.png", "kl.png"]
    for plot in plots:
        assert base64.b64encode(plot.read_bytes()).decode() in html


def test_lists_and_counts_are_no_measures(small_run):
    after = {"accuracy": 0.8, "accuracy_interval": [0.75, 0.84], "examples": 250}
    after |= {"entropy_normalized": 0.1, "top5_accuracy": 0.99}
    run = read_run(small_run(steps=1, summary={"before": {"accuracy": 0.7}, "after": after}))
    assert [measure.name for measure in outcome.measures(run)] == ["accuracy", "top5_accuracy"]
    assert outcome.tested_on(run) == (
        "Measured on 250 held-out images; "
        "the accuracy at the end lies between 75.0 % and 84.0 % (95 % interval)."
    )


def test_inputs_logged_once_are_taken_from_both_ends(small_run):
    path = small_run(steps=1, samples=False)
    lines = [{"step": k, "index": k, "outputs": ["a"]} for k in range(20)]
    write_lines(path / "samples.jsonl", lines)
    shown, logged = examples(read_run(path))
    assert [example.index for example in shown] == ["0", "19", "1", "18", "2", "17", "3", "16"]
    assert logged == 20


def test_a_folder_that_is_not_a_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match="is not a run"):
        write_report(tmp_path)


def many_classes(count):
    """Accuracies in which the first 25 classes lose and the last 30 gain, each more than before."""
    before = {f"class {k}": 0.5 for k in range(count)} | {"absent": None}
    after = dict(before)
    after |= {f"class {k}": 0.5 - (k + 1) / 100 for k in range(25)}
    after |= {f"class {count - 1 - k}": 0.5 + (k + 1) / 100 for k in range(30)}
    return {
        "before": {"accuracy": 0.5, "per_class_accuracy": before},
        "after": {"accuracy": 0.51, "per_class_accuracy": after},
    }


def test_of_many_classes_those_that_changed_most_are_shown(small_run):
    run = read_run(small_run(steps=1, summary=many_classes(300)))
    shown = outcome.per_class(run, "accuracy")
    lost = [f"class {k}" for k in range(24, 4, -1)]
    gained = [f"class {300 - 1 - k}" for k in range(29, 9, -1)]
    assert [change.name for change in shown] == lost + gained
    assert (shown[0].change, shown[20].change) == ("−25.0 points", "+30.0 points")
    words = squeeze(read_page(write_report(run.path)).words)
    assert "Of 301 classes, those that lost most, then those that gained most." in words


def test_up_to_200_classes_are_all_shown(small_run):
    run = read_run(small_run(steps=1, summary=many_classes(199)))
    assert [change.name for change in outcome.per_class(run, "accuracy")] == [
        *(f"class {k}" for k in range(199)),
        "absent",
    ]
    assert "those that lost most" not in read_page(write_report(run.path)).words


def test_the_page_of_21000_classes_stays_small(small_run):
    sizes = []
    for count in (300, 21_000):
        path = small_run(f"{count}", steps=1, samples=False, summary=many_classes(count))
        sizes.append(len(write_report(path).read_bytes()))
    assert abs(sizes[1] - sizes[0]) < 2000


def test_a_page_that_a_kill_has_taken_is_written_when_the_run_is_found_ended(make_run):
    run = make_run()
    assert ended(run, report=False)["recipe"] == ended(run, report=True)["recipe"]
    written = (run / "report.html").stat().st_mtime_ns
    ended(run, report=True)
    assert (run / "report.html").stat().st_mtime_ns == written  # once is enough
    (run / "summary.json").unlink()
    assert ended(run, report=True) is None


def test_no_page_is_written_unasked_or_where_nothing_was_logged(make_run):
    run = make_run()
    ended(run, report=False)
    (run / "metrics.jsonl").unlink()
    ended(run, report=True)
    assert not (run / "report.html").exists()


def test_the_headline_is_the_reward_that_was_trained_with_its_interval(small_run):
    summary = {
        "before": {"accuracy": 0.70, "accuracy_interval": [0.66, 0.74], "reward": 0.5},
        "after": {
            "accuracy": 0.72,
            "accuracy_interval": [0.68, 0.76],
            "reward": 0.6,
            "reward_interval": [0.55, 0.65],
        },
    }
    said = headline(read_run(small_run(steps=1, summary=summary)))
    assert said == (
        "Reward 0.500 → 0.600 (95 % interval 0.550 to 0.650), +0.100; "
        "Accuracy 70.0 % → 72.0 % (95 % interval 68.0 % to 76.0 %), +2.0 points, within noise"
    )
    run = small_run(
        "other", steps=1, method="supervised", summary={**summary, "method": "supervised"}
    )
    assert headline(read_run(run)).startswith("Accuracy")


def test_classes_that_are_never_answered_and_a_weak_head_are_said(small_run):
    after = {
        "accuracy": 0.4,
        "softmax_regression": 0.7,
        "per_class_accuracy": {"a": 0.0, "b": 1.0, "c": 0.0},
        "confusion": [[0, 3, 0], [0, 2, 0], [0, 1, 1]],
    }
    first, second = outcome.remarks(read_run(small_run(steps=1, summary={"after": after})))
    assert first == "1 of 3 classes are never answered: a."
    assert "The head is right for 40.0 %, a linear probe" in second


def test_constant_curves_fold_away_and_values_stand_below_plots(make_run):
    path = make_run("flat", steps=4, keys=("kl",))
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    write_lines(path / "metrics.jsonl", [{**line, "frac_flat": 0.25} for line in lines])
    page = read_page(write_report(path))
    assert page.words.count("Curves that never move") == 1
    steps, values = series(read_run(path), "kl")
    assert curve_values(read_run(path), "kl")[-1] == (str(steps[-1]), metric("kl").text(values[-1]))
    assert metric("kl").text(values[-1]) in page.words


def test_settings_that_are_not_at_their_default_are_marked(small_run):
    path = small_run(steps=1, config={"changed": ["group_size"]})
    text = write_report(path).read_text()
    assert '<tr class="strong"><td><code>group_size</code>' in text
    assert "<tr><td><code>kl_weight</code>" in text
