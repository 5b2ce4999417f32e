"""Run `visgrpo representation` and `visgrpo segmentation` on small backbones."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from running import SMALL, metric_lines, weights

from visgrpo.cli import main
from visgrpo.models.save import save
from visgrpo.models.small import SmallBackbone, build_small_backbone

Job = Literal["representation", "segmentation"]
VIT = SmallBackbone("dinov2", image_size=16, patch_size=4, width=16, layers=2, heads=2)
RESNET = SmallBackbone("resnet", image_size=16, patch_size=8, width=16, layers=1)
PROBES = ["--probe", "none"]  # the slowest part of so small a run


def save_small_backbone(folder: Path, sizes: SmallBackbone, seed: int = 0) -> Path:
    """Write a random backbone without a head; return the folder."""
    parts = build_small_backbone(sizes, seed)
    save(parts.model, parts, folder)
    return folder


def words(job: Job, model: Path, data: Path | str, output: Path, *options: str) -> list[str]:
    """The words of a run of four steps of 8 images unless the options say otherwise."""
    steps = [] if "--steps" in options or "--epochs" in options else ["--steps", "4"]
    paths = ["--model", str(model), "--data", str(data), "--output", str(output)]
    return [job, *paths, *SMALL, "--hidden", "8", *steps, *options]


def tune(job: Job, model: Path, data: Path | str, output: Path, *options: str) -> Path:
    """Run the job and return its run directory."""
    main(words(job, model, data, output, *options))
    return output


def represent(model: Path, data: Path | str, output: Path, *options: str) -> Path:
    """`visgrpo representation` without probes unless the options name some."""
    probes = [] if "--probe" in options else PROBES
    return tune("representation", model, data, output, *options, *probes)


def segment(model: Path, data: Path | str, output: Path, *options: str) -> Path:
    """`visgrpo segmentation`."""
    return tune("segmentation", model, data, output, *options)


def head(run: Path) -> bytes:
    return (run / "model" / "head.safetensors").read_bytes()


def same_tuned_run(ours: Path, theirs: Path) -> bool:
    """Whether two runs have the same backbone, head and metrics, to the bit."""
    return (
        head(ours) == head(theirs)
        and weights(ours) == weights(theirs)
        and metric_lines(ours) == metric_lines(theirs)
    )
