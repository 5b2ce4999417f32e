"""Exports of labelling tools and decision services: the rows they become, and what is refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from event_files import rows_of

from visgrpo.errors import UserError
from visgrpo.feedback.source.events import open_events


def choices(*labels: str) -> dict[str, Any]:
    return {
        "from_name": "what",
        "to_name": "image",
        "type": "choices",
        "value": {"choices": list(labels)},
    }


TASKS = [
    {
        "id": 1,
        "data": {"image": "/data/upload/7/1a2b3c4d-cat.1.jpg"},
        "annotations": [
            {"id": 5, "completed_by": 3, "was_cancelled": False, "result": [choices("cat")]},
            {
                "id": 6,
                "completed_by": {"id": 4, "email": "ann@example.org"},
                "result": [
                    choices("cat", "dog"),
                    {"type": "rectanglelabels", "value": {"x": 1, "rectanglelabels": ["cat"]}},
                ],
            },
            {"id": 7, "completed_by": 5, "was_cancelled": True, "result": []},
        ],
    },
    {
        "id": 2,
        "data": {"image": "/data/local-files/?d=photos/dogs/2.png"},
        "annotations": [{"completed_by": 3, "result": [choices("dog")]}],
    },
]
VOTES = [
    ("cat.1.jpg", "cat", 1.0, "3"),
    ("cat.1.jpg", "cat", 1.0, "ann@example.org"),
    ("cat.1.jpg", "dog", 1.0, "ann@example.org"),
    ("photos/dogs/2.png", "dog", 1.0, "3"),
]
MIN = [
    {"image": "a.png", "choice": "cat", "annotator": 1, "annotation_id": 1, "lead_time": 2.5},
    {"image": "b.png", "choice": {"choices": ["cat", "dog"]}, "annotator": 2, "annotation_id": 2},
]
SECOND = [  # argilla 2
    {
        "id": "r1",
        "fields": {"image": "data:image/png;base64,AAAA", "text": "which?"},
        "metadata": {"file": "a.png"},
        "responses": {"label": [{"value": "cat", "user_id": "u1"}]},
    },
    {
        "id": "r2",
        "fields": {"image": "https://example.org/b.png"},
        "metadata": {},
        "responses": {
            "label": [{"value": ["cat", "dog"], "user_id": "u2"}],
            "sure": [{"value": 4, "user_id": "u2"}],
        },
    },
]
FIRST = [  # argilla 1
    {
        "id": "r1",
        "fields": {"image": "a.png"},
        "responses": [
            {"user_id": "u1", "status": "submitted", "values": {"label": {"value": "cat"}}},
            {"user_id": "u2", "status": "discarded", "values": {"label": {"value": "dog"}}},
        ],
    }
]


def decision(**more: Any) -> dict[str, Any]:
    return {
        "_label_cost": -1,
        "_label_probability": 0.8,
        "_label_Action": 2,
        "_labelIndex": 1,
        "Timestamp": "2026-01-31T12:00:00.0000000Z",
        "EventId": "e1",
        "a": [2, 1],
        "p": [0.8, 0.2],
        "c": {
            "Shared": {"image": "a.png"},
            "_multi": [{"Action": {"id": "cat"}}, {"Action": {"id": "dog", "mood": "glad"}}],
        },
    } | more


def written(path: Path, records: list[Any]) -> Path:
    lines = path.name.split(".")[1] != "json"
    text = "\n".join(map(json.dumps, records)) + "\n" if lines else json.dumps(records, indent=1)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize(
    ("records", "rows", "note"),
    [
        (
            TASKS,
            VOTES,
            "is read as an export of label-studio (JSON); left out: 1 of type rectanglelabels, "
            "which names no class, 1 skipped by their annotators",
        ),
        (
            MIN,
            [("a.png", "cat", 1.0, "1"), ("b.png", "cat", 1.0, "2"), ("b.png", "dog", 1.0, "2")],
            "is read as an export of label-studio (JSON-MIN)",
        ),
        (
            SECOND,
            [
                ("a.png", "cat", 1.0, "u1"),
                ("https://example.org/b.png", "cat", 1.0, "u2"),
                ("https://example.org/b.png", "dog", 1.0, "u2"),
            ],
            'is read as an export of argilla; left out: 1 answers to "sure", which name no class',
        ),
        (
            FIRST,
            [("a.png", "cat", 1.0, "u1")],
            "is read as an export of argilla; left out: 1 discarded",
        ),
    ],
    ids=["label-studio", "label-studio, min", "argilla 2", "argilla 1"],
)
@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x.jsonl.gz"])
def test_votes(name: str, records: list[Any], rows: list[Any], note: str, tmp_path: Path) -> None:
    file = written(tmp_path / name, records)
    assert [row[1:] for row in rows_of(file)] == rows
    with open_events(str(file)) as events:
        assert events.kind == "votes"
        assert events.notes == (f"{name} {note}",)


def test_decisions(tmp_path: Path) -> None:
    records = [
        decision(),
        decision(_label_cost=0, _labelIndex=0, _label_probability=0.2, EventId="e2"),
        decision(_label_cost=None),
    ]
    file = written(tmp_path / "log.json", records)
    file.write_text("\n".join(map(json.dumps, records)))  # lines, as VW has them
    with open_events(str(file)) as events:
        assert events.kind == "impressions"
        found = events.connection.execute(
            "SELECT image, label, shown, clicked, propensity, time FROM events"
        ).fetchall()
        assert events.notes == (
            "log.json is read as Vowpal Wabbit's DSJson; left out: 1 decisions without a cost and "
            "a probability",
        )
    noon = 1769860800.0
    assert found == [
        ("a.png", "dog", 1.0, 1.0, 0.8, noon),
        ("a.png", "cat", 1.0, 0.0, 0.2, noon),
    ]


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (decision(_label_cost=-0.5), "_label_cost is -0.5: 0 for no click and -1"),
        (decision(c={"_multi": [{"x": "1", "y": "2"}] * 2}), "its action has none of label, class"),
        (
            decision(c={"Shared": {"city": "Graz"}}),
            "no name of an image in DSJson's context, whose",
        ),
        ({**TASKS[1], "annotations": [{"result": [{"type": "choices"}]}]}, "KeyError: 'value'"),
        ({**TASKS[1], "data": {"text": "a"}}, "no name of an image in label-studio's data, whose"),
        (
            {**FIRST[0], "responses": {"a": [{"value": "x"}], "b": [{"value": "x"}]}},
            "several questions about labels, a, b: export those of one",
        ),
    ],
)
def test_what_is_refused(record: Any, told: str, tmp_path: Path) -> None:
    file = written(tmp_path / "x.jsonl", [record])
    with pytest.raises(UserError) as refused, open_events(str(file)):
        pass
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_query_finds_its_own_way(tmp_path: Path) -> None:
    file = written(tmp_path / "x.jsonl", MIN[:1])
    query = "SELECT image, choice AS label, 2 AS votes FROM events"
    with open_events(str(file), query=query) as events:
        assert events.connection.execute("SELECT votes FROM events").fetchall() == [(2.0,)]


def test_a_record_cut_short(tmp_path: Path) -> None:
    file = written(tmp_path / "x.jsonl", MIN)
    file.write_text(file.read_text()[:-30])
    with pytest.raises(UserError, match="to its end as JSON"), open_events(str(file)):
        pass


def test_a_record_nested_without_end(tmp_path: Path) -> None:
    file = written(tmp_path / "x.jsonl", MIN)
    file.write_text(file.read_text() + '{"a":' + "[" * 100_000)
    with pytest.raises(UserError, match="to its end as JSON"), open_events(str(file)):
        pass
