#!/bin/sh
# Models of the FDKT jobs on AG News and Yelp, trained on public text only. About 75 minutes on one core: 10 for the
# clients' base model `student_long`, 30 and 25 for the server's LLM, the rest for what comes along with the first.
#     sh conf/fdkt/models.sh ASSETS [FOLDER]
# ASSETS holds data/{t0_50k,imdb,yelp,ag_news}. Nothing that is read contains a private or a judged text. The clients'
# model has read neither of the two data sets; what the LLM has read is said in server_llm.py.
set -eu
here=$(dirname "$0")
assets=${1:?usage: models.sh ASSETS [FOLDER]}
root=${2:-runs/fdkt}
mkdir -p "$root/models"

if [ ! -d "$root/models/student_long" ]; then
    sh "$here/../dpkd/models.sh" "$assets" "$root/base"
    cp -R "$root/base/models/student_long" "$root/models/student_long"
fi
if [ ! -d "$root/models/llm" ]; then
    [ -f "$root/corpus.jsonl.gz" ] || python "$here/server_llm.py" corpus "$assets" "$root/corpus.jsonl.gz"
    [ -d "$root/models/llm_plain" ] || fate-llm-ext models tiny --out "$root/models/llm_plain" --arch gpt2 \
        --tokenizer-kind byte_bpe --vocab-size 4096 --hidden 192 --layers 4 --context 256 --batch-tokens 2048 \
        --steps 4200 --threads 1 --corpus "$root/corpus.jsonl.gz"
    python "$here/server_llm.py" labels "$assets" "$root/models/llm_plain" "$root/models/llm"
fi
