"""A saved model for the Hub: its repository, private until its owner says otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from visgrpo.errors import UserError


def claim(name: str) -> None:
    """Make a private repository for a model, if there is none of this name.

    Done before anything trains: a wrong name and a missing token are told by then.

    Args:
        name: OWNER/MODEL, or MODEL of whoever is logged in.

    Raises:
        UserError: when the Hub refuses, or is not there.
    """
    from huggingface_hub import HfApi

    with _in_one_line(f'--push-to-hub "{name}"', 'log in with "hf auth login", or set HF_TOKEN.'):
        HfApi().create_repo(name, private=True, exist_ok=True)


def push(folder: Path, name: str) -> str:
    """Upload a model's folder, and return the address of its page.

    Raises:
        UserError: when the Hub refuses, or is not there.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    mend = f'the model is in {folder}; "hf upload {name} {folder}" sends it.'
    with _in_one_line(f"Could not push to {name}", mend):
        whole = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(
            repo_id=whole.repo_id, folder_path=folder, commit_message="Trained with visgrpo"
        )
    return str(whole)


@contextmanager
def _in_one_line(what: str, mend: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError

    # Its versions stand on different libraries of HTTP, whose errors it derives from.
    reasons: Any = (ValueError, *HfHubHTTPError.__bases__)
    try:
        yield
    except reasons as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = lines[0] if lines else type(error).__name__
        raise UserError(f"{what}: {said.rstrip('.')}; {mend}") from error
