#!/bin/sh
# Data, models and recordings for the FedCoT job on CommonsenseQA, from files that you have; the models take about 30
# minutes on one core (see ../models.sh).
#     sh conf/fedcot/commonsenseqa/prepare.sh ASSETS [FOLDER] [SEED]
# The models go to FOLDER/models (ARC-Easy uses the same ones), one draw of the data to FOLDER/commonsenseqa/seedSEED: two
# times 400 private questions and 500 public ones without answers among the first 2,000, judged ones from the dev set;
# and PaLM's answers to the private ones, to be replayed as an LLM.
set -eu
here=$(dirname "$0")
assets=${1:?usage: prepare.sh ASSETS [FOLDER] [SEED]}
root=${2:-runs/fedcot}
seed=${3:-0}
sh "$here/../models.sh" "$assets" "$root"
out="$root/commonsenseqa/seed$seed"
mkdir -p "$root/commonsenseqa"
head -n 2000 "$assets/rationales/cqa/cqa_train.json" >"$root/first.jsonl"
[ -d "$out/data" ] || fate-llm-ext data split "$root/first.jsonl" --template commonsenseqa --out "$out/data" \
    --parties guest_9999=400,host_10000=400 --unlabelled 500 --test 600 \
    --test-from "$assets/data/commonsenseqa/dev_rand_split.jsonl" --seed "$seed"
python "$here/../recordings.py" "$assets" "$out/data" "$out/palm"
