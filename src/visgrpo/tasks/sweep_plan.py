"""What a sweep runs: from a YAML file to the combinations of options, all checked at once.

Light to import, since its own options stand here too.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from visgrpo.arguments import options_as_flags, parse, read_options
from visgrpo.errors import UserError
from visgrpo.options import Options, like, option
from visgrpo.training.options import Loop
from visgrpo.training.run_directory import CONFIG_FILE

# What a sweep writes into its folder, beside one folder for each combination.
PLAN, ROWS, TABLE, PAGE = ("sweep.yaml", "sweep.json", "table.md", "compare.html")
FILES = (PLAN, ROWS, TABLE, "table.csv", "table.tex", PAGE)
_SET_BY_THE_SWEEP = {
    **{"seed": "--seeds", "output": "--output", "resume": "--resume"},
    "dry_run": "which trains all of them,",
    "push_to_hub": "which makes many models,",
}
_LONGEST_NAME = 120  # most file systems allow 255 bytes

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Combination:
    """What the runs of one row have in common.

    Attributes:
        name: of its folder.
        variant: the named set of options that it takes; None where the file has no variants.
        swept: its values of the options under "sweep".
        config: its options, with the default seed and without an output.
    """

    name: str
    variant: str | None
    swept: Values
    config: Loop


def read_combinations(
    file: Path, config_class: type[Loop], command: str
) -> tuple[Combination, ...]:
    """Return the combinations that a file asks for: every variant with every point of the grid.

    Raises:
        UserError: for a file or an option that cannot be understood, an option that is given in
            two places, and settings that cannot work, in whichever combination.
    """
    origin = f"--config {file}"
    fixed = _with_hyphens(read_options(file))
    variants = _variants(fixed.pop("variants"), origin) if "variants" in fixed else {None: {}}
    grid = _grid(fixed.pop("sweep"), origin) if "sweep" in fixed else {}
    _check_places(fixed, variants, grid, origin)
    options_as_flags(fixed, config_class, origin)  # before any combination is blamed
    found = []
    for variant, own in variants.items():
        for swept in _points(grid):
            name = _folder_name(variant, swept, command, origin)
            where = f"{origin}, {name}"
            flags = options_as_flags({**fixed, **own, **swept}, config_class, where)
            try:
                config = parse(config_class, command, flags)
                config.check()
            except UserError as error:
                raise UserError(f"{where}: {error}") from None
            found.append(Combination(name, variant, swept, config))
    _check_names([combination.name for combination in found], origin)
    return tuple(found)


def value_text(value: object) -> str:
    """Write an option's value: "0.001", "crop+flip", "true"."""
    if isinstance(value, list):
        return "+".join(map(value_text, value)) or "none"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return str(value)


def _variants(named: object, origin: str) -> dict[str | None, Values]:
    if not isinstance(named, dict) or not named:
        raise UserError(f"{origin}: variants must hold lines of the form name: {{option: value}}.")
    variants: dict[str | None, Values] = {}
    for name, own in named.items():
        if not isinstance(name, str):  # YAML reads off, no and 10 as something else
            raise UserError(f'{origin}: put the variant\'s name "{name}" into quotes.')
        if not isinstance(own, dict):
            raise UserError(
                f"{origin}: variant {name} must be a mapping of options to values; "
                "{} changes nothing."
            )
        variants[name] = _with_hyphens(own)
    return variants


def _grid(swept: object, origin: str) -> dict[str, list[Any]]:
    if not isinstance(swept, dict) or not swept:
        raise UserError(f"{origin}: sweep must hold lines of the form option: [value, value].")
    for name, values in swept.items():
        if not isinstance(values, list):
            raise UserError(f"{origin}: {name} under sweep must be a list of values.")
        if not values:
            raise UserError(f"{origin}: {name} under sweep has an empty list of values.")
    return _with_hyphens(swept)


def _with_hyphens(options: Values) -> dict[str, Any]:
    """Name options as on the command line, so that learning_rate and learning-rate are one."""
    return {str(key).replace("_", "-"): value for key, value in options.items()}


def _check_places(
    fixed: Values, variants: Mapping[str | None, Values], grid: Values, origin: str
) -> None:
    """Raise UserError for an option that two places set, or that is the sweep's own."""
    for variant, own in variants.items():
        places = {"at the top": fixed, "under sweep": grid, f"in variant {variant}": own}
        for place, options in places.items():
            for name in sorted(options.keys() & _SET_BY_THE_SWEEP.keys()):
                raise UserError(
                    f"{origin}: remove {name} {place}: "
                    f"visgrpo sweep {_SET_BY_THE_SWEEP[name]} sets it."
                )
        for (place, one), (other_place, other) in itertools.combinations(places.items(), 2):
            for name in sorted(one.keys() & other.keys()):
                raise UserError(
                    f"{origin}: {name} is given twice, {place} and {other_place}: remove one."
                )


def _points(grid: Mapping[str, list[Any]]) -> Iterator[Values]:
    """Every combination of the grid's values; the last option changes fastest."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _folder_name(variant: str | None, swept: Values, command: str, origin: str) -> str:
    """Name a combination by its variant and swept values; by the command if nothing differs."""
    parts = [] if variant is None else [variant]
    parts += [f"{name}={value_text(value)}" for name, value in swept.items()]
    name = re.sub(r"[^\w.=+-]+", "-", "_".join(parts) or command)
    if not name.strip(".-") or name in (CONFIG_FILE, *FILES) or len(name) > _LONGEST_NAME:
        raise UserError(
            f'{origin}: "{name[:_LONGEST_NAME]}" cannot name a folder of the sweep: '
            "choose another name under variants."
        )
    return name


def _check_names(names: list[str], origin: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(
                f"{origin}: two combinations are both called {name}: remove one, or name them "
                "under variants."
            )


@dataclass(frozen=True)
class SweepConfig(Options):
    """Train with every combination of some options and several seeds, and print one table."""

    example = "visgrpo sweep clip --config sweep.yaml --seeds 3"

    command_words: tuple[str, ...] = option(
        (),
        "The command to run: clip, pretrain clip and so on.",
        required="the command: visgrpo sweep clip --config FILE",
    )
    config: str | None = option(
        None,
        'YAML with options of that command, which all runs share. Under "sweep" stand options '
        'with lists of values, which are combined; under "variants" names, each with options '
        "of its own.",
    )
    seeds: int = option(3, "Runs of every combination: seeds 0, 1 and so on.", within="> 0")
    measure: tuple[str, ...] = option(
        (),
        "Measure of the tuned model to put into the table, such as accuracy or knn.20, or any "
        "other number of a run's summary, such as before.accuracy.",
        commas=True,
    )
    output = like(Loop, help="Folder for the runs; by default a free name under runs/.")
    resume = like(
        Loop,
        help="Go on with the sweep in --output: finished runs stay, one that was stopped goes on.",
    )

    def rules(self) -> Iterator[str]:
        yield from super().rules()
        if self.resume and self.output is None:
            yield "--resume needs --output, the sweep to go on with."
        if self.config is None and not self.resume:
            yield (
                "--config FILE is needed: YAML with the options of the runs and, under sweep or "
                "variants, what differs between them."
            )
