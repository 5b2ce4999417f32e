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
    "GenerateConfig": "visgrpo.recipes.language_config",
    "LanguageConfig": "visgrpo.recipes.language_config",
    "PredictConfig": "visgrpo.recipes.use_configs",
    "PretrainBackboneConfig": "visgrpo.recipes.pretrain_configs",
    "PretrainClipConfig": "visgrpo.recipes.pretrain_configs",
    "RepresentationConfig": "visgrpo.recipes.backbone_configs",
    "SegmentationConfig": "visgrpo.recipes.backbone_configs",
    "SweepConfig": "visgrpo.recipes.sweep_config",
    "VlmConfig": "visgrpo.recipes.vlm_config",
    "train_clip": "visgrpo.recipes.clip",
    "train_representation": "visgrpo.recipes.representation",
    "train_segmentation": "visgrpo.recipes.segmentation",
    "train_language": "visgrpo.recipes.language",
    "train_vlm": "visgrpo.recipes.vlm",
    "generate_text": "visgrpo.recipes.generate",
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
    "load_text": "visgrpo.data.text_sources",
    "PromptDataset": "visgrpo.data.prompts",
    "load_prompts": "visgrpo.data.prompts",
    "prompts_from_text": "visgrpo.data.prompts",
    "encode_prompts": "visgrpo.data.prompts",
    "PairDataset": "visgrpo.data.pairs",
    "load_pairs": "visgrpo.data.pairs",
    "encode_pairs": "visgrpo.data.pairs",
    "BlockDataset": "visgrpo.data.token_blocks",
    "token_blocks": "visgrpo.data.token_blocks",
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
    "LanguageModel": "visgrpo.models.language",
    "critic_of": "visgrpo.models.language",
    "load_language": "visgrpo.models.language_loading",
    "build_language": "visgrpo.models.small_language",
    "make_tokenizer": "visgrpo.models.tokenizers",
    "adapt_language": "visgrpo.models.adapt_language",
    "adapt_vision_language": "visgrpo.models.adapt_vision",
    "reference_of": "visgrpo.models.token_reference",
    "save_language": "visgrpo.models.language_saving",
    "LearnedReward": "visgrpo.models.reward_model",
    "build_reward_model": "visgrpo.models.reward_model",
    "load_reward_model": "visgrpo.models.reward_model",
    "save_reward_model": "visgrpo.models.reward_model",
    "LabelGRPO": "visgrpo.policies.labels",
    "Supervised": "visgrpo.policies.supervised",
    "ClassSetGRPO": "visgrpo.policies.class_set",
    "ClassSetSupervised": "visgrpo.policies.class_set",
    "ImageView": "visgrpo.policies.views",
    "PixelView": "visgrpo.policies.views",
    "TokenGRPO": "visgrpo.policies.tokens",
    "TokenTerms": "visgrpo.policies.tokens",
    "TokenPPO": "visgrpo.policies.ppo",
    "TokenRollouts": "visgrpo.policies.token_groups",
    "TokenMemory": "visgrpo.policies.token_groups",
    "Sampling": "visgrpo.policies.rollout",
    "generate": "visgrpo.policies.rollout",
    "token_uniforms": "visgrpo.policies.rollout",
    "NextToken": "visgrpo.policies.text",
    "PreferredCompletion": "visgrpo.policies.text",
    "RewardSet": "visgrpo.rewards",
    "parse_rewards": "visgrpo.rewards",
    "TextRewards": "visgrpo.rewards.text",
    "parse_text_rewards": "visgrpo.rewards.text",
    "GoldJudge": "visgrpo.rewards.gold",
    "Objective": "visgrpo.objectives",
    "preset": "visgrpo.objectives",
    "advantages": "visgrpo.objectives",
    "surrogate": "visgrpo.objectives",
    "categorical_kl": "visgrpo.objectives",
    "entropy": "visgrpo.objectives",
    "token_kl": "visgrpo.objectives",
    "gae": "visgrpo.objectives",
    "whiten": "visgrpo.objectives",
    "value_loss": "visgrpo.objectives",
    "bradley_terry_loss": "visgrpo.objectives",
    "TokenDistribution": "visgrpo.objectives.token_distribution",
    "evaluate_logits": "visgrpo.evaluation",
    "HeldOutPrompts": "visgrpo.evaluation.text",
    "HeldOutAnswers": "visgrpo.evaluation.visual",
    "likelihood": "visgrpo.evaluation.text",
    "pair_accuracy": "visgrpo.evaluation.text",
    "Processes": "visgrpo.training.processes",
    "FixedKL": "visgrpo.training.kl_controller",
    "AdaptiveKL": "visgrpo.training.kl_controller",
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
