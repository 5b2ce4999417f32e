"""Evaluate a backbone, with its head if it has one: the part of `visgrpo evaluate` for these."""

from __future__ import annotations

import sys
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from visgrpo.data.batches import CachedInputs
from visgrpo.data.dataset import ImageDataset, Splits
from visgrpo.data.inputs import PixelInputs, SegmentationInputs
from visgrpo.data.preprocess import Preprocess
from visgrpo.data.segmentation import IGNORE_INDEX, SegmentationDataset
from visgrpo.data.segmentation_sources import load_segmentation_split, load_segmentation_splits
from visgrpo.data.shifts import shifted
from visgrpo.data.splitting import parse_split, sliced
from visgrpo.errors import UserError
from visgrpo.evaluation import evaluate_logits
from visgrpo.evaluation.backbone import feature_measures
from visgrpo.evaluation.classification import scalar_measures
from visgrpo.evaluation.held_out_masks import HeldOutMasks
from visgrpo.evaluation.probes import Labelled
from visgrpo.evaluation.zero_shot import predict_logits, run_over
from visgrpo.models.backbone import Backbone, Pool
from visgrpo.models.backbone_loading import load_backbone
from visgrpo.models.loading import read_info
from visgrpo.models.representation import RepresentationClassifier, Segmenter
from visgrpo.models.representation_saving import load_representation
from visgrpo.recipes.evaluate_shared import division_of, labelled_rows, labelled_splits, show
from visgrpo.recipes.model_kinds import kind_of
from visgrpo.recipes.use_configs import EvaluateConfig
from visgrpo.training.processes import Processes

ALL_PROBES = ("knn", "softmax-regression")
