"""Pre-train a small CLIP or backbone from random weights, so that every story starts offline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from visgrpo.data.batches import Batch, InputFunction
from visgrpo.data.inputs import ViewInputs, pixel_inputs
from visgrpo.data.table import Table, join
from visgrpo.errors import UserError
from visgrpo.measures.held_out import HeldOut
from visgrpo.measures.over import outputs_of
from visgrpo.measures.probes import NEIGHBOURS, Labelled, knn
from visgrpo.methods.method import LossResult, WithoutGroups
from visgrpo.models.backbone import Backbone
from visgrpo.models.clip import ClipClassifier, ContrastiveClip, check_templates, class_prompts
from visgrpo.models.parts import Parts
from visgrpo.models.save import label_card, load_with_transformers, save, start_card
from visgrpo.models.small import SmallBackbone, SmallClip, build_small_backbone, build_small_clip
from visgrpo.objectives.losses import contrastive_loss, supervised_contrastive_loss
from visgrpo.tasks.images import data_summary, load_data, training_of
from visgrpo.tasks.lineage import Learned, with_stages
from visgrpo.tasks.options import PretrainBackboneConfig, PretrainClipConfig
from visgrpo.tasks.run import Job, Moment, Seen, Session
from visgrpo.tasks.task import Task
from visgrpo.training.processes import Processes

MEMORY = 5000  # training images, at most, whose features vote for the classes of held-out ones
NEIGHBOURS_WHILE_TRAINING = 5


@dataclass(frozen=True)
class Contrastive(WithoutGroups):
    """The contrastive loss as a method of the trainer; it has no groups."""

    captions: tuple[tuple[str, ...], ...]  # of every training row, one or several to draw from
    seed: int

    def loss(self, model: Any, batch: Batch, groups: None, step: int) -> LossResult:
        """Return the loss of a batch, with one caption drawn for each image."""
        rng = np.random.default_rng([self.seed, step])
        choices_N = [self.captions[row] for row in batch.indices_N.tolist()]
        texts = [choices[rng.integers(len(choices))] for choices in choices_N]
        distinct, caption_of_N = np.unique(texts, return_inverse=True)
        columns_N = torch.from_numpy(caption_of_N).to(batch.inputs.device)
        logits_NU = model(batch.inputs, distinct.tolist())
        loss = contrastive_loss(logits_NU.float(), columns_N)
        return LossResult(loss, {"match_rate": _matched(logits_NU, columns_N)})


class PretrainClipTask(Task):
    """Both towers of a small CLIP learn to find an image's caption in the batch, and back.

    Validation and test accuracy are zero-shot, on the class names of ``--data``.
    """

    name = "pretrain clip"
    options = PretrainClipConfig

    def run_name(self, options: PretrainClipConfig) -> str:
        return "tiny-clip"

    def set_up(self, options: PretrainClipConfig, session: Session) -> Job:
        refuse_several_processes(self.name, session)
        check_templates(options.templates)
        splits = load_data(options, session)
        classes = splits.train.classes
        train = join([splits.train, *more_training_data(options, session)])
        captions = captions_of(train, options)
        training = training_of(options, options.resolved_learning_rate(), train, session)
        sizes = options.part(SmallClip)
        vocabulary_texts = sorted({text for choices in captions for text in choices})
        parts = build_small_clip(sizes, vocabulary_texts, options.seed)
        classifier = ClipClassifier(
            parts.model, parts.tokenizer, classes, options.templates, logit_scale="clamped"
        )
        classifier.to(session.processes.device)
        validation, test = (
            HeldOut.at_start(
                classifier, part, pixel_inputs(part, parts.preprocess), session.processes
            )
            for part in (splits.validation, splits.test)
        )

        def look(moment: Moment) -> Seen:
            if moment == "before":
                return Seen(test.start())
            classifier.forget_text()
            return Seen(test.now())

        def keep(summary: Mapping[str, Any]) -> None:
            info = {"classes": list(classes), "templates": list(options.templates)}
            learned = learned_of(options)
            card, folder = label_card(summary), session.run.path / "model"
            save(parts.model, parts, folder, card, {**info, **learned})

        return Job(
            model=ContrastiveClip(parts.model, parts.tokenizer),
            method=Contrastive(captions, options.seed),
            rows=train,
            inputs=pixel_inputs(train, parts.preprocess, options.augment),
            training=training,
            validate=validation.scalars,
            look=look,
            save=keep,
            data=data_summary(options.data, splits),
            start="a small CLIP from random weights",
            chosen_method="contrastive",
            title="pretrain",
        )


def captions_of(dataset: Table, config: PretrainClipConfig) -> tuple[tuple[str, ...], ...]:
    """Return the captions of every row: its own, or its class name in every template."""
    own = dataset.columns.get(config.caption_column)
    by_class = [tuple(texts) for texts in class_prompts(dataset.classes, config.templates)]
    classes = dataset.labels.tolist()
    if own is None:
        return tuple(by_class[label] for label in classes)
    return tuple(
        (str(text),) if text else by_class[label] for text, label in zip(own, classes, strict=True)
    )


def refuse_several_processes(job: str, session: Session) -> None:
    """Raise UserError where a batch would be divided."""
    if session.processes.world_size > 1:
        raise UserError(f"{job} runs in one process: its loss compares a whole batch.")


def more_training_data(
    config: PretrainClipConfig | PretrainBackboneConfig, session: Session
) -> list[Table]:
    """Return the training images of further data sets; their own splits are respected."""
    return [load_data(other, session).train for other in _with_more_data(config)]


def learned_of(config: PretrainClipConfig | PretrainBackboneConfig) -> dict[str, Any]:
    """Return what a saved model says of all data that it has learned from."""
    stages = [Learned.of(each) for each in (config, *_with_more_data(config))]
    return {"learned": with_stages({}, *stages)}


def _with_more_data(config: Any) -> list[Any]:
    """Return the options with each of the further data sets as the data."""
    named = [spec.partition("@") for spec in config.more_data]
    return [replace(config, data=name, train_slice=rows or None) for name, _, rows in named]


def _matched(logits_NU: Tensor, columns_N: Tensor) -> Tensor:
    return (logits_NU.detach().argmax(dim=1) == columns_N).float().mean()


class ProjectedBackbone(nn.Module):
    """A backbone with the MLP whose output is compared, and which is thrown away afterwards.

    Class token and mean patch go into it side by side, so that both learn.
    """

    def __init__(self, backbone: Backbone, projection: int) -> None:
        super().__init__()
        self.backbone = backbone
        pooled = backbone.pooled_width("both")
        self.projection = nn.Sequential(
            nn.Linear(pooled, pooled), nn.GELU(), nn.Linear(pooled, projection)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the vectors (V, E) of pixels (V, 3, H, W)."""
        vectors_VE: Tensor = self.projection(self.backbone.pooled(pixels, "both"))
        return vectors_VE


@dataclass(frozen=True)
class ContrastiveViews(WithoutGroups):
    """The contrastive loss of views as a method of the trainer; it has no groups of outputs.

    Attributes:
        by_class: the views of a class are positives, and not only those of an image.
    """

    temperature: float
    by_class: bool

    def loss(self, model: Any, batch: Batch, groups: None, step: int) -> LossResult:
        """Return the loss of a batch whose inputs are pairs of views (N, 2, 3, H, W)."""
        vectors_VE = model(batch.inputs.flatten(0, 1)).float()
        ids_N = batch.labels_N if self.by_class else batch.indices_N
        ids_V = ids_N.repeat_interleave(2)
        loss = supervised_contrastive_loss(vectors_VE, ids_V, self.temperature)
        return LossResult(loss, {"match_rate": _has_its_view(vectors_VE.detach(), ids_V)})


@dataclass(frozen=True)
class Neighbours:
    """kNN accuracy of a backbone's features, with training images as the memory."""

    backbone: Backbone
    memory: Table
    memory_inputs: InputFunction
    processes: Processes

    def accuracy(
        self, dataset: Table, inputs: InputFunction, ks: tuple[int, ...] = NEIGHBOURS
    ) -> dict[int, float]:
        """Return {k: accuracy} by cosine similarity, of the backbone as it is now."""
        training = self.backbone.training
        self.backbone.eval()
        train = self._features(self.memory, self.memory_inputs)
        queries = self._features(dataset, inputs)
        self.backbone.train(training)
        return knn(train, queries, classes=len(dataset.classes), ks=ks)

    def _features(self, dataset: Table, inputs: InputFunction) -> Labelled:
        features_MP = outputs_of(self._pooled, dataset, inputs, self.processes)
        return Labelled(features_MP, torch.from_numpy(dataset.labels))

    def _pooled(self, pixels: Tensor) -> Tensor:
        return self.backbone.pooled(pixels, "both")


class PretrainBackboneTask(Task):
    """A small vision encoder learns what two views of an image, or of a class, have in common."""

    name = "pretrain backbone"
    options = PretrainBackboneConfig
    shown = ("knn.20",)

    def run_name(self, options: PretrainBackboneConfig) -> str:
        return "backbone"

    def set_up(self, options: PretrainBackboneConfig, session: Session) -> Job:
        refuse_several_processes(self.name, session)
        splits = load_data(options, session)
        train = join([splits.train, *more_training_data(options, session)])
        training = training_of(options, options.resolved_learning_rate(), train, session)
        parts = build_small_backbone(sizes_of(options), options.seed)
        model = _projected(parts, options).to(session.processes.device)
        memory = memory_of(splits.train, options.seed)
        neighbours = Neighbours(
            model.backbone, memory, pixel_inputs(memory, parts.preprocess), session.processes
        )
        validation = pixel_inputs(splits.validation, parts.preprocess)
        test = pixel_inputs(splits.test, parts.preprocess)

        def validate() -> dict[str, float]:
            ks = (NEIGHBOURS_WHILE_TRAINING,)
            return {"knn": neighbours.accuracy(splits.validation, validation, ks)[ks[0]]}

        def look(moment: Moment) -> Seen:
            by_k = neighbours.accuracy(splits.test, test)
            return Seen({"knn": {str(k): accuracy for k, accuracy in by_k.items()}})

        def keep(summary: Mapping[str, Any]) -> None:
            info = {"classes": list(splits.train.classes), **learned_of(options)}
            save(parts.model, parts, session.run.path / "model", backbone_card(summary), info)

        return Job(
            model=model,
            method=ContrastiveViews(options.temperature, by_class=options.positives == "classes"),
            rows=train,
            inputs=ViewInputs(train, parts.preprocess, options.image_size, options.augment),
            training=training,
            validate=validate,
            look=look,
            save=keep,
            data=data_summary(options.data, splits),
            start=f"a small {options.family} from random weights",
            chosen_method=f"contrastive, {options.positives}",
            title="pretrain",
            selection="knn",
        )


def sizes_of(config: PretrainBackboneConfig) -> SmallBackbone:
    """Return the sizes of the backbone, with the defaults of its family."""
    resnet = config.family == "resnet"
    usual = {"patch_size": 16, "width": 256, "layers": 1} if resnet else vars(SmallBackbone)
    unsaid = [name for name in ("patch_size", "width", "layers") if getattr(config, name) is None]
    return config.part(SmallBackbone, **{name: usual[name] for name in unsaid})


def memory_of(train: Table, seed: int) -> Table:
    """Return the training images that vote: at most `MEMORY`, drawn by the seed.

    Raises:
        UserError: for fewer images than the most neighbours that are asked.
    """
    if len(train) < max(NEIGHBOURS):
        raise UserError(
            f"{train.name} has {len(train)} images, too few for the votes of {max(NEIGHBOURS)} "
            "neighbours that features are judged by; give more data."
        )
    if len(train) <= MEMORY:
        return train
    rows = np.random.default_rng(seed).choice(len(train), MEMORY, replace=False)
    return train.subset(np.sort(rows))


def backbone_card(summary: Mapping[str, Any]) -> str:
    """Return the README.md of a pre-trained backbone, from its run's summary."""
    before, after, data = summary["before"]["knn"], summary["after"]["knn"], summary["data"]
    test = f"{data['test']} images, {data['classes']} classes"
    return start_card(
        f"{summary['model']}, pre-trained on {data['name']} ({summary['method']})",
        "image-feature-extraction",
        [
            f"Held-out test split of {data['name']}, {test}; votes of at most {MEMORY} training "
            "images:",
            "",
            "| kNN accuracy | start | pre-trained |",
            "|---|---|---|",
            *[f"| k = {k} | {before[k]:.4f} | {after[k]:.4f} |" for k in after],
            "",
            f"{summary['steps']} steps.",
            *load_with_transformers(),
        ],
    )


def _projected(parts: Parts, config: PretrainBackboneConfig) -> ProjectedBackbone:
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        return ProjectedBackbone(Backbone(parts.model), config.projection)


@torch.no_grad()
def _has_its_view(vectors_VE: Tensor, ids_V: Tensor) -> Tensor:
    """The share of views whose nearest other view is a positive."""
    unit_VE = nn.functional.normalize(vectors_VE, dim=1)
    similarity_VV = (unit_VE @ unit_VE.T).fill_diagonal_(-torch.inf)
    return (ids_V[similarity_VV.argmax(dim=1)] == ids_V).float().mean()
