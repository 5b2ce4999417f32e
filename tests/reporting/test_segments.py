"""Pages of segmentation runs: pictures of masks with their colours, IoU of each class."""

from __future__ import annotations

import base64
import io
import json

import pytest
from fake_runs import PALETTE, segmentation_run
from html_pages import Page, assert_offline, read_page, squeeze
from PIL import Image

from visgrpo.errors import UserError
from visgrpo.reporting import compare_runs, outcome, read_run, write_report
from visgrpo.reporting.examples import segments
from visgrpo.reporting.html import embed


def test_each_row_shows_image_truth_before_and_after(make_run):
    path = segmentation_run(make_run)
    found = segments(read_run(path))
    assert (len(found.rows), found.logged) == (3, 3)
    row = found.rows[1]
    assert row.index == "1"
    panels = [(panel.heading, panel.picture.path, panel.iou) for panel in row.panels]
    assert panels == [
        ("image", "samples/test-1.png", ""),
        ("truth", "samples/test-1-truth.png", ""),
        ("before", "samples/test-1-before.png", "12.5 %"),
        ("after", "samples/test-1-after.png", "50.0 %"),
    ]
    words = squeeze(read_page(write_report(path)).words)
    assert "input 1 truth before 12.5 % after 50.0 %" in words
    assert "Example groups" not in words
    assert_offline((path / "report.html").read_text())


def test_the_legend_names_the_colours_that_occur(make_run):
    path = segmentation_run(make_run)
    assert segments(read_run(path)).legend == {k: PALETTE[k] for k in ("ground", "cat", "dog")}
    page = read_page(write_report(path))
    assert ("style", "background:#c81e1e") in page.attributes
    assert "cat dog no label" in squeeze(page.words)


def test_without_a_palette_there_is_no_legend(make_run):
    path = segmentation_run(make_run)
    (path / "palette.json").unlink()
    assert segments(read_run(path)).legend == {}
    assert "no label" not in read_page(write_report(path)).words


def test_masks_keep_their_colours_when_they_are_shrunk():
    mask = Image.new("RGB", (1000, 500), PALETTE["cat"])
    mask.paste(PALETTE["dog"], (500, 0, 1000, 500))
    shown = embed("mask.png", mask, exact=True)
    with Image.open(io.BytesIO(base64.b64decode(shown.uri.split(",")[1]))) as image:
        assert (image.format, image.size) == ("PNG", (384, 192))
        assert {rgb for _, rgb in image.getcolors()} == {(200, 30, 30), (30, 30, 200)}
    assert mask.size == (1000, 500)


def test_many_images_are_cut_short_and_counted(make_run):
    path = segmentation_run(make_run, rows=14)
    assert "12 of 14 written images are shown." in squeeze(read_page(write_report(path)).words)


def test_measures_and_the_iou_of_each_class(make_run):
    path = segmentation_run(make_run)
    rows = [(row.name, row.before, row.after) for row in outcome.per_class(read_run(path), "iou")]
    assert rows == [
        ("dog", "5.0 %", "20.0 %"),  # has most pixels
        ("ground", "70.0 %", "90.0 %"),
        ("cat", "0.0 %", "40.0 %"),
        ("owl", "–", "–"),
    ]
    words = squeeze(read_page(write_report(path)).words)
    assert "Mean IoU 10.0 % → 50.0 % (+40.0 points)" in words
    assert "Mean IoU Pixel accuracy Mean class accuracy before 10.0 % 75.0 % 30.0 %" in words
    assert "Measured on 4,000 labelled pixels." in words
    assert "IoU of each class" in words
    assert "Accuracy of each class" not in words
    assert (path / "plots" / "eval_miou.png").is_file()


def test_images_of_the_test_set_are_counted_too(make_run):
    path = segmentation_run(make_run)
    summary = json.loads((path / "summary.json").read_text())
    summary["after"]["examples"] = 20
    (path / "summary.json").write_text(json.dumps(summary))
    assert outcome.tested_on(read_run(path)) == (
        "Measured on 4,000 labelled pixels of 20 held-out images."
    )


def test_missing_and_foreign_masks_are_named(make_run, tmp_path):
    path = segmentation_run(make_run)
    Image.new("RGB", (4, 4)).save(tmp_path / "secret.png")
    line = {"index": 0, "image": "samples/gone.png", "truth": "../secret.png"}
    (path / "segments.jsonl").write_text(json.dumps(line) + "\n")
    words = read_page(write_report(path)).words
    assert "Image cannot be shown: samples/gone.png" in words
    assert "Image cannot be shown: ../secret.png" in words


def test_class_names_are_text(make_run):
    path = segmentation_run(make_run)
    evil = "<script>alert(1)</script>"
    (path / "palette.json").write_text(json.dumps({evil: PALETTE["cat"]}))
    page = read_page(write_report(path))
    assert "script" not in page.tags
    assert evil in page.words


def test_an_unfinished_run_shows_what_there_is(make_run):
    path = segmentation_run(make_run, finished=False)
    line = {"index": 0, "image": "samples/test-0.png", "truth": "samples/test-0-truth.png"}
    line["before"] = "samples/test-0-before.png"
    (path / "segments.jsonl").write_text(json.dumps(line) + '\n{"index": 1, "im')
    (row,) = segments(read_run(path)).rows
    assert [panel.heading for panel in row.panels] == ["image", "truth", "before"]
    assert "latest 50.0 %" in squeeze(read_page(write_report(path)).words)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"index": 1', "line 1 is damaged"),
        ('{"image": "a.png"}', '"image" and "truth" must be there'),
        ('{"image": "a.png", "truth": 3}', '"truth" must be the name of a file'),
        ('{"image": "a", "truth": "b", "iou": {"after": "high"}}', '"iou" must hold numbers'),
        ('{"image": "a", "truth": "b", "iou": 0.5}', '"iou" must hold numbers'),
    ],
)
def test_a_damaged_line_is_named(make_run, line, reason):
    path = segmentation_run(make_run)
    (path / "segments.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"segments\.jsonl, line 1 is damaged") as error:
        segments(read_run(path))
    assert reason in str(error.value)


@pytest.mark.parametrize("colour", ["red;position:fixed", 7, "#12345", "#12345G"])
def test_a_colour_that_is_none_is_an_error(make_run, colour):
    path = segmentation_run(make_run)
    (path / "palette.json").write_text(json.dumps({"cat": colour}))
    with pytest.raises(UserError, match=r'palette\.json: the colour of class "cat" is'):
        segments(read_run(path))


def test_comparisons_draw_mean_iou(make_run, tmp_path):
    paths = [segmentation_run(make_run, name, method=name) for name in ("grpo-rm", "supervised")]
    page = Page(compare_runs(paths, None, tmp_path).read_text())
    assert [v for k, v in page.attributes if k == "alt"] == ["Curve: Mean IoU, validation"]
    assert "Mean IoU, epochs to 99 %" in page.words


def test_a_confusion_matrix_of_few_classes_stays_small(make_run):
    counts = [[3, 0, 1], [0, 2, 0], [0, 1, 3]]
    after = {"accuracy": 0.8, "per_class_accuracy": dict.fromkeys("abc", 0.8), "confusion": counts}
    path = make_run(steps=1, keys=("kl",), samples=False, summary={"after": after})
    html = write_report(path).read_text()
    # 27 for names of one letter, 44 for each class, 4 at the edge; at most 1.15 times as large.
    assert f"max-width: {1.15 * (27 + 3 * 44 + 4):g}px" in html
