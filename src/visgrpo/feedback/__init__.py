"""What people did to a model's answers: rewards of it, and learning from the log they left.

`COMMANDS` are `visgrpo feedback …`: about, options, what does the work, words without a flag. The
command line takes them up as they stand; nothing is loaded before one is used.
"""

from __future__ import annotations

from collections.abc import Mapping

Row = tuple[str, str, str, tuple[str, ...]]

COMMANDS: Mapping[str, Row] = {
    "feedback summarize": (
        "what is in a table of clicks, votes, preferences or grades",
        "visgrpo.feedback.options:SummarizeConfig",
        "visgrpo.feedback.summary:summarize",
        ("events",),
    ),
    "feedback collect": (
        "a local page on which people judge a model's answers",
        "visgrpo.collecting.options:CollectConfig",
        "visgrpo.collecting.serve:collect",
        (),
    ),
    "feedback replay": (
        "how models would have done, estimated from a log of another",
        "visgrpo.feedback.options:ReplayConfig",
        "visgrpo.feedback.replay:replay",
        (),
    ),
}
