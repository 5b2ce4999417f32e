"""Join a vision tower and a language model: `visgrpo join`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from visgrpo.models.join import join
from visgrpo.models.parts import Parts
from visgrpo.models.save import load_with_transformers, save, start_card
from visgrpo.tasks.vlm.config import JoinConfig
from visgrpo.training.run_directory import check_free


def join_models(config: JoinConfig) -> Parts:
    """Join the two models, save what comes out, and print what it is made of.

    Raises:
        UserError: for models that cannot be joined, and a folder that is not free.
    """
    config.check()
    folder = Path(config.output)
    check_free(folder)
    parts = join(
        config.vision,
        config.language,
        merger=config.merger,
        max_pixels=config.max_pixels,
        seed=config.seed,
    )
    folder.mkdir(parents=True, exist_ok=True)
    origin = {"vision": config.vision, "language": config.language, "merger": config.merger}
    save(parts.model, parts, folder, _card(config), origin)
    _print(parts, config)
    return parts


def _print(parts: Parts, config: JoinConfig) -> None:
    text = parts.model.config.text_config
    token = parts.model.config.image_token_id
    table = Table(show_header=False)
    rows = {
        "vision tower": _millions(parts.model.model.visual),
        "language model": _millions(parts.model.model.language_model),
        "merger's last layer": f"{config.merger}, to {text.hidden_size}",
        "rotary sections": "time {}, rows {}, columns {}".format(
            *text.rope_parameters["mrope_section"]
        ),
        "image token": f"{parts.tokenizer.convert_ids_to_tokens(token)} ({token})",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    for note in parts.notes:
        print(note)
    Console().print(table)
    print(f"Saved to {config.output}. Next: visgrpo vlm --method sft --model {config.output}")


def _millions(module: Any) -> str:
    return f"{sum(weight.numel() for weight in module.parameters()) / 1e6:,.2f} M parameters"


def _card(config: JoinConfig) -> str:
    return start_card(
        f"{config.language} with the eyes of {config.vision}",
        "join",
        [
            f"Not trained together yet; the merger's last layer: {config.merger}.",
            "On text it is the language model.",
            *load_with_transformers(
                model="AutoModelForImageTextToText",
                tokenizer="AutoTokenizer",
                images="AutoImageProcessor",
            ),
        ],
        pipeline="image-text-to-text",
    )
