"""visgrpo: fine-tune models that see with group relative policy optimization.

Names load when they are first used, so that ``import visgrpo`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Any

__version__ = version("visgrpo")

_HOME = {
    "ClipConfig": "visgrpo.recipes.configs",
    "DemoConfig": "visgrpo.recipes.configs",
    "EvaluateConfig": "visgrpo.recipes.use_configs",
    "PredictConfig": "visgrpo.recipes.use_configs",
    "PretrainBackboneConfig": "visgrpo.recipes.pretrain_configs",
    "PretrainClipConfig": "visgrpo.recipes.pretrain_configs",
    "RepresentationConfig": "visgrpo.recipes.backbone_configs",
    "SegmentationConfig": "visgrpo.recipes.backbone_configs",
    "SweepConfig": "visgrpo.recipes.sweep_config",
    "train_clip": "visgrpo.recipes.clip",
    "train_representation": "visgrpo.recipes.representation",
    "train_segmentation": "visgrpo.recipes.segmentation",
    "sweep": "visgrpo.recipes.sweep",
    "pretrain_backbone": "visgrpo.recipes.pretrain_backbone",
    "pretrain_clip": "visgrpo.recipes.pretrain_clip",
    "evaluate": "visgrpo.recipes.evaluate",
    "predict": "visgrpo.recipes.predict",
    "demo": "visgrpo.recipes.demo",
    "ImageDataset": "visgrpo.data.dataset",
    "load_splits": "visgrpo.data.sources",
    "load_split": "visgrpo.data.sources",
    "load_segmentation_splits": "visgrpo.data.segmentation_sources",
    "BatchLoader": "visgrpo.data.batches",
    "pixel_inputs": "visgrpo.data.inputs",
    "ClipClassifier": "visgrpo.models.clip",
    "load_clip": "visgrpo.models.loading",
    "load_backbone": "visgrpo.models.backbone_loading",
    "load_representation": "visgrpo.models.representation_saving",
    "Backbone": "visgrpo.models.backbone",
    "RepresentationClassifier": "visgrpo.models.representation",
    "Segmenter": "visgrpo.models.representation",
    "Adaptation": "visgrpo.models.adapt",
    "adapt": "visgrpo.models.adapt",
    "trainable_parameters": "visgrpo.models.adapt",
    "LabelGRPO": "visgrpo.policies.labels",
    "Supervised": "visgrpo.policies.supervised",
    "ClassSetGRPO": "visgrpo.policies.class_set",
    "ClassSetSupervised": "visgrpo.policies.class_set",
    "ImageView": "visgrpo.policies.views",
    "PixelView": "visgrpo.policies.views",
    "RewardSet": "visgrpo.rewards",
    "parse_rewards": "visgrpo.rewards",
    "Objective": "visgrpo.objectives",
    "preset": "visgrpo.objectives",
    "advantages": "visgrpo.objectives",
    "surrogate": "visgrpo.objectives",
    "categorical_kl": "visgrpo.objectives",
    "entropy": "visgrpo.objectives",
    "evaluate_logits": "visgrpo.evaluation",
    "Processes": "visgrpo.training.processes",
    "RunDirectory": "visgrpo.training.run_directory",
    "Trainer": "visgrpo.training.trainer",
    "TrainingOptions": "visgrpo.training.options",
    "compare_runs": "visgrpo.reporting",
    "write_report": "visgrpo.reporting",
    "UserError": "visgrpo.errors",
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'visgrpo' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
