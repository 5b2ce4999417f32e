"""The options of `visgrpo sweep`. Light to import, like those of the other commands."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from visgrpo.options import Options, like, option
from visgrpo.training.options import Loop


@dataclass(frozen=True)
class SweepConfig(Options):
    """Train with every combination of some options and several seeds, and print one table."""

    command_words: tuple[str, ...] = option(
        (),
        "The command to run: clip, pretrain clip and so on.",
        required="the command: visgrpo sweep clip --config FILE",
    )
    config: str | None = option(
        None,
        'YAML with options of that command, which all runs share. Under "sweep" stand options '
        'with lists of values, which are combined; under "variants" names, each with options '
        "of its own.",
    )
    seeds: int = option(3, "Runs of every combination: seeds 0, 1 and so on.", within="> 0")
    measure: tuple[str, ...] = option(
        (),
        "Measure of the tuned model to put into the table, such as accuracy or knn.20, or any "
        "other number of a run's summary, such as before.accuracy.",
    )
    output = like(Loop, help="Folder for the runs; by default a free name under runs/.")
    resume = like(
        Loop,
        help="Go on with the sweep in --output: finished runs stay, one that was stopped goes on.",
    )

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        if self.resume and self.output is None:
            yield "--resume needs --output, the sweep to go on with."
        if self.config is None and not self.resume:
            yield (
                "--config FILE is needed: YAML with the options of the runs and, under sweep or "
                "variants, what differs between them."
            )
