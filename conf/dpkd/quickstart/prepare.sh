#!/bin/sh
# Makes everything that the DP-KD quickstart needs, offline: a corpus of support tickets, its parts for two data owners,
# a teacher and a student of different families, each with its own tokenizer.
#     sh conf/dpkd/quickstart/prepare.sh [FOLDER]          (about 1 minute; nothing to do the second time)
#
# All texts come from one generator of sentence patterns, and the models have read other tickets of it, without their
# departments. The figures show that a federation runs; they say nothing about real text.
set -eu
root=${1:-runs/dpkd/quickstart}
[ -f "$root/ready" ] && exit 0
mkdir -p "$root"

fate-llm-ext data generate tickets --rows 6000 --seed 0 --force --out "$root/tickets.jsonl"
fate-llm-ext data split "$root/tickets.jsonl" --template tickets --out "$root/data" --force \
    --parties guest_9999=1000,host_10000=1000 --public 100 --test 300

held=
for holder in public guest_9999 host_10000; do held="$held --exclude $root/data/$holder/train.jsonl"; done
# shellcheck disable=SC2086  # words
fate-llm-ext data render "$root/tickets.jsonl" --template text --exclude "$root/data/public/test.jsonl" $held \
    --out "$root/read.jsonl" --force

tiny() {  # tiny NAME ARCH TOKENIZER VOCABULARY HIDDEN STEPS
    fate-llm-ext models tiny --out "$root/models/$1" --arch "$2" --tokenizer-kind "$3" --vocab-size "$4" \
        --hidden "$5" --layers 2 --steps "$6" --context 128 --force --corpus "$root/read.jsonl" --text-column completion
}
tiny teacher gpt2 byte_bpe 1000 96 400
tiny student llama sentencepiece_bpe 1200 32 100
touch "$root/ready"
