#!/bin/sh
# Data and models for the FedCoT job on ARC-Easy, from files that you have; the models take about 30 minutes on one core
# (see ../models.sh).
#     sh conf/fedcot/arc_easy/prepare.sh ASSETS [FOLDER] [SEED]
# Private questions from the training set, judged ones from the test set.
set -eu
here=$(dirname "$0")
assets=${1:?usage: prepare.sh ASSETS [FOLDER] [SEED]}
root=${2:-runs/fedcot}
seed=${3:-0}
sh "$here/../models.sh" "$assets" "$root"
out="$root/arc_easy/seed$seed"
[ -d "$out/data" ] || fate-llm-ext data split "$assets/data/arc/ARC-Easy/train.json" --template arc --out "$out/data" \
    --parties guest_9999=400,host_10000=400 --unlabelled 500 --test 600 \
    --test-from "$assets/data/arc/ARC-Easy/test.json" --seed "$seed"
