"""Built-in label rewards against values computed by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from visgrpo.errors import UserError
from visgrpo.rewards.labels import HierarchyReward, LabelReward
from visgrpo.rewards.sets import parse_rewards
from visgrpo.rewards.tables import read_hierarchy

CLASSES = ("cat", "dog", "car")
LABEL = torch.tensor([0, 2])
OUTPUTS_NG = torch.tensor([[0, 1, 2, 0], [0, 1, 2, 2]])
PROBABILITIES = torch.tensor([[0.5, 0.3, 0.2], [0.6, 0.3, 0.1]])
CSV = "truth,dog,car,cat\ndog,0,9,1\ncat,2,8,0\ncar,5,0,4.5\n"


def rewards_of(spec: str) -> list[list[float]]:
    return call(parse_rewards([spec], None, CLASSES).functions[0])


def call(reward: LabelReward) -> list[list[float]]:
    rewards_NG = reward(
        OUTPUTS_NG, label=LABEL, probabilities=PROBABILITIES, classes=CLASSES, caption=["a", "b"]
    )
    assert rewards_NG.dtype == torch.float32
    return rewards_NG.tolist()


def tensors_of(reward: LabelReward) -> list[torch.Tensor]:
    return [value for value in vars(reward).values() if isinstance(value, torch.Tensor)]


def write(folder: Path, name: str, text: str | bytes) -> str:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_hard() -> None:
    assert rewards_of("hard") == [[1, 0, 0, 1], [0, 0, 1, 1]]


def test_soft_is_one_number_per_image() -> None:
    assert rewards_of("soft") == [pytest.approx([0.5] * 4), pytest.approx([0.1] * 4)]


def test_cost_is_minus_the_table(tmp_path: Path) -> None:
    spec = f"cost:{write(tmp_path, 'costs.csv', CSV)}"
    assert rewards_of(spec) == [[0, -2, -8, 0], [-4.5, -5, 0, 0]]


def test_graded_is_the_table_as_given(tmp_path: Path) -> None:
    spec = f"graded:{write(tmp_path, 'credit.csv', CSV)}"
    assert rewards_of(spec) == [[0, 2, 8, 0], [4.5, 5, 0, 0]]


def test_table_from_a_spreadsheet(tmp_path: Path) -> None:
    """A byte order mark, CRLF, quotes, spaces and blank lines change nothing."""
    text = '\ufeff"",dog, car ,"cat"\r\ndog,0,9,1\r\n\r\ncat,2,8,0\r\ncar,5,0,4.5\r\n,,,\r\n'
    assert rewards_of(f"graded:{write(tmp_path, 'c.csv', text)}") == [[0, 2, 8, 0], [4.5, 5, 0, 0]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (CSV.replace("car,cat", "car,cta"), 'header: unknown class "cta". Did you mean "cat"?'),
        (CSV.replace("\ncat", "\ncaat"), 'first column: unknown class "caat". Did you mean "cat"?'),
        ("x,dog,cat\ndog,0,1\ncat,2,0\n", 'header: class "car" is missing'),
        (CSV.replace("car,5,0,4.5\n", ""), 'first column: class "car" is missing'),
        (CSV + "dog,1,1,1\n", 'class "dog" appears twice'),
        (CSV.replace("2,8,0", "2,8"), 'row "cat": 2 values for 3 classes'),
        (CSV.replace("4.5", "much"), 'row "car", "cat": "much" is not a number'),
        (CSV.replace("4.5", "nan"), '"nan" is not a finite number'),
        (b"x,caf\xe9\n", "is not UTF-8"),
    ],
)
def test_table_mistakes(tmp_path: Path, text: str | bytes, message: str) -> None:
    path = write(tmp_path, "costs.csv", text)
    with pytest.raises(UserError) as caught:
        parse_rewards([f"cost:{path}"], None, CLASSES)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


TREE = {"animal": ["dog", "cat"], "machine": ["car"]}


@pytest.mark.parametrize("suffix", ["json", "yaml"])  # JSON is YAML; block style is tested below
def test_hierarchy(tmp_path: Path, suffix: str) -> None:
    spec = f"hierarchy:{write(tmp_path, f'tree.{suffix}', json.dumps(TREE))}"
    assert rewards_of(spec) == [[1, 0.5, 0, 1], [0, 0, 1, 1]]


def test_hierarchy_partial_credit_is_a_choice(tmp_path: Path) -> None:
    path = write(tmp_path, "tree.json", json.dumps(TREE))
    assert call(HierarchyReward(read_hierarchy(path, CLASSES), partial=0.25))[0] == [1, 0.25, 0, 1]


def test_hierarchy_takes_class_names_literally(tmp_path: Path) -> None:
    """YAML would read these as False, 7 and None."""
    path = write(tmp_path, "tree.yaml", "a:\n  - no\n  - 007\nb: [null]\n")
    reward = parse_rewards([f"hierarchy:{path}"], None, ("null", "no", "007")).functions[0]
    every_KK = reward(torch.arange(3).expand(3, 3), label=torch.arange(3))
    assert every_KK.tolist() == [[1, 0, 0], [0, 1, 0.5], [0, 0.5, 1]]


def test_tables_move_to_the_device_once(tmp_path: Path) -> None:
    cost = parse_rewards([f"cost:{write(tmp_path, 'costs.csv', CSV)}"], None, CLASSES).functions[0]
    tree = HierarchyReward(read_hierarchy(write(tmp_path, "tree.json", json.dumps(TREE)), CLASSES))
    outputs_NG, label = OUTPUTS_NG.to("meta"), LABEL.to("meta")
    for reward in (cost, tree):
        assert reward(outputs_NG, label=label).device.type == "meta"
        held = tensors_of(reward)
        assert [tensor.device.type for tensor in held] == ["meta"]
        reward(outputs_NG, label=label)
        assert all(now is before for now, before in zip(tensors_of(reward), held, strict=True))


def test_a_hierarchy_of_many_classes_makes_no_table(tmp_path: Path) -> None:
    names = [f"class {k}" for k in range(1000)]
    tree = {f"group {g}": names[g::10] for g in range(10)}
    reward = HierarchyReward(read_hierarchy(write(tmp_path, "tree.json", json.dumps(tree)), names))
    assert [tensor.numel() for tensor in tensors_of(reward)] == [1000]
    label, outputs_NG = torch.tensor([7]), torch.tensor([[7, 17, 997, 8]])
    assert reward(outputs_NG, label=label).tolist() == [[1, 0.5, 0.5, 0]]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.yaml", "a: [cat, dog]\nb: [car, cat]", 'class "cat" is in "a" and in "b"'),
        ("t.yaml", "a: [cat, dgo]\nb: [car]", 'unknown class "dgo". Did you mean "dog"?'),
        ("t.yaml", "a: [cat, dog]", 'class "car" is missing'),
        ("t.yaml", "- cat\n- dog", "must map each superclass to a list"),
        ("t.yaml", "a: cat", "must map each superclass to a list"),
        ("t.yaml", "", "must map each superclass to a list"),
        ("t.yaml", "a: [cat", "cannot be parsed"),
        ("t.json", "{", "cannot be parsed"),
        ("t.json", "[" * 100_000, "nested without end"),
        ("t.yaml", "[" * 100_000, "cannot be parsed"),
    ],
)
def test_hierarchy_mistakes(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = write(tmp_path, name, text)
    with pytest.raises(UserError) as caught:
        parse_rewards([f"hierarchy:{path}"], None, CLASSES)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("top-k:1", [[1, 0.5, 0.5, 1], [0, 0, 1, 1]]),
        ("top-k:2", [[1, 0.5, 0.5, 1], [0, 0, 1, 1]]),
        ("top-k:3", [[1, 0.5, 0.5, 1], [0.5, 0.5, 1, 1]]),
    ],
)
def test_top_k(spec: str, expected: list[list[float]]) -> None:
    assert rewards_of(spec) == expected


def test_abstain_pays_the_last_class() -> None:
    classes = ("cat", "dog", "no answer")
    outputs_NG, label = torch.arange(3).expand(2, 3), torch.tensor([0, 1])
    p_NK = torch.full((2, 3), 1 / 3)
    reward = parse_rewards(["hard", "abstain:0.6"], None, classes)
    found = reward(outputs_NG, label=label, probabilities=p_NK, classes=classes).sum(-1)
    torch.testing.assert_close(found, torch.tensor([[1.0, 0.0, 0.6], [0.0, 1.0, 0.6]]))
    for problem, names in (
        ("abstain:x", classes),
        ("abstain:nan", classes),
        ("abstain:1", CLASSES),
    ):
        with pytest.raises(UserError, match=r"no answer earns|is of whole images"):
            parse_rewards([problem], None, names)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_any_of_is_the_gradient_of_the_chance_that_a_set_has_the_truth(k: int) -> None:
    logits_NK = torch.tensor([[0.3, -1.0, 0.5], [2.0, 0.1, -0.4]], dtype=torch.float64)
    labels_N, outputs_NG = torch.tensor([2, 1]), torch.arange(3).expand(2, 3)
    p_NK = logits_NK.requires_grad_().softmax(1)
    score = (1 - (1 - p_NK[[0, 1], labels_N]) ** k).sum()
    (expected,) = torch.autograd.grad(score, logits_NK, retain_graph=True)
    reward = parse_rewards([f"any-of:{k}"], None, CLASSES)
    r_NG = reward(outputs_NG, label=labels_N, probabilities=p_NK.detach(), classes=CLASSES)[..., 0]
    (found,) = torch.autograd.grad((p_NK * r_NG).sum(), logits_NK)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    assert (p_NK.detach() * r_NG).sum().item() == pytest.approx(score.item(), rel=1e-5)
    if k == 1:  # which is `hard`
        torch.testing.assert_close(
            r_NG, (outputs_NG == labels_N[:, None]).float(), rtol=0, atol=1e-6
        )


@pytest.mark.parametrize("k", ["0", "-1", "2.5", "two", "1001"])
def test_any_of_mistakes(k: str) -> None:
    with pytest.raises(UserError, match="k must be a whole number from 1 to 1,000"):
        parse_rewards([f"any-of:{k}"], None, CLASSES)


@pytest.mark.parametrize("k", ["0", "4", "-1", "2.5", "two"])
def test_top_k_mistakes(k: str) -> None:
    with pytest.raises(UserError, match="k must be a whole number from 1 to 3"):
        parse_rewards([f"top-k:{k}"], None, CLASSES)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hard:3", 'Reward "hard" takes no argument'),
        ("top-k", 'write for example "top-k:5"'),
        ("cost:", 'write for example "cost:costs.csv"'),
        ("hrad", 'Unknown reward "hrad". Did you mean "hard"?'),
        ("cots:costs.csv", 'Unknown reward "cots". Did you mean "cost"?'),
        ("top_k:5", 'Unknown reward "top_k". Did you mean "top-k"?'),
    ],
)
def test_spec_mistakes(spec: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_rewards([spec], None, CLASSES)
    assert message in str(caught.value)


def test_missing_files(tmp_path: Path) -> None:
    write(tmp_path, "costs.csv", CSV)
    for spec, message in [
        (f"cost:{tmp_path}/cost.csv", 'Did you mean "costs.csv"?'),
        (f"hierarchy:{tmp_path}/tree.yaml", "holds no .yaml file"),
        (f"cost:{tmp_path}/nowhere/costs.csv", "there is no folder"),
        (f"cost:{tmp_path}", "is a folder, not a file"),
    ]:
        with pytest.raises(UserError) as caught:
            parse_rewards([spec], None, CLASSES)
        assert message in str(caught.value)
