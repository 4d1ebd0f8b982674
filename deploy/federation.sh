#!/usr/bin/env bash
# A federation for trial and test: sites of their own on this machine, each with broker, gateway and FATE Flow.
#
#     federation.sh up|down|status FOLDER
#
# up makes a folder for each site below FOLDER (keeps what is there) and starts all; down stops all of it, and nothing is
# left but the files. Environment: PARTIES ("9999 10000 10001"), BASE_PORT (19300; eight times ten ports from there are
# used), SITES_FILE (the extension's site file, one section for each party), PROVIDER_VERSION.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
command=${1:?up, down or status}
folder=${2:?a folder for the sites}
base=${BASE_PORT:-19300}
read -r -a parties <<<"${PARTIES:-9999 10000 10001}"

make_site() { # make_site NUMBER PARTY
    local site=$folder/site_$2 number=$1 other
    [ -f "$site/site.env" ] && return
    mkdir -p "$site"
    cat >"$site/site.env" <<END
PARTY_ID=$2
LISTEN=127.0.0.1
FLOW_HTTP_PORT=$((base + number))
FLOW_GRPC_PORT=$((base + 10 + number))
PROXY_PORT=$((base + 20 + number))
BROKER_PORT=$((base + 30 + number))
BROKER_MANAGEMENT_PORT=$((base + 40 + number))
BROKER_DISTRIBUTION_PORT=$((base + 50 + number))
BROKER_EPMD_PORT=$((base + 60 + number))
FATE_LLM_EXT_SITE=${SITES_FILE:-$folder/sites.yaml}
DATABASE=${DATABASE:-sqlite}
PROVIDER_VERSION=${PROVIDER_VERSION:-llm_ext_0.1.0}
END
    for other in "${!parties[@]}"; do
        echo "${parties[other]} 127.0.0.1 $((base + 21 + other)) $((base + 31 + other))"
    done >"$site/partners"
}

each() { # each COMMAND: for all sites at once; fails if one fails
    local site jobs=() wrong=0
    for site in "$folder"/site_*; do
        "$DEPLOY/site.sh" "$1" "$site" &
        jobs+=($!)
    done
    for job in "${jobs[@]}"; do
        wait "$job" || wrong=1
    done
    return $wrong
}

case $command in
up)
    mkdir -p "$folder"
    folder=$(cd "$folder" && pwd)
    for number in "${!parties[@]}"; do
        make_site $((number + 1)) "${parties[number]}"
    done
    each install
    each start || {
        each stop || true
        exit 1
    }
    for site in "$folder"/site_*; do
        echo "${site##*/}: http://127.0.0.1:$(sed -n 's/^FLOW_HTTP_PORT=//p' "$site/site.env")"
    done
    ;;
down)
    [ -d "$folder" ] || exit 0
    folder=$(cd "$folder" && pwd)
    each stop
    ;;
status)
    folder=$(cd "$folder" && pwd)
    wrong=0
    for site in "$folder"/site_*; do
        echo "${site##*/}"
        "$DEPLOY/site.sh" status "$site" || wrong=1
    done
    exit $wrong
    ;;
*) fail "there is no command $command." "up, down or status." ;;
esac
