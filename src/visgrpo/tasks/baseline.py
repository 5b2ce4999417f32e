"""The supervised baseline that a run trains beside itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from visgrpo.errors import Interrupted
from visgrpo.tasks.session import Session


class _WithBaseline(Protocol):
    """A config of a job that can be done by cross-entropy as well."""

    @property
    def method(self) -> str: ...
    @property
    def baseline(self) -> bool: ...
    @property
    def resume(self) -> bool: ...


C = TypeVar("C", bound=_WithBaseline)


def supervised_baseline(
    train: Callable[[C], dict[str, Any]], config: C, session: Session, **without: Any
) -> dict[str, Any] | None:
    """Train the same budget by cross-entropy in OUTPUT/baseline; None if it was not asked for.

    Args:
        without: settings of GRPO that do not go with supervised training, at their resting values.
    """
    if not config.baseline or config.method == "supervised":
        return None
    folder = session.run.path / "baseline"
    changes = {
        "method": "supervised",
        "baseline": False,
        "output": str(folder),
        "resume": config.resume and (folder / "config.yaml").exists(),
        **without,
    }
    try:
        summary = train(replace(config, **changes))  # type: ignore[type-var]
    except Interrupted as stopped:  # what goes on is the whole run
        raise Interrupted(stopped.step, session.run.path) from None
    return {"name": "supervised", "after": summary["after"]}
