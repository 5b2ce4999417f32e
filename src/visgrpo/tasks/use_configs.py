"""The options of `visgrpo evaluate` and `visgrpo predict`. Light to import."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from visgrpo.options import Options, option
from visgrpo.tasks.backbone_configs import Shift

Probe = Literal["knn", "softmax-regression"]
Style = Literal["reasoning", "direct"]


@dataclass(frozen=True)
class EvaluateConfig(Options):
    """Evaluate a saved model on any data set."""

    model: str = option(
        "",
        "Run, folder or Hub name: CLIP, a backbone with a head that visgrpo put on it, or "
        "without one, a language model, a reward model or a vision-language model.",
        required="the model: visgrpo evaluate MODEL --data …",
    )
    data: str = option(
        "digits",
        "Built-in (digits, shapes), a folder, a parquet file, or the name of a Hub data set. "
        "Language model: text, as for visgrpo language; reward model: a table of preference "
        "pairs; vision-language model: questions, as for visgrpo vlm, or shapes-out.",
    )
    split: str = option("test", 'train, validation or test, perhaps sliced: "train[:2000]".')
    image_column: str | None = option(
        None, "Column of the images, where its name is not a usual one."
    )
    label_column: str | None = option(
        None, "Column of the labels, where its name is not a usual one."
    )
    mask_column: str | None = option(
        None, "Segmentation: column of the masks, where its name is not a usual one."
    )
    question_column: str | None = option(
        None, "Vision-language model: column of the questions, where its name is not a usual one."
    )
    answer_column: str | None = option(
        None, "Vision-language model: column of the answers, where its name is not a usual one."
    )
    task: Literal["counting"] | None = option(
        None, "Vision-language model: refuse true answers that are no counts."
    )
    styles: tuple[Style, ...] = option(
        (),
        "Vision-language model: ask for reasoning before the answer, or for the answer alone "
        "(direct), or both; by default as the model learned it, else reasoning.",
    )
    max_pixels: int | None = option(
        None,
        "Vision-language model: larger images are made smaller, to at most this.",
        within="> 0",
    )
    max_new_tokens: int | None = option(
        None,
        "Vision-language model: longest completion; by default as for visgrpo vlm.",
        within="> 0",
    )
    text_column: str | None = option(
        None, "Language model: column of the text of a table, where it is not called text."
    )
    classes_file: str | None = option(
        None,
        "Segmentation: class names, one on each line; by default the classes.txt beside the data.",
    )
    ignore_index: int | None = option(
        None,
        "Segmentation: mask value of pixels that have no label; by default the model's own, "
        "or 255.",
    )
    image_size: tuple[int, int] | None = option(
        None, "Segmentation: height and width to resize to; by default as the model was trained."
    )
    seed: int | None = option(
        None,
        "Of a validation split that has to be made, of a built-in world and of shifts; by "
        "default that of the model's own run where it was tuned on this data, else 0.",
        within=">= 0",
    )
    validation_fraction: float | None = option(
        None,
        "Share of the training rows in such a validation split; by default as --seed, else "
        "0.1, and 0.05 of text and pairs, where it makes the test split of text too.",
        within="(0, 1)",
    )
    train_slice: str | None = option(
        None,
        "Training rows that such a validation split is made from and that probes learn from; "
        "by default as --seed, else all.",
    )
    skip_bad_images: bool = option(
        False, "Leave out images that cannot be read; otherwise they stop the evaluation."
    )
    templates: tuple[str, ...] | None = option(
        None, "CLIP: prompts; by default those that the model was trained with."
    )
    context: int | None = option(
        None,
        "Language model: tokens of a block of text; by default all it can see, up to 1024.",
        within="> 0",
    )
    pool: Literal["cls", "mean", "both"] | None = option(
        None,
        "Backbone without a head: the class token (the default), the mean of the patches, or both.",
    )
    probe: tuple[Probe, ...] = option(
        (),
        "Classifiers that judge a backbone's features, knn or softmax-regression; by default "
        "both where the model has no head for these classes.",
    )
    shifts: tuple[Shift, ...] = option(
        (),
        "Shifted copies of the images: the head's measures there, or kNN's where there is no head.",
    )
    start: str | None = option(
        None,
        "The model before fine-tuning, measured too; KL to its answers is reported. CLIP: "
        "weights are interpolated.",
    )
    alpha: tuple[float, ...] = option(
        (),
        "CLIP: WiSE-FT, evaluate (1 - alpha) · start + alpha · model for each of these.",
        within="[0, 1]",
    )
    votes: str | None = option(
        None,
        "CLIP: table of people's votes on these images, as for visgrpo clip --feedback: "
        "agreement with them is measured.",
    )
    batch_size: int = option(256, "Images at a time.", within="> 0")
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where to compute.")
    json: str | None = option(
        None, 'Write the numbers to this file as well; "-" prints JSON instead of the table.'
    )

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        for side in self.image_size or ():
            if side < 1:
                yield f"--image-size takes height and width in pixels, not {side}."
        takes_train_rows = self.split.startswith("validation") or bool(self.probe)
        if self.train_slice is not None and not takes_train_rows:
            yield (
                "--train-slice says what a validation split is made from and what probes learn "
                "from: with it, give --split validation or --probe. For training rows, write "
                f'--split "train[{self.train_slice}]".'
            )
        if self.alpha and self.start is None:
            yield "--alpha needs --start, the model before fine-tuning."


@dataclass(frozen=True)
class PredictConfig(Options):
    """Classify images with a saved model, find a class for every pixel, or ask about them."""

    model: str = option(
        "", "Folder or Hub name.", required="the model: visgrpo predict MODEL photo.jpg"
    )
    images: tuple[str, ...] = option(
        (), "Image files.", required="at least one image: visgrpo predict MODEL photo.jpg"
    )
    classes: tuple[str, ...] = option(
        (), "CLIP: class names; by default those that the model was trained with."
    )
    templates: tuple[str, ...] | None = option(
        None, "CLIP: prompts; by default those that the model was trained with."
    )
    top_k: int = option(5, "Classes to show for each image.", within="> 0")
    ask: str | None = option(
        None, "Vision-language model: the question, asked about every image by itself."
    )
    style: Style | None = option(
        None,
        "Vision-language model: ask for reasoning before the answer, or for the answer alone; "
        "by default as the model learned it, else the question is put as it is.",
    )
    max_pixels: int | None = option(
        None,
        "Vision-language model: larger images are made smaller, to at most this.",
        within="> 0",
    )
    max_new_tokens: int | None = option(
        None,
        "Vision-language model: longest completion; by default as for visgrpo vlm.",
        within="> 0",
    )
    output: str | None = option(
        None, "Segmentation: folder for NAME-mask.png and NAME-overlay.png; by default masks/."
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", "Where to compute.")
    json: bool = option(False, "Print JSON instead of the table.")
