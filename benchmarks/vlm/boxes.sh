#!/bin/sh
# Boxes from one start: GRPO on IoU, more SFT at two rates, and imitation of the best draws.
#
#     sh benchmarks/vlm/boxes.sh NOISE SEED [OUT]      # OUT: runs/results/boxes
#
# NOISE: how far annotators' edges are off, such as 0.3. What is finished is not repeated.
set -e
OUT=${3:-runs/results/boxes}
START=$OUT/start-$2
RUNS=$OUT/noise-$1-seed-$2

run() {
    folder=$1
    shift
    [ -e "$folder/summary.json" ] || visgrpo vlm --task boxes --data boxes --output "$folder" "$@"
}

run "$START" --method sft --steps 2000 --seed "$2"
FROM="--model $START --box-noise $1 --seed $2"
run "$RUNS/grpo" --method grpo --steps 100 --eval-every 50 $FROM
run "$RUNS/sft-1e-3" --method sft --steps 400 --learning-rate 1e-3 --eval-every 200 $FROM
run "$RUNS/sft-2e-4" --method sft --steps 400 --learning-rate 2e-4 --eval-every 200 $FROM
run "$RUNS/rejection" --method rejection --steps 100 --eval-every 50 $FROM
