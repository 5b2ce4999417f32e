"""Ask a vision-language model about images: part of `visgrpo predict`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from visgrpo.data.batches import Batch
from visgrpo.data.pictures import Pictures
from visgrpo.data.visual_prompts import Messages, seeing_prompt
from visgrpo.errors import UserError
from visgrpo.measures.visual import greedy_tokens
from visgrpo.models.vision_language import VisionLanguageModel
from visgrpo.models.vision_loading import load_vision_language
from visgrpo.rewards.answers import answer_of
from visgrpo.tasks.language_setup import decoder_of, prompt_room, sampling_of
from visgrpo.tasks.session import print_notes
from visgrpo.tasks.token_config import SamplingConfig
from visgrpo.tasks.use_configs import PredictConfig
from visgrpo.tasks.vlm_config import defaults_of
from visgrpo.training.processes import Processes


def answer_about(config: PredictConfig, images: Sequence[Image.Image]) -> list[dict[str, Any]]:
    """Return the model's likeliest words about every image, and the answer in them; print them.

    Raises:
        UserError: without a question, and where an image leaves no room for an answer.
    """
    if not config.ask:
        raise UserError(
            f'"{config.model}" is a vision-language model: ask it something, with --ask "How many '
            'items are there in the image?".'
        )
    processes = Processes(config.device)
    parts = load_vision_language(config.model, max_pixels=config.max_pixels)
    print_notes(parts.notes, processes)
    longest = config.max_new_tokens or defaults_of(parts.info).max_new_tokens
    asked = SamplingConfig(max_new_tokens=longest)
    sampling = sampling_of(asked, parts, parts.processor.placeholder_ids)
    room, decode = prompt_room(asked, parts), decoder_of(parts)
    model = VisionLanguageModel(parts.model).requires_grad_(False).to(processes.device).eval()
    smaller = [
        path
        for path, image in zip(config.images, images, strict=True)
        if parts.processor.resizes(image)
    ]
    if smaller:
        more = f" and {len(smaller) - 1} more" if len(smaller) > 1 else ""
        print_notes([f"{smaller[0]}{more}: made smaller for the model."], processes)
    messages = _messages(config.ask, config.style or parts.info.get("style"))
    answers = []
    for path, image in zip(config.images, images, strict=True):
        batch = _batch(parts.processor, messages, image, path, room).to(processes.device)
        text = decode(greedy_tokens(model, batch, sampling)[0].tolist())[0]
        answers.append({"image": path, "answer": answer_of(text), "completion": text})
    _show(answers, as_json=config.json)
    return answers


def _messages(question: str, style: Any) -> Messages:
    if style is not None:
        return seeing_prompt(question, 1, style)
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


def _batch(processor: Any, messages: Messages, image: Image.Image, path: str, room: int) -> Batch:
    pictures = (processor.picture(image),)
    ids = processor.prompt_ids(messages, pictures)
    if len(ids) > room:
        raise UserError(
            f'Image "{path}" and the question take {len(ids)} tokens, but {room} fit beside the '
            "longest completion: lower --max-pixels or --max-new-tokens."
        )
    return Batch(
        torch.zeros(1, dtype=torch.long),
        torch.from_numpy(ids)[None].long(),
        torch.tensor([len(ids)]),
        {},
        pictures=Pictures.of([pictures], [("",)]),
    )


def _show(answers: Sequence[dict[str, Any]], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(answers, indent=1, ensure_ascii=False))
        return
    for each in answers:
        print(each["image"])
        if each["answer"] is not None:
            print(f"  answer: {each['answer']}")
        print(f"  {each['completion']}")
