#!/bin/sh
# Makes everything that the FDKT quickstart needs, offline: support tickets for the guest, restaurant reviews for the host,
# small models for them, and an LLM, if a tiny one, for the arbiter.
#     sh conf/fdkt/quickstart/prepare.sh [FOLDER]          (about 2 minutes; nothing to do the second time)
#
# All texts come from two generators of sentence patterns. A real LLM knows what a complaint is; this one has been taught
# it: it has read other tickets and reviews with their labels, in the form of the job's prompts. The clients' models have
# read those without labels. The figures show that a federation runs; they say nothing about real text.
set -eu
root=${1:-runs/fdkt/quickstart}
here=$(dirname "$0")
[ -f "$root/ready" ] && exit 0
mkdir -p "$root"

prepare() {  # prepare CORPUS PARTY DESCRIPTION
    fate-llm-ext data generate "$1" --rows 5000 --seed 0 --force --out "$root/$1.jsonl"
    fate-llm-ext data split "$root/$1.jsonl" --template "$1" --out "$root/data/$1" --force --parties "$2=300" --test 400
    fate-llm-ext data render "$root/$1.jsonl" --template text --exclude "$root/data/$1/$2/train.jsonl" \
        --exclude "$root/data/$1/$2/test.jsonl" --force --out "$root/$1_plain.jsonl"
    fate-llm-ext data demonstrations "$root/$1.jsonl" --template "$1" --description "$3" --job "$here/dag.yaml" \
        --exclude "$root/data/$1/$2" --write 1500 --label 14000 --judge 300 --force --out "$root/$1_read.jsonl"
}
prepare tickets guest_9999 'a ticket of a shop'
prepare reviews host_10000 'a review of a restaurant'

tiny() {  # tiny NAME WIDTH STEPS CONTEXT CORPUS_OPTIONS...
    out="$root/models/$1" width=$2 steps=$3 context=$4
    shift 4
    fate-llm-ext models tiny --out "$out" --vocab-size 1200 --hidden "$width" --layers 2 --steps "$steps" \
        --context "$context" --batch-tokens 960 --force "$@"
}
tiny slm 64 500 128 --corpus "$root/tickets_plain.jsonl" --corpus "$root/reviews_plain.jsonl" --text-column completion
tiny llm 96 2000 320 --corpus "$root/tickets_read.jsonl" --corpus "$root/reviews_read.jsonl"
touch "$root/ready"
