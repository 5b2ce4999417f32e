"""Class names as text: prompt templates, with the right article."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from visgrpo.data.worlds.articles import with_article
from visgrpo.errors import UserError

DEFAULT_TEMPLATES = ("a photo of a {}.",)
_ARTICLE_AND_NAME = re.compile(r"\b(?:a|an) \{\}", re.IGNORECASE)


def check_templates(templates: Sequence[str]) -> None:
    """Raise UserError for no template, or one without exactly one ``{}``."""
    if not templates:
        raise UserError('No prompt template: give at least one, such as "a photo of a {}."')
    for template in templates:
        if template.count("{}") != 1:
            raise UserError(
                f'Template "{template}" must hold {{}} exactly once, where the class name goes.'
            )


def fill(template: str, name: str) -> str:
    """Put a class name into a template; "a {}" becomes "an apple" where the name asks for it.

    Of synonyms separated by commas, as in ImageNet's names, the first is used.
    """
    return _put(template, _synonyms(name)[0])


def prompt_names(classes: Sequence[str]) -> list[str]:
    """Return what prompts call each class, K names.

    That is the first of its synonyms separated by commas. Classes that share their first synonym,
    letter case aside, each take the next one that no other class has, else their whole name:
    ImageNet's "maillot" and "maillot, tank suit" become "maillot" and "tank suit".
    """
    synonyms = [_synonyms(name) for name in classes]
    firsts = Counter(_as_read(own[0]) for own in synonyms)
    owners = Counter(text for own in synonyms for text in set(map(_as_read, own)))
    return [
        own[0]
        if firsts[_as_read(own[0])] == 1
        else next((text for text in own[1:] if owners[_as_read(text)] == 1), ", ".join(own))
        for own in synonyms
    ]


def class_prompts(classes: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Return the prompts of every class by its name of `prompt_names`, K lists of P texts.

    Raises:
        UserError: for a bad template, and for two classes whose prompts are the same texts, letter
            case aside.
    """
    check_templates(templates)
    prompts = [[_put(template, name) for template in templates] for name in prompt_names(classes)]
    seen: dict[tuple[str, ...], str] = {}
    for name, texts in zip(classes, prompts, strict=True):
        key = tuple(map(_as_read, texts))
        if key in seen:
            raise UserError(
                f'Classes "{seen[key]}" and "{name}" give the same prompt "{texts[0]}" (letter '
                "case does not count): rename one of them."
            )
        seen[key] = name
    return prompts


def _synonyms(name: str) -> list[str]:
    """Return the names that commas separate, one or more."""
    texts = [text.strip() for text in name.replace("_", " ").split(",")]
    return [text for text in texts if text] or [""]


def _as_read(text: str) -> str:
    """Return `text` as CLIP's tokenizer reads it: equal here is a tie that no training breaks."""
    return " ".join(text.lower().split())


def _put(template: str, name: str) -> str:
    capital = template[:1].isupper()
    text = _ARTICLE_AND_NAME.sub(lambda _: with_article(name), template).replace("{}", name)
    return text[:1].upper() + text[1:] if capital else text
