"""Images and labels of a log, found in a data set."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from event_files import write_csv

from visgrpo.errors import UserError
from visgrpo.feedback.source.events import open_events
from visgrpo.feedback.source.matching import (
    Matched,
    image_keys,
    key_columns,
    match,
    remarks_on_images,
)


def found(tmp_path: Path, images: Sequence[str], keys: Sequence[Sequence[str]]) -> dict[str, int]:
    """Match images of a log by name; returns {name: row of the data}."""
    return dict(_matched(tmp_path, images, keys)[1])


def _matched(
    tmp_path: Path, images: Sequence[str], keys: Sequence[Sequence[str]]
) -> tuple[Matched, list[tuple[str, int]]]:
    votes = {"image": images, "label": ["x"] * len(images), "votes": [1] * len(images)}
    with open_events(str(write_csv(tmp_path / "log.csv", votes))) as events:
        matched = match(events, keys, ("x", "y"))
        return matched, events.connection.execute("SELECT image, m FROM images").fetchall()


# ---- keys ---------------------------------------------------------------------------------------


def test_keys_are_the_columns_that_name_images() -> None:
    columns = {"file": ["cat/1.png", "cat/2.png"], "id": [7, None], "caption": ["a", "b"]}
    assert key_columns(columns) == ["id", "file"]
    assert image_keys(columns, 2) == [["7", "cat/1.png"], ["cat/2.png"]]
    assert image_keys(columns, 2, "caption") == [["a"], ["b"]]
    assert image_keys({"id": ["a"], "name": ["a"]}, 1) == [["a"]]


def test_rows_are_keys_where_no_column_names_images() -> None:
    assert key_columns({"caption": ["a"]}) == []
    assert image_keys({"caption": ["a", "b"]}, 2) == [["0"], ["1"]]


def test_an_unknown_column() -> None:
    with pytest.raises(UserError, match=r'no column "file_id". Did you mean "file"'):
        image_keys({"file": ["a"]}, 1, "file_id")
    with pytest.raises(UserError, match="It has none"):
        image_keys({}, 1, "file")


# ---- images -------------------------------------------------------------------------------------


def test_exact_names(tmp_path: Path) -> None:
    keys = [["1", "cat/1.png"], ["2", "cat/2.png"]]
    assert found(tmp_path, ["2", "cat/1.png", "3"], keys) == {"2": 1, "cat/1.png": 0}


@pytest.mark.parametrize(
    ("image", "key"),
    [
        ("photos/cat/1.png", "cat/1.png"),
        ("/srv/photos/cat/1.png", "cat/1.png"),
        ("cat/1.png", "/home/ann/photos/cat/1.png"),
        ("1.png", "photos/cat/1.png"),
        ("photos/cat/1.png", "1.png"),
        ("./cat/1.png", "cat/1.png"),
        ("cat/1.png", "../cat/1.png"),
        (r"C:\photos\cat\1.png", "cat/1.png"),
        ("cat/1", "photos/cat/1"),
    ],
)
def test_one_path_may_begin_higher_up(tmp_path: Path, image: str, key: str) -> None:
    assert found(tmp_path, [image], [[key], ["dog/2.png"]]) == {image: 0}


@pytest.mark.parametrize(
    ("images", "keys", "expected"),
    [
        # a name that several images have is nobody's
        (["1.png", "z"], [["cat/1.png"], ["dog/1.png"], ["z"]], {"z": 2}),
        (["a", "z"], [["a"], ["a"], ["z"]], {"z": 2}),
        # an exact name wins over an ending
        (["1.png"], [["cat/1.png"], ["1.png"]], {"1.png": 1}),
        # the longest ending wins
        (["x/cat/1.png"], [["1.png"], ["cat/1.png"]], {"x/cat/1.png": 1}),
        # two images of the log cannot be the one
        (["cat/1.png", "dog/1.png", "z"], [["1.png"], ["z"]], {"z": 1}),
        (["1.png", "dog/1.png"], [["1.png"]], {"1.png": 0}),
        # other folders are other images
        (["a/1.png", "z"], [["b/1.png"], ["z"]], {"z": 1}),
        # only whole names of folders count, and ids are no paths
        (["at/1.png", "z"], [["cat/1.png"], ["z"]], {"z": 1}),
        (["photos/7", "z"], [["7"], ["z"]], {"z": 1}),
        # hostile names
        (["'; DROP TABLE images; --", "%"], [["'; DROP TABLE images; --"], ["%"]],
         {"'; DROP TABLE images; --": 0, "%": 1}),
    ],
)  # fmt: skip
def test_what_is_not_clear_is_not_matched(
    tmp_path: Path, images: list[str], keys: list[list[str]], expected: dict[str, int]
) -> None:
    assert found(tmp_path, images, keys) == expected


def test_unmatched_images_are_counted_and_listed(tmp_path: Path) -> None:
    images = ["a", *["lost 1"] * 3, *["lost 2"] * 5, *[f"gone {n:02}" for n in range(30)]]
    matched, _ = _matched(tmp_path, images, [["a"], ["b"]])
    assert (matched.rows, matched.unmatched_rows, matched.unmatched_image_count) == (1, 38, 32)
    assert matched.unmatched_images[:3] == (("lost 2", 5), ("lost 1", 3), ("gone 00", 1))
    assert len(matched.unmatched_images) == 20
    assert (matched.images, matched.classes) == (2, ("x", "y"))


def test_nothing_matched_shows_both_sides(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r'names them as "a", the data as "cat/1.png": .*--id-col'):
        found(tmp_path, ["a"], [[], ["cat/1.png"]])
    with pytest.raises(UserError, match="the data name none"):
        found(tmp_path, ["a"], [[]])


@pytest.mark.parametrize(
    ("image", "keys"),
    [
        ("0", [["0"], ["0"]]),  # numbered anew in every split
        ("1.png", [["cat/1.png"], ["dog/1.png"]]),  # the log has less of the path
        ("x/1.png", [["1.png"], ["./1.png"]]),  # the data have
    ],
)
def test_names_that_several_images_share(tmp_path: Path, image: str, keys: list[list[str]]) -> None:
    mend = "give every image a name of its own, or say which column has one with --id-column"
    matched, found = _matched(tmp_path, [image, "z", "lost", image], [*keys, ["z"]])
    assert found == [("z", 2)]
    assert (matched.rows, matched.ambiguous_rows, matched.ambiguous_images) == (1, 2, 1)
    assert (matched.unmatched_rows, matched.unmatched_images) == (1, (("lost", 1),))
    assert matched.ambiguous_example == image
    assert remarks_on_images(matched) == [
        "log.csv: 1 of 4 events is about 1 image that is not in the data as loaded; left out: "
        '"lost" (1).',
        "2 of 4 events of log.csv left out, since several images of the data share the name "
        f'"{image}": {mend}.',
    ]
    expected = rf'images of the data are called "{image}": {mend}\.$'
    with pytest.raises(UserError, match=f"can be told from others.*{expected}"):
        _matched(tmp_path, [image], keys)
    with pytest.raises(UserError, match=r"\(1 other name is not in the data\.\)"):
        _matched(tmp_path, [image, "lost"], keys)
    with pytest.raises(UserError, match=r"\(2 other names are not in the data\.\)"):
        _matched(tmp_path, [image, "lost", "gone"], keys)


def test_remarks_count_what_they_name(tmp_path: Path) -> None:
    keys = [["a"], *[[f"{n % 3}"] for n in range(6)]]
    (shared,) = remarks_on_images(_matched(tmp_path, ["a", "0", "1", "1"], keys)[0])
    assert 'share the name "1" and 1 other: give' in shared
    (shared,) = remarks_on_images(_matched(tmp_path, ["a", "0", "1", "2", "2"], keys)[0])
    assert 'share the name "2" and 2 others: give' in shared
    lost = [f"lost {n}" for n in range(6)]
    (missing,) = remarks_on_images(_matched(tmp_path, ["a", *lost, "lost 3"], keys)[0])
    assert "7 of 8 events are about 6 images that are not in the data" in missing
    assert missing.endswith(
        '"lost 3" (2), "lost 0" (1), "lost 1" (1), "lost 2" (1), "lost 4" (1), ….'
    )
    assert remarks_on_images(_matched(tmp_path, ["a"], keys)[0]) == []


# ---- labels -------------------------------------------------------------------------------------


def labels(tmp_path: Path, said: Sequence[object], classes: Sequence[str]) -> dict[str, int]:
    votes = {"image": ["a"] * len(said), "label": said, "votes": [1] * len(said)}
    with open_events(str(write_csv(tmp_path / "log.csv", votes))) as events:
        match(events, [["a"]], classes)
        return dict(events.connection.execute("SELECT label, k FROM labels").fetchall())


@pytest.mark.parametrize(
    ("said", "classes", "expected"),
    [
        (["cat", "Dog"], ["Cat", "dog"], {"cat": 0, "Dog": 1}),
        (["Cat", "cat"], ["cat", "Cat"], {"Cat": 1, "cat": 0}),
        ([1, 0], ["cat", "dog"], {"1": 1, "0": 0}),
        ([7, 3], ["3", "7"], {"7": 1, "3": 0}),
        (["ÉLAN"], ["x", "élan"], {"ÉLAN": 1}),
        (["'; DROP TABLE events; --"], ["x", "'; DROP TABLE events; --"],
         {"'; DROP TABLE events; --": 1}),
    ],
)  # fmt: skip
def test_labels(
    tmp_path: Path, said: list[object], classes: list[str], expected: dict[str, int]
) -> None:
    assert labels(tmp_path, said, classes) == expected


@pytest.mark.parametrize(
    ("said", "classes", "message"),
    [
        (["cat", "dgo", "foo"], ["cat", "dog"],
         r'row 2: unknown label "dgo". Did you mean "dog"\? \(2 labels are unknown'),
        (["CAT"], ["cat", "Cat"], 'unknown label "CAT"'),
        ([2], ["cat", "dog"], 'unknown label "2". Choose from: cat, dog'),
        ([1], ["3", "dog"], 'unknown label "1"'),
        ([-1], ["cat", "dog"], 'unknown label "-1"'),
    ],
)  # fmt: skip
def test_unknown_labels(
    tmp_path: Path, said: list[object], classes: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        labels(tmp_path, said, classes)


def test_both_labels_of_a_preference(tmp_path: Path) -> None:
    pairs = {"image": ["a", "a"], "preferred": ["x", "y"], "rejected": ["y", "z"]}
    path = str(write_csv(tmp_path / "log.csv", pairs))
    with open_events(path) as events:
        match(events, [["a"]], "xyz")
        rows = "SELECT preferred_k, rejected_k FROM matched ORDER BY row"
        assert events.connection.execute(rows).fetchall() == [(0, 1), (1, 2)]
        with pytest.raises(UserError, match='row 2: unknown label "z"'):
            match(events, [["a"]], "xy")


def test_matching_twice_replaces_the_first(tmp_path: Path) -> None:
    votes = {"image": ["a"], "label": ["x"], "votes": [1]}
    with open_events(str(write_csv(tmp_path / "log.csv", votes))) as events:
        for row, keys in enumerate(([["a"], ["b"]], [["b"], ["a"]])):
            match(events, keys, ("x", "y"))
            assert events.connection.execute("SELECT m FROM matched").fetchall() == [(row,)]
