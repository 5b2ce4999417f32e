#!/bin/sh
# The runs of docs/results/feedback.md for one seed, one after the other, into OUT/seed-SEED.
#
#     python benchmarks/feedback/prepare.py ../shared/data/cifar10 runs/data/feedback
#     sh benchmarks/feedback/run.sh SEED [DATA] [OUT]    # runs/data/feedback, runs/results/feedback
#     python benchmarks/feedback/table.py runs/results/feedback
#
# Pre-training takes 4 minutes on one core, each of the runs about one. What is finished is not
# repeated. STEPS changes the length of every run but the start's. Learning rates and the weight of
# KL are the best of a few on seed 0, by validation images; the page says which were tried.
set -e
SEED=$1
DATA=${2:-runs/data/feedback}
OUT=${3:-runs/results/feedback}/seed-$SEED
STEPS=${STEPS:-400}
HERE=$(dirname "$0")

EVERY="--data $DATA/images --seed $SEED --steps $STEPS --keep last --no-report"
CLIP="--model $OUT/start/model --eval-every 100 --log-every 20"
GRPO="--method grpo --scale none"
EXACT="$GRPO --estimator exact"
SAMPLED="$GRPO --estimator sampled --group-size 8"
REWARD="--beta 0.1 --learning-rate 3e-4"  # for rewards whose optimum is one answer
PEOPLE="--beta 0 --entropy-weight 1 --learning-rate 1e-3"  # for log shares: people's distribution
SEEN=$OUT/behaviour

measure() {
    [ -e "$OUT/$1/people.json" ] && return
    visgrpo evaluate "$OUT/$1/model" --data "$DATA/images" --votes "$DATA/votes.parquet" \
        --json "$OUT/$1/people.json"
}

run() {
    name=$1
    shift
    [ -e "$OUT/$name/summary.json" ] || visgrpo clip $EVERY $CLIP --output "$OUT/$name" "$@"
    measure "$name"
}

learn() {
    name=$1 table=$2
    shift 2
    run "$name" --feedback "$table" "$@"
}

[ -e "$OUT/start/summary.json" ] || visgrpo pretrain clip --data "$DATA/captions" --seed "$SEED" \
    --train-slice :2000 --templates "a photo of a {}." --patch-size 8 --width 96 --steps 500 \
    --batch-size 128 \
    --learning-rate 1e-3 --weight-decay 0.05 --augment crop flip --keep last --eval-every 250 \
    --log-every 50 --no-report --output "$OUT/start"
[ -e "$SEEN/log-uniform.parquet" ] ||
    python "$HERE/simulate.py" "$DATA/train-votes.parquet" "$SEEN" --seed "$SEED"
measure start

# (a) True labels.
run supervised --method supervised --learning-rate 1e-3 --beta 0

# (b) Vote shares, whose optimum is the majority's answer, and log shares, whose optimum is people's.
learn votes-exact "$DATA/train-votes.parquet" $EXACT $REWARD --reward votes
learn votes-sampled "$DATA/train-votes.parquet" $SAMPLED $REWARD --reward votes
learn log-votes-exact "$DATA/train-votes.parquet" $EXACT $PEOPLE --reward log-votes
learn log-votes-sampled "$DATA/train-votes.parquet" $SAMPLED $PEOPLE --reward log-votes
# A vote for every label as the prior, instead of half of one: chosen on validation images.
learn log-votes-prior "$DATA/train-votes.parquet" $EXACT $PEOPLE --reward log-votes \
    --prior-strength 1

# (c) Clicks: events of an image and noise, then a list in which the top is looked at most.
for events in 2 8 32; do
    for noise in 0 0.2 0.4; do
        learn clicks-$events-$noise "$SEEN/clicks-$events-$noise.parquet" $EXACT $REWARD --reward clicks
    done
done
for bias in auto none; do
    learn positions-$bias "$SEEN/clicks-positions.parquet" $EXACT $REWARD --reward clicks --position-bias $bias
done

# (d) Preferences between pairs. Bradley-Terry scores are log shares too, but few comparisons leave
# them flat: with an entropy bonus the optimum is nearly flat as well, with KL it is near the start.
for events in 2 8 32; do
    for how in REWARD PEOPLE; do
        eval "options=\$$how"
        learn preferences-$events-$how "$SEEN/preferences-$events.parquet" $EXACT $options \
            --reward preferences
    done
done

# (e) The log of a policy that is confidently wrong, and what an unbiased one would have given.
for how in uncorrected ratio self-normalized doubly-robust; do
    learn biased-$how "$SEEN/log-biased.parquet" $EXACT $REWARD --reward clicks --off-policy $how
done
CAPPED=$(echo "$EXACT" | sed s/grpo/cispo/)  # ratios are capped at 5, and not clipped near 1
learn biased-capped "$SEEN/log-biased.parquet" $CAPPED $REWARD --reward clicks --off-policy ratio
learn biased-averaged "$SEEN/log-biased.parquet" $EXACT $REWARD --reward clicks
learn uniform-ratio "$SEEN/log-uniform.parquet" $EXACT $REWARD --reward clicks --off-policy ratio
learn uniform-averaged "$SEEN/log-uniform.parquet" $EXACT $REWARD --reward clicks
