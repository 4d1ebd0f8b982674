#!/bin/sh
# Makes everything that the quickstart needs, offline: a corpus of support tickets, its parts for three
# data owners, and four small models of different families, each with its own tokenizer.
#     sh conf/fedmkt/quickstart/prepare.sh [FOLDER]          (about 1 minute; nothing to do the second time)
#
# All texts come from one generator of sentence patterns. No test ticket is among those that the models have read, but up
# to digits 3 in 100 are, and 7 in 10 share a whole sentence with them. The accuracies show that a federation runs and
# that models teach each other; they say nothing about real text.
set -eu
root=${1:-runs/quickstart}
[ -f "$root/ready" ] && exit 0
mkdir -p "$root"

fate-llm-ext data generate tickets --rows 6000 --seed 0 --force --out "$root/tickets.jsonl"
fate-llm-ext data split "$root/tickets.jsonl" --template tickets --out "$root/data" --force \
    --parties guest_9999=200,host_10000=200,host_10001=200 --alpha 0.3 --public 200 --unlabelled 600 --test 400

# The tickets that no party holds are what the models have read before: the SLMs a few, the LLM all of them
# with their departments, as instruction-tuned LLMs have seen such tasks.
held="--exclude $root/data/public/test.jsonl"
for holder in public guest_9999 host_10000 host_10001; do held="$held --exclude $root/data/$holder/train.jsonl"; done
# shellcheck disable=SC2086  # words
fate-llm-ext data render "$root/tickets.jsonl" --template tickets $held --out "$root/read.jsonl" --force

tiny() {  # tiny NAME ARCH TOKENIZER VOCABULARY HIDDEN STEPS CORPUS_OPTIONS...
    name=$1 arch=$2 tokenizer=$3 vocabulary=$4 hidden=$5 steps=$6
    shift 6
    fate-llm-ext models tiny --out "$root/models/$name" --arch "$arch" --tokenizer-kind "$tokenizer" \
        --vocab-size "$vocabulary" --hidden "$hidden" --layers 2 --steps "$steps" --context 128 --force \
        --corpus "$root/read.jsonl" "$@"
}
tiny gpt2 gpt2 byte_bpe 1000 32 100 --text-column prompt
tiny llama llama sentencepiece_bpe 1200 32 100 --text-column prompt
tiny opt opt byte_bpe 1500 32 100 --text-column prompt
tiny neox neox byte_bpe 2000 96 500
touch "$root/ready"
