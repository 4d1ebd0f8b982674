#!/bin/sh
# Data and models for the DP-KD job on Yelp reviews, from files that you have. The models take about 20 minutes on one core.
#     sh conf/dpkd/yelp/prepare.sh ASSETS [FOLDER] [SEED]
# ASSETS holds data/yelp/{dev,test}.csv and what ../models.sh needs. The models go to FOLDER/models (AG News uses the same
# ones), one draw of the data to FOLDER/yelp/seedSEED: private reviews from dev.csv, judged ones from test.csv.
set -eu
here=$(dirname "$0")
assets=${1:?usage: prepare.sh ASSETS [FOLDER] [SEED]}
root=${2:-runs/dpkd}
seed=${3:-0}
sh "$here/../models.sh" "$assets" "$root"
[ -d "$root/yelp/seed$seed/data" ] || fate-llm-ext data split "$assets/data/yelp/dev.csv" --template yelp \
    --out "$root/yelp/seed$seed/data" --parties guest_9999=4000 --public 100 \
    --test-from "$assets/data/yelp/test.csv" --test 500 --seed "$seed"
