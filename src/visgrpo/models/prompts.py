"""Class names as text: prompt templates, with the right article."""

from __future__ import annotations

import re
from collections.abc import Sequence

from visgrpo.data.articles import with_article
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
    name = name.split(",")[0].strip().replace("_", " ")
    capital = template[:1].isupper()
    text = _ARTICLE_AND_NAME.sub(lambda _: with_article(name), template).replace("{}", name)
    return text[:1].upper() + text[1:] if capital else text


def class_prompts(classes: Sequence[str], templates: Sequence[str]) -> list[list[str]]:
    """Return the prompts of every class, K lists of P texts.

    Raises:
        UserError: for a bad template, and for two classes whose prompts are the same text.
    """
    check_templates(templates)
    prompts = [[fill(template, name) for template in templates] for name in classes]
    seen: dict[str, str] = {}
    for name, texts in zip(classes, prompts, strict=True):
        if texts[0] in seen:
            raise UserError(
                f'Classes "{seen[texts[0]]}" and "{name}" give the same prompt "{texts[0]}": '
                "rename one of them."
            )
        seen[texts[0]] = name
    return prompts
