"""From what a user types (a built-in world, a folder, a file, a Hub name) to tables of any kind."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from visgrpo.data import roles
from visgrpo.data.chats import image_counts, with_questions, without_placeholders
from visgrpo.data.folders import (
    image_files,
    read_cifar,
    read_image_folder,
    read_mask_folder,
    split_folders,
)
from visgrpo.data.images import file_names
from visgrpo.data.names import remarks_on
from visgrpo.data.roles import mask_table, text_table
from visgrpo.data.split import (
    ByGroup,
    ByLabel,
    ByRarestClass,
    InOrder,
    Part,
    Source,
    check_split_options,
    divide,
    parse_slice,
    parse_split,
    picture_groups,
)
from visgrpo.data.stored import (
    ALIASES,
    Stored,
    files_by_split,
    find_column,
    is_hub_name,
    is_plain_feature,
    stored_in,
    stored_on_hub,
    value_column,
)
from visgrpo.data.table import (
    IGNORE_INDEX,
    Role,
    Splits,
    Table,
    derived,
    of_bytes,
    of_files,
    of_rows,
    take_rows,
)
from visgrpo.data.worlds.shapes import MASK_CLASSES, digits_splits, shapes_splits
from visgrpo.errors import UserError, nearest
from visgrpo.texts import names_in, read_text


@dataclass(frozen=True)
class Reading:
    """What is asked for besides the data's name, as in `read`."""

    columns: Mapping[str, str | None]
    classes_file: str | Path | None = None
    ignore_index: int = IGNORE_INDEX
    fraction: float = 0.1
    seed: int = 0
    skip_bad_images: bool = False
    classes: tuple[str, ...] = ()  # once they are known
    only_test: bool = False  # a world need not make more


@dataclass(frozen=True)
class DataKind:
    """A kind of data: what its rows are made of, and where it comes from.

    Attributes:
        roles: of its columns; the first is what messages count by.
        part: how missing splits are set apart.
        word: what messages call data that does not exist.
        worlds: built-in data by name, made on request.
        elsewhere: further names that a typo may have been meant for.
        suffixes: of the files that hold its tables, the first to be looked for in a folder first.
        late: those that are looked for in a folder only after its layout.
        layout: reads a file or folder that holds no table, by split; None if it cannot.
        no_file: what is said of a file that is not read, after its path.
        no_folder: what is said of a folder.
        classes: finds the names of classes that tables do not hold.
        columns: names of columns that are as given here where the user gives none.
        of_pictures: whether only columns of pictures are looked at: a "label" may be a mask.
        rewrite: brings tables of other forms into ours, told which columns the user named.
        combine: makes rows of the values of a split, where roles depend on each other.
        others: whether the other columns are kept.
        fraction: share of the train rows that makes a missing validation split, by default.
    """

    roles: tuple[Role, ...]
    part: Part = field(default_factory=InOrder)
    word: str = "data set"
    worlds: Mapping[str, Callable[[Reading], Splits]] = field(default_factory=dict)
    elsewhere: tuple[str, ...] = ()
    suffixes: tuple[str, ...] = (".jsonl", ".parquet", ".csv", ".tsv", ".json")
    layout: Callable[[Path, Reading], Mapping[str, Table] | None] = lambda path, reading: None
    late: tuple[str, ...] = ()
    no_file: str = "is no table: name a .jsonl, .json, .csv or .parquet file."
    no_folder: str = "holds no .jsonl, .csv and .parquet files; name another folder."
    rewrite: Callable[[Stored, Mapping[str, str]], Stored] = lambda stored, columns: stored
    classes: Callable[[str, Path | None, Reading], tuple[str, ...]] = lambda spec, path, given: ()
    columns: Mapping[str, str] = field(default_factory=dict)
    of_pictures: bool = False
    combine: Callable[[str, dict[str, Any]], dict[str, Any]] | None = None
    others: bool = True
    fraction: float = 0.1


def read(
    spec: str,
    kind: DataKind | str = "labels",
    *,
    columns: Mapping[str, str | None] | None = None,
    classes_file: str | Path | None = None,
    ignore_index: int = IGNORE_INDEX,
    train_slice: str | None = None,
    validation_fraction: float | None = None,
    seed: int = 0,
    skip_bad_images: bool = False,
) -> Splits:
    """Read data in three splits that share no row.

    Without a test split, the stored validation split, on which results are then quoted, becomes
    it; without either, one is made (20 %, the same for every seed). Then `train_slice` is applied
    to the train rows, then a missing validation split is made from what is left of them, by `seed`.
    Labelled images and masks are set apart in proportion to their classes; rows that share an image
    or a prompt stay together; documents are cut from the end of the text, `validation_fraction` of
    it for each missing split. `Splits.notes` says what was made.

    Args:
        spec: a built-in world ("digits", "shapes", "shapes-out", "topics"); a folder; a file; or a
            name of the Hub, such as "cifar100" or "uoft-cs/cifar100". Labelled images are read from
            folders by class, binary CIFAR and parquet; masks from `images/` and `masks/` with equal
            file names, and parquet; text from .txt, whose paragraphs are the documents; everything
            but images and masks from .jsonl as well, and folders of these.
        kind: what the rows are made of: "labels" (images with a class each), "masks", "questions"
            (about images), "prompts", "pairs", "text", or a `DataKind` of your own.
        columns: of a table, by the word of their role ("image", "label", …), where their names are
            not usual.
        classes_file: the class names of masks, one per line in the order of the ids; by default
            `classes.txt` beside the data.
        ignore_index: the id of pixels in masks that belong to no class.
        train_slice: which train rows to use, such as "2000:"; rows are in stored order, which in
            an image folder is class by class.
        validation_fraction: share of the train rows that makes a missing validation split; 0.1
            by default, and 0.05 of text.
        seed: chooses that validation split, and the images of a built-in world.
        skip_bad_images: decode every picture once now and leave the unusable rows out, listed in
            each split's `skipped`; otherwise such a row is an error when it is used.

    Raises:
        UserError: if the data set is unknown or does not fit the description above.
    """
    kind = _kind(kind)
    fraction = kind.fraction if validation_fraction is None else validation_fraction
    check_split_options(fraction, seed)
    rows = slice(None) if train_slice is None else parse_slice(train_slice)
    reading = Reading(columns or {}, classes_file, ignore_index, fraction, seed, skip_bad_images)
    splits = divide(_source(spec, kind, reading), train_rows=rows, fraction=fraction, seed=seed)
    late = skip_bad_images and not kind.part.reads_pictures
    splits = splits.map(lambda table: replace(table, notes=()))  # they are the splits' own now
    return splits.map(Table.without_bad_rows) if late else splits


def read_split(
    spec: str,
    split: str,
    kind: DataKind | str = "labels",
    *,
    columns: Mapping[str, str | None] | None = None,
    classes_file: str | Path | None = None,
    ignore_index: int = IGNORE_INDEX,
    validation_fraction: float | None = None,
    seed: int = 0,
    skip_bad_images: bool = False,
) -> Table:
    """Read one split, or a slice of it.

    The names mean what they do in `read`: "test" is the stored validation split of data that has
    train rows and no test split. But "train" here is the train rows as they are stored, *before* a
    missing validation split is taken out of them (a missing test split is always out of them), so
    "train[:2000]" is the same rows whatever the seed, and can share rows with a made "validation".
    Use `read` to learn and choose on rows kept apart.

    Args:
        spec: as for `read`, like all that follow `kind`.
        split: "train", "validation", "test", or "all" for data that is stored undivided; with a
            slice if wanted, "train[:2000]".
        kind: as for `read`.
        columns: where column names are not usual.
        classes_file: the class names of masks.
        ignore_index: the id of pixels that belong to no class.
        validation_fraction: share of the train rows that makes a missing validation split.
        seed: chooses that validation split.
        skip_bad_images: leave unusable rows out.

    Raises:
        UserError: if the data set, split or slice is unknown or empty.
    """
    kind = _kind(kind)
    fraction = kind.fraction if validation_fraction is None else validation_fraction
    check_split_options(fraction, seed)
    name, rows = parse_split(split)
    reading = Reading(columns or {}, classes_file, ignore_index, fraction, seed, skip_bad_images)
    source = _source(spec, kind, reading).validation_as_test()
    if name != "all" and (name not in source.splits or name == "train"):
        source = source.with_test()  # a made test split leaves the train rows, whoever asks
    if name == "validation" and name not in source.splits:
        kind.part.check(source.stored("train"))
        source = source.with_validation(fraction, seed)
    chosen = source.select(name, rows)
    late = skip_bad_images and not kind.part.reads_pictures
    return chosen.without_bad_rows() if late else chosen


def read_test(
    spec: str,
    kind: DataKind | str,
    *,
    columns: Mapping[str, str | None] | None = None,
    seed: int = 0,
    skip_bad_images: bool = False,
) -> Table:
    """Read rows to evaluate on; nothing but a test split is needed.

    It is all rows of an undivided table; else the stored test split; else the stored validation
    split; else the test split that `read` makes of the train rows. A world may have test rows out
    of distribution under a name of their own ("shapes-out").

    Args:
        spec: as for `read`, like all others.
        kind: of the rows.
        columns: where column names are not usual.
        seed: of a built-in world.
        skip_bad_images: leave rows with an unreadable image out.

    Raises:
        UserError: as `read`.
    """
    kind = _kind(kind)
    reading = Reading(columns or {}, seed=seed, skip_bad_images=skip_bad_images)
    world, _, shift = spec.partition("-")
    if spec in kind.worlds or (spec in kind.elsewhere and world in kind.worlds):
        splits = kind.worlds[world](replace(reading, only_test=True))
        return splits.shifts[shift] if shift else splits.test
    source = _source(spec, kind, reading)
    best = next((split for split in ("all", "test", "validation") if split in source.splits), None)
    if best is not None:
        table = source.splits[best]
    else:
        made = source.with_test()
        table = made.splits["test"]
        table = replace(table, notes=(*table.notes, made.notes[-1]))
    return table.without_bad_rows() if skip_bad_images else table


def is_text(spec: str) -> bool:
    """Whether `spec` is text by itself: the built-in one, a .txt file or a folder of them."""
    return spec in WRITTEN.worlds or bool(_text_files(Path(spec).expanduser()))


def paragraphs(text: str) -> tuple[str, ...]:
    """Return what stands between blank lines; lines keep their indentation."""
    by_filled = groupby(text.split("\n"), key=lambda line: bool(line.strip()))
    return tuple("\n".join(lines) for filled, lines in by_filled if filled)


def _kind(kind: DataKind | str) -> DataKind:
    if isinstance(kind, DataKind):
        return kind
    if kind not in KINDS:
        raise UserError(f'Unknown kind of data "{kind}". {nearest(kind, KINDS)}')
    return KINDS[kind]


def _source(spec: str, kind: DataKind, reading: Reading) -> Source:
    """Return data as it is stored, without bad rows where all have to be looked at."""
    source = _stored(spec, kind, reading)
    if not (reading.skip_bad_images and kind.part.reads_pictures):
        return source
    splits = {split: table.without_bad_rows() for split, table in source.splits.items()}
    return replace(source, splits=splits)


def _stored(spec: str, kind: DataKind, reading: Reading) -> Source:
    """Return data as it is stored: the one place that knows what a name may mean."""
    if spec in kind.worlds:
        splits = kind.worlds[spec](reading)
        stored = {"train": splits.train, "validation": splits.validation, "test": splits.test}
        return Source(spec, stored, splits.notes, kind.part, shifts=splits.shifts)
    path = Path(spec).expanduser()
    if path.exists():
        reading = replace(reading, classes=kind.classes(spec, path, reading))
        tables = stored_in(path, (*kind.suffixes, *kind.late) if path.is_file() else kind.suffixes)
        if tables is None and _late_tables(path, kind):
            tables = stored_in(path, kind.late)
        if tables is None:
            name = path.resolve().name if path.is_dir() else path.stem
            layout = kind.layout(path, reading)
            if layout is None:
                raise UserError(f"{path} {kind.no_folder if path.is_dir() else kind.no_file}")
            notes = list(dict.fromkeys(note for table in layout.values() for note in table.notes))
            notes += remarks_on(next(iter(layout.values())).classes)
            return Source(name, layout, tuple(notes), kind.part)
    elif _is_a_path(spec, path, kind) or not is_hub_name(spec):
        raise UserError(_nothing_there(spec, path, kind))
    else:
        reading = replace(reading, classes=kind.classes(spec, None, reading))
        tables = stored_on_hub(spec)
    tables.classes, tables.missing_ok = reading.classes, reading.skip_bad_images
    return _of_tables(kind.rewrite(tables, _given(reading.columns)), kind, reading)


def _late_tables(path: Path, kind: DataKind) -> bool:
    """Whether a folder has nothing that its kind's layout would be: folders of pictures."""
    if not (path.is_dir() and kind.late):
        return False
    roots = split_folders(path).values() or [path]
    found = [
        [bool(image_files(entry)) for entry in root.iterdir() if entry.is_dir()] for root in roots
    ]
    return max(map(sum, found)) < 2  # one folder makes no classes: it holds a table's pictures


def _is_a_path(spec: str, path: Path, kind: DataKind) -> bool:
    suffixes = (*kind.suffixes, *kind.late, ".txt")
    return spec.startswith((".", "~")) or path.is_absolute() or path.suffix in suffixes


def _nothing_there(spec: str, path: Path, kind: DataKind) -> str:
    known = (*kind.worlds, *kind.elsewhere)
    if not known or _is_a_path(spec, path, kind) or "/" in spec or "\\" in spec:
        return f"No such file or folder: {spec}; check the path."
    return (
        f'Unknown {kind.word} "{spec}". {nearest(spec, known)} '
        "There is no file or folder of that name either."
    )


def _of_tables(stored: Stored, kind: DataKind, reading: Reading) -> Source:
    """Return stored tables as rows of a kind: columns found, and their values by role."""
    for split, table in stored.tables.items():
        if not len(table):
            raise UserError(f"{stored.name}/{split} holds no rows; leave it out or fill it.")
    found = _found(stored, kind, {**kind.columns, **_given(reading.columns)})
    values = {role: role.read(stored, column) for role, column in found.items()}
    ours = {column for role, column in found.items() if not role.kept}
    splits = {}
    for split, table in stored.tables.items():
        name, identity = f"{stored.name}/{split}", stored.identities[split]
        for role, column in found.items():
            identity = role.identity(stored, split, column, identity)
        rows = {role.name: values[role][split] for role in found}
        others = [column for column in table.column_names if column not in ours and kind.others]
        columns = {column: value_column(table, column) for column in others}
        if "file" not in columns and (names := _file_names(table, found)):
            columns["file"] = names
        places = stored.rows.get(split)
        if places is not None:
            rows = {role: take_rows(held, places) for role, held in rows.items()}
            columns = {column: take_rows(held, places) for column, held in columns.items()}
            identity = of_rows(identity, places)
        splits[split] = Table(
            name,
            rows if kind.combine is None else kind.combine(name, rows),
            kind.roles,
            columns,
            stored.classes,
            reading.ignore_index,
            identity=identity,
            notes=(*stored.notes.get("", ()), *stored.notes.get(split, ())),
            places=places,
            stored_as=name,
        )
    notes = tuple(note for notes in stored.notes.values() for note in notes)
    return Source(stored.name, splits, (*notes, *remarks_on(stored.classes)), kind.part)


def _file_names(table: Any, found: Mapping[Role, str]) -> Sequence[str] | None:
    """Return the names of a table's image files, where each row has one image with a name."""
    of_images = [column for role, column in found.items() if role.name == "images"]
    return file_names(table, of_images[0]) if of_images else None


def _given(columns: Mapping[str, str | None]) -> dict[str, str]:
    return {word: column for word, column in columns.items() if column is not None}


def _found(stored: Stored, kind: DataKind, given: Mapping[str, str]) -> dict[Role, str]:
    """Return the column of each role; an optional role may have none."""
    table = stored.first
    words = {role.word for role in kind.roles}
    for word, column in given.items():
        if word not in words and word not in kind.columns:
            raise UserError(
                f"--{word}-column {column}: these data have no {word}s; leave --{word}-column out."
            )
    if kind.of_pictures:
        table = table.select_columns(_pictured(table, kind, given))
    found: dict[Role, str] = {}
    taken: dict[str, str] = {}
    for role in sorted(kind.roles, key=lambda role: role.word != "image"):
        usual = any(column.lower() in role.usual for column in table.column_names)
        if role.optional and role.word not in given and not usual:
            continue
        column = find_column(stored.name, table, role.word, given.get(role.word), role.usual)
        if column in taken:
            raise UserError(
                f'{stored.name}: column "{column}" is taken for both the {taken[column]} and the '
                f"{role.word}; name another with --{role.word}-column."
            )
        found[role], taken[column] = column, role.word
    return found


def _pictured(table: Any, kind: DataKind, given: Mapping[str, str]) -> list[str]:
    """Return the columns of pictures and grids, and those of text where paths must be meant."""
    columns = table.features.items()
    pictured = [name for name, what in columns if roles.is_grid(what) or not is_plain_feature(what)]
    lower = {name.lower() for name in pictured}
    found = [role.word in given or lower & set(role.usual) for role in kind.roles]
    texts = [name for name, what in columns if "string" in getattr(what, "dtype", "")]
    return pictured if all(found) else [*pictured, *texts]


def _digits(reading: Reading) -> Splits:
    return digits_splits(seed=reading.seed, validation_fraction=reading.fraction)


def _shapes(reading: Reading) -> Splits:
    return shapes_splits(seed=reading.seed)


def _shapes_out(reading: Reading) -> Splits:
    return shapes_splits(seed=reading.seed, style="out")


def _masked(world: Callable[[Reading], Splits]) -> Callable[[Reading], Splits]:
    """Return the world of shapes with its masks: every pixel is background or one of six shapes."""

    def made(reading: Reading) -> Splits:
        return world(reading).map(
            lambda part: mask_table(
                part.name,
                MASK_CLASSES,
                part.images,
                part.columns["mask"],
                reading.ignore_index,
                {key: column for key, column in part.columns.items() if key != "mask"},
                identity=derived(part.identity, "masks"),
            )
        )

    return made


def rows_drawn(world: str, reading: Reading) -> dict[str, int]:
    """Return how many rows of a split a world of questions need make, where not its usual number.

    Raises:
        UserError: where columns are named: it has none.
    """
    for word, column in _given(reading.columns).items():
        raise UserError(
            f"--{word}-column {column}: {world} is drawn, and no table with columns; leave "
            f"--{word}-column out."
        )
    return {"train": 1, "validation": 1} if reading.only_test else {}


def _counting(reading: Reading) -> Splits:
    from visgrpo.data.worlds.counting import counting_splits

    return counting_splits(reading.seed, **rows_drawn("shapes", reading))


def _topics(reading: Reading) -> Splits:
    from pydoc_data.topics import topics

    # Some topics quote others whole: each paragraph once, or the test split would be known.
    texts = tuple(dict.fromkeys(part for topic in topics.values() for part in paragraphs(topic)))
    identity = of_bytes("topics", (document.encode() for document in texts))
    whole = text_table("topics/all", texts, identity=identity)
    return divide(Source("topics", {"all": whole}, (), WRITTEN.part), fraction=reading.fraction)


def _image_folder(path: Path, reading: Reading) -> Mapping[str, Table] | None:
    return (read_cifar(path) or read_image_folder(path)) if path.is_dir() else None


def _mask_folder(path: Path, reading: Reading) -> Mapping[str, Table] | None:
    if not path.is_dir():
        return None
    column = reading.columns.get("mask")
    if column is not None:
        raise UserError(
            f"--mask-column {column}: {path} is a folder of pictures, which has no columns: its "
            "masks are the files in masks/; leave --mask-column out."
        )
    return read_mask_folder(path, reading.classes, reading.ignore_index)


def _mask_classes(spec: str, path: Path | None, reading: Reading) -> tuple[str, ...]:
    file = reading.classes_file
    if file is None and path is None:
        raise UserError(
            f"{spec}: masks hold ids, not names; give a file with one class name per line, in the "
            "order of the ids, as --classes-file."
        )
    beside = Path() if path is None else path if path.is_dir() else path.parent
    named = beside / "classes.txt" if file is None else Path(file).expanduser()
    name = spec if path is None else path.resolve().name if path.is_dir() else path.name
    if not named.is_file():
        raise UserError(
            f"{name}: there is no {named}; write one class name per line into it, in the order of "
            "the ids, or name another file with --classes-file."
        )
    return tuple(names_in(named))


def _text_files(path: Path) -> dict[str, list[Path]]:
    if path.is_file():
        return {"all": [path]} if path.suffix == ".txt" else {}
    tables = ("*.jsonl", "*.parquet", "data/*.parquet")
    if not path.is_dir() or any(any(path.glob(pattern)) for pattern in tables):
        return {}
    return files_by_split(path, ".txt")


def _text_folder(path: Path, reading: Reading) -> Mapping[str, Table] | None:
    name = path.resolve().name if path.is_dir() else path.stem
    files = _text_files(path)
    return {
        split: text_table(
            f"{name}/{split}",
            [document for file in paths for document in paragraphs(read_text(file))],
            identity=of_files(paths),
        )
        for split, paths in files.items()
    } or None


def _pairs(where: str, values: dict[str, Any]) -> dict[str, Any]:
    names = ("prompts", "chosen", "rejected")
    columns = [values.get(name, [None] * len(values["chosen"])) for name in names]
    rows = [
        roles.one_pair(f"{where}: row {row}", *each)
        for row, each in enumerate(zip(*columns, strict=True))
    ]
    return dict(zip(names, zip(*rows, strict=True), strict=True))


def _asked(stored: Stored, columns: Mapping[str, str]) -> Stored:
    """Return tables of questions with their chats unfolded and no places of images in them."""
    stored = with_questions(stored, columns)
    asked, shown = (
        columns.get(role.word) or _usual(stored, role)
        for role in (roles.QUESTIONS, roles.ROW_IMAGES)
    )
    held = stored.first.column_names
    if asked is None or shown is None or not {asked, shown} <= set(held):
        return stored  # whoever looks for them says so
    for split, table in stored.tables.items():
        questions = table.select_columns([asked])[asked][:]
        if not all(isinstance(question, str) for question in questions):
            continue
        counts = image_counts(table, shown)
        plain, changed = without_placeholders(f"{stored.name}/{split}", questions, counts)
        if changed:
            table = table.remove_columns([asked]).add_column(asked, list(plain))
            stored.tables[split] = table.select_columns(held)
            stored.note(
                f'{stored.name}/{split}: "<image>" was taken out of {changed} questions; images '
                "stand before the words.",
            )
    return stored


def _usual(stored: Stored, role: Role) -> str | None:
    found = [name for name in stored.first.column_names if name.lower() in role.usual]
    return found[0] if len(found) == 1 else None


def _answered(where: str, values: dict[str, Any]) -> dict[str, Any]:
    return {"answers": ("",) * len(values["questions"]), **values}


_PICTURES = {
    "suffixes": (".parquet",),
    "late": (".csv", ".tsv", ".jsonl", ".json"),
    "no_file": "is no table; name a folder, or a .parquet, .csv, .tsv, .jsonl or .json file.",
}
LABELLED = DataKind(
    (roles.LABELS, roles.IMAGES),
    ByLabel(),
    worlds={"digits": _digits, "shapes": _shapes, "shapes-out": _shapes_out},
    elsewhere=tuple(ALIASES),
    layout=_image_folder,
    **_PICTURES,  # type: ignore[arg-type]
)
WITH_SETS = DataKind(
    (roles.LABEL_SETS, roles.IMAGES),
    ByGroup(groups=picture_groups, shared="image"),
    **_PICTURES,  # type: ignore[arg-type]
)
MASKED = DataKind(
    (roles.IMAGES, roles.MASKS),
    ByRarestClass(),
    worlds={"shapes": _masked(_shapes), "shapes-out": _masked(_shapes_out)},
    layout=_mask_folder,
    classes=_mask_classes,
    of_pictures=True,
    **_PICTURES,  # type: ignore[arg-type]
)
ASKED = DataKind(
    (roles.QUESTIONS, roles.ROW_IMAGES, roles.ANSWERS, roles.TRACES),
    ByGroup(groups=picture_groups, shared="image"),
    worlds={"shapes": _counting},
    elsewhere=("shapes-out",),
    combine=_answered,
    rewrite=_asked,
)
PROMPTED = DataKind((roles.PROMPTS,), ByGroup())
PAIRED = DataKind(
    (replace(roles.PROMPTS, optional=True, usual=("prompt",)), roles.CHOSEN, roles.REJECTED),
    ByGroup(),
    columns={"chosen": "chosen", "rejected": "rejected"},
    combine=_pairs,
)
WRITTEN = DataKind(
    (roles.TEXTS,),
    InOrder(),
    word="text",
    worlds={"topics": _topics},
    layout=_text_folder,
    no_file="is no text that can be read: name a .txt, .jsonl or .parquet file.",
    no_folder="holds no .txt, .jsonl or .parquet files; name another folder.",
    others=False,
    fraction=0.05,
)
KINDS: Mapping[str, DataKind] = {
    "labels": LABELLED,
    "label sets": WITH_SETS,
    "masks": MASKED,
    "questions": ASKED,
    "prompts": PROMPTED,
    "pairs": PAIRED,
    "text": WRITTEN,
}
