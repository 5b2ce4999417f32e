"""Find the images and classes of a data set that rows of feedback speak of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from visgrpo.errors import UserError, nearest
from visgrpo.feedback.source.events import Events
from visgrpo.feedback.source.schemas import SCHEMAS, identifier, only_row

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


KEY_COLUMNS = ("id", "image_id", "path", "image_path", "file", "filename", "file_name", "name")
"""Columns of a data set that may name its images."""
MOST_LISTED = 20
_MEND_NUMBERS = "take one off in a --query, or write the names"
_MEND_SHARED = "give every image a name of its own, or say which column has one with --id-column"
# Below, a path is written with "/" and without "./" or "/" at its beginning.
_MACROS = r"""
    CREATE OR REPLACE TEMP MACRO plain_path(text) AS
        regexp_replace(replace(text, '\', '/'), '^(\.{0,2}/)+', '');
    CREATE OR REPLACE TEMP MACRO is_path(text) AS
        regexp_matches(text, '[/\\]|\.[A-Za-z][A-Za-z0-9]{1,4}$');
    CREATE OR REPLACE TEMP MACRO endings(text) AS
        list_transform(
            range(1, len(string_split(plain_path(text), '/')) + 1),
            lambda i: array_to_string(list_slice(string_split(plain_path(text), '/'), i, -1), '/')
        );
"""
# Of every name that images of the data may have: an image, and how many have it.
_FIND_IMAGES = """
    CREATE OR REPLACE TABLE seen AS SELECT image, count(*) AS rows FROM events GROUP BY image;
    CREATE OR REPLACE TABLE keys AS FROM given_keys;
    CREATE OR REPLACE TEMP TABLE exact AS
        SELECT key AS name, min(m) AS m, count(DISTINCT m) AS n FROM keys GROUP BY key;
    CREATE OR REPLACE TEMP TABLE whole AS
        SELECT plain_path(key) AS name, min(m) AS m, count(DISTINCT m) AS n
        FROM keys WHERE is_path(key) GROUP BY name;
    CREATE OR REPLACE TEMP TABLE ends AS
        SELECT name, min(m) AS m, count(DISTINCT m) AS n
        FROM (SELECT m, unnest(endings(key)) AS name FROM keys WHERE is_path(key)) GROUP BY name;
    CREATE OR REPLACE TABLE images AS
        SELECT image, m FROM seen JOIN exact ON image = name WHERE n = 1;
    CREATE OR REPLACE TEMP VIEW rest AS FROM seen ANTI JOIN images USING (image);
    -- The log's path is the end of one of the data's.
    INSERT INTO images SELECT image, m FROM rest JOIN ends ON plain_path(image) = name WHERE n = 1;
    -- One of the data's paths is the end of the log's.
    CREATE OR REPLACE TEMP TABLE longer AS
        SELECT image, name FROM
            (SELECT image, unnest(endings(image)) AS name FROM rest WHERE is_path(image));
    INSERT INTO images
        WITH claims AS (
            SELECT image, arg_max(m, length(name)) AS m FROM longer JOIN whole USING (name)
            WHERE n = 1 GROUP BY image
        )
        SELECT min(image), m FROM claims ANTI JOIN images USING (m) GROUP BY m HAVING count(*) = 1;
    -- What was not found has a name that several images share, or is not in the data.
    CREATE OR REPLACE TEMP TABLE ambiguous AS
        FROM rest WHERE image IN (SELECT name FROM exact WHERE n > 1)
            OR plain_path(image) IN (SELECT name FROM ends WHERE n > 1)
            OR image IN (SELECT image FROM longer JOIN whole USING (name) WHERE n > 1);
    CREATE OR REPLACE TEMP TABLE missing AS FROM rest ANTI JOIN ambiguous USING (image);
"""


@dataclass(frozen=True)
class Matched:
    """Feedback on images and labels that are known.

    The connection of `events` also has the tables images(image, m) and labels(label, k), from the
    log's words to positions in the data, and the view `matched`: the rows of `events` about images
    that were found, with m and k (of preferences preferred_k and rejected_k).

    Attributes:
        classes: class names, K of them.
        images: rows of the data, M.
        rows: rows of the log whose image was found.
        unmatched_rows: rows about images that the data does not have.
        unmatched_images: the images most often named in those, with their rows; at most 20.
        unmatched_image_count: how many images they name.
        ambiguous_rows: rows that call their image by a name that several images of the data share.
        ambiguous_images: how many such names there are.
        ambiguous_example: the one in most rows, None where there is none.
        numbered: labels that are numbers of classes, from 0, with what each stands for.
    """

    events: Events
    classes: tuple[str, ...]
    images: int
    rows: int
    unmatched_rows: int
    unmatched_images: tuple[tuple[str, int], ...]
    unmatched_image_count: int
    ambiguous_rows: int
    ambiguous_images: int
    ambiguous_example: str | None
    numbered: tuple[tuple[str, str], ...]


def key_columns(columns: Mapping[str, Sequence[Any]], id_column: str | None = None) -> list[str]:
    """Return the columns that name images; none means that row numbers do.

    Raises:
        UserError: there is no column `id_column`.
    """
    if id_column is None:
        return [name for name in KEY_COLUMNS if name in columns]
    if id_column not in columns:
        hint = nearest(id_column, columns) if columns else "It has none."
        raise UserError(f'The data have no column "{id_column}". {hint}')
    return [id_column]


def image_keys(
    columns: Mapping[str, Sequence[Any]], rows: int, id_column: str | None = None
) -> list[list[str]]:
    """Return the names of each of M images, which a log may call it by.

    Args:
        columns: those of the data set, without its images.
        rows: M.
        id_column: the only column that names images; None takes all of `KEY_COLUMNS`, and the
            number of the row, from 0, where there is none of them.

    Returns:
        M lists of names. Nulls name nothing.

    Raises:
        UserError: there is no column `id_column`.
    """
    names = key_columns(columns, id_column)
    if not names:
        return [[str(row)] for row in range(rows)]
    keys: list[list[str]] = [[] for _ in range(rows)]
    for name in names:
        for row, value in enumerate(columns[name]):
            if value is not None and (text := str(value)) not in keys[row]:
                keys[row].append(text)
    return keys


def match(events: Events, keys: Sequence[Sequence[str]], classes: Sequence[str]) -> Matched:
    """Find the image and the classes of every row.

    An image is found by a name that is exactly one of its keys, and of no other image. Failing
    that, paths may have longer beginnings on one side: "photos/cat/1.png" is "cat/1.png" if just
    one of the images, and just one of the log's paths, ends like that. Labels are class names,
    with other capitals if that is clear, or class ids if no class is named by a number.

    Args:
        keys: M lists, of `image_keys`.
        classes: K class names.

    Raises:
        UserError: a label is no class, or no image was found.
    """
    connection = events.connection
    numbered = _match_labels(events, classes)
    _match_images(connection, keys)
    _create_view(events)
    _, rows = _count(connection, "seen SEMI JOIN images USING (image)")
    shared, shared_rows = _count(connection, "ambiguous")
    missing, missing_rows = _count(connection, "missing")
    shared_most, missing_most = _most(connection, "ambiguous"), _most(connection, "missing")
    if not rows and shared:
        raise UserError(_all_shared(events, shared_most[0][0], missing))
    if not rows:
        raise UserError(_none_found(events, missing_most[0][0], keys))
    return Matched(
        events,
        tuple(classes),
        len(keys),
        rows,
        missing_rows,
        missing_most,
        missing,
        shared_rows,
        shared,
        shared_most[0][0] if shared else None,
        numbered,
    )


def logged_labels(events: Events) -> tuple[str, ...]:
    """Return the labels that a table of feedback speaks of, sorted."""
    columns = SCHEMAS[events.kind].labels
    union = " UNION ".join(f"SELECT DISTINCT {column} FROM events" for column in columns)
    return tuple(sorted(label for (label,) in events.connection.execute(union).fetchall()))


def remarks_on_images(matched: Matched) -> list[str]:
    """Return what to say of events that were left out, since their images were not found."""
    said = []
    if matched.unmatched_rows:
        rows, count = matched.unmatched_rows, matched.unmatched_image_count
        listed = ", ".join(f'"{image}" ({n:,})' for image, n in matched.unmatched_images[:5])
        more = ", …" if count > 5 else ""
        are = "is" if rows == 1 else "are"
        images = "1 image that is" if count == 1 else f"{count:,} images that are"
        said.append(
            f"{matched.events.name}: {rows:,} of {matched.events.rows:,} events {are} about "
            f"{images} not in the data as loaded; left out: {listed}{more}."
        )
    return [*said, *remarks_on_names(matched)]


def remarks_on_names(matched: Matched) -> list[str]:
    """Return what to say of names that may mean something else: of labels, and of images."""
    return [*_on_numbers(matched), *_on_shared_names(matched)]


def _on_numbers(matched: Matched) -> list[str]:
    if not matched.numbered:
        return []
    listed = ", ".join(f"{label} = {name}" for label, name in matched.numbered[:5])
    more = ", …" if len(matched.numbered) > 5 else ""
    name, known = matched.events.name, {int(label) for label, _ in matched.numbered}
    doubt = "" if 0 in known else f". None of them is 0: if they count from 1, {_MEND_NUMBERS}"
    return [f"labels of {name} are numbers of classes, from 0: {listed}{more}{doubt}"]


def _on_shared_names(matched: Matched) -> list[str]:
    if not matched.ambiguous_rows:
        return []
    rows, others = matched.ambiguous_rows, matched.ambiguous_images - 1
    names = {0: "", 1: " and 1 other"}.get(others, f" and {others:,} others")
    return [
        f"{rows:,} of {matched.events.rows:,} events of {matched.events.name} left out, since "
        f'several images of the data share the name "{matched.ambiguous_example}"{names}: '
        f"{_MEND_SHARED}."
    ]


def _count(connection: DuckDBPyConnection, names: str) -> tuple[int, int]:
    """Return how many names of images there are in a part of the table `seen`, and their rows."""
    count, rows = only_row(
        connection, f"SELECT count(*), coalesce(sum(rows), 0)::BIGINT FROM {names}"
    )
    return count, rows


def _most(connection: DuckDBPyConnection, names: str) -> tuple[tuple[str, int], ...]:
    """Return the names of the most rows, and how many rows."""
    return tuple(
        connection.execute(
            f"SELECT image, rows FROM {names} ORDER BY rows DESC, image LIMIT {MOST_LISTED}"
        ).fetchall()
    )


def _match_images(connection: DuckDBPyConnection, keys: Sequence[Sequence[str]]) -> None:
    """Create the tables images(image, m), and of what was not found ambiguous and missing."""
    import pyarrow as pa

    pairs = [(key, row) for row, names in enumerate(keys) for key in names]
    given = pa.table(
        {
            "key": pa.array([key for key, _ in pairs], pa.string()),
            "m": pa.array([row for _, row in pairs], pa.int32()),
        }
    )
    connection.execute(_MACROS)
    connection.register("given_keys", given)
    connection.execute(_FIND_IMAGES)
    connection.unregister("given_keys")


def _create_view(events: Events) -> None:
    labels = SCHEMAS[events.kind].labels
    aliases = ["k"] if len(labels) == 1 else [f"{label}_k" for label in labels]
    selected = ", ".join(f"l{n}.k AS {alias}" for n, alias in enumerate(aliases))
    joins = " ".join(
        f"JOIN labels AS l{n} ON l{n}.label = events.{identifier(label)}"
        for n, label in enumerate(labels)
    )
    events.connection.execute(
        f"CREATE OR REPLACE VIEW matched AS SELECT events.*, m, {selected} "
        f"FROM events JOIN images USING (image) {joins}"
    )


def _none_found(events: Events, image: str, keys: Sequence[Sequence[str]]) -> str:
    known = next((names[0] for names in keys if names), None)
    data = "the data name none" if known is None else f'the data as "{known}"'
    return (
        f'{events.name}: none of its images is in the data. It names them as "{image}", {data}: '
        "say which column has the log's names with --id-column."
    )


def _all_shared(events: Events, image: str, missing: int) -> str:
    others = "1 other name is" if missing == 1 else f"{missing:,} other names are"
    rest = f" ({others} not in the data.)" if missing else ""
    return (
        f"{events.name}: none of its images can be told from others. Several images of the data "
        f'are called "{image}": {_MEND_SHARED}.{rest}'
    )


def _match_labels(events: Events, classes: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Create the table labels(label, k); return the labels that are numbers, with their classes.

    Raises:
        UserError: a label is no class.
    """
    import pyarrow as pa

    connection = events.connection
    places = pa.array(range(len(classes)), pa.int32())
    connection.register(
        "given_classes", pa.table({"name": pa.array(classes, pa.string()), "k": places})
    )
    union = " UNION ALL ".join(
        f"SELECT {identifier(column)} AS label, row FROM events"
        for column in SCHEMAS[events.kind].labels
    )
    connection.execute(
        rf"""
        CREATE OR REPLACE TABLE classes AS FROM given_classes;
        CREATE OR REPLACE TEMP TABLE said AS
            SELECT label, min(row) AS row FROM ({union}) GROUP BY label;
        CREATE OR REPLACE TABLE labels AS
        WITH folded AS (
            SELECT lower(name) AS name, min(k) AS k FROM classes
            GROUP BY lower(name) HAVING count(*) = 1
        ),
        ids AS (
            SELECT k FROM classes
            WHERE (SELECT count(*) FROM classes WHERE TRY_CAST(name AS DOUBLE) IS NOT NULL) = 0
        )
        SELECT label, coalesce(exact.k, folded.k, ids.k) AS k, row, ids.k AS id FROM said
        LEFT JOIN classes AS exact ON exact.name = label
        LEFT JOIN folded ON folded.name = lower(label)
        LEFT JOIN ids
            ON ids.k = CASE WHEN regexp_full_match(label, '\d+') THEN TRY_CAST(label AS BIGINT) END
        """
    )
    connection.unregister("given_classes")
    unknown = connection.execute(
        "SELECT label, row, count(*) OVER () FROM labels WHERE k IS NULL ORDER BY row LIMIT 1"
    ).fetchall()
    for label, row, count in unknown:
        more = f" ({count:,} labels are unknown.)" if count > 1 else ""
        if label == str(len(classes)) and _are_numbers(connection):
            raise UserError(
                f'{events.name}, row {row}: label "{label}" is no number of a class: these are 0 '
                f"to {len(classes) - 1}. If they count from 1, {_MEND_NUMBERS}.{more}"
            )
        raise UserError(
            f'{events.name}, row {row}: unknown label "{label}". {nearest(label, classes)}{more}'
        )
    connection.execute("ALTER TABLE labels DROP COLUMN row")
    numbered = connection.execute("SELECT label, id FROM labels WHERE id IS NOT NULL ORDER BY id")
    return tuple((label, classes[k]) for label, k in numbered.fetchall())


def _are_numbers(connection: DuckDBPyConnection) -> bool:
    """Whether some labels were found by the number of their class."""
    return bool(only_row(connection, "SELECT count(id) FROM labels")[0])
