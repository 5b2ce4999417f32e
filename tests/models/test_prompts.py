"""Class names as text."""

from __future__ import annotations

import pytest

from visgrpo.errors import UserError
from visgrpo.models.prompts import check_templates, class_prompts, fill


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


@pytest.mark.parametrize(("one", "other"), [("sea lion", "sea_lion"), ("crane, bird", "crane")])
def test_classes_with_the_same_prompt_are_refused(one: str, other: str) -> None:
    with pytest.raises(UserError, match=f'"{one}" and "{other}" give the same prompt'):
        class_prompts(("cat", one, other), ("a photo of a {}.",))
