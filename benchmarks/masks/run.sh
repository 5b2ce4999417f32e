#!/bin/bash
# Scores of whole masks and their rivals, from one cross-entropy start for each seed (docs/results/masks.md):
#   python benchmarks/masks/prepare.py DATA runs/masks/clothing 48
#   visgrpo pretrain backbone --family dinov2 --layers 2 --width 64 --data shapes --augment flip --batch-size 64 --epochs 1 --output runs/masks/vit
#   benchmarks/masks/run.sh runs/masks/vit/model runs/masks 0 1 2
set -e
backbone=$1 folder=$2
shift 2
job="python -m visgrpo segmentation --data $folder/clothing --train full --backbone-rate 1 --decide-at pixel --batch-size 16
  --pictures 0 --no-report --device cpu --eval-every 1000 --keep last"
for seed in "$@"; do
  start=$folder/$seed/start
  [ -e "$start/summary.json" ] || $job --seed $seed --model $backbone --method supervised --steps 600 --learning-rate 3e-3 --output $start
  more() {
    name=$1
    shift
    [ -e "$folder/$seed/$name/summary.json" ] && return
    $job --seed $seed --model $start/model --steps 150 --learning-rate 1e-3 --output $folder/$seed/$name "$@"
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
  for name in start ce; do
    python -m visgrpo evaluate $folder/$seed/$name/model --data $folder/clothing --fit-biases --device cpu --json > $folder/$seed/$name/biases.json
  done
done
