"""Articles by sound, against a table written by hand."""

from __future__ import annotations

import pytest

from visgrpo.data.worlds.scenes import NUMBER_WORDS, with_article
from visgrpo.errors import UserError

A = [
    *("cat", "red circle", "yellow star", "house", "horse", "honey pot", "heron", "yurt", "HORSE"),
    *("unicorn", "user", "utensil", "ukulele", "uvula", "unit test", "unanimous vote", "ubiquity"),
    *(
        "European swallow",
        "eucalyptus",
        "ewe",
        "one-way street",
        "once-over",
        "onesie",
        "ouija board",
    ),
    *("UFO", "US flag", "U-turn", "T-shirt", "NASA rocket", "CD", "7-seater", "1,800 m run", "🐶"),
]
AN = [
    *("apple", "orange star", "umbrella", "unidentified object", "uninteresting view", "usher"),
    *("urchin", "ugly duckling", "eel", "onion", "ox", "hour", "honest man", "honor guard"),
    *(
        "heirloom",
        "hourglass",
        "MRI scan",
        "X-ray",
        "x-ray",
        "e-mail",
        "LED",
        "SUV",
        "F-16",
        "HTML page",
    ),
    *(
        "8-ball",
        "18-wheeler",
        "11th hour",
        "11,000 m dive",
        "80 km sign",
        "épée",
        "Ångström",
        "iPod",
    ),
]


@pytest.mark.parametrize("noun", A)
def test_a(noun: str) -> None:
    assert with_article(noun) == f"a {noun}"


@pytest.mark.parametrize("noun", AN)
def test_an(noun: str) -> None:
    assert with_article(noun) == f"an {noun}"


def test_surrounding_space_is_dropped() -> None:
    assert with_article("  apple ") == "an apple"


@pytest.mark.parametrize("noun", ["", "  "])
def test_an_empty_name_is_refused(noun: str) -> None:
    with pytest.raises(UserError, match="give every class a name"):
        with_article(noun)


def test_number_words_stand_at_their_number() -> None:
    assert len(NUMBER_WORDS) == 21
    assert [NUMBER_WORDS[i] for i in (0, 1, 9, 12, 20)] == [
        "zero",
        "one",
        "nine",
        "twelve",
        "twenty",
    ]
