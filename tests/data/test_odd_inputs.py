"""Files as people have them: each is read as what it is, or refused in one line that names it."""

from __future__ import annotations

import base64
import io
import json
import struct
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from visgrpo.data.read import read
from visgrpo.data.table import Splits
from visgrpo.errors import UserError

CLASSES = ("ant", "bee")
COLOURS = {"ant": (200, 0, 0), "bee": (0, 200, 0)}
Build = Callable[[Path], Any]


# ---- what folders and tables are made of --------------------------------------------------------


def picture(seed: int, size: tuple[int, int] = (6, 4)) -> Image.Image:
    """Different pixels for every seed; the first one's red value is the seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    pixels[0, 0, 0] = seed
    return Image.fromarray(pixels)


def encoded(image: Image.Image, form: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **more)
    return buffer.getvalue()


def put(path: Path, content: bytes | str | Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, Image.Image):
        content = encoded(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def folders(root: Path, names: Sequence[str] = CLASSES, each: int = 4, first: int = 0) -> Path:
    for place, name in enumerate(names):
        for number in range(each):
            put(root / name / f"{number}.png", picture(first + place * each + number))
    return root


def named(names: Sequence[str], content: bytes | str, file: str = "classes.txt") -> Build:
    """Class folders with a file of names beside them."""

    def build(root: Path) -> None:
        folders(root, names)
        put(root / file, content)

    return build


def splits_of(*names: str, within: Build = folders) -> Build:
    def build(root: Path) -> None:
        for place, name in enumerate(names):
            folders(root / name, first=20 * place)

    return build


def lines(rows: Sequence[dict[str, Any]], file: str = "x.jsonl", images: int = 6) -> Build:
    """Rows of a table, with images/0.png and so on beside it."""

    def build(root: Path) -> Path:
        for number in range(images):
            put(root / "images" / f"{number}.png", picture(number))
        text = json.dumps(rows) if file.endswith(".json") else "\n".join(map(json.dumps, rows))
        return put(root / file, text)

    return build


def text(content: bytes | str, file: str, images: int = 6) -> Build:
    def build(root: Path) -> Path:
        lines([], images=images)(root)
        return put(root / file, content)

    return build


def parquet(path: Path, rows: int = 6, first: int = 0, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    held = [{"bytes": encoded(picture(first + row)), "path": None} for row in range(rows)]
    pq.write_table(pa.table({"image": held, **columns}), path)
    return path


def labelled(path: Path, names: Sequence[str], ids: Sequence[int], first: int = 0) -> None:
    """Parquet whose class names are written as datasets writes them."""
    held = [{"bytes": encoded(picture(first + row)), "path": None} for row in range(len(ids))]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(names))}
    )
    table = datasets.Dataset.from_dict({"image": held, "label": list(ids)}, features=features)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.data.table, path)  # with its metadata


def masks(
    ids: Sequence[np.ndarray],
    *,
    classes: bytes | str = "background\nblob\n",
    ending: str = "png",
    image: Callable[[int], bytes] = lambda row: encoded(picture(row)),
    mask: Callable[[np.ndarray], bytes] = lambda ids: encoded(Image.fromarray(ids)),
    images_as: str = "png",
) -> Build:
    def build(root: Path) -> None:
        for row, each in enumerate(ids):
            put(root / "images" / f"{row}.{images_as}", image(row))
            put(root / "masks" / f"{row}.{ending}", mask(each))
        put(root / "classes.txt", classes)

    return build


def ids_HW(*values: int, size: tuple[int, int] = (6, 4)) -> np.ndarray:
    return np.resize(np.array(values, dtype=np.uint8), (size[1], size[0]))


def turned(row: int, orientation: int, size: tuple[int, int] = (6, 4)) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return encoded(picture(row, size), "JPEG", exif=exif)


def ask(row: int, **more: Any) -> dict[str, Any]:
    return {"image": f"images/{row}.png", "question": "How many?", "answer": str(row), **more}


def asked(change: Callable[[int], dict[str, Any]], file: str = "x.jsonl") -> Build:
    return lines([change(row) for row in range(6)], file)


def uri(row: int) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(picture(row))).decode()


# ---- what comes of them -------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """Some files, and what is read of them or said about them.

    `read` is compared with the classes of labels and masks, and with the first question, its
    answer and its trace; `says` stands in a note, `refused` is the beginning of the message after
    the place of the files.
    """

    name: str
    build: Build
    read: tuple[Any, ...] | None = None
    rows: int | None = None
    says: str = ""
    refused: str = ""
    kind: str = "labels"
    more: dict[str, Any] = field(default_factory=dict)


def refused(name: str, build: Build, message: str, kind: str = "labels", **more: Any) -> Case:
    return Case(name, build, refused=message, kind=kind, more=more)


NFD = unicodedata.normalize("NFD", "café")
SPLIT_NAMES = (
    ("Training", "Testing"),
    ("train", "dev"),
    ("TRAIN", "TEST"),
    ("training_set", "test_set"),
    ("Train_data", "Test_data"),
    ("seg_train", "seg_test"),
    ("trainset", "testset"),
    ("train-images", "val-images"),
    ("TrainData", "ValidData"),
    ("train", "Validation Set"),
)


def _unwrapped(root: Path) -> None:
    for place, name in enumerate(("seg_train", "seg_test")):
        folders(root / name / name, first=20 * place)


def _hidden(root: Path) -> None:
    folders(root, ("cat", "dog"))
    put(root / "cat" / ".ipynb_checkpoints" / "0-checkpoint.png", picture(0))
    put(root / "cat" / "._0.png", b"Apple's own")
    put(root / "@eaDir" / "cat" / "thumb.png", picture(99))
    put(root / "__MACOSX" / "cat" / "0.png", b"Apple's own")
    put(root / "#recycle" / "0.png", picture(98))


def _accents(root: Path) -> None:
    folders(root / "train", ("café", "thé"))
    folders(root / "test", (NFD, "thé"), first=20)


def _tiny_imagenet(root: Path) -> None:
    ids = ("n01443537", "n01629819")
    for place, name in enumerate(ids):
        for number in range(4):
            put(
                root / "train" / name / "images" / f"{name}_{number}.JPEG",
                encoded(picture(place * 4 + number), "JPEG"),
            )
    rows = [(f"val_{row}.JPEG", ids[row % 2]) for row in range(4)]
    for row, (file, _) in enumerate(rows):
        put(root / "val" / "images" / file, encoded(picture(20 + row), "JPEG"))
        put(root / "test" / "images" / f"test_{row}.JPEG", encoded(picture(30 + row), "JPEG"))
    put(root / "val" / "val_annotations.txt", "\n".join(f"{a}\t{b}\t0\t0\t9\t9" for a, b in rows))
    put(root / "words.txt", "n01443537\tgoldfish\nn01629819\tfire salamander\nn99999999\tother\n")


def _domains(root: Path) -> None:
    for domain in ("photo", "sketch", "cartoon"):
        folders(root / domain)


def _kept_back(root: Path) -> None:
    splits_of("train")(root)
    put(root / "test" / "0.png", picture(90))


def _beside(root: Path) -> None:
    splits_of("train", "test")(root)
    folders(root / "extra")


def _twice(root: Path) -> None:
    splits_of("val", "Validation")(root)
    folders(root / "train")


def _two_accents(root: Path) -> None:
    folders(root, ("café", NFD))


def _flat(root: Path) -> None:
    for row in range(4):
        put(root / f"{row}.png", picture(row))


FOLDERS = [
    *(
        Case(f"splits called {one} and {other}", splits_of(one, other), (CLASSES,), 16)
        for one, other in SPLIT_NAMES
    ),
    Case("unzipped twice", _unwrapped, (CLASSES,), 16),
    Case(
        "a class called train",
        lambda root: folders(root, ("bus", "car", "train")),
        (("bus", "car", "train"),),
    ),
    Case(
        "a class that begins as a split",
        lambda root: folders(root, ("test tube", "flask")),
        (("flask", "test tube"),),
    ),
    Case("hidden files and folders", _hidden, (("cat", "dog"),), 8),
    Case("accents taken apart in test", _accents, (("café", "thé"),), 16),
    Case("folders beside the splits", _beside, (CLASSES,), 16, says="extra was left out"),
    Case("tiny ImageNet", _tiny_imagenet, (("goldfish", "fire salamander"),), 12, says="left out"),
    Case("a test split without labels", _kept_back, (CLASSES,), 8, says="without classes"),
    Case(
        "ids as names",
        lambda root: folders(root, ("n01443537", "n01629819")),
        (("n01443537", "n01629819"),),
        says='ids such as n01443537, which go into prompts as they are; write lines such as "n0144',
    ),
    refused(
        "domains", _domains, ": its folders (cartoon, photo, sketch) all hold the same folders"
    ),
    refused("images and masks", masks([ids_HW(0, 1)] * 3), " holds images/ and masks/, which are"),
    refused("one split twice", _twice, "are both the validation split; keep one"),
    refused("two spellings of one class", _two_accents, 'has two folders "café", whose accents'),
    refused("no class folders", _flat, " holds images but no class folders"),
    refused("nothing", lambda root: None, " is empty; name a folder"),
    refused(
        "a class in test alone",
        lambda root: (folders(root / "train"), folders(root / "test", ("ant", "eeb"), first=20)),
        'class "eeb" is not in',
    ),
    refused(
        "an empty class",
        lambda root: (folders(root), (root / "cow").mkdir()),
        "cow holds no images; add some",
    ),
]

TEN = tuple(map(str, range(11)))
FILES_OF_NAMES = [
    Case("the order of ids", named(CLASSES, "bee\nant\n"), (("bee", "ant"),)),
    Case("capitals", named(CLASSES, "Bee\nAnt\n"), (("Bee", "Ant"),)),
    Case(
        "spaces for underscores",
        named(("brown_bear", "polar_bear"), "polar bear\nbrown bear\n"),
        (("polar bear", "brown bear"),),
    ),
    Case("hyphens", named(("ice-cream", "cake"), "ice_cream\ncake"), (("ice_cream", "cake"),)),
    Case("a byte order mark", named(CLASSES, b"\xef\xbb\xbfant\nbee\n"), (CLASSES,)),
    Case("UTF-16", named(CLASSES, "bee\r\nant\r\n".encode("utf-16")), (("bee", "ant"),)),
    Case("UTF-32", named(CLASSES, "bee\nant\n".encode("utf-32")), (("bee", "ant"),)),
    Case("CR line ends", named(CLASSES, "bee\rant\r"), (("bee", "ant"),)),
    Case("CRLF and blank ends", named(CLASSES, "bee\r\nant\r\n\r\n\r\n"), (("bee", "ant"),)),
    Case("accents taken apart", named(("café", "thé"), f"thé\n{NFD}\n"), (("thé", "café"),)),
    Case(
        "numbers by value",
        named(TEN, "\n".join(f"name{n}" for n in TEN)),
        (tuple(f"name{n}" for n in TEN),),
    ),
    Case("numbers from 1", named(("1", "2", "3"), "a\nb\nc"), (("a", "b", "c"),)),
    Case("numbers with zeros", named(("001", "002"), "1 ant\n2 bee"), (CLASSES,)),
    Case("numbers and commas", named(("0", "1"), "0,ant\n1,bee\n"), (CLASSES,)),
    Case("numbers and colons", named(("0", "1"), "1: bee\n0: ant\n"), (CLASSES,)),
    Case(
        "numbers before folders' names, as CUB's",
        named(("001.Ant", "002.Bee"), "1 001.Ant\n2 002.Bee\n"),
        (("001.Ant", "002.Bee"),),
    ),
    Case(
        "ids, as ImageNet's",
        named(("n01", "n02"), "n02 crane\nn01 crane\nn03 other\n", "LOC_synset_mapping.txt"),
        (("crane (n01)", "crane (n02)"),),
    ),
    Case(
        "nothing matches",
        named(("k1", "k2"), "ant\nbee\n"),
        (CLASSES,),
        says="its lines go to the sorted folders in order: k1 = ant, k2 = bee",
    ),
    Case(
        "numbers with holes",
        named(("3", "10"), "ant\nbee\n"),
        (CLASSES,),
        says="in order: 3 = ant, 10 = bee",
    ),
    refused(
        "Latin-1", named(CLASSES, "ant\nbée\n".encode("latin-1")), "is not UTF-8 text; save it"
    ),
    refused("a picture", named(CLASSES, encoded(picture(0))), "is not UTF-8 text"),
    refused("zero bytes", named(CLASSES, b"ant\0bee\n"), "is a binary file (it holds zero bytes)"),
    refused("nothing in it", named(CLASSES, " \n"), "classes.txt is empty; name a file with text"),
    refused(
        "a blank line between", named(CLASSES, "ant\n\nbee\n"), "line 2 is blank between names"
    ),
    refused("a missing line", named(("a", "b", "c"), "a\nb\n"), 'no line for class folder "c"'),
    refused("another number", named(("a", "b"), "x\ny\nz\n"), "names 3 classes but there are 2"),
    refused("a name twice", named(("k1", "k2"), "ant\nant\n"), 'class "ant" is named twice'),
]


def _order_differs(root: Path) -> None:
    labelled(root / "train.parquet", ("circle", "square", "triangle"), [0, 1, 2] * 4)
    labelled(root / "test.parquet", ("triangle", "square", "circle"), [0, 1, 2], first=30)


def _shards_differ(root: Path) -> None:
    labelled(root / "train-00000-of-00002.parquet", ("a", "b"), [0, 1] * 3)
    labelled(root / "train-00001-of-00002.parquet", ("b", "a"), [0, 1] * 3, first=20)


def _saved_to_disk(root: Path) -> None:
    rows = {"image": [encoded(picture(row)) for row in range(8)], "label": list(CLASSES) * 4}
    table = datasets.Dataset.from_dict(rows)
    datasets.DatasetDict({"train": table, "test": table.select(range(2))}).save_to_disk(root)


def _convert_branch(root: Path) -> None:
    parquet(root / "default" / "train" / "0000.parquet", label=list(CLASSES) * 3)
    parquet(root / "default" / "test" / "0000.parquet", 2, 20, label=list(CLASSES))


def _configs(root: Path) -> None:
    for name in ("en", "fr"):
        parquet(root / name / "train-00000-of-00001.parquet", label=list(CLASSES) * 3)


def _unlabelled(root: Path) -> None:
    parquet(root / "train.parquet", 12, label=[0, 1, -1] * 4)


def _paths(root: Path, column: str = "image", prefix: str = "images/") -> None:
    lines([])(root)
    names = [f"{prefix}{row}.png" for row in range(6)]
    pq.write_table(pa.table({column: names, "label": list(CLASSES) * 3}), root / "train.parquet")


CSV = "image,label\n" + "".join(f"images/{row}.png,{CLASSES[row % 2]}\n" for row in range(6))
LABELS = [
    Case("class names in another order", _order_differs, (("circle", "square", "triangle"),), 15),
    Case(
        "-1 for no label", _unlabelled, (("0", "1"),), 8, says="4 of its 12 rows have the label -1"
    ),
    Case("a folder of the Hub", _convert_branch, (CLASSES,), 8),
    Case(
        "a configuration of the Hub",
        lambda root: parquet(
            root / "plain_text" / "train-00000-of-00001.parquet", label=list(CLASSES) * 3
        ),
        (CLASSES,),
    ),
    Case("save_to_disk", _saved_to_disk, (CLASSES,), 10),
    Case("paths relative to the table", _paths, (CLASSES,), 6),
    Case(
        "paths of another computer", lambda root: _paths(root, prefix="old\\images\\"), (CLASSES,)
    ),
    Case("base64", asked(lambda n: {"image": uri(n)[22:], "label": CLASSES[n % 2]}), (CLASSES,)),
    Case("CSV", text(CSV, "x.csv"), (CLASSES,)),
    Case("CSV with CR line ends", text(CSV.replace("\n", "\r"), "x.csv"), (CLASSES,)),
    Case("CSV in UTF-16", text(CSV.encode("utf-16"), "x.csv"), (CLASSES,)),
    Case(
        "CSV with semicolons",
        text(CSV.replace(",", ";"), "x.csv"),
        (CLASSES,),
        says="its columns are parted by semicolons",
    ),
    Case("tabs", text(CSV.replace(",", "\t"), "x.tsv"), (CLASSES,)),
    Case(
        "CSV with a huge field",
        text(CSV.replace("ant", "a" * 200_000), "x.csv"),
        (("a" * 200_000, "bee"),),
    ),
    Case(
        "CSV of numbers",
        text(CSV.replace("ant", "10").replace("bee", "9"), "x.csv"),
        (("9", "10"),),
    ),
    Case("metadata.csv beside images", lambda r: text(CSV, "metadata.csv")(r).parent, (CLASSES,)),
    Case(
        "metadata.jsonl in folders of splits",
        lambda root: (
            [
                lines(
                    [{"file_name": f"images/{n}.png", "label": CLASSES[n % 2]} for n in range(6)],
                    "metadata.jsonl",
                )(root / split)
                for split in ("train", "test")
            ]
            and None
        ),
        (CLASSES,),
        12,
        says="have an image that stands in train too",
    ),
    Case(
        "lines of paths and accents taken apart",
        asked(lambda n: {"image": f"images/{n}.png", "label": ("café", NFD, "thé")[n % 3]}),
        (("café", "thé"),),
    ),
    refused("shards with other names", _shards_differ, "are one split, but their columns or class"),
    refused("two configurations", _configs, "holds several tables (en, fr); name one"),
    refused(
        "a missing image", lambda r: _paths(r, prefix="gone"), 'row 0 has the image "gone0.png"'
    ),
    refused(
        "addresses",
        asked(lambda n: {"image": f"https://x.org/{n}.png", "label": CLASSES[n % 2]}),
        "x/all: row 0 has an address as its image; download",
    ),
    refused("ragged CSV", text(CSV + "a,b,c\n", "x.csv"), "row 7 has 3 cells for 2 columns"),
    refused("one column twice", text("image,image\na,b\n", "x.csv"), 'columns are called "image"'),
    refused("a header alone", text("image,label\n", "x.csv"), "x.csv holds no rows"),
    refused("no header", text("a.png,ant\nb.png,bee\n", "x.csv"), "none is called like the"),
    refused("an open quote", text('image,label\n"a,b\n', "x.csv"), "x.csv is no CSV"),
    refused("a spreadsheet", text(b"PK\x03\x04", "x.xlsx"), "x.xlsx is no table; name a folder"),
    refused(
        "a column that is not asked for",
        text(CSV, "x.csv"),
        "--answer-column label: these data have no answers",
        columns={"answer": "label"},
    ),
    refused(
        "labels in one split alone",
        lambda root: (
            parquet(root / "train.parquet", label=list(CLASSES) * 3),
            parquet(root / "test.parquet", 2, 20, label=["ant", "cow"]),
        ),
        'test: row 1 has label "cow", which no row of train has',
    ),
]

BINARY = [ids_HW(0, 0, 1)] * 8
MASKS = [
    Case("a palette", masks(BINARY, mask=lambda ids: encoded(Image.fromarray(ids).convert("P"))),
         (("background", "blob"), [0, 1]), kind="masks"),
    Case("one bit", masks(BINARY, mask=lambda ids: encoded(Image.fromarray(ids > 0))),
         (("background", "blob"), [0, 1]), kind="masks"),
    Case("16 bits", masks(BINARY, mask=lambda ids: encoded(Image.fromarray(ids.astype(np.uint16)))),
         (("background", "blob"), [0, 1]), kind="masks"),
    Case("names with a byte order mark", masks(BINARY, classes=b"\xef\xbb\xbfbackground\nblob"),
         (("background", "blob"), [0, 1]), kind="masks"),
    Case("names in UTF-16", masks(BINARY, classes="background\nblob".encode("utf-16")),
         (("background", "blob"), [0, 1]), kind="masks"),
    Case("an oblong image on its side, its mask upright",
         masks([ids_HW(0, 1, 1, size=(4, 6))] * 8, images_as="jpg", image=lambda n: turned(n, 6)),
         (("background", "blob"), [0, 1]), kind="masks"),
    refused("0 and 255", masks([ids_HW(0, 0, 255)] * 8),
            "its masks hold 0 and 255 only, and 255 is ignored", "masks"),
    refused("JPEG", masks(BINARY, ending="jpg",
                          mask=lambda ids: encoded(Image.fromarray(ids), "JPEG")),
            "is a JPEG, which changes class ids; save masks as PNG", "masks"),
    refused("JPEG called PNG",
            masks(BINARY, mask=lambda ids: encoded(Image.fromarray(ids), "JPEG")),
            "is a JPEG, which changes class ids", "masks"),
    refused("an image that EXIF turns upside down",
            masks(BINARY, images_as="jpg", image=lambda n: turned(n, 3)),
            "its image is turned by EXIF (orientation 3) and its mask is not", "masks"),
    refused("an image that EXIF turns on its side",
            masks(BINARY, images_as="jpg", image=lambda n: turned(n, 6)),
            "its image is turned by EXIF (orientation 6) and its mask is not", "masks"),
    refused("a square image that EXIF turns",
            masks([ids_HW(0, 1, size=(4, 4))] * 8, images_as="jpg",
                  image=lambda n: turned(n, 8, (4, 4))),
            "its image is turned by EXIF (orientation 8)", "masks"),
    refused("colours", masks(BINARY, mask=lambda ids: encoded(Image.fromarray(ids).convert("RGB"))),
            "its mask is a picture of mode RGB, whose colours are no class ids", "masks"),
    refused("a blank line among names", masks(BINARY, classes="background\n\nblob\n"),
            "line 2 is blank between names", "masks"),
    refused("Latin-1 names", masks(BINARY, classes="fond\ntâche".encode("latin-1")),
            "is not UTF-8 text", "masks"),
    refused("an id too many", masks([ids_HW(0, 2)] * 8), "its mask has class id 2, out", "masks"),
    refused("nothing labelled", masks([ids_HW(255)] * 8), "its mask labels no pixel", "masks"),
    refused("no names", lambda r: (masks(BINARY)(r), (r / "classes.txt").unlink()),
            "there is no", "masks"),
]  # fmt: skip


def _grids(root: Path) -> None:
    put(root / "classes.txt", "background\nblob\n")
    parquet(root / "train.parquet", mask=[ids_HW(0, 1).tolist()] * 6)


def _ragged(root: Path) -> None:
    put(root / "classes.txt", "background\nblob\n")
    parquet(root / "train.parquet", mask=[[[0, 1], [1]]] * 6)


def _masks_in_files(root: Path) -> None:
    put(root / "classes.txt", "background\nblob\n")
    for row in range(6):
        put(root / "masks" / f"{row}.png", encoded(Image.fromarray(ids_HW(0, 1))))
    lines([])(root)
    rows = {kind: [f"{kind}s/{row}.png" for row in range(6)] for kind in ("image", "mask")}
    pq.write_table(pa.table(rows), root / "train.parquet")


MASKS += [
    Case("lists of ids", _grids, (("background", "blob"), [0, 1]), kind="masks"),
    Case("paths of masks", _masks_in_files, (("background", "blob"), [0, 1]), kind="masks"),
    refused("lists of other lengths", _ragged, "mask of row 0 cannot be read", "masks"),
]


def says(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


PARTS = [{"type": "image"}, {"type": "text", "text": "How many?"}]
THREE = ("How many?", "3", None)
TRL = {"prompt": [says("user", PARTS)], "images": ["images/0.png"], "solution": "3"}
SWIFT = {"messages": [says("user", "<image>How many?")], "images": ["images/0.png"]}
LLAVA = {
    "id": "0",
    "image": "images/0.png",
    "conversations": [
        {"from": "human", "value": "<image>\nHow many?"},
        {"from": "gpt", "value": "3"},
    ],
}


def several(row: dict[str, Any]) -> Build:
    """Six rows of one form, each about another image."""

    def moved(value: Any, number: int) -> Any:
        return json.loads(json.dumps(value).replace("images/0.png", f"images/{number}.png"))

    return asked(lambda number: moved(row, number), "x.jsonl")


def question(
    name: str, row: dict[str, Any], found: tuple[Any, ...] = THREE, says: str = ""
) -> Case:
    return Case(name, several(row), found, says=says, kind="questions")


def no_question(name: str, row: dict[str, Any], message: str) -> Case:
    return refused(name, several(row), message, "questions")


PLAIN = {"image": "images/0.png", "question": "How many?", "answer": "3"}
QUESTIONS = [
    question("plain", PLAIN),
    question("EasyR1 and verl", {"problem": "<image>How many?", "images": ["images/0.png"],
                                 "answer": "3"}, says='"<image>" was taken out of 6 questions'),
    question("a place behind the words", {**PLAIN, "question": "How many?\n<image>"}),
    question("TRL", TRL, says='"prompt" holds chats; the user\'s message is the question'),
    question("TRL with text for content", {**TRL, "prompt": [says("user", "How many?")]}),
    question("TRL with a completion", {**{k: v for k, v in TRL.items() if k != "solution"},
             "completion": [says("assistant", "3")]}),
    question("ms-swift for GRPO", {**SWIFT, "solution": "<answer>3</answer>"}),
    question("ms-swift for SFT",
             {**SWIFT, "messages": [*SWIFT["messages"], says("assistant", "3")]}),
    question("with what the system says", {**SWIFT, "solution": "3",
             "messages": [says("system", "Be short."), *SWIFT["messages"]]},
             says="what the system says is left out"),
    question("text and parts mixed", {**TRL, "prompt": [says("system", "Be short."),
             says("user", PARTS)]}),
    question("reasoning in the answer", {**SWIFT, "messages": [*SWIFT["messages"],
             says("assistant", "<think>1, 2, 3</think><answer>3</answer>")]},
             ("How many?", "3", "1, 2, 3")),
    question("LLaVA", LLAVA, says='"conversations" holds chats'),
    question("images in the messages", {"solution": "3", "messages": [says("user", [
             {"type": "image", "image": "images/0.png"}, {"type": "text", "text": "How many?"}])]}),
    question("file_name", {"file_name": "images/0.png", "question": "How many?", "answer": "3"}),
    question("answers in a list", {"image": "images/0.png", "question": "How many?",
             "answers": ["3", "3"]}),
    question("answers as numbers", {**PLAIN, "answer": 3.0}),
    question("a trace that ends in the answer", {**PLAIN,
             "thinking": "I see 3, so <answer>3</answer>"}, ("How many?", "3", "I see 3, so")),
    question("a trace with both tags", {**PLAIN,
             "thinking": "<think>I see</think><answer>3</answer>"}, ("How many?", "3", "I see")),
    question("file addresses", {**PLAIN, "image": "./images/0.png"}),
    Case("data URIs", asked(lambda n: ask(n, image=uri(n), answer="3")), THREE, kind="questions"),
    Case("base64", asked(lambda n: ask(n, image=uri(n)[22:], answer="3")), THREE, kind="questions"),
    Case("base64 in lists", lines([{"images": [uri(n)[22:]], "question": "How many?", "answer": "3"}
         for n in range(6)]), THREE, kind="questions"),
    Case("a JSON list", asked(lambda n: ask(n, answer="3"), "x.json"), THREE, kind="questions"),
    Case("CSV", text("image,question,answer\n" + "".join(
         f'images/{n}.png,"How many?",3\n' for n in range(6)), "x.csv"), THREE, kind="questions"),
    Case("UTF-16 lines", text("\n".join(json.dumps(ask(n, answer="3")) for n in range(6))
         .encode("utf-16"), "x.jsonl"), THREE, kind="questions"),
    no_question("two places for one image", {**PLAIN, "question": "<image><image>How many?"},
                'row 0 has "<image>" 2 time(s) in its question, but 1 image(s)'),
    no_question("a place between words", {**PLAIN, "question": "In <image> how many?"},
                'row 0 has "<image>" 1 time(s) in its question, one of them between words'),
    no_question("several turns", {**LLAVA, "conversations": LLAVA["conversations"] * 2},
                "has several turns; give one user's message and one answer"),
    no_question("a tool's message", {**SWIFT, "messages": [*SWIFT["messages"], says("tool", "3")]},
                'has a message of "tool"'),
    no_question("a video", {**TRL, "prompt": [says("user", [{"type": "video", "text": "How?"}])]},
                'has a part of type "video"; text and images are read'),
    no_question("nobody asks", {**SWIFT, "messages": [says("assistant", "3")]},
                "has no user's message"),
    no_question("answers that differ", {"image": "images/0.png", "question": "How many?",
                "answers": ["3", "4"]}, "holds 2 answers that differ; give one"),
    no_question("tags within a trace", {**PLAIN, "thinking": "<answer>3</answer> I see 3"},
                "has answer tags within its reasoning"),
    no_question("an answer that is never closed", {**PLAIN, "answer": "<answer>3"},
                "holds 1 of the tags <answer> and </answer>"),
    no_question("an address", {**PLAIN, "image": "https://x.org/0.png"}, "row 0 has an address as"),
    refused("damaged base64", asked(lambda n: ask(n, image=uri(n)[:-60])), "image of row",
            "questions"),
    refused("no JSON", text('{"a": 1,}\n', "x.jsonl"), "line 1 is not JSON", "questions"),
    refused("nested without end", text("[" * 100_000, "x.jsonl"), "nested without", "questions"),
    refused("the same in a list", text("[" * 100_000, "x.json"), "nested without", "questions"),
    refused("a number without end", text("[" + "1" * 5000, "x.json"), "is not JSON (Exceeds",
            "questions"),
    refused("no list", text('{"a": 1}', "x.json"), "is no list of JSON objects", "questions"),
    refused("lines of lists", text("[1]\n", "x.jsonl"), "is no JSON object", "questions"),
    refused("kinds that differ", lines([ask(0), ask(1, answer=1)]),
            'line 2: "answer" is a number, but text in line 1', "questions"),
]  # fmt: skip

HH = "\n\nHuman: Hi\n\nAssistant:"
PREFERENCES = [
    Case("chats without prompts", lines([
         {"chosen": [says("user", f"q{n}"), says("assistant", "a")],
          "rejected": [says("user", f"q{n}"), says("assistant", "b")]} for n in range(8)]),
         rows=8, kind="pairs"),
    Case("dialogues without prompts", lines([
         {side: f"\n\nHuman: {n}\n\nAssistant: {side}" for side in ("chosen", "rejected")}
         for n in range(8)]), rows=8, kind="pairs"),
    refused("texts without prompts", lines([{"chosen": "a", "rejected": "b"}] * 4),
            "row 0: there is no column of prompts", "pairs"),
    refused("dialogues that begin differently", lines([
            {"chosen": f"{HH} a", "rejected": "\n\nHuman: Ho\n\nAssistant: b"}] * 4),
            "row 0: there is no column of prompts", "pairs"),
    Case("text in UTF-16",
         text("\n\n".join(f"part {n}" for n in range(40)).encode("utf-16"), "x.txt"),
         rows=40, kind="text"),
    refused("text in Latin-1", text("été".encode("latin-1"), "x.txt"), "is not UTF-8 text", "text"),
]  # fmt: skip

CASES = [*FOLDERS, *FILES_OF_NAMES, *LABELS, *MASKS, *QUESTIONS, *PREFERENCES]


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 120
    assert len({(case.kind, case.name) for case in CASES}) >= len(CASES) - 4


def parts(splits: Splits) -> list[Any]:
    return [splits.train, splits.validation, splits.test]


def looked_at(splits: Splits) -> None:
    for part in parts(splits):
        for name in {"images", "masks"} & set(part.values):
            _ = list(part[name])


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.name}")
def test_odd_inputs(case: Case, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    made = case.build(folder)
    spec = str(made if isinstance(made, Path) else folder)
    if case.refused:
        with pytest.raises(UserError) as caught:
            looked_at(read(spec, case.kind, **case.more))
        message = str(caught.value)
        assert case.refused in message
        assert "\n" not in message
        assert len(message) < 600 + len(spec)
        return
    splits = read(spec, case.kind, **case.more)
    train = splits.train
    if case.rows is not None:
        assert sum(map(len, parts(splits))) in (
            case.rows,
            2 * case.rows,
            case.rows + case.rows // 2,
        )
    if case.says:
        assert any(case.says in note for note in splits.notes), splits.notes
    if case.kind == "questions":
        assert case.read == (
            train.questions[0],
            train.answers[0],
            None if train.traces is None else train.traces[0],
        )
    elif case.kind in ("labels", "masks"):
        assert case.read is not None
        assert train.classes == case.read[0]
    if case.kind == "masks":
        assert case.read is not None
        assert np.unique(train.masks[0]).tolist() == case.read[1]
    if case.kind not in ("pairs", "text"):
        looked_at(splits)


# ---- pixels -------------------------------------------------------------------------------------


def _pgm(values: np.ndarray, most: int = 65535) -> bytes:
    header = f"P5 {values.shape[1]} {values.shape[0]} {most}\n".encode()
    return header + values.astype(">u2").tobytes()


def test_grey_of_16_bits_keeps_its_levels(tmp_path: Path) -> None:
    grey = (np.arange(64).reshape(8, 8) * 1024 + 512).astype(np.uint16)
    for name, content in (("pgm", _pgm(grey)), ("png", encoded(Image.fromarray(grey)))):
        for label in CLASSES:
            for row in range(4):
                put(tmp_path / name / label / f"{row}.{name}", content + bytes([row, len(label)]))
    for name in ("pgm", "png"):
        folder = tmp_path / name
        image = np.asarray(read(str(folder)).train.images[0])
        assert np.abs(image[..., 0].astype(int) - grey // 257).max() <= 1


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_grey_of_32_bits_has_no_white(tmp_path: Path, dtype: Any) -> None:
    for place, label in enumerate(CLASSES):
        for row in range(4):
            values = np.full((4, 4), 1000 * place + row, dtype)
            put(tmp_path / label / f"{row}.tif", encoded(Image.fromarray(values), "TIFF"))
    with pytest.raises(UserError, match="its grey has 32 bits, of which none says what is white"):
        _ = read(str(tmp_path)).train.images[0]


def test_names_in_messages_are_short_where_pictures_are_text(tmp_path: Path) -> None:
    bad = "data:image/png;base64," + "iVBORw0KGgo" * 500
    spec = asked(lambda row: ask(row, image=f"{bad}{row}AAA"))(tmp_path)
    with pytest.raises(UserError, match="image of row") as caught:
        _ = read(str(spec), "questions", validation_fraction=0.3).train.images[0]
    assert len(str(caught.value)) < 300


# ---- equal images -------------------------------------------------------------------------------


def test_equal_images_are_in_one_split_whatever_they_are_called(tmp_path: Path) -> None:
    for place, label in enumerate(CLASSES):
        for number in range(20):
            for copy in range(3):
                put(tmp_path / label / f"{number}_{copy}.png", picture(20 * place + number))
    splits = read(str(tmp_path))
    assert "its 120 rows have 40 different images; rows that share" in splits.notes[0]
    seen = [{image.tobytes() for image in part.images} for part in parts(splits)]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 40
    assert [len(part) for part in parts(splits)] == [87, 9, 24] or len(splits.test) == 24


def test_images_of_one_size_that_differ_are_told_apart(tmp_path: Path) -> None:
    for place, label in enumerate(CLASSES):
        for number in range(10):
            noise = np.random.default_rng([place, number]).bytes(3 * 64 * 64)
            noise = b"\0" * 6000 + noise[6000:] if number else noise
            image = Image.frombytes("RGB", (64, 64), noise)
            put(tmp_path / label / f"{number}.bmp", encoded(image, "BMP"))
    splits = read(str(tmp_path))
    assert not any("different images" in note for note in splits.notes)
    assert [len(part) for part in parts(splits)] == [14, 2, 4]


def test_given_splits_that_share_images_are_counted(tmp_path: Path) -> None:
    folders(tmp_path / "train")
    folders(tmp_path / "test", first=6)
    splits = read(str(tmp_path))
    assert f"warning: 2 of the 8 test rows of {tmp_path.name} have an image" in splits.notes[-1]


def test_masks_of_equal_images_stay_together(tmp_path: Path) -> None:
    masks([ids_HW(0, row % 2, 1) for row in range(24)], image=lambda n: encoded(picture(n // 2)))(
        tmp_path
    )
    splits = read(str(tmp_path), "masks")
    assert "its 24 rows have 12 different images" in splits.notes[0]
    seen = [{image.tobytes() for image in part.images} for part in parts(splits)]
    assert sum(map(len, seen)) == 12


def test_a_binary_file_of_cifar_has_its_names_in_any_encoding(tmp_path: Path) -> None:
    record = struct.pack("B", 1) + bytes(3 * 32 * 32)
    for file in ("data_batch_1.bin", "test_batch.bin"):
        content = b"".join(bytes([row % 2]) + bytes([row]) * 3072 for row in range(8))
        put(tmp_path / file, content if file == "data_batch_1.bin" else record * 2)
    put(tmp_path / "batches.meta.txt", "ant\nbee\n\n".encode("utf-16"))
    assert read(str(tmp_path)).train.classes == CLASSES
