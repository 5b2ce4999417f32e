"""English for captions: numbers as words, and "a" or "an" by sound."""

from __future__ import annotations

import re
import unicodedata

from visgrpo.errors import UserError

NUMBER_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)

# Letters whose *names* begin with a vowel sound: an MRI scan, an X-ray; but a UFO.
_VOWEL_NAMED_LETTERS = "AEFHILMNORSX"
_ACRONYMS_READ_AS_WORDS = frozenset({"NASA", "NATO", "FIFA", "RAM", "ROM", "SIM", "HUD", "LAN"})
# Longer capitals are words that somebody shouts ("HORSE"), not letters to spell.
_LONGEST_ABBREVIATION = 4
_ABBREVIATION = re.compile(rf"[A-Z][A-Z0-9]{{1,{_LONGEST_ABBREVIATION - 1}}}")

# Spelled with a vowel, spoken with a consonant: "you" (unicorn, user, eucalyptus) and "won" (one).
_CONSONANT_SOUND = re.compile(
    r"eu|ewe|on(e|es|ce|esie)$|ouija"
    r"|uni(?!n|m[^o]|d[^i])|una(nim|ry)|u[bcfghjkqrstv][aeiou]|ukr"
)
# Spelled with a consonant, spoken with a vowel.
_VOWEL_SOUND = re.compile(r"hour|honest|hono(u?r)|heir|hors$|y[^aeiou]|[aeiou]")
# Eight, eighty, eight hundred …; eleven and eighteen, alone or before whole groups of thousands.
_VOWEL_NUMBER = re.compile(r"8|1[18](\d{3})*(?!\d)")


def with_article(noun: str) -> str:
    """Return `noun` after "a" or "an", chosen by how its first word sounds.

    Examples: "an apple", "a unicorn", "an hour", "an MRI scan", "a one-way street", "an 8-ball".

    Raises:
        UserError: if the noun is empty.
    """
    noun = noun.strip()
    if not noun:
        raise UserError("An empty name cannot take an article; give every class a name.")
    first_word = re.search(r"[^\W_]+", noun)
    vowel = first_word is not None and _starts_with_vowel_sound(first_word[0])
    return f"{'an' if vowel else 'a'} {noun}"


def _starts_with_vowel_sound(word: str) -> bool:
    # Without accents, so that "épée" begins with a plain e.
    plain = unicodedata.normalize("NFKD", word).encode("ascii", "ignore").decode()
    if plain[:1].isdigit():
        return _VOWEL_NUMBER.match(plain) is not None
    spelled_out = _ABBREVIATION.fullmatch(plain) and plain not in _ACRONYMS_READ_AS_WORDS
    if len(plain) == 1 or spelled_out:
        return plain[0].upper() in _VOWEL_NAMED_LETTERS
    lower = plain.lower()
    return _CONSONANT_SOUND.match(lower) is None and _VOWEL_SOUND.match(lower) is not None
