#!/bin/sh
# Data and models for the FDKT job on AG News, from files that you have. The models take about 75 minutes on one core.
#     sh conf/fdkt/ag_news/prepare.sh ASSETS [FOLDER] [SEED]
# ASSETS holds data/ag_news/{sample5000,test}.csv and what ../models.sh needs. The models go to FOLDER/models (Yelp uses
# the same ones), one draw of the data to FOLDER/ag_news/seedSEED: private articles from sample5000.csv, judged ones from
# test.csv.
set -eu
here=$(dirname "$0")
assets=${1:?usage: prepare.sh ASSETS [FOLDER] [SEED]}
root=${2:-runs/fdkt}
seed=${3:-0}
sh "$here/../models.sh" "$assets" "$root"
[ -d "$root/ag_news/seed$seed/data" ] || fate-llm-ext data split "$assets/data/ag_news/sample5000.csv" \
    --template ag_news --out "$root/ag_news/seed$seed/data" --parties guest_9999=300 \
    --test-from "$assets/data/ag_news/test.csv" --test 1000 --seed "$seed"
