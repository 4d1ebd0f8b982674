#!/bin/sh
# Models of the FedCoT jobs on CommonsenseQA and ARC-Easy, trained on public text only. About 30 minutes on one core, and 75
# more for the model that the server's LLM starts from, if ../fdkt/models.sh has not made it yet.
#     sh conf/fedcot/models.sh ASSETS [FOLDER] [FDKT_FOLDER]
# ASSETS holds data/{t0_50k,commonsenseqa,arc} and rationales/cqa (PaLM's answers of Distilling step-by-step), and what
# ../fdkt/models.sh needs. Questions of CommonsenseQA: rows 0 to 1,999 of rationales/cqa/cqa_train.json belong to the
# clients and to nobody's corpus; the clients' model `slm` has read the others without answers, the LLM with PaLM's.
# Judged questions are in no corpus.
set -eu
here=$(dirname "$0")
assets=${1:?usage: models.sh ASSETS [FOLDER] [FDKT_FOLDER]}
root=${2:-runs/fedcot}
fdkt=${3:-runs/fdkt}
mkdir -p "$root/models"

if [ ! -d "$root/models/slm" ]; then
    gzip -dc "$assets/data/t0_50k/t0_train.jsonl.gz" | grep -v '"template": "\(commonsense_qa\|wiki_hop\|multi_news\|quoref\|duorc\|cnn_dailymail\|xsum\|imdb\|wiki_bio\|ropes\|dream\|adversarial_qa\)' | gzip >"$root/part.gz"
    mv "$root/part.gz" "$root/public.jsonl.gz"
    head -n 2000 "$assets/rationales/cqa/cqa_train.json" >"$root/first.jsonl"
    tail -n +2001 "$assets/rationales/cqa/cqa_train.json" >"$root/rest.jsonl"
    fate-llm-ext data render "$root/rest.jsonl" --template commonsenseqa --exclude "$root/first.jsonl" \
        --exclude "$assets/data/commonsenseqa/dev_rand_split.jsonl" --force --out "$root/labelled.jsonl"
    sed 's/"completion": *"[^"]*"/"completion": ""/' "$root/labelled.jsonl" >"$root/questions.jsonl"
    fate-llm-ext models tiny --out "$root/models/slm" --arch gpt2 --tokenizer-kind byte_bpe --vocab-size 4096 \
        --hidden 96 --layers 3 --context 256 --batch-tokens 2048 --steps 4000 --threads 1 \
        --corpus "$root/public.jsonl.gz" --corpus "$root/questions.jsonl" \
        --exclude "$assets/data/arc/ARC-Easy/train.json" --exclude "$assets/data/arc/ARC-Easy/test.json"
fi
if [ ! -d "$root/models/llm" ]; then
    [ -d "$fdkt/models/llm" ] || sh "$here/../fdkt/models.sh" "$assets" "$fdkt"
    python "$here/server_llm.py" "$assets" "$fdkt/models/llm" "$root/models/llm"
fi
