#!/bin/sh
# Data and models for the FDKT job on Yelp reviews, from files that you have. The models take about 75 minutes on one core.
#     sh conf/fdkt/yelp/prepare.sh ASSETS [FOLDER] [SEED]
# ASSETS holds data/yelp/{dev,test}.csv and what ../models.sh needs. The models go to FOLDER/models (AG News uses the same
# ones), one draw of the data to FOLDER/yelp/seedSEED: private reviews from dev.csv, judged ones from test.csv. Reviews of
# three stars are left out, and of four and five stars as many are taken as there are of one and two.
set -eu
here=$(dirname "$0")
assets=${1:?usage: prepare.sh ASSETS [FOLDER] [SEED]}
root=${2:-runs/fdkt}
seed=${3:-0}
sh "$here/../models.sh" "$assets" "$root"
python - "$assets/data/yelp" "$root/yelp" <<'PYTHON'
import csv, pathlib, sys
source, folder = map(pathlib.Path, sys.argv[1:])
folder.mkdir(parents=True, exist_ok=True)
for name in ("dev.csv", "test.csv"):
    with open(source / name, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    bad = [row for row in rows if row["label2"][-3:] in ("1.0", "2.0")]
    good = [row for row in rows if row["label2"][-3:] in ("4.0", "5.0")][: len(bad)]
    with open(folder / name, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(row for pair in zip(bad, good) for row in pair)
PYTHON
[ -d "$root/yelp/seed$seed/data" ] || fate-llm-ext data split "$root/yelp/dev.csv" --template yelp \
    --out "$root/yelp/seed$seed/data" --parties guest_9999=300 --test-from "$root/yelp/test.csv" --test 1000 --seed "$seed"
