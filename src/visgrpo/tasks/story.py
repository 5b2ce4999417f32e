"""Tasks of several stages: one of them is a run; `--method all` is a run of each, in its order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar

from visgrpo.errors import Interrupted, UserError
from visgrpo.reporting import compare_runs, ended, print_measures
from visgrpo.tasks.run import Session, begin, open_session, train
from visgrpo.tasks.task import Task
from visgrpo.terminal import show
from visgrpo.training.run_directory import free_name

Summaries = Mapping[str, Mapping[str, Any]]  # by the folder of the stage


class StagedTask(Task):
    """A task whose options name one of its stages, or all of them.

    Attributes:
        stages: of the story that is told by "all", in its order: the name of each one's folder,
            and the stage.
        compared: folders that are put on one page.
        unit: what is held out.
    """

    stages: ClassVar[Mapping[str, str]]
    compared: ClassVar[tuple[str, ...]]
    unit: ClassVar[str]

    def run_name(self, options: Any) -> str:
        stem = Path(options.data.rstrip("/")).stem
        return f"{self.name}-{stem}" + ("" if options.method == "all" else f"-{options.method}")

    def train(self, options: Any) -> dict[str, Any]:
        options.check()
        if options.method != "all":
            return self.train_stage(options)
        if options.dry_run:  # the later stages start from what the first one makes
            folder, stage = next(iter(self.stages.items()))
            story = options.output or free_name(Path("runs") / self.run_name(options))
            show(f"The first of {len(self.stages)} stages, {stage}:")
            return self.train_stage(self.stage_options(options, stage, Path(story) / folder))
        return self._tell(options)

    def train_stage(self, options: Any) -> dict[str, Any]:
        """Run one stage and return its summary."""
        return train(self, options)

    def changes(self, options: Any, stage: str, start: str) -> dict[str, Any]:
        """Return which options of the story's a stage takes otherwise.

        Args:
            start: the run of the first stage, which the others start from.
        """
        raise NotImplementedError

    def outcome(self, summaries: Summaries) -> Mapping[str, Mapping[str, Any]]:
        """Return the measures to print at the end, by the name of their row."""
        raise NotImplementedError

    def stage_options(self, options: Any, stage: str, run: Path) -> Any:
        """Return the options of one stage: the story's that go with it, the others at rest."""
        changes = {
            each.name: each.default
            for each in fields(options)
            if not options.users.use(stage, each.name)
        }
        changes |= self.changes(options, stage, str(run.parent / next(iter(self.stages))))
        resume = (run / "config.yaml").exists()
        return replace(
            options, **{**changes, "method": stage, "output": str(run), "resume": resume}
        )

    def _tell(self, options: Any) -> dict[str, Any]:
        """Run each stage in a folder of its own; return the summary of all of them.

        A stage that has finished is not run again, so that an interrupted story can be resumed.
        """
        with open_session(options, self.run_name(options), has_checkpoints=False) as session:
            return self._tell_in(options, session)

    def _tell_in(self, options: Any, session: Session) -> dict[str, Any]:
        if session.processes.world_size > 1:
            raise UserError(
                "--method all runs in one process: run its stages one by one in several."
            )
        output = session.run.path
        begin(session, options, self.name)
        summaries: dict[str, dict[str, Any]] = {}
        for number, (folder, stage) in enumerate(self.stages.items(), start=1):
            session.say(f"[{number}/{len(self.stages)}] {stage}")
            summaries[folder] = self._finished_or_trained(options, stage, output / folder)
        summary = {
            "recipe": self.name,
            "method": "all",
            "seconds": round(sum(each["seconds"] for each in summaries.values()), 3),
            "stages": {
                name: {key: each[key] for key in ("seconds", "after") if key in each}
                for name, each in summaries.items()
            },
        }
        session.run.write_summary(summary)
        held_out = summaries[self.compared[-1]]["data"]["test"]
        print_measures(f"{options.data}, {held_out} held-out {self.unit}", self.outcome(summaries))
        if options.report:
            runs = [output / name for name in self.compared]
            session.say(f"Page: {compare_runs(runs, None, output / 'compare.html')}")
        return summary

    def _finished_or_trained(self, options: Any, stage: str, run: Path) -> dict[str, Any]:
        summary = ended(run, report=options.report)
        if summary is not None:
            return summary
        try:
            return self.train_stage(self.stage_options(options, stage, run))
        except Interrupted as stopped:  # what goes on is the whole story
            raise Interrupted(stopped.step, run.parent) from None
