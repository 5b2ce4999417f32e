"""CIFAR-10 with a small CLIP: the start, supervised, GRPO, and a loss that is wrong, side by side.

    python benchmarks/clip_results.py [--quick] [--json PATH] [--seeds 3] [--jobs 2] [--threads 2]
        [--data-folder ../shared/data] [--output runs/clip-results]

For each seed a small CLIP is pre-trained on Tiny ImageNet and the first 2,000 CIFAR-10 training
images, with class names as captions. It is then tuned on the other training images by every
method with one budget, and tested on all test images. With the first seed each family tries
several learning rates and keeps the one that ends best on *validation* images. All runs end with
their last weights: picking the best evaluation would hide a loss that unlearns.

Every run is a process of its own (`visgrpo pretrain clip`, `visgrpo clip`, wrong_action.py), so
its peak memory is its own. Started again, the script skips what is finished and resumes the rest.

``ratio`` is held-out accuracy / the start's, ``spread`` its standard deviation over seeds,
``memory_ratio`` peak memory / that of supervised full fine-tuning. Rows "validation: …" are the
choice of the learning rate: their ratio is validation accuracy / the start's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from common import Row, parser, write_json

REPOSITORY = Path(__file__).resolve().parents[1]
TEMPLATE = "a photo of a {}."


@dataclass(frozen=True)
class Budget:
    """How long everything takes; one for the table, one for --quick.

    Attributes:
        rates: learning rates that a family tries.
        rows: rows of each parquet file to use; None for all.
    """

    pretrain_steps: int
    pretrain_batch: int
    steps: int
    batch: int
    captioned: int
    rates: Mapping[str, Sequence[float]]
    rows: int | None = None


TABLE = Budget(
    pretrain_steps=600,
    pretrain_batch=256,
    steps=400,
    batch=64,
    captioned=2000,
    rates={
        "supervised full": (3e-4, 1e-3, 3e-3),
        "grpo full": (1e-4, 3e-4, 1e-3),
        "supervised lora": (1e-3, 3e-3, 1e-2),
        "grpo lora": (1e-3, 3e-3, 1e-2),
    },
)
QUICK = Budget(
    pretrain_steps=5,
    pretrain_batch=128,
    steps=4,
    batch=64,
    captioned=400,
    rates={family: rates[1:2] for family, rates in TABLE.rates.items()},
    rows=600,
)


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        family: whose learning rate it takes.
        flags: what `visgrpo clip` is told beside the budget.
        searches: whether this row's runs choose the family's learning rate.
    """

    name: str
    family: str
    flags: tuple[str, ...]
    searches: bool = False
    module: tuple[str, ...] = ("-m", "visgrpo", "clip")


LORA = ("--train", "lora")
EXACT = ("--method", "grpo", "--estimator", "exact")
SAMPLED = ("--method", "grpo", "--estimator", "sampled", "--group-size", "8")
SUPERVISED = ("--method", "supervised")
VARIANTS = (
    Variant("supervised full", "supervised full", SUPERVISED, searches=True),
    Variant("GRPO sampled full", "grpo full", SAMPLED, searches=True),
    Variant("GRPO exact full", "grpo full", EXACT),
    Variant("supervised LoRA", "supervised lora", (*SUPERVISED, *LORA), searches=True),
    Variant("GRPO sampled LoRA", "grpo lora", (*SAMPLED, *LORA), searches=True),
    Variant("GRPO exact LoRA", "grpo lora", (*EXACT, *LORA)),
    Variant(
        "wrong action full",
        "grpo full",
        (),
        module=(str(Path(__file__).with_name("wrong_action.py")),),
    ),
)


@dataclass(frozen=True)
class Job:
    """One process and the run directory that it fills."""

    folder: Path
    words: tuple[str, ...]
    threads: int

    @property
    def done(self) -> bool:
        return (self.folder / "summary.json").exists()

    def run(self) -> None:
        """Start, or resume, and wait. Raises RuntimeError with the end of the log."""
        if self.done:
            return
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        resume = ["--resume"] if (self.folder / "config.yaml").exists() else []
        log = self.folder.with_name(f"{self.folder.name}.log")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(self.threads),
            "HF_HUB_OFFLINE": "1",
        }
        command = [sys.executable, *self.words, "--output", str(self.folder), *resume]
        with log.open("a") as handle:
            ended = subprocess.run(command, env=environment, stdout=handle, stderr=handle)
        if ended.returncode:
            raise RuntimeError(f"{self.folder.name} failed:\n{log.read_text()[-2000:]}")
        print(f"finished {self.folder.parent.name}/{self.folder.name}", file=sys.stderr, flush=True)

    @cached_property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "summary.json").read_text())

    def validation_accuracy(self) -> tuple[float, float]:
        """Return the accuracy on validation images at the start and at the end of the run."""
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        values = [line["eval/accuracy"] for line in lines if "eval/accuracy" in line]
        return values[0], values[-1]


@dataclass(frozen=True)
class Plan:
    """Which jobs there are."""

    budget: Budget
    data: Path
    output: Path
    threads: int

    def start(self, seed: int) -> Job:
        """Pre-train the CLIP that all runs of a seed start from."""
        words = ["-m", "visgrpo", "pretrain", "clip", "--data", str(self.data / "cifar10")]
        words += ["--train-slice", f":{self.budget.captioned}"]
        words += ["--more-data", str(self.data / "tiny_imagenet"), "--templates", TEMPLATE]
        words += ["--patch-size", "8", "--width", "96", "--steps", str(self.budget.pretrain_steps)]
        words += ["--batch-size", str(self.budget.pretrain_batch), "--learning-rate", "1e-3"]
        words += ["--weight-decay", "0.05", "--keep", "last", "--seed", str(seed)]
        return Job(self.output / f"seed-{seed}" / "start", tuple(words), self.threads)

    def tuning(self, variant: Variant, seed: int, rate: float) -> Job:
        """Fine-tune a seed's start on the images that it has not seen."""
        name = f"{variant.name.lower().replace(' ', '-')}-lr-{rate:g}"
        words = [*variant.module, "--model", str(self.start(seed).folder / "model")]
        words += ["--data", str(self.data / "cifar10"), "--templates", TEMPLATE]
        words += ["--train-slice", f"{self.budget.captioned}:", "--train", "image"]
        words += ["--steps", str(self.budget.steps), "--batch-size", str(self.budget.batch)]
        words += ["--learning-rate", f"{rate:g}", "--keep", "last", "--seed", str(seed)]
        words += ["--eval-every", "100", "--log-every", "20"]
        folder = self.output / f"seed-{seed}" / name
        return Job(folder, (*words, *variant.flags), self.threads)

    def search(self) -> dict[str, dict[float, Job]]:
        """The runs of the first seed that choose learning rates: {family: {rate: job}}."""
        return {
            variant.family: {
                rate: self.tuning(variant, 0, rate) for rate in self.budget.rates[variant.family]
            }
            for variant in VARIANTS
            if variant.searches
        }

    def chosen(self) -> dict[str, float]:
        """The learning rate of each family, once the search is done."""
        return {
            family: max(jobs, key=lambda rate: jobs[rate].validation_accuracy()[1])
            for family, jobs in self.search().items()
        }


def run_all(jobs: Iterable[Job], at_once: int) -> None:
    """Run jobs, several at a time, in order. The first failure is raised when all have ended."""
    with ThreadPoolExecutor(at_once) as pool:
        for future in [pool.submit(job.run) for job in jobs]:
            future.result()


def run_plan(plan: Plan, seeds: int, at_once: int) -> None:
    """Run whatever is not there yet: the starts, the search, then every variant and seed."""
    run_all([plan.start(seed) for seed in range(seeds)], at_once)
    run_all([job for jobs in plan.search().values() for job in jobs.values()], at_once)
    rates = plan.chosen()
    run_all(
        [plan.tuning(v, seed, rates[v.family]) for seed in range(seeds) for v in VARIANTS], at_once
    )


def result_rows(plan: Plan, seeds: int) -> list[Row]:
    """The table: the start, then every variant."""
    rates = plan.chosen()
    runs = {
        variant.name: [plan.tuning(variant, s, rates[variant.family]) for s in range(seeds)]
        for variant in VARIANTS
    }
    reference = runs["supervised full"]
    starts = [job.summary["before"] for job in reference]
    memory = [job.summary["peak_memory_bytes"] for job in reference]
    rows = [{**_measures("start", starts, starts), "memory_ratio": None}]
    for variant in VARIANTS:
        jobs = runs[variant.name]
        peaks = [job.summary["peak_memory_bytes"] for job in jobs]
        ends = [job.summary["after"] for job in jobs]
        rows.append(
            {
                **_measures(variant.name, ends, starts),
                "memory_ratio": statistics.mean(p / m for p, m in zip(peaks, memory, strict=True)),
                "learning_rate": rates[variant.family],
                "seconds": [job.summary["seconds"] for job in jobs],
            }
        )
    return rows


def choice_rows(plan: Plan) -> list[Row]:
    """One row for every learning rate that was tried, with its validation accuracy."""
    rates = plan.chosen()
    rows: list[Row] = []
    for family, jobs in plan.search().items():
        for rate, job in jobs.items():
            start, end = job.validation_accuracy()
            rows.append(
                {
                    "name": f"validation: {family}, learning rate {rate:g}",
                    "ratio": end / start,
                    "spread": None,
                    "memory_ratio": None,
                    "validation_accuracy": end,
                    "chosen": rate == rates[family],
                }
            )
    return rows


def print_results(results: Sequence[Row], choices: Sequence[Row]) -> None:
    """Print both tables as Markdown."""
    print("| | accuracy % | ÷ start | ECE | KL to start | memory | learning rate |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for row in results:
        cells = [
            _mean_std([100 * value for value in row["accuracy"]], 1),
            f"{row['ratio']:.2f}",
            _mean_std(row["ece"], 3),
            _mean_std(row["kl"], 2),
            "–" if row["memory_ratio"] is None else f"{row['memory_ratio']:.2f}",
            f"{row['learning_rate']:g}" if "learning_rate" in row else "–",
        ]
        print(f"| {row['name']} | {' | '.join(cells)} |")
    print("\n| | validation accuracy % | chosen |\n|---|---:|---|")
    for row in choices:
        name, chosen = row["name"].removeprefix("validation: "), "yes" if row["chosen"] else ""
        print(f"| {name} | {100 * row['validation_accuracy']:.1f} | {chosen} |")


def prepare(options: argparse.Namespace, budget: Budget) -> tuple[Path, Path]:
    """Return the folders of the data and of the runs; refuse what cannot work with exit code 2."""
    data, output = options.data_folder.resolve(), options.output
    if options.quick and output == parser_of().get_default("output"):
        output = output.with_name(f"{output.name}-quick")
    for name in ("cifar10/train", "cifar10/test", "tiny_imagenet/train", "tiny_imagenet/val"):
        if not (data / f"{name}.parquet").exists():
            _refuse(f"{data / name}.parquet is missing: name its folder with --data-folder.")
    wanted = json.loads(json.dumps(asdict(budget)))
    note = output / "budget.json"
    if note.exists() and json.loads(note.read_text()) != wanted:
        _refuse(f"{output} holds runs of another budget: name another folder with --output.")
    output.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(wanted))
    return _subset(data, output / "data", budget.rows) if budget.rows else data, output


def parser_of() -> argparse.ArgumentParser:
    """The options of this benchmark."""
    found = parser(__doc__.splitlines()[0])
    found.add_argument("--seeds", type=int, default=3, help="how many (default: 3)")
    found.add_argument("--jobs", type=int, default=2, help="runs at a time (default: 2)")
    found.add_argument("--data-folder", type=Path, default=REPOSITORY.parent / "shared" / "data")
    found.add_argument("--output", type=Path, default=REPOSITORY / "runs" / "clip-results")
    return found


def main() -> None:
    options = parser_of().parse_args()
    budget = QUICK if options.quick else TABLE
    seeds = 1 if options.quick else options.seeds
    torch.set_num_threads(options.threads)
    data, output = prepare(options, budget)
    plan = Plan(budget, data, output, options.threads)
    try:
        run_plan(plan, seeds, options.jobs)
    except RuntimeError as failure:
        print(f"clip_results: {failure}", file=sys.stderr)
        sys.exit(1)
    results, choices = result_rows(plan, seeds), choice_rows(plan)
    print_results(results, choices)
    if options.json:
        write_json(options.json, [*results, *choices])


def _measures(name: str, ends: Sequence[Mapping[str, Any]], starts: Sequence[Any]) -> Row:
    ratios = [end["accuracy"] / start["accuracy"] for end, start in zip(ends, starts, strict=True)]
    return {
        "name": name,
        "ratio": statistics.mean(ratios),
        "spread": statistics.stdev(ratios) if len(ratios) > 1 else None,
        **{key: [end[key] for end in ends] for key in ("accuracy", "ece", "kl")},
    }


def _mean_std(values: Sequence[float], digits: int) -> str:
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def _subset(data: Path, target: Path, rows: int) -> Path:
    """Copy every n-th row of each parquet file, `rows` in all; returns the folder of the copies."""
    import pyarrow.parquet as pq

    for source in (*data.glob("cifar10/t*.parquet"), *data.glob("tiny_imagenet/*.parquet")):
        table = pq.read_table(source)
        copy = target / source.relative_to(data)
        copy.parent.mkdir(parents=True, exist_ok=True)
        every = max(1, len(table) // rows)
        pq.write_table(table.take(list(range(0, len(table), every))[:rows]), copy)
    return target


def _refuse(message: str) -> None:
    print(f"clip_results: {message}", file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
