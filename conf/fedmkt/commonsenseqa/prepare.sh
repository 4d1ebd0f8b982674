#!/bin/sh
# Data and models for the CommonsenseQA job, from files that you have. About 6 minutes on 2 cores.
#     sh conf/fedmkt/commonsenseqa/prepare.sh ASSETS [FOLDER] [SEED]
# ASSETS holds data/commonsenseqa/{train,dev}_rand_split.jsonl, data/t0_50k/t0_train.jsonl.gz and
# tokenizers/{gpt2,llama2,opt,neox}. All parties are evaluated on the dev set (the official test set has no answers).
# Models of this size answer by chance; the job shows real multiple-choice data going all the way.
set -eu
assets=${1:?usage: prepare.sh ASSETS [FOLDER] [SEED]}
root=${2:-runs/commonsenseqa}
seed=${3:-0}
questions="$assets/data/commonsenseqa"
[ -f "$root/ready" ] && exit 0
mkdir -p "$root"

fate-llm-ext data split "$questions/train_rand_split.jsonl" --template commonsenseqa --out "$root/data" \
    --parties guest_9999=300,host_10000=300,host_10001=300 --alpha 0.5 --public 400 --unlabelled 600 \
    --test-from "$questions/dev_rand_split.jsonl" --test 500 --seed "$seed" --force

tiny() {  # tiny NAME ARCH TOKENIZER HIDDEN STEPS
    [ -d "$root/models/$1" ] || fate-llm-ext models tiny --out "$root/models/$1" --arch "$2" \
        --tokenizer "$assets/tokenizers/$3" --hidden "$4" --layers 2 --steps "$5" \
        --corpus "$assets/data/t0_50k/t0_train.jsonl.gz" \
        --exclude "$questions/train_rand_split.jsonl" --exclude "$questions/dev_rand_split.jsonl"
}
tiny gpt2 gpt2 gpt2 64 300
tiny llama llama llama2 64 300
tiny opt opt opt 64 300
tiny neox neox neox 128 600
touch "$root/ready"
