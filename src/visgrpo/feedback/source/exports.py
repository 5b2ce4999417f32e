"""Exports of label-studio and argilla, and Vowpal Wabbit's DSJson, read as tables of feedback.

They are JSON in which a judgement lies deep inside: label-studio's annotations below a task,
argilla's responses below a record, and in DSJson an action, its probability and its cost.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TextIO
from urllib.parse import parse_qs, urlsplit

from visgrpo.errors import UserError
from visgrpo.feedback.source.schemas import IMAGE_NAMES

_PEEK = 2**20  # characters in which the first record must end
_BATCH = 10_000
_PICTURE = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?)$", re.IGNORECASE)
_UPLOADED = re.compile(r"^[0-9a-f]{8}-")  # what label-studio puts before an uploaded file's name
_LABEL_NAMES = ("label", "class", "name", "id", "action")
_DAMAGE = (OSError, EOFError, zlib.error, ValueError, RecursionError)
Record = Mapping[str, Any]
Row = dict[str, Any]


class Export(NamedTuple):
    """How one tool's records become rows.

    Attributes:
        tool: what messages call it.
        known: whether a record is of this tool.
        rows: of a record, each with all columns; counts what it leaves out, and why.
        columns: of the rows.
    """

    tool: str
    known: Callable[[Record], bool]
    rows: Callable[[Record, Counter[str]], Iterator[Row]]
    columns: tuple[str, ...]


@dataclass
class Exported:
    """The rows of files of one export; what was left out is known when they have been written."""

    export: Export
    files: Sequence[Path]
    left_out: Counter[str] = field(default_factory=Counter)

    def write(self, path: Path) -> None:
        """Write the rows to a Parquet file, all of them texts.

        Raises:
            UserError: a record is not as its tool writes it.
        """
        import pyarrow as pa
        from pyarrow import parquet

        schema = pa.schema([(name, pa.string()) for name in self.export.columns])
        rows = self._rows()
        with parquet.ParquetWriter(path, schema) as writer:
            while some := list(islice(rows, _BATCH)):
                columns = ([_text(row.get(name)) for row in some] for name in schema.names)
                batch = dict(zip(schema.names, columns, strict=True))
                writer.write_batch(pa.record_batch(batch, schema=schema))

    def _rows(self) -> Iterator[Row]:
        for file in self.files:
            for number, record in enumerate(_records(file), 1):
                try:
                    yield from self.export.rows(record, self.left_out)
                except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
                    raise UserError(
                        f"{file}, record {number}: it is not as {self.export.tool} writes it "
                        f"({type(error).__name__}: {error})."
                    ) from error

    def notes(self) -> tuple[str, ...]:
        """Say what the files were taken for, and what of them is no judgement."""
        told = f"{self.files[0].name} is read as {self.export.tool}"
        left = ", ".join(f"{count} {why}" for why, count in self.left_out.items())
        return (f"{told}; left out: {left}" if left else told,)


def exported(files: Sequence[Path]) -> Exported | None:
    """Return what files hold if their first record is one of an export; None for a plain table."""
    first = _first_record(files[0])
    for export in EXPORTS:
        if first is not None and export.known(first):
            return Exported(export, files)
    return None


def _label_studio(record: Record, left_out: Counter[str]) -> Iterator[Row]:
    image = _image_of(record["data"], "label-studio's data")
    for annotation in record["annotations"]:
        if annotation.get("was_cancelled"):
            left_out["skipped by their annotators"] += 1
            continue
        by = annotation.get("completed_by")
        user = by.get("email") or by.get("id") if isinstance(by, dict) else by
        for result in annotation["result"]:
            if result["type"] != "choices":
                left_out[f"of type {result['type']}, which names no class"] += 1
                continue
            for choice in result["value"]["choices"]:
                yield {"image": image, "label": choice, "votes": 1, "user": user}


def _label_studio_min(record: Record, left_out: Counter[str]) -> Iterator[Row]:
    image = _image_of(record, "label-studio's JSON-MIN")
    if "choice" not in record:
        left_out["without a choice"] += 1
        return
    chosen = record["choice"]
    for choice in chosen["choices"] if isinstance(chosen, dict) else [chosen]:
        yield {"image": image, "label": choice, "votes": 1, "user": record.get("annotator")}


def _argilla(record: Record, left_out: Counter[str]) -> Iterator[Row]:
    fields, more = record["fields"], record.get("metadata") or {}
    own = {"id": record.get("id") or record.get("external_id")}
    named = {**own, **more, **{k: v for k, v in fields.items() if not _is_inside(v)}}
    image = _image_of(named, "argilla's fields and metadata", record.get("id"))
    asked: set[str] = set()
    for question, value, user in _responses(record["responses"], left_out):
        labels = value if isinstance(value, list) else [value]
        if not all(isinstance(label, str) for label in labels):
            left_out[f'answers to "{question}", which name no class'] += 1
            continue
        asked.add(question)
        if len(asked) > 1:
            raise UserError(
                f"argilla's records have several questions about labels, {', '.join(sorted(asked))}"
                ": export those of one."
            )
        for label in labels:
            yield {"image": image, "label": label, "votes": 1, "user": user}


def _responses(found: Any, left_out: Counter[str]) -> Iterator[tuple[str, Any, Any]]:
    """Yield question, value and user of responses, as versions 1 and 2 of argilla have them."""
    if isinstance(found, dict):
        each = [(name, one, one) for name, answers in found.items() for one in answers]
    else:
        each = [
            (name, one, whole)
            for whole in found
            for name, one in (whole.get("values") or {}).items()
        ]
    for name, one, whole in each:
        if whole.get("status", "submitted") != "submitted":
            left_out[str(whole["status"])] += 1
            continue
        yield name, one["value"], whole.get("user_id")


def _dsjson(record: Record, left_out: Counter[str]) -> Iterator[Row]:
    if record.get("_label_cost") is None or record.get("_label_probability") is None:
        left_out["decisions without a cost and a probability"] += 1
        return
    cost = float(record["_label_cost"])
    if cost not in (0.0, -1.0):
        raise ValueError(f"_label_cost is {cost:g}: 0 for no click and -1 for one can be read")
    context, chosen = record["c"], int(record.get("_labelIndex", 0))
    shared = {name: value for name, value in context.items() if name != "_multi"}
    label: Any = chosen
    if "_multi" in context:
        texts = dict(_leaves(context["_multi"][chosen]))
        label = next((texts[name] for name in _LABEL_NAMES if name in texts), None)
        if label is None and len(texts) == 1:
            (label,) = texts.values()
        if label is None:
            raise ValueError(f"its action has none of {', '.join(_LABEL_NAMES)}")
    yield {
        "image": _image_of(dict(_leaves(shared)), "DSJson's context"),
        "label": label,
        "clicked": int(cost < 0),
        "propensity": float(record["_label_probability"]),
        "time": record.get("Timestamp"),
    }


_VOTES = ("image", "label", "votes", "user")
EXPORTS = (
    Export(
        "an export of label-studio (JSON)",
        lambda record: isinstance(record.get("annotations"), list) and "data" in record,
        _label_studio,
        _VOTES,
    ),
    Export(
        "an export of label-studio (JSON-MIN)",
        lambda record: "annotation_id" in record and "annotator" in record,
        _label_studio_min,
        _VOTES,
    ),
    Export(
        "an export of argilla",
        lambda record: isinstance(record.get("fields"), dict) and "responses" in record,
        _argilla,
        _VOTES,
    ),
    Export(
        "Vowpal Wabbit's DSJson",
        lambda record: isinstance(record.get("c"), dict) and "_label_cost" in record,
        _dsjson,
        ("image", "label", "clicked", "propensity", "time"),
    ),
)


def _image_of(values: Record, where: str, otherwise: Any = None) -> str:
    """Return what the image of a record is called."""
    by_lower = {name.lower(): value for name, value in values.items() if isinstance(value, str)}
    found = [by_lower[name] for name in IMAGE_NAMES if name in by_lower]
    found = found or [v for v in by_lower.values() if _PICTURE.search(urlsplit(v).path)]
    if len(set(found[:1] if any(name in by_lower for name in IMAGE_NAMES) else found)) == 1:
        return _file_of(found[0])
    if otherwise is not None:
        return str(otherwise)
    raise ValueError(
        f"no name of an image in {where}, whose keys are {', '.join(values)}: call one "
        f"{IMAGE_NAMES[0]}"
    )


def _file_of(address: str) -> str:
    """Return the file of an address as label-studio serves it; others as they are."""
    parts = urlsplit(address)
    if parts.path.endswith("/local-files/"):
        return parse_qs(parts.query).get("d", [address])[0]
    if "/data/upload/" in f"/{parts.path}":
        return _UPLOADED.sub("", Path(parts.path).name)
    return address


def _is_inside(value: Any) -> bool:
    """Whether a picture itself stands in a record, as a data address."""
    return isinstance(value, str) and value.startswith("data:")


def _leaves(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield the texts at any depth, each under its own key."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, key.lower())
    elif isinstance(value, list):
        for inner in value:
            yield from _leaves(inner, name)
    elif isinstance(value, str):
        yield name, value


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _first_record(file: Path) -> Record | None:
    if ".json" not in file.name.lower() and ".ndjson" not in file.name.lower():
        return None
    try:
        with _opened(file) as lines:
            start = lines.read(_PEEK).lstrip()
        record, _ = json.JSONDecoder().raw_decode(start.removeprefix("[").lstrip())
    except _DAMAGE:  # the reader of tables says what is wrong with it
        return None
    return record if isinstance(record, dict) else None


def _records(file: Path) -> Iterator[Record]:
    """Yield the records of a JSON array, which is read whole, or of JSON lines."""
    try:
        with _opened(file) as lines:
            begin = lines.read(1)
            while begin.isspace():
                begin = lines.read(1)
            lines.seek(0)
            if begin == "[":
                yield from json.load(lines)
                return
            for line in lines:
                if line.strip():
                    yield json.loads(line)
    except _DAMAGE as error:
        raise UserError(f"{file} cannot be read to its end as JSON: {error}.") from error


def _opened(file: Path) -> TextIO:
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8-sig")
    return file.open(encoding="utf-8-sig")
