#!/bin/sh
# The runs of docs/results/vlm.md for one seed, one after the other, into OUT/seed-SEED.
#
#     sh benchmarks/vlm/run.sh SEED [OUT]        # OUT: runs/results/count
#
# About 45 minutes on one core; a seed each on three cores at once. What is finished is not repeated.
set -e
SEED=$1
OUT=${2:-runs/results/count}/seed-$SEED
EVERY="--data shapes --seed $SEED --keep last --eval-images 600 --no-report"
SFT="--stage sft --steps 2500 --eval-every 1250"
GRPO="--stage grpo --steps 100 --eval-every 50"

run() {
    name=$1
    shift
    [ -e "$OUT/$name/summary.json" ] || visgrpo vlm $EVERY --output "$OUT/$name" "$@"
}

run sft $SFT
run exact $GRPO --model "$OUT/sft" --reward format exact
run ordinal $GRPO --model "$OUT/sft" --reward format ordinal:5
run random $GRPO --model "$OUT/sft" --reward random
run longer --stage sft --eval-every 500 --steps 1000 --model "$OUT/sft"  # as long as GRPO takes
run scratch $GRPO --reward format exact
run direct $SFT --style direct
run direct-exact $GRPO --style direct --model "$OUT/direct" --reward format:direct exact
