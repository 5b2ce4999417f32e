"""What is done with vision-language models: joined of two, evaluated, asked about images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from visgrpo.data.batches import Batch
from visgrpo.data.pictures import Pictures
from visgrpo.data.prompts import Messages, Style, seeing_prompt, visual_prompts
from visgrpo.data.read import read_test
from visgrpo.data.roles import require_answers, require_counts
from visgrpo.data.split import sliced
from visgrpo.data.table import Table
from visgrpo.errors import UserError
from visgrpo.measures.answers import greedy_tokens
from visgrpo.methods.options import SamplingOptions
from visgrpo.models.join import join
from visgrpo.models.load import load_vision_language
from visgrpo.models.parts import Parts, read_info
from visgrpo.models.save import load_with_transformers, save, start_card
from visgrpo.models.vision_language import VisionLanguageModel
from visgrpo.rewards.answers import answer_of
from visgrpo.rewards.texts import parse_text_rewards
from visgrpo.tasks.images import columns_of
from visgrpo.tasks.lineage import stages_of, with_stages
from visgrpo.tasks.run import print_notes
from visgrpo.tasks.tokens import decoder_of, prompt_room, rollouts_of, sampling_of
from visgrpo.tasks.use import learned_before, named_split, rows_apart
from visgrpo.tasks.use_options import EvaluateConfig, PredictConfig
from visgrpo.tasks.vlm.answering import REWARDS, Asking
from visgrpo.tasks.vlm.data import (
    confusions,
    held_out_of,
    kind_of,
    say_left_out,
    say_resized,
    units_of,
    with_boxes,
)
from visgrpo.tasks.vlm.options import JoinConfig, VlmConfig, coordinates_of, defaults_of
from visgrpo.terminal import show, show_table
from visgrpo.training.processes import Processes
from visgrpo.training.run_directory import check_free


class Evaluation:
    """Greedy and sampled answers to questions about images, and the confusion of counts.

    With two styles a model has a row for each: ``model`` and ``model, direct``, say.
    """

    def __init__(self, config: EvaluateConfig, processes: Processes) -> None:
        self._config, self._processes = config, processes
        learned = read_info(config.model)
        self._styles: tuple[Style, ...] = config.styles or (learned.get("style", "reasoning"),)
        self._asked = {style: _asking(config, learned, style) for style in self._styles}
        self._dataset = dataset = _questions(config, self._asked[self._styles[0]], processes)
        self.title = f"{dataset.name}, {len(dataset)} questions, --style {self._styles[0]}"

    def measures(self, row: str, name: str) -> dict[str, Any]:
        parts = load_vision_language(
            name, max_pixels=self._config.max_pixels, min_pixels=self._config.min_pixels
        )
        print_notes(parts.notes, self._processes)
        say_resized([self._dataset], parts.processor, self._processes)
        first = self._styles[0]
        return {
            row if style == first else f"{row}, {style}": self._measures(parts, asking)
            for style, asking in self._asked.items()
        }

    def _measures(self, parts: Parts, asking: Asking) -> dict[str, Any]:
        dataset, processes = self._dataset, self._processes
        sampling = _longest(self._config, parts)
        seed, samples = self._config.seed or 0, self._config.samples
        assert samples is not None
        if samples > 1 and "accuracy" not in asking.answering.sampled:
            raise UserError(
                "--samples is for answers that are right or wrong: counts and words, not places."
            )
        # What drawn answers earn has a name of its own among the measures.
        rewards = parse_text_rewards(["format"], None, REWARDS)
        prompts = visual_prompts(dataset, asking.style, asking.template)
        rollouts = rollouts_of(sampling, parts, rewards, prompts, seed)
        held_out = held_out_of(sampling, parts, rollouts, dataset, asking, processes, samples)
        seen = held_out.look(_model(parts, processes))
        measures = {name: value for name, value in seen.measures.items() if "reward" not in name}
        confusion = confusions({"test": dataset}, {"test": seen}).get("confusion", {})
        return {**measures, **({"confusion": confusion["in"]} if confusion else {})}


def _asking(config: EvaluateConfig, learned: Mapping[str, Any], style: Style) -> Asking:
    """Return how a model is asked: by the options, else as it learned."""
    task = config.task or learned.get("answers", "counting")
    units = units_of(task, coordinates_of(task, config.coordinates, learned))
    return Asking.of(task, style, units, learned=learned)


def _questions(config: EvaluateConfig, asking: Asking, processes: Processes) -> Table:
    """Return the rows to evaluate on; of what a model was trained on, a split that it held out."""
    split, rows = named_split(config)
    kind = kind_of(asking.units, config.box_format)
    if split == "test" and learned_before(config) is None:
        asked = {"columns": columns_of(config), "skip_bad_images": config.skip_bad_images}
        dataset = sliced(read_test(config.data, kind, seed=config.seed or 0, **asked), rows)
    else:
        dataset = rows_apart(config, kind, VlmConfig.validation_fraction, processes)
    say_left_out(dataset, processes)
    require = require_counts if config.task == "counting" else require_answers
    require(dataset)
    return with_boxes(dataset, asking.units, skip=config.skip_bad_images)


class Prediction:
    """The model's likeliest words about an image, and the answer in them."""

    def __init__(self, config: PredictConfig, processes: Processes) -> None:
        if not config.ask:
            raise UserError(
                f'"{config.model}" is a vision-language model: ask it something, with --ask "How '
                'many items are there in the image?".'
            )
        parts = load_vision_language(
            config.model, max_pixels=config.max_pixels, min_pixels=config.min_pixels
        )
        print_notes(parts.notes, processes)
        asked = _longest(config, parts)
        self._sampling = sampling_of(asked, parts)
        self._room, self._decode = prompt_room(asked, parts), decoder_of(parts)
        self._processor, self._processes = parts.processor, processes
        self._model = _model(parts, processes)
        self._messages = _messages(config.ask, config.style, parts.info)

    def __call__(self, path: str, image: Image.Image) -> dict[str, Any]:
        if self._processor.resizes(image):
            print_notes(["large images are made smaller for the model."], self._processes)
        pictures = (self._processor.picture(image),)
        ids = self._processor.prompt_ids(self._messages, pictures)
        if len(ids) > self._room:
            raise UserError(
                f'Image "{path}" and the question take {len(ids)} tokens, but {self._room} fit '
                "beside the longest completion: lower --max-pixels or --max-new-tokens."
            )
        batch = Batch(
            torch.zeros(1, dtype=torch.long),
            torch.from_numpy(ids)[None].long(),
            pictures=Pictures.of([pictures], [("",)]),
            lengths_N=torch.tensor([len(ids)]),
        )
        tokens = greedy_tokens(self._model, batch.to(self._processes.device), self._sampling)
        text = self._decode(tokens[0].tolist())[0]
        return {"answer": answer_of(text), "completion": text}


def _messages(question: str, style: Style | None, learned: Mapping[str, Any]) -> Messages:
    own: Style | None = learned.get("style")
    if asked := style or own:
        template = learned.get("prompt", "") if asked == own else ""
        return seeing_prompt(question, 1, asked, template)
    return [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]


def _longest(config: EvaluateConfig | PredictConfig, parts: Parts) -> SamplingOptions:
    longest = config.max_new_tokens or defaults_of(parts.info).max_new_tokens
    return SamplingOptions(max_new_tokens=longest)


def _model(parts: Parts, processes: Processes) -> VisionLanguageModel:
    return VisionLanguageModel(parts.model).requires_grad_(False).to(processes.device).eval()


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
    halves = [stage for name in (config.vision, config.language) for stage in stages_of(name)]
    origin = {
        "vision": config.vision,
        "language": config.language,
        "merger": config.merger,
        **({"learned": with_stages({}, *halves)} if halves else {}),
    }
    save(parts.model, parts, folder, _card(config), origin)
    _print(parts, config)
    return parts


def _print(parts: Parts, config: JoinConfig) -> None:
    text = parts.model.config.text_config
    token = parts.model.config.image_token_id
    rows = {
        "vision tower": _millions(parts.model.model.visual),
        "language model": _millions(parts.model.model.language_model),
        "merger's last layer": f"{config.merger}, to {text.hidden_size}",
        "rotary sections": "time {}, rows {}, columns {}".format(
            *text.rope_parameters["mrope_section"]
        ),
        "image token": f"{parts.tokenizer.convert_ids_to_tokens(token)} ({token})",
    }
    for note in parts.notes:
        show(note)
    show_table([], list(rows.items()))
    show(f"Saved to {config.output}. Next: visgrpo vlm --method sft --model {config.output}")


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
