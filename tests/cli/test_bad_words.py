"""Words that cannot work: one line that names the thing and the mend, exit code 2, nothing left.

Each row of a table has the words and, after a bar, what the refusal says of them. It may go on in
an indented line.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from running import Words, refused

Capture = pytest.CaptureFixture[str]

# Wrong whatever the files hold: nothing is loaded.
WORDS = r"""
replay --model runs/mine | Unknown command "replay". Choose from: feedback replay.
clp --data digits | Unknown command "clp". Did you mean "clip"?
pretrain --data digits | Say what to pre-train: "visgrpo pretrain clip"
clip --bta 0.1 | nknown option --bta. Did you mean --beta?
clip --grup_size 4 | Did you mean --group-size?
clip --method grp | grp
clip --steps many | many
clip --steps | --steps
clip digits | digits
clip --steps 0 | --steps must be above 0, not 0
clip --batch-size 0 | --batch-size must be above 0
clip --beta nan | --beta
clip --learning-rate inf | --learning-rate
clip --beta -1 | --beta must not be negative
clip --epsilon-low -0.1 | --epsilon-low
clip --last-blocks -1 | --last-blocks
clip --train lora --lora-dropout 0.1 | --lora-dropout
clip --warmup 2 | --warmup
clip --final-learning-rate -1 | --final-learning-rate
clip --augment flop | flop
clip --report-to tensorbord | tensorbord
clip --train lora --train projections | --train lora adapts towers
clip --augment flip --reference cached | drop --augment
clip --method supervised --warm-start 3 | --warm-start is for GRPO
evaluate m --alpha 0.5 | --alpha needs --start
evaluate m --start s --alpha 2 | --alpha 2.0 must lie between 0 and 1
predict m | Name at least one image
evaluate --data digits | visgrpo evaluate MODEL
predict | visgrpo predict MODEL
report | visgrpo report RUN
compare | visgrpo compare RUN
report nothing-here | nothing-here
compare nothing-here nor-here | nothing-here
evaluate ./nothing --data digits | ./nothing
clip --data digits --device cuda | no GPU is visible
clip --data digits --device cpu --precision bf16 | --precision bf16 needs a GPU
clip --data digits --weights bfloat16 --precision fp16 | leave --precision fp16 out
clip --data digts | Unknown data set "digts". Did you mean "digits"?
clip --data ./nowhere | No such file or folder: ./nowhere
clip --config | --config needs a file
clip --config no.yaml | no.yaml cannot be read
language --method grop | Did you mean "grpo"?
language --method bogus | Choose from: all, sft, preferences, reward, grpo, dr-grpo, 
language --method bogus | reinforce, rejection, ppo, best-of-n. See
language --preset tny | Did you mean "tiny"?
language --method ppo | --method ppo needs --model, the model to start from
language --model sft | --model does not go with --method all
language --steps 4 | --steps does not go with --method all; it is for sft
language --method grpo --model m --gamma 0.9 | --gamma does not go with --method grpo
language --method sft --group-size 4 | --group-size does not go with --method sft
language --method reward --model m --reward gold | does not go with --method rew
language --method sft --prompt-tokens 8 | --prompt-tokens does not go with --method
language --method sft --no-gold | --no-gold does not go with --method sft
language --no-gold | --no-gold does not go with --method all; it is for grpo
language --method preferences --model m --no-gold | --no-gold does not go with
language --method grpo --model m --context 9 | it is for sft, all.
language --method best-of-n --model m --report-to mlflow
    | --report-to does not go with --method best-of-n
language --method ppo --model m --pairs 9 | --pairs does not go with --method ppo
language --method sft --model m --preset tiny | --preset is for new models: m has its own
language --architecture qwen2 | --architecture qwen2 goes with --tokenizer bpe
language --method grpo --model m --steps 3 --token-budget 9 | say the same thing
language --kl-target 3 --beta 0 | --kl-target steers --beta
language --method sft --lora-rank 4 | --lora-rank is for --train lora
language --method grpo --model m --lora-alpha 4 | --lora-alpha is for --train lora
language --kl-horizon 9 | --kl-horizon is for --kl-target
language --vocabulary 99 | --vocabulary is for --tokenizer bpe
language --method ppo --model m --kl-estimator k2 | --kl-estimator is for --kl-in loss
language --method grpo --model m --kl-in reward --beta 0 | --kl-in has no KL to weigh
language --method grpo --model m --kl-estimator k1 --beta 0
    | --kl-estimator has no KL to weigh with --beta 0
language --method grpo --model m --no-track-kl | --no-track-kl is for --beta 0
language --method rloo --model m --combination normalize_then_sum
    | to the spread of a reward, however small it is: take --kl-in loss
language --method sft --text-column body | --text-column is for a table, and topics
language --method grpo --model m --prompt-column question
    | --prompt-column is for a table, and topics is text
language --method grpo --model m --data a/b --text-column body --prompt-column question
    | --prompt-column does not go with --text-column
language --method ppo --model m --data openai/gsm8k --prompt-tokens 8
    | --prompt-tokens is for text, and openai/gsm8k is read as a table of prompts
language --context 40 --max-new-tokens 25
    | --prompt-tokens 16 and --max-new-tokens 25 are more than the model sees at once
language --group-size 1 | leaves grpo nothing to compare
language --preset tiny --critic-warmup 40
    | --critic-warmup 40 leaves none of ppo's 40 steps to the policy
language --weight-decay 0.1 | while the critic learns alone
language --method ppo --model m --weight-decay 0.1 | take --critic-warmup 0, or no weight d
language --validation-fraction 0.5 | must lie between 0 and 0.5
language --temperature 0 | --temperature must be above 0
language --top-p 1.5 | --top-p 1.5 must lie between 0 and 1
language --prompt-tokens 0 | --prompt-tokens must be above 0
language --noise -1 | --noise must not be negative
language --method sft --data nowhere.txt | nowhere.txt
language --method sft --data topcis | Unknown text "topcis". Did you mean "topics"?
language --method sft --tokenizer bpe --vocabulary 9 | --vocabulary 9 has no room
generate | Name the model
generate m | Name the prompt
generate ./nothing Hello | ./nothing
generate m Hello --samples 0 | --samples must be above 0
vlm --method grop | Did you mean "grpo"?
vlm --method ppo | Choose from: all, sft, grpo, dr-grpo, dapo, gspo, cispo, sapo, rloo
vlm --preset tny | Did you mean "tiny"?
vlm --style dirct | Did you mean "direct"?
vlm --method sft --group-size 4 | --group-size does not go with --method sft
vlm --method grpo --sft-steps 4 | --sft-steps does not go with --method grpo
vlm --method rloo --epsilon-low 0.1 | --epsilon-low does not go with
vlm --group-size 1 | --group-size 1 leaves grpo nothing to compare
vlm --sft-step 3 | Unknown option --sft-step. Did you mean --sft-steps?
vlm --model m --preset small | --preset is for new models
vlm --lora-rank 4 | --lora-rank is for --train lora
vlm --kl-target 3 --beta 0 | --kl-target steers --beta
vlm --no-track-kl | --no-track-kl is for --beta 0
"""

# Wrong for the data or the rewards: no model is loaded. "both" are jobs with backbone and head.
OPTIONS = r"""
clip: --reward hrad | Unknown reward "hrad". Did you mean "hard"?
clip: --reward nofile.py:f | nofile.py
clip: --reward {mine}:shap | has no function "shap". Did you mean "shape"?
clip: --reward nomodule:f | Module "nomodule" not found
clip: --reward soft | the same number for every output
clip: --reward {mine}:priced | needs "price", which is not a column
clip: --reward any-of:0 | k must be a whole number from 1 to 1,000
clip: --reward clicks abstain:1 --feedback clicks.csv | an output that no feedback speaks of
clip: --reward top-k:9 | k must be a whole number from 1 to 3
clip: --reward cost:costs.csv | costs.csv
both: --batch-size 100 | --batch-size 100 is larger than the
both: --accumulation 3 | --batch-size 8 cannot be split evenly
both: --reward hrad | Unknown reward "hrad". Did you mean "hard"?
both: --reward soft | the same number for every output
both: --reward-weights 1 2 3 | 3 reward weights for 2 rewards
both: --refresh-every epoh | --refresh-every takes a number of steps or "epoch"
both: --refresh-every 0 | --refresh-every takes a number of steps
both: --baseline --method supervised | this run is the baseline itself
both: --backbone-rate -1 | --backbone-rate must not be negative
both: --hidden -1 | --hidden must not be negative
both: --method grpo | grpo-rm
both: --train image | --train
both: --inner-passes 0 | --inner-passes must be above 0
both: --resume | holds no run to resume
representation: --probe none knn | --probe none goes alone
representation: --probe kn | --probe
representation: --shifts blurr | --shifts
representation: --class-subset 4 | A class subset of 4 cannot be: give 2 to 3
representation: --class-subset 1 | A class subset of 1 cannot be: give 2 to 3
representation: --class-subset 2 --estimator exact | goes with --estimator uniform
representation: --feature-uniformity 1 --accumulation 2 | does not go with
representation: --feature-uniformity 1 --minibatches 2 | does not go with
representation: --feature-uniformity 1 --batch-size 1 | must be 2 or more
representation: --feature-uniformity 1 --estimator sampled | goes with --estimator uniform or exact
representation: --beta 1 --augment flip | drop --augment
representation: --retention digts | Did you mean "digits"?
representation: --pool max | --pool
representation: --estimator sampled --group-size 0 | --group-size must be above 0
representation: --estimator sampled --group-size 1 | A group of one output has no baseline
segmentation: --background lef | --background "lef" is no class. Did you mean "leaf"?
segmentation: --background-reward -1 | --background-reward must not be negative
segmentation: --background-reward 0.2 --reward uniformity | there is no hard among
segmentation: --image-size 0 8 | --image-size takes height and width in pixels, not 0
segmentation: --image-size 8 | --image-size
segmentation: --label-column y | name theirs with --mask-column
segmentation: --pictures -1 | --pictures must not be negative
segmentation: --ignore-index 2 | --ignore-index 2 is also the id of class
segmentation: --classes-file none.txt | none.txt
segmentation: --estimator sampled | "hard" is of single labels, and whole masks or sets are drawn
segmentation: --data digits | digits
segmentation: --decide-at image | --decide-at
clip: --reward-weights 1 2 | 2 reward weights for 1 rewards
pretrain clip: --layers 0 | --layers
pretrain clip: --vocabulary 0 | --vocabulary
pretrain clip: --templates cat | Template "cat" must hold {} exactly once
pretrain clip: --more-data digts | Did you mean "digits"?
"""

# Wrong for the model: nothing is left behind.
LOADED = r"""
language grpo: --group-size 1 | or batch scope with more than one input
language grpo: --token-budget 100 | --token-budget 100 is less than the 128 tokens
language ppo: --max-new-tokens 48 | leaves no room for a prompt
language grpo: --prompt-tokens 42 | has 42 tokens but 1 to 40 are allowed
language grpo: --batch-size 1000 | batch size 1000 is larger than short/train
language ppo: --minibatches 3 | cannot be split evenly
language grpo: --reward glod | Unknown reward "glod". Did you mean "gold"?
language grpo: --reward-weights 1 2 | 2 reward weights for 1 reward
language rloo: --no-gold | --reward gold judges by the text
language grpo: --reward none.py:f | none.py
language grpo: --reward model:./none | ./none
language ppo: --critic-warmup 4 | leaves none of 4 steps to the policy: take more --s
language ppo: --token-budget 300 --critic-warmup 2
    | --critic-warmup 2 leaves none of 2 steps to the policy: take a larger --token-budget
language preferences: --pairs 50 --top-k 1 | differ in text and score
vlm grpo: --train megrer | is no part of this model. Did you mean "merger"?
vlm grpo: --train layers:0-9 | the language model has the layers 0-1
vlm grpo: --reward exat | Did you mean "exact"?
vlm grpo: --reward ordinal:x | "x" is no number
vlm grpo: --reward length | write for example "length:64"
vlm grpo: --reward-weights 1 | 1 reward weights for 2 rewards (format, exact)
vlm grpo: --group-size 1 | group
vlm grpo: --max-new-tokens 128 | --max-new-tokens 128 leaves no room for a prompt
vlm grpo: --max-new-tokens 110 | tokens, but at most 18 fit beside the longest
vlm sft: --max-new-tokens 128 | leaves no room for a prompt
vlm grpo: --max-pixels 10 | --max-pixels 10
vlm grpo: --token-budget 9 | --token-budget 9 is less than
vlm grpo: --batch-size 99 | batch
vlm sft: --answer-column ground_truht | Did you mean "ground_truth"?
vlm grpo: --model nowhere/at/all | does not exist
vlm grpo: --shifts nowhere.jsonl | nowhere.jsonl
clip: --last-blocks 9 | --last-blocks 9: the image tower has 2 blocks
representation: --train last-blocks --last-blocks 3 | --last-blocks 3: this dinov2 has 2 blocks
representation resnet: --train last-blocks --last-blocks 3 | this resnet has 2 blocks
representation resnet: --train lora | --train lora: a resnet has no linear layers
pretrain clip: --patch-size 5 | --patch-size 5 does not divide --image-size 16
pretrain clip: --heads 3 | --heads 3 does not divide --width 32
representation: --beta 0.1 | --beta: KL to a start whose head is random
"""
REWARDS = "def shape(outputs): ...\ndef priced(outputs, price): ...\n"


def rows(table: str) -> list[tuple[str, str]]:
    """Words, and what is said of them."""
    lines = re.sub(r"\n +", " ", table.strip()).split("\n")
    return [tuple(line.split(" | ")) for line in lines]  # type: ignore[misc]


@pytest.mark.parametrize(("words", "said"), rows(WORDS))
def test_words(
    words: str,
    said: str,
    tmp_path: Path,
    no_model: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    if torch.cuda.is_available() and ("cuda" in words or "bf16" in words):
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    more = "--output run --device cpu" if words.startswith(("language", "vlm")) else ""
    assert said in refused(capsys, [*words.split(), *more.split()], notes="vocabulary 9 " in said)
    assert not list(tmp_path.iterdir())


def jobs() -> list[tuple[str, str]]:
    """The rows of options, those of both jobs for each of them."""
    found = []
    for row, said in rows(OPTIONS):
        both = ("representation", "segmentation") if row.startswith("both") else ("both",)
        found += [(row.replace("both", job, 1), said) for job in both]
    return found


@pytest.mark.parametrize(("row", "said"), jobs())
def test_options(
    row: str, said: str, words_of: Words, no_model: None, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "mine.py").write_text(REWARDS)
    job, _, options = row.partition(":")
    given = words_of(job, tmp_path / "run", options.format(mine=tmp_path / "mine.py"))
    notes = job == "segmentation"  # which class is the background
    assert said in refused(capsys, given, notes=notes)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("row", "said"), rows(LOADED))
def test_options_for_the_model(
    row: str, said: str, words_of: Words, tmp_path: Path, capsys: Capture
) -> None:
    job, _, options = row.partition(":")
    assert said in refused(capsys, words_of(job, tmp_path / "run", options), notes=True)
    assert not (tmp_path / "run").exists()
