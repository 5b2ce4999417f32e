"""Class names as text."""

from __future__ import annotations

import pytest

from visgrpo.errors import UserError
from visgrpo.models.clip import check_templates, class_prompts, fill, prompt_names


@pytest.mark.parametrize(
    ("template", "name", "text"),
    [
        ("a photo of a {}.", "cat", "a photo of a cat."),
        ("a photo of a {}.", "apple", "a photo of an apple."),
        ("a photo of an {}.", "unicorn", "a photo of a unicorn."),
        ("a photo of the {}.", "apple", "a photo of the apple."),
        ("{}", "apple", "apple"),
        ("A {} in the snow.", "apple", "An apple in the snow."),
        ("An {} in the snow.", "cat", "A cat in the snow."),
        ("Photo of a {}", "owl", "Photo of an owl"),
        ("a banana {}", "apple", "a banana apple"),  # the article is another word's
        ("a photo of a {}.", "traffic_light", "a photo of a traffic light."),
        ("a photo of a {}.", "tench, Tinca tinca", "a photo of a tench."),
    ],
)
def test_fill(template: str, name: str, text: str) -> None:
    assert fill(template, name) == text


def test_class_prompts_are_classes_by_templates() -> None:
    assert class_prompts(("cat", "owl"), ("a {}", "the {}")) == [
        ["a cat", "the cat"],
        ["an owl", "the owl"],
    ]


@pytest.mark.parametrize("template", ["a photo.", "{} and {}", ""])
def test_template_needs_one_place_for_the_name(template: str) -> None:
    with pytest.raises(UserError, match="exactly once"):
        check_templates(["{}", template])


def test_no_template() -> None:
    with pytest.raises(UserError, match="at least one"):
        class_prompts(("cat", "dog"), ())


@pytest.mark.parametrize(
    ("classes", "names"),
    [
        (("tench, Tinca tinca", "traffic_light"), ["tench", "traffic light"]),
        # ImageNet's own collisions: one by the comma rule, one by letter case alone.
        (("maillot", "maillot, tank suit"), ["maillot", "tank suit"]),
        (
            ("Cardigan, Cardigan Welsh corgi", "cardigan"),
            ["Cardigan Welsh corgi", "cardigan"],
        ),
        (("crane (n02012849)", "crane (n03126707)"), ["crane (n02012849)", "crane (n03126707)"]),
        # Neither keeps a name that would fit the other; a later synonym of another is not free.
        (("crane, wader", "crane, hoist"), ["wader", "hoist"]),
        (("bow, arch, knot", "bow, arch, weapon"), ["knot", "weapon"]),
        (("missile", "projectile, missile"), ["missile", "projectile"]),
        (("seal, stamp", "seal", "stamp"), ["seal, stamp", "seal", "stamp"]),
        (("seal,", "stamp, , die"), ["seal", "stamp"]),
    ],
)
def test_prompt_names(classes: tuple[str, ...], names: list[str]) -> None:
    assert prompt_names(classes) == names
    assert prompt_names(classes[::-1]) == names[::-1]  # the order of the classes does not matter
    assert class_prompts(classes, ("the {}",)) == [[f"the {name}"] for name in names]


@pytest.mark.parametrize(
    ("one", "other"), [("sea lion", "sea_lion"), ("Crane", "crane"), ("crane,", "crane")]
)
def test_classes_with_the_same_prompt_are_refused(one: str, other: str) -> None:
    with pytest.raises(UserError, match=f'"{one}" and "{other}" give the same prompt'):
        class_prompts(("cat", one, other), ("a photo of a {}.",))
