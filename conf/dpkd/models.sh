#!/bin/sh
# Teacher and student of the DP-KD jobs on Yelp and AG News, trained on public text only. About 20 minutes on one core.
#     sh conf/dpkd/models.sh ASSETS [FOLDER]
# ASSETS holds data/t0_50k/t0_train.jsonl.gz, data/imdb/imdb_train_25k.jsonl.gz, data/yelp and data/ag_news. Both models
# share a tokenizer of 2,048 tokens that is trained here on the same text. T0's tasks on Yelp and AG News are left out,
# and so is every document that contains a private or a judged row: whatever the models know of these two data sets,
# they have learned in the job. Teacher and student have read 8 tokens per weight, `student_long` 34.
set -eu
assets=${1:?usage: models.sh ASSETS [FOLDER]}
root=${2:-runs/dpkd}
mkdir -p "$root"

if [ ! -f "$root/public.jsonl.gz" ]; then
    gzip -dc "$assets/data/t0_50k/t0_train.jsonl.gz" | grep -v '"template": "\(ag_news\|yelp\)' | gzip >"$root/part.gz"
    mv "$root/part.gz" "$root/public.jsonl.gz"
fi

tiny() {  # tiny NAME HIDDEN LAYERS STEPS TOKENIZER_OPTIONS...
    name=$1 hidden=$2 layers=$3 steps=$4
    shift 4
    [ -d "$root/models/$name" ] || fate-llm-ext models tiny --out "$root/models/$name" --arch gpt2 "$@" \
        --hidden "$hidden" --layers "$layers" --context 128 --batch-tokens 2048 --steps "$steps" --threads 1 \
        --corpus "$root/public.jsonl.gz" --corpus "$assets/data/imdb/imdb_train_25k.jsonl.gz" \
        --exclude "$assets/data/yelp/dev.csv" --exclude "$assets/data/yelp/test.csv" \
        --exclude "$assets/data/ag_news/sample5000.csv" --exclude "$assets/data/ag_news/test.csv"
}
tiny teacher 128 4 4000 --tokenizer-kind byte_bpe --vocab-size 2048
tiny student 64 2 1000 --tokenizer "$root/models/teacher"
tiny student_long 64 2 4000 --tokenizer "$root/models/teacher"
