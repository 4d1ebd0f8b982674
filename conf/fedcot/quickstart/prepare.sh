#!/bin/sh
# Makes everything that the FedCoT quickstart needs, offline: errands for both clients, a small model for them, and an LLM,
# if a tiny one, for the arbiter.
#     sh conf/fedcot/quickstart/prepare.sh [FOLDER] [SEED]      (about 3 minutes; nothing to do the second time)
#
# All texts come from a generator of sentence patterns. A real LLM knows where one gets stamps, and reads over a strange
# word; this one has been taught both: it has read other errands with their reasons, half of them with words replaced.
# The clients' model has read some of those without label and reason. The figures show that a federation runs; they say
# nothing about real text.
set -eu
root=${1:-runs/fedcot/quickstart}
seed=${2:-0}
here=$(dirname "$0")
[ -f "$root/ready" ] && exit 0
mkdir -p "$root"

fate-llm-ext data generate errands --rows 16000 --seed "$seed" --force --out "$root/errands.jsonl"
head -n 2000 "$root/errands.jsonl" >"$root/first.jsonl"
tail -n +2001 "$root/errands.jsonl" >"$root/others.jsonl"
fate-llm-ext data split "$root/first.jsonl" --template errands --out "$root/data" --force --seed "$seed" \
    --parties guest_9999=200,host_10000=200 --alpha 5 --unlabelled 300 --test 500
python "$here/documents.py" "$root/others.jsonl" "$here/dag.yaml" "$root/documents.jsonl"
head -n 4000 "$root/others.jsonl" >"$root/plain.jsonl"

tiny() {  # tiny NAME WIDTH STEPS CONTEXT CORPUS
    fate-llm-ext models tiny --out "$root/models/$1" --vocab-size 1200 --hidden "$2" --layers 2 --steps "$3" \
        --context "$4" --batch-tokens 1024 --force --corpus "$5" --text-column text
}
tiny slm 64 800 128 "$root/plain.jsonl"
tiny llm 96 3000 256 "$root/documents.jsonl"
touch "$root/ready"
