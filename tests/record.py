"""What is kept of a golden run: its lines, its summary, and fingerprints of its weights."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

Record = dict[str, Any]
# What a clock or the machine says, at any depth.
TIMES = re.compile(r"seconds|step_time|per_second|memory|_bytes$|^versions$")
SAMPLES = 4  # lines of samples kept in full; the exact hash is of all
DIGITS = 6
RELATIVE, ABSOLUTE = 1e-3, 2e-5  # another processor rounds sums in another order
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def record_of(run: Path, printed: str) -> Record:
    """Return what a run left, or printed, without times and without the folder it lies in."""
    record: Record = {}
    exact: dict[str, str] = {}
    if not (run / "summary.json").exists():
        told = json.loads(printed) if printed.startswith("{") else printed.splitlines()
        return {"printed": _rounded(told), "exact": {"printed": _hash(told)}}
    record["files"] = sorted(_kept(run))
    for file in sorted(run.rglob("*.jsonl")):
        lines = [
            _plain(json.loads(line), run.parent) for line in file.read_text().split("\n") if line
        ]
        name = str(file.relative_to(run))
        exact[name] = _hash(lines)
        record[name] = lines if file.name == "metrics.jsonl" else lines[:SAMPLES]
    for file in sorted([*run.rglob("summary.json"), *run.rglob("visgrpo.json")]):
        values = _plain(json.loads(file.read_text()), run.parent)
        name = str(file.relative_to(run))
        exact[name] = _hash(values)
        record[name] = values
    for file in sorted(run.rglob("*.safetensors")):
        if "checkpoints" in file.parts:
            continue
        tensors = load_file(file)
        name = str(file.relative_to(run))
        exact[name] = _hash_of_tensors(tensors)
        record[name] = _fingerprints(tensors)
    return {**_rounded(record), "exact": exact}


def exactly(run: Path) -> dict[str, str]:
    """Return hashes of all that a run leaves, but for the times."""
    summary = json.loads((run / "summary.json").read_text())
    return {**record_of(run, "")["exact"], "memory": str(summary.get("memory"))}


def differences(
    found: Record, kept: Record, *, exactly: bool, absolute: float = ABSOLUTE
) -> list[str]:
    """Say where a record is not the one kept; exactly compares hashes of every bit, too."""
    told = list(_differ(_without(found), _without(kept), "", absolute))
    if exactly:
        names = sorted(found["exact"].keys() | kept["exact"].keys())
        changed = [n for n in names if found["exact"].get(n) != kept["exact"].get(n)]
        told += [f"{name}: not the same to the bit" for name in changed]
    return told


def written(record: Record) -> str:
    """Return a record as JSON, a line of the run a line."""
    parts = []
    for name, value in record.items():
        rows = value if isinstance(value, list) else None
        if rows and isinstance(rows[0], dict | str):
            inner = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows)
            text = f"[\n{inner}\n ]"
        elif isinstance(value, dict):
            inner = ",\n".join(
                f"  {json.dumps(key)}: {json.dumps(each, ensure_ascii=False)}"
                for key, each in value.items()
            )
            text = f"{{\n{inner}\n }}"
        else:
            text = json.dumps(value, ensure_ascii=False)
        parts.append(f" {json.dumps(name)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _kept(run: Path) -> Iterator[str]:
    for file in run.rglob("*"):
        inside = file.relative_to(run)
        if file.is_file() and not {"checkpoints", "samples"} & set(inside.parts):
            yield str(inside)


def _plain(value: Any, root: Path) -> Any:
    """Leave out times; make paths relative."""
    if isinstance(value, dict):
        return {name: _plain(each, root) for name, each in value.items() if not TIMES.search(name)}
    if isinstance(value, list):
        return [_plain(each, root) for each in value]
    return value.replace(f"{root}/", "") if isinstance(value, str) else value


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_rounded(each) for each in value]
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _fingerprints(tensors: dict[str, torch.Tensor]) -> dict[str, list[float]]:
    """Norm and two fixed projections of the tensors of every group: of a block, or a part."""
    groups: dict[str, list[torch.Tensor]] = defaultdict(list)
    for name in sorted(tensors):
        block = re.match(r".*?\.\d+(?=\.)", name)
        groups[block.group() if block else name.rpartition(".")[0] or name].append(tensors[name])
    found = {}
    for name, group in groups.items():
        flat = torch.cat([tensor.flatten().double() for tensor in group])
        places = torch.arange(len(flat), dtype=torch.float64)
        waves = (torch.cos(0.37 * places), torch.sin(1.1 * places + 0.5))
        scale = math.sqrt(len(flat))
        found[name] = [float(flat.norm()), *(float(flat @ wave) / scale for wave in waves)]
    return found


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _hash_of_tensors(tensors: dict[str, torch.Tensor]) -> str:
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _without(record: Record) -> Record:
    return {name: value for name, value in record.items() if name != "exact"}


def _differ(found: Any, kept: Any, place: str, absolute: float) -> Iterator[str]:
    if isinstance(found, dict) and isinstance(kept, dict):
        for name in dict.fromkeys([*kept, *found]):
            if name not in found or name not in kept:
                yield f"{place}/{name}: only {'kept' if name in kept else 'found'}"
            else:
                yield from _differ(found[name], kept[name], f"{place}/{name}", absolute)
    elif isinstance(found, list) and isinstance(kept, list):
        if len(found) != len(kept):
            yield f"{place}: {len(found)} entries, not {len(kept)}"
        for number, pair in enumerate(zip(found, kept, strict=False)):
            yield from _differ(*pair, f"{place}[{number}]", absolute)
    elif isinstance(found, str) and isinstance(kept, str):
        same = _NUMBER.split(found) == _NUMBER.split(kept)
        numbers = zip(_NUMBER.findall(found), _NUMBER.findall(kept), strict=False)
        if not same or not all(_near(float(a), float(b), 5e-3, 0.011) for a, b in numbers):
            yield f"{place}: {found!r}, not {kept!r}"
    elif isinstance(found, float | int) and isinstance(kept, float | int):
        if not _near(found, kept, RELATIVE, absolute):
            yield f"{place}: {found}, not {kept}"
    elif found != kept:
        yield f"{place}: {found!r}, not {kept!r}"


def _near(a: float, b: float, relative: float, absolute: float) -> bool:
    return math.isclose(a, b, rel_tol=relative, abs_tol=absolute) or (a != a and b != b)
