"""Files of text as people have them: read whatever wrote them, or refused in one line."""

from __future__ import annotations

import codecs
import csv
import io
import unicodedata
from pathlib import Path

from visgrpo.errors import UserError

# Of the marks that say how a file is encoded, UTF-32's begins with UTF-16's.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(path: Path, what: str = "", *, empty: bool = False) -> str:
    """Return the text of a UTF-8 file, or of one whose mark says what it is; line ends as "\\n".

    Args:
        path: of the file.
        what: a word for messages, before the path.
        empty: whether it may hold nothing.

    Raises:
        UserError: if it cannot be read, is empty or is no text.
    """
    name = f'{what} "{path}"' if what else str(path)
    try:
        content = path.read_bytes()
        text = decoded(content)
    except UnicodeDecodeError as error:
        raise UserError(f"{name} is not UTF-8 text; save it as UTF-8.") from error
    except OSError as error:
        raise UserError(f"{name} cannot be read: {error.strerror}.") from error
    if not (empty or text.strip()):
        raise UserError(f"{name} is empty; name a file with text.")
    if "\0" in text:
        raise UserError(f"{name} is a binary file (it holds zero bytes); name a file of text.")
    return text


def decoded(content: bytes) -> str:
    """Return bytes as text, by their mark or as UTF-8, line ends as "\\n".

    Raises:
        UnicodeDecodeError: if they are something else.
    """
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    return content.decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def read_csv(path: Path, what: str = "", delimiter: str = ",") -> list[list[str]]:
    """Return the rows of a CSV file, blank lines left out; cells are stripped and of any length.

    Raises:
        UserError: as `read_text`, and if it is no CSV.
    """
    return csv_rows(read_text(path, what), str(path), delimiter)


def csv_rows(text: str, name: str, delimiter: str = ",") -> list[list[str]]:
    """Return the rows of CSV text, as `read_csv` does."""
    # A limit of all of Python, made for the fields of a trickster: texts are longer.
    before = csv.field_size_limit(2**31 - 1)
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise UserError(f"{name} is no CSV ({error}); save it again.") from error
    finally:
        csv.field_size_limit(before)
    stripped = ([cell.strip() for cell in row] for row in rows)
    return [row for row in stripped if any(row)]


def names_in(path: Path) -> list[str]:
    """Return the lines of a file of names, stripped, in Unicode's composed form, to the last one.

    Raises:
        UserError: as `read_text`, and for a blank line between names: it shifts those below.
    """
    lines = [composed(line.strip()) for line in read_text(path).rstrip().split("\n")]
    if "" in lines:
        number = lines.index("") + 1
        raise UserError(f"{path}: line {number} is blank between names; name the class or drop it.")
    return lines


def composed(text: str) -> str:
    """Return text in Unicode's composed form: macOS takes letters and their accents apart."""
    return unicodedata.normalize("NFC", text)
