"""Held-out images with their masks, true and answered, before and after a run."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from PIL import Image

from visgrpo.data.preprocess import Preprocess
from visgrpo.data.roles import image_and_mask
from visgrpo.measures.masks import (
    HeldOutMasks,
    add_to_confusion,
    colour_mask,
    hex_palette,
    segmentation_measures,
)
from visgrpo.training.run_directory import RunDirectory


class Pictures:
    """Some rows of a data set, evenly spaced; their answers before are remembered when made.

    Args:
        held_out: the data set and the segmenter.
        preprocess: the segmenter's own, which gives pictures the size that masks have.
        count: pictures to draw; fewer where there are fewer rows.
    """

    def __init__(self, held_out: HeldOutMasks, preprocess: Preprocess, count: int) -> None:
        self._held_out, self._preprocess = held_out, preprocess
        rows = len(held_out.dataset)
        self._rows = np.unique(np.linspace(0, rows - 1, min(count, rows)).round().astype(int))
        self._before = held_out.answers(self._rows.tolist()) if count else []

    def write(self, run: RunDirectory) -> None:
        """Write segments.jsonl, its pictures and the palette into a run directory."""
        if not self._before:
            return
        after = self._held_out.answers(self._rows.tolist())
        if not run.writes:
            return
        classes = self._held_out.dataset.classes
        (run.path / "samples").mkdir(exist_ok=True)
        lines = [
            json.dumps(self._one(run, row, before_HW, after_HW))
            for row, before_HW, after_HW in zip(
                self._rows.tolist(), self._before, after, strict=True
            )
        ]
        (run.path / "segments.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        palette = json.dumps(hex_palette(classes), indent=1, ensure_ascii=False)
        (run.path / "palette.json").write_text(palette, encoding="utf-8")

    def _one(
        self, run: RunDirectory, row: int, before_HW: np.ndarray, after_HW: np.ndarray
    ) -> dict[str, Any]:
        dataset = self._held_out.dataset
        image, ids_HW = image_and_mask(dataset, row)
        truth_HW = self._preprocess.mask(ids_HW, dataset.ignore_index).numpy()
        size = (truth_HW.shape[1], truth_HW.shape[0])
        pictures = {
            "image": image if image.size == size else image.resize(size, Image.Resampling.BICUBIC),
            "truth": colour_mask(truth_HW, dataset.classes),
            "before": colour_mask(before_HW, dataset.classes),
            "after": colour_mask(after_HW, dataset.classes),
        }
        line: dict[str, Any] = {"index": row}
        for what, picture in pictures.items():
            name = f"samples/test-{row}{'' if what == 'image' else f'-{what}'}.png"
            picture.save(run.path / name)
            line[what] = name
        line["iou"] = {
            "before": self._mean_iou(before_HW, truth_HW),
            "after": self._mean_iou(after_HW, truth_HW),
        }
        return line

    def _mean_iou(self, answers_HW: np.ndarray, truth_HW: np.ndarray) -> float:
        """Return the mean IoU of one picture, over the classes that are in it or answered."""
        dataset = self._held_out.dataset
        K = len(dataset.classes)
        confusion_KK = torch.zeros(K, K, dtype=torch.int64)
        add_to_confusion(
            confusion_KK,
            torch.from_numpy(answers_HW),
            torch.from_numpy(truth_HW.astype(np.int64)),
            dataset.ignore_index,
        )
        return float(segmentation_measures(confusion_KK, dataset.classes)["miou"])
