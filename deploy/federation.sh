#!/usr/bin/env bash
# A federation for trial and test: sites of their own on this machine, each with broker, gateway and FATE Flow.
#
#     federation.sh up|provider|down|status FOLDER
#
# up makes a folder for each site below FOLDER (keeps what is there) and starts all. provider builds this checkout's
# provider once (FOLDER/provider, or PROVIDER_ENVIRONMENT), registers it at each site and binds the tables of the site
# file. down stops all of it, and nothing is left but the files. Environment, read by the first up: PARTIES
# ("9999 10000 10001"), BASE_PORT (19300; eight times ten ports from there are used), SITES_FILE (the extension's site
# file, one section for each party; FOLDER/sites.yaml), DATABASE (sqlite or mysql), PROVIDER_VERSION.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
command=${1:?up, provider, down or status}
folder=${2:?a folder for the sites}
base=${BASE_PORT:-19300}
read -r -a parties <<<"${PARTIES:-9999 10000 10001}"
shopt -s nullglob

make_site() { # make_site NUMBER PARTY
    local site=$folder/site_$2 number=$1 other
    [ -f "$site/site.env" ] && return
    mkdir -p "$site"
    for other in "${!parties[@]}"; do
        echo "${parties[other]} 127.0.0.1 $((base + 21 + other)) $((base + 31 + other))"
    done >"$site/partners"
    cat >"$site/site.env.new" <<END
PARTY_ID=$2
LISTEN=127.0.0.1
FLOW_HTTP_PORT=$((base + number))
FLOW_GRPC_PORT=$((base + 10 + number))
PROXY_PORT=$((base + 20 + number))
BROKER_PORT=$((base + 30 + number))
BROKER_MANAGEMENT_PORT=$((base + 40 + number))
BROKER_DISTRIBUTION_PORT=$((base + 50 + number))
BROKER_EPMD_PORT=$((base + 60 + number))
FATE_LLM_EXT_SITE=$(printf %q "${SITES_FILE:-$folder/sites.yaml}")
DATABASE=${DATABASE:-sqlite}
MYSQL_PORT=$((base + 70 + number))
PROVIDER_VERSION=${PROVIDER_VERSION:-llm_ext_$(extension_version)}
END
    mv "$site/site.env.new" "$site/site.env"
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

stop_all() {
    local wrong=0
    each stop || wrong=1
    # Sites whose folder is gone have left their mark all the same.
    # shellcheck disable=SC2046
    end $(marked "$(literal "$folder")/site_.*" | strangers)
    return $wrong
}

interrupted() {
    trap '' INT TERM HUP
    echo "federation.sh: interrupted; stopping what was started" >&2
    stop_all
    exit 130
}

found() { # the folder, which has to be there
    [ -d "$folder" ] || fail "there is no federation in $folder." "$0 up $folder"
    folder=$(cd "$folder" && pwd)
}

case $command in
up)
    mkdir -p "$folder"
    folder=$(cd "$folder" && pwd)
    trap interrupted INT TERM HUP
    for number in "${!parties[@]}"; do
        make_site $((number + 1)) "${parties[number]}"
    done
    each install
    each start || {
        echo "federation.sh: a site did not come up; stopping all" >&2
        stop_all || true
        exit 1
    }
    for site in "$folder"/site_*; do
        echo "${site##*/}: http://127.0.0.1:$(sed -n 's/^FLOW_HTTP_PORT=//p' "$site/site.env")"
    done
    ;;
provider)
    found
    if [ -z "${PROVIDER_ENVIRONMENT:-}" ]; then # one for all sites of this machine: 1.8 GB each would be the same
        for site in "$folder"/site_*; do
            python=$site/server/bin/python
            PYTHONPATH=$DEPLOY/.. "$python" -m fate_llm_ext.cli.main provider build "$folder/provider" --server-python "$python" \
                ${WHEELHOUSE:+--wheelhouse "$WHEELHOUSE"}
            break
        done
        export PROVIDER_ENVIRONMENT=$folder/provider
    fi
    for site in "$folder"/site_*; do
        "$DEPLOY/site.sh" provider "$site"
    done
    ;;
down)
    folder=$(realpath -m "$folder")
    stop_all
    ;;
status)
    found
    wrong=0
    for site in "$folder"/site_*; do
        echo "${site##*/}"
        "$DEPLOY/site.sh" status "$site" || wrong=1
    done
    exit $wrong
    ;;
*) fail "there is no command $command." "up, provider, down or status." ;;
esac
