"""The options of `visgrpo evaluate` and `visgrpo predict`. Light to import."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from visgrpo.data.options import Boxes, Columns, Data, Masks, Questions
from visgrpo.methods.options import SamplingOptions
from visgrpo.models.options import Adapt, Prompts
from visgrpo.options import Options, like, option
from visgrpo.tasks.backbone.options import RepresentationConfig
from visgrpo.tasks.language.options import LanguageConfig
from visgrpo.training.options import Loop, Printing, Tables

Probe = Literal["knn", "knn-weighted", "softmax-regression"]
Style = Literal["reasoning", "direct"]


@dataclass(frozen=True)
class EvaluateConfig(Printing, Tables):
    """Evaluate a saved model on any data set."""

    example = "visgrpo evaluate runs/tuned --data photos/ --start openai/clip-vit-base-patch32"
    common = "data split start json table"

    model: str = like(
        Adapt,
        "",
        "Run, folder or Hub name: CLIP, a backbone with a head that visgrpo put on it, or "
        "without one, a language model, a reward model or a vision-language model.",
        required="the model: visgrpo evaluate MODEL --data …",
    )
    data = like(
        Data,
        help="Built-in (digits, shapes), a folder, a parquet file, or the name of a Hub data set. "
        "Language model: text, as for visgrpo language; reward model: a table of preference "
        "pairs; vision-language model: questions, as for visgrpo vlm, or shapes-out.",
    )
    split = like(Data)
    image_column = like(Columns)
    label_column = like(Columns)
    mask_column = like(
        Columns, help="Segmentation: column of the masks, where its name is not a usual one."
    )
    question_column = like(
        Columns,
        help="Vision-language model: column of the questions, where its name is not a usual one.",
    )
    answer_column = like(
        Columns,
        help="Vision-language model: column of the answers, where its name is not a usual one.",
    )
    task: Literal["counting", "boxes", "points", "text"] | None = option(
        None,
        "Vision-language model: what answers are, by default as the model learned it; counting "
        "refuses true answers that are no counts.",
    )
    box_format = like(Boxes, help="Boxes: what four numbers are, edges or corner and size.")
    coordinates = like(Boxes, help="Boxes: units of the answers; by default as it learned them.")
    styles: tuple[Style, ...] = option(
        (),
        "Vision-language model: ask for reasoning before the answer, or for the answer alone "
        "(direct), or both; by default as the model learned it, else reasoning.",
    )
    max_pixels = like(
        Questions, help="Vision-language model: larger images are made smaller, to at most this."
    )
    min_pixels = like(
        Questions, help="Qwen-VL: smaller images are made larger, to at least this many pixels."
    )
    max_new_tokens = like(
        SamplingOptions,
        help="Vision-language model: longest completion; by default as for visgrpo vlm.",
    )
    samples = like(
        LanguageConfig,
        1,
        "Vision-language model: answers drawn to each question; of several, pass@k is the chance "
        "that one of k is right.",
    )
    text_column = like(
        Columns, help="Language model: column of the text of a table, where it is not called text."
    )
    classes_file = like(
        Masks,
        help="Segmentation: class names, one on each line; by default "
        "the classes.txt beside the data.",
    )
    ignore_index = like(
        Masks,
        None,
        "Segmentation: mask value of pixels that have no label; by default the model's own, "
        "or 255.",
    )
    image_size = like(
        Masks,
        help="Segmentation: height and width to resize to; by default as the model was trained.",
    )
    seed = like(
        Loop,
        None,
        "Of a validation split that has to be made, of a built-in world and of shifts; by "
        "default that of the model's own run where it was tuned on this data, else 0.",
    )
    validation_fraction = like(
        Data,
        None,
        "Share of the training rows in such a validation split; by default as --seed, else "
        "0.1, and 0.05 of text and pairs, where it makes the test split of text too.",
    )
    train_slice = like(
        Data,
        help="Training rows that such a validation split is made from and that probes learn from; "
        "by default as --seed, else all.",
    )
    skip_bad_images = like(
        Data, help="Leave out images that cannot be read; otherwise they stop the evaluation."
    )
    templates = like(
        Prompts, None, "CLIP: prompts; by default those that the model was trained with."
    )
    context = like(
        LanguageConfig,
        help="Language model: tokens of a block of text; by default all it can see, up to 1024.",
    )
    pool = like(
        RepresentationConfig,
        None,
        "Backbone without a head: the class token (the default), the mean of the patches, or both.",
    )
    probe = like(
        RepresentationConfig,
        (),
        "Classifiers that judge a backbone's features: knn, knn-weighted (votes by similarity, "
        "T = .07) or softmax-regression; by default the first and last where the model has no "
        "head for these classes.",
        choices=("knn", "knn-weighted", "softmax-regression"),
    )
    shifts = like(
        RepresentationConfig,
        help="Shifted copies of the images: the head's measures there, "
        "or kNN's where there is no head.",
    )
    start: str | None = option(
        None,
        "The model before fine-tuning, measured too; KL to its answers is reported. CLIP: "
        "weights are interpolated.",
    )
    decide: str = option(
        "argmax",
        "What is answered to images: the likeliest class, cost:FILE (least expected cost) or "
        "threshold:T (nothing below T); its measures get a row of their own.",
    )
    fit_biases: bool = option(
        False,
        "Fit a bias for each class on the validation rows, for mIoU of masks and macro-F1 of "
        "images, and measure the model with them in a row of its own.",
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
    batch_size = like(Loop, 256, "Images at a time.")
    device = like(Loop)

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
        if self.fit_biases and not self.split.startswith("test"):
            yield (
                "--fit-biases learns from the validation rows and is judged on the test rows: "
                f"leave --split {self.split} out."
            )
        if self.alpha and self.start is None:
            yield "--alpha needs --start, the model before fine-tuning."


@dataclass(frozen=True)
class PredictConfig(Printing, Tables):
    """Classify images with a saved model, find a class for every pixel, or ask about them."""

    example = "visgrpo predict runs/tuned photos/"
    common = "classes top_k ask json table"

    model: str = like(
        Adapt, "", "Folder or Hub name.", required="the model: visgrpo predict MODEL photo.jpg"
    )
    images: tuple[str, ...] = option(
        (),
        "Image files, and folders of them.",
        required="at least one image: visgrpo predict MODEL photo.jpg",
    )
    classes = like(Prompts)
    templates = like(
        Prompts, None, "CLIP: prompts; by default those that the model was trained with."
    )
    decide = like(
        EvaluateConfig,
        help="What is answered: the likeliest class, cost:FILE (least expected cost) or "
        "threshold:T (nothing below T); the answer is said beside the probabilities.",
    )
    top_k = like(SamplingOptions, 5, "Classes to show for each image.", within="> 0")
    ask: str | None = option(
        None, "Vision-language model: the question, asked about every image by itself."
    )
    style = like(
        Questions,
        None,
        "Vision-language model: ask for reasoning before the answer, or for the answer alone; "
        "by default as the model learned it, else the question is put as it is.",
    )
    max_pixels = like(
        Questions, help="Vision-language model: larger images are made smaller, to at most this."
    )
    min_pixels = like(
        Questions, help="Qwen-VL: smaller images are made larger, to at least this many pixels."
    )
    max_new_tokens = like(
        SamplingOptions,
        help="Vision-language model: longest completion; by default as for visgrpo vlm.",
    )
    output = like(
        Loop, help="Segmentation: folder for NAME-mask.png and NAME-overlay.png; by default masks/."
    )
    device = like(Loop)


@dataclass(frozen=True)
class FeaturesConfig(Options):
    """Write what a backbone makes of images into a file, with their labels."""

    example = "visgrpo features facebook/dinov2-small --data photos/ --output photos.npz"
    common = "data split output pool"

    model: str = like(
        Adapt,
        "",
        "Folder or Hub name of a backbone, or of a CLIP, whose image tower it is.",
        required="the model: visgrpo features MODEL --data … --output features.npz",
    )
    data = like(
        Data,
        help="Built-in (digits, shapes), a folder, a parquet file, or the name of a Hub data set.",
    )
    split = like(Data)
    image_column = like(Columns)
    label_column = like(Columns)
    skip_bad_images = like(Data)
    pool = like(
        RepresentationConfig,
        "cls",
        "The class token, the mean of the patches, or both; of a model with a head its own.",
    )
    output: str = option(
        "",
        "File to write: .npz holds features (M, D), labels (M,) and classes; .parquet a row for "
        "each image, with features, label and class.",
        required="a file: --output features.npz or features.parquet",
    )
    batch_size = like(EvaluateConfig)
    device = like(Loop)

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        if self.output and not self.output.endswith((".npz", ".parquet")):
            yield f"--output {self.output}: name a file that ends in .npz or .parquet."
