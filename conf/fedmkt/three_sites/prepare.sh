#!/bin/sh
# Data and models for a first job between three sites, from files that you have. Less than a minute on 2 cores.
#     sh conf/fedmkt/three_sites/prepare.sh ASSETS [FOLDER]
# ASSETS holds data/ag_news/{sample5000,train_first2000,test}.csv and tokenizers/{gpt2,opt,neox}. The models have hardly
# read anything: this shows that a federation runs, ag_news beside this folder what it brings.
set -eu
assets=${1:?usage: prepare.sh ASSETS [FOLDER]}
root=${2:-runs/three_sites}
[ -f "$root/ready" ] && exit 0
news="$assets/data/ag_news"
mkdir -p "$root"

fate-llm-ext data split "$news/sample5000.csv" --template ag_news --out "$root/data" --force \
    --parties guest_9999=48,host_10000=48 --alpha 0.5 --public 60 --unlabelled 40 \
    --test-from "$news/test.csv" --test 40 --exclude "$news/train_first2000.csv"
fate-llm-ext data render "$news/train_first2000.csv" --template ag_news --exclude "$news/test.csv" \
    --exclude "$news/sample5000.csv" --out "$root/read.jsonl" --force

tiny() {  # tiny ARCH HIDDEN STEPS
    fate-llm-ext models tiny --out "$root/models/$1" --arch "$1" --tokenizer "$assets/tokenizers/$1" \
        --hidden "$2" --layers 1 --steps "$3" --context 128 --corpus "$root/read.jsonl" --force
}
tiny gpt2 16 20
tiny opt 16 20
tiny neox 32 40
touch "$root/ready"
