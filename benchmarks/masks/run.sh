#!/bin/bash
# Scores of whole masks and their rivals, from one cross-entropy start for each seed:
#   python benchmarks/masks/prepare.py DATA runs/masks/clothing && benchmarks/masks/run.sh BACKBONE runs/masks 0 1 2
set -e
backbone=$1 folder=$2
shift 2
job="python -m visgrpo segmentation --data $folder/clothing --decide-at pixel --batch-size 32 --pictures 0 --no-report
  --device cpu --cache $folder/cache --eval-every 100 --keep last"
for seed in "$@"; do
  start=$folder/$seed/start
  [ -e "$start/summary.json" ] || $job --seed $seed --model $backbone --method supervised --steps 400 --learning-rate 3e-3 --output $start
  more() {
    name=$1
    shift
    [ -e "$folder/$seed/$name/summary.json" ] && return
    $job --seed $seed --model $start/model --steps 200 --learning-rate 1e-3 --output $folder/$seed/$name "$@"
  }
  more ce --method supervised
  more miou-running --reward miou --estimator exact
  more miou-image --reward miou --estimator exact --scope image
  more dice --method supervised --loss dice
  more jaccard --method supervised --loss jaccard
  more lovasz --method supervised --loss lovasz
  more ce+dice --method supervised --loss ce dice
  more balanced --method supervised --loss balanced
  more grpo-rm
done
