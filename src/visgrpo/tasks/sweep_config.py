"""The options of `visgrpo sweep`. Light to import, like those of the other commands."""

from __future__ import annotations

from dataclasses import dataclass

from visgrpo.errors import UserError
from visgrpo.tasks.checks import named, positive
from visgrpo.tasks.configs import Config


@dataclass(frozen=True)
class SweepConfig(Config):
    """Train with every combination of some options and several seeds, and print one table."""

    command_words: tuple[str, ...] = ()
    """The command to run: clip, pretrain clip and so on."""
    config: str | None = None
    """YAML with options of that command, which all runs share. Under "sweep" stand options with
    lists of values, which are combined; under "variants" names, each with options of its own."""
    seeds: int = 3
    """Runs of every combination: seeds 0, 1 and so on."""
    measure: tuple[str, ...] = ()
    """Measure of the tuned model to put into the table, such as accuracy or knn.20, or any other
    number of a run's summary, such as before.accuracy."""
    output: str | None = None
    """Folder for the runs; by default a free name under runs/."""
    resume: bool = False
    """Go on with the sweep in --output: finished runs stay, one that was stopped goes on."""

    def check(self) -> None:
        named(self.command_words, "the command: visgrpo sweep clip --config FILE")
        positive(self, "seeds")
        if self.resume and self.output is None:
            raise UserError("--resume needs --output, the sweep to go on with.")
        if self.config is None and not self.resume:
            raise UserError(
                "--config FILE is needed: YAML with the options of the runs and, under sweep or "
                "variants, what differs between them."
            )
