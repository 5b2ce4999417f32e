#!/bin/sh
# The runs of docs/results/vlm.md for one seed, one after the other, into OUT/seed-SEED.
#
#     sh benchmarks/vlm/run.sh SEED [OUT]        # OUT: runs/results/count
#
# About half an hour on one core; a seed each on three cores at once. What is finished is not repeated.
set -e
SEED=$1
OUT=${2:-runs/results/count}/seed-$SEED
EVERY="--data shapes --seed $SEED --keep last --eval-images 500 --no-report"
SFT="--method sft --eval-every 1300"
GRPO="--method grpo --eval-every 50 --steps 100 --learning-rate 5e-5"

run() {
    name=$1
    shift
    [ -e "$OUT/$name/summary.json" ] || visgrpo vlm $EVERY --output "$OUT/$name" "$@"
}

run sft $SFT
run direct $SFT --style direct
run exact $GRPO --model "$OUT/sft" --reward format exact
run ordinal $GRPO --model "$OUT/sft" --reward format ordinal:5
run random $GRPO --model "$OUT/sft" --reward random
run same-time $SFT --steps 550 --learning-rate 1e-3 --model "$OUT/sft"  # about as long as GRPO takes
run longer $SFT --steps 1300 --learning-rate 1e-3 --model "$OUT/sft"
run longer-exact $GRPO --model "$OUT/longer" --reward format exact
run longest $SFT --steps 600 --learning-rate 5e-4 --model "$OUT/longer"  # about as long as GRPO takes
run scratch $GRPO --reward format exact || true  # stops by itself: no group's rewards ever differ
