"""One held-out data set with masks and a segmenter that changes: its measures now."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from visgrpo.data.batches import Batch, CachedInputs, InputFunction, sequential
from visgrpo.data.segmentation import SegmentationDataset
from visgrpo.errors import UserError
from visgrpo.measures.held_out import Precision
from visgrpo.measures.segmentation import add_to_confusion, segmentation_measures
from visgrpo.models.representation import Segmenter

LOGITS_AT_ONCE = 2**24
"""Logits of pixels that exist at one time: 64 MiB of float32."""
ROWS_AT_ONCE = 64


@dataclass(frozen=True)
class HeldOutMasks:
    """Evaluates a segmenter at every labelled pixel of a data set, in the precision it trains in.

    Its methods raise UserError for logits that are not finite.

    Attributes:
        inputs: makes what the segmenter takes together with the mask.
    """

    segmenter: Segmenter
    dataset: SegmentationDataset
    inputs: InputFunction
    processes: Precision

    def now(self) -> dict[str, Any]:
        """Return all measures: those of `segmentation_measures`, `nll`, nats per pixel, and
        `examples`, the number of images."""
        K = len(self.dataset.classes)
        device = self.processes.device
        confusion_KK = torch.zeros(K, K, dtype=torch.int64, device=device)
        nll = torch.zeros((), dtype=torch.float64)
        for logits_NHWK, truth_NHW in self._predictions(self._own_rows()):
            add_to_confusion(
                confusion_KK, logits_NHWK.argmax(dim=-1), truth_NHW, self.dataset.ignore_index
            )
            nll += self._summed_nll(logits_NHWK, truth_NHW)
        confusion_KK = self.processes.gather(confusion_KK[None]).sum(dim=0)
        total = self.processes.gather(nll.to(device).float()[None]).sum().item()
        measures = segmentation_measures(confusion_KK.cpu(), self.dataset.classes)
        return {
            "examples": len(self.dataset),
            **measures,
            "nll": total / measures["pixels"],
        }

    def scalars(self) -> dict[str, float]:
        """Return the measures of now that are one number."""
        measures = self.now()
        return {
            name: measures[name]
            for name in ("miou", "pixel_accuracy", "mean_class_accuracy", "nll")
        }

    def answers(self, rows: Sequence[int]) -> list[np.ndarray]:
        """Return the answered class ids (H, W) of some rows, as the segmenter sees them."""
        answers: list[np.ndarray] = []
        for logits_NHWK, _ in self._predictions(np.array(rows, dtype=np.int64)):
            answers += list(logits_NHWK.argmax(dim=-1).cpu().numpy())
        return answers

    def _own_rows(self) -> np.ndarray:
        """This process's share of the rows; counts are summed, so shares may differ by a row."""
        return np.arange(self.processes.rank, len(self.dataset), self.processes.world_size)

    @torch.no_grad()
    def _predictions(self, rows: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield logits (n, H, W, K) and masks (n, H, W) of some rows, on the device."""
        training = self.segmenter.training
        self.segmenter.eval()
        for batch in sequential(self.dataset.subset(rows), self._of(rows), ROWS_AT_ONCE):
            with self.processes.autocast():
                grid_NhwK = self.segmenter(batch.inputs.to(self.processes.device))
            yield from self._upsampled(grid_NhwK, batch)
        self.segmenter.train(training)

    def _upsampled(self, grid_NhwK: Tensor, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        size = batch.labels_N.shape[1:]
        at_once = max(1, LOGITS_AT_ONCE // (size.numel() * grid_NhwK.shape[-1]))
        masks_NHW = batch.labels_N.to(grid_NhwK.device)
        for grid, masks in zip(grid_NhwK.split(at_once), masks_NHW.split(at_once), strict=True):
            logits_NHWK = self.segmenter.upsample(grid, size)
            if not logits_NHWK.isfinite().all():
                raise UserError(
                    f"NaN or infinity in the logits of {self.dataset.name}: the model has "
                    "diverged; try a lower learning rate."
                )
            yield logits_NHWK, masks

    def _of(self, rows: np.ndarray) -> InputFunction:
        """The inputs of some rows, by their place among these."""
        if isinstance(self.inputs, CachedInputs):
            return self.inputs.take(rows)
        return lambda index, rng: self.inputs(int(rows[index]), rng)

    def _summed_nll(self, logits_NHWK: Tensor, truth_NHW: Tensor) -> Tensor:
        nll_NHW = torch.nn.functional.cross_entropy(
            logits_NHWK.permute(0, 3, 1, 2),
            truth_NHW,
            ignore_index=self.dataset.ignore_index,
            reduction="none",
        )
        return nll_NHW.double().sum().cpu()
