# Shared by the scripts of this folder: settings of a site, pid files, templates. To be sourced.
set -euo pipefail

DEPLOY=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
MARK=FATE_SITE_FOLDER # in the environment of all that a site runs, so that nothing of it is overlooked at the end

fail() { # fail PROBLEM NEXT_STEP
    printf '%s: %s Next: %s\n' "$(basename "$0")" "$1" "$2" >&2
    exit 1
}

load_site() { # load_site FOLDER: read FOLDER/site.env
    [ -f "$1/site.env" ] || fail "$1 holds no site.env." "write one after $DEPLOY/site.env.example."
    SITE=$(cd "$1" && pwd)
    set -a
    # shellcheck disable=SC1091
    . "$SITE/site.env"
    set +a
    export "$MARK=$SITE"
    for name in PARTY_ID LISTEN FLOW_HTTP_PORT FLOW_GRPC_PORT PROXY_PORT BROKER_PORT BROKER_MANAGEMENT_PORT BROKER_DISTRIBUTION_PORT BROKER_EPMD_PORT; do
        [ -n "${!name:-}" ] || fail "$SITE/site.env does not set $name." "see $DEPLOY/site.env.example."
    done
    [ -f "$SITE/partners" ] || fail "$SITE holds no file 'partners'." "one line a site: PARTY_ID HOST PROXY_PORT BROKER_PORT, the own one too."
}

secret() { # secret NAME: the password in FOLDER/secrets/NAME, made on first use
    local file=$SITE/secrets/$1
    if [ ! -f "$file" ]; then
        mkdir -p "$SITE/secrets" && chmod 700 "$SITE/secrets"
        (umask 077 && head -c 18 /dev/urandom | base64 | tr '+/' '-_' >"$file")
    fi
    cat "$file"
}

fill() { # fill TEMPLATE TARGET NAME=VALUE...: @NAME@ in the template becomes VALUE
    local template=$DEPLOY/templates/$1 target=$2 text pair
    shift 2
    text=$(cat "$template")
    for pair in "$@"; do
        text=${text//@${pair%%=*}@/${pair#*=}}
    done
    mkdir -p "$(dirname "$target")"
    (umask 077 && printf '%s\n' "$text" >"$target")
}

ours() { # ours PID: it runs, and for this site; after a restart of the machine the number may be another's
    kill -0 "$1" 2>/dev/null || return 1
    grep -qzxF "$MARK=$SITE" "/proc/$1/environ" 2>/dev/null || tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" | grep -qF "$SITE"
}

alive() { # alive PID_FILE
    [ -f "$1" ] && ours "$(cat "$1")"
}

stop_pid() { # stop_pid PID_FILE SECONDS: TERM, then KILL
    local pid deadline=$((SECONDS + $2))
    [ -f "$1" ] || return 0
    pid=$(cat "$1")
    ! ours "$pid" || kill "$pid" 2>/dev/null || true
    while ours "$pid"; do
        ((SECONDS < deadline)) || kill -9 "$pid" 2>/dev/null || true
        sleep 0.1
    done
    rm -f "$1"
}

wait_for() { # wait_for WHAT SECONDS LOG COMMAND...: until the command succeeds
    local what=$1 limit=$2 log=$3 deadline=$((SECONDS + $2))
    shift 3
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || fail "$what did not come up within $limit s." "read $log."
        sleep 0.2
    done
}

open_port() { # open_port HOST PORT: whether somebody listens there
    (exec 3<>"/dev/tcp/$1/$2") 2>/dev/null
}

free_port() { # free_port WHAT PORT: fail if it is taken
    ! open_port "$LISTEN" "$2" || fail "port $2 of $LISTEN ($1) is taken." "stop what listens there (ss -ltnp), or choose another port in $SITE/site.env."
}
