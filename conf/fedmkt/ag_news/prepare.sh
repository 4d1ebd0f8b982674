#!/bin/sh
# Data and models for the AG News job, from files that you have. About 8 minutes on 2 cores for the first seed.
#     sh conf/fedmkt/ag_news/prepare.sh ASSETS [FOLDER] [SEED]
# ASSETS holds data/ag_news/{sample5000,train_first2000,test}.csv, data/t0_50k/t0_train.jsonl.gz and
# tokenizers/{gpt2,llama2,opt,neox}. The models go to FOLDER/models, one draw of the data to FOLDER/seedSEED.
#
# The SLMs have read general text (T0's prompts, without any AG News article). The LLM is wider, has read three
# times as much, and among it 2,000 news articles with their topics - as instruction-tuned LLMs have seen such
# tasks. These articles are in no party's data; no private, public or test row is in anybody's corpus.
set -eu
assets=${1:?usage: prepare.sh ASSETS [FOLDER] [SEED]}
root=${2:-runs/ag_news}
seed=${3:-0}
news="$assets/data/ag_news"
mkdir -p "$root"

[ -d "$root/seed$seed/data" ] || fate-llm-ext data split "$news/sample5000.csv" --template ag_news \
    --out "$root/seed$seed/data" --parties guest_9999=400,host_10000=400,host_10001=400 --alpha 0.3 \
    --public 500 --unlabelled 1200 --test-from "$news/test.csv" --test 1000 \
    --exclude "$news/train_first2000.csv" --seed "$seed"
[ -f "$root/read.jsonl" ] || fate-llm-ext data render "$news/train_first2000.csv" --template ag_news \
    --exclude "$news/test.csv" --exclude "$news/sample5000.csv" --out "$root/read.jsonl"

tiny() {  # tiny NAME ARCH TOKENIZER HIDDEN STEPS CORPUS_OPTIONS...
    name=$1 arch=$2 tokenizer=$3 hidden=$4 steps=$5
    shift 5
    [ -d "$root/models/$name" ] || fate-llm-ext models tiny --out "$root/models/$name" --arch "$arch" \
        --tokenizer "$assets/tokenizers/$tokenizer" --hidden "$hidden" --layers 2 --steps "$steps" \
        --corpus "$assets/data/t0_50k/t0_train.jsonl.gz" \
        --exclude "$news/sample5000.csv" --exclude "$news/test.csv" "$@"
}
tiny gpt2 gpt2 gpt2 64 1000 --exclude "$news/train_first2000.csv"
tiny llama llama llama2 64 1000 --exclude "$news/train_first2000.csv"
tiny opt opt opt 64 1000 --exclude "$news/train_first2000.csv"
set --
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24; do set -- "$@" --corpus "$root/read.jsonl"; done
tiny neox neox neox 128 3000 "$@"
