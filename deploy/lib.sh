# Shared by the scripts of this folder: settings of a site, its processes, pid files, templates. To be sourced.
# shellcheck shell=bash
set -euo pipefail

DEPLOY=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
MARK=FATE_SITE_FOLDER # in the environment of all that a site runs, so that nothing of it is overlooked at the end

fail() { # fail PROBLEM NEXT_STEP
    printf '%s: %s Next: %s\n' "$(basename "$0")" "$1" "$2" >&2
    exit 1
}

# --- settings ---------------------------------------------------------------------------------------
load_site() { # load_site FOLDER: read FOLDER/site.env and see whether it makes sense
    local name value taken=" " example="see $DEPLOY/site.env.example."
    [ -f "$1/site.env" ] || fail "$1 holds no site.env." "write one after $DEPLOY/site.env.example."
    SITE=$(cd "$1" && pwd)
    [[ $SITE =~ ^[A-Za-z0-9_./+:,@=-]+$ ]] || fail "the path $SITE has a space or a special character." "choose a folder without: Erlang and nginx would stumble."
    set -a
    # shellcheck disable=SC1091
    . "$SITE/site.env"
    set +a
    export "$MARK=$SITE"
    DATABASE=${DATABASE:-sqlite}
    local ports=(FLOW_HTTP_PORT FLOW_GRPC_PORT PROXY_PORT BROKER_PORT BROKER_MANAGEMENT_PORT BROKER_DISTRIBUTION_PORT BROKER_EPMD_PORT)
    case $DATABASE in
    sqlite) ;;
    mysql)
        export MYSQL_NAME=${MYSQL_NAME:-fate_flow} MYSQL_USER=${MYSQL_USER:-fate}
        if own_database; then ports+=(MYSQL_PORT); else [ -n "${MYSQL_PORT:-}" ] || fail "$SITE/site.env does not set MYSQL_PORT." "$example"; fi
        ;;
    *) fail "DATABASE of $SITE/site.env is $DATABASE." "sqlite or mysql." ;;
    esac
    [ "${LISTEN:-}" != 0.0.0.0 ] || fail "LISTEN of $SITE/site.env is 0.0.0.0, no address to ask at." "LISTEN=127.0.0.1, and LISTEN_PARTNERS=0.0.0.0 for the partners' ports."
    for name in PARTY_ID LISTEN "${ports[@]}"; do
        [ -n "${!name:-}" ] || fail "$SITE/site.env does not set $name." "$example"
    done
    for name in "${ports[@]}"; do
        value=${!name}
        [[ $value =~ ^[1-9][0-9]{0,4}$ && $value -le 65535 ]] || fail "$name of $SITE/site.env is $value, no port." "$example"
        case $taken in *" $value "*) fail "$name of $SITE/site.env is $value, which another setting has too." "give each service a port of its own." ;; esac
        taken+="$value "
    done
    [[ $PARTY_ID =~ ^[0-9]+$ ]] || fail "PARTY_ID of $SITE/site.env is $PARTY_ID." "FATE's party ids are numbers."
    export PROVIDER_VERSION=${PROVIDER_VERSION:-llm_ext_$(extension_version)}
    [ -f "$SITE/partners" ] || fail "$SITE holds no file 'partners'." "one line a site: PARTY_ID HOST PROXY_PORT BROKER_PORT, the own one too."
    local party host proxy broker more
    while read -r party host proxy broker more; do
        [[ -n $host && -z $more && "$party $proxy $broker" =~ ^[0-9]+\ [0-9]+\ [0-9]+$ ]] ||
            fail "$SITE/partners has the line '$party $host $proxy $broker $more'." "one line a site: PARTY_ID HOST PROXY_PORT BROKER_PORT."
    done < <(partners)
}

partners() { # the lines of the file without comments
    grep -Ev '^[[:space:]]*(#|$)' "$SITE/partners" || true
}

own_database() { # whether this site runs a MariaDB of its own; MYSQL_HOST names somebody else's
    [ "$DATABASE" = mysql ] && [ -z "${MYSQL_HOST:-}" ]
}

addresses() { # where the gateway and the broker's AMQP listen: for this site and for its partners
    case ${LISTEN_PARTNERS:-$LISTEN} in
    "$LISTEN" | 0.0.0.0) echo "${LISTEN_PARTNERS:-$LISTEN}" ;;
    *) printf '%s\n' "$LISTEN" "$LISTEN_PARTNERS" ;;
    esac
}

extension_version() {
    sed -n 's/^__version__ = "\(.*\)"$/\1/p' "$DEPLOY/../fate_llm_ext/__init__.py"
}

secret() { # secret NAME: the password in FOLDER/secrets/NAME, made on first use
    local file=$SITE/secrets/$1
    if [ ! -s "$file" ]; then
        mkdir -p "$SITE/secrets" && chmod 700 "$SITE/secrets"
        (umask 077 && head -c 18 /dev/urandom | base64 | tr '+/' '-_' >"$file.new" && mv "$file.new" "$file")
    fi
    cat "$file"
}

fill() { # fill TEMPLATE TARGET NAME=VALUE...: @NAME@ in the template becomes VALUE
    local template=$DEPLOY/templates/$1 target=$2 text pair
    shift 2
    text=$(cat "$template")
    for pair in "$@"; do
        text=${text//"@${pair%%=*}@"/"${pair#*=}"}
    done
    [[ ! $text =~ @[A-Z_]+@ ]] || fail "$template asks for ${BASH_REMATCH[0]}, which nobody gives." "this is a mistake of $DEPLOY."
    mkdir -p "$(dirname "$target")"
    (umask 077 && printf '%s\n' "$text" >"$target.new" && mv "$target.new" "$target")
}

# --- processes --------------------------------------------------------------------------------------
command_line() { # command_line PID
    tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" || true
}

ours() { # ours PID: it runs, and for this site; after a restart of the machine the number may be another's
    kill -0 "$1" 2>/dev/null || return 1
    grep -qzxF "$MARK=$SITE" "/proc/$1/environ" 2>/dev/null || command_line "$1" | grep -qF "$SITE/"
}

alive() { # alive PID_FILE
    [ -s "$1" ] && ours "$(cat "$1")"
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

named() { # named PATTERN: processes whose program's name matches
    local directory name
    for directory in /proc/[0-9]*; do
        # shellcheck disable=SC2053
        { read -r name <"$directory/comm"; } 2>/dev/null && [[ $name = $1 ]] && echo "${directory#/proc/}"
    done
    return 0
}

marked() { # marked VALUE_PATTERN: processes whose mark matches (basic regular expression)
    { grep -lzx "$MARK=$1" /proc/[0-9]*/environ 2>/dev/null || true; } | tr -dc '0-9\n'
}

family() { # this shell and what has called it
    local pid=$BASHPID
    while [ "${pid:-0}" -gt 1 ]; do
        echo "$pid"
        pid=$(sed -n 's/^PPid:[[:space:]]*//p' "/proc/$pid/status" 2>/dev/null)
    done
}

strangers() { # those of the process ids on standard input that are not of our family
    grep -vxF "$(family)" || true
}

end() { # end PID...: at once
    [ $# = 0 ] || kill -9 "$@" 2>/dev/null || true
}

literal() { # literal TEXT: a basic regular expression that matches it
    printf '%s' "$1" | sed 's/[][\.*^$/]/\\&/g'
}

# --- waiting ----------------------------------------------------------------------------------------
wait_for() { # wait_for WHAT SECONDS LOG PID COMMAND...: until the command succeeds, while the process runs
    local what=$1 limit=$2 log=$3 pid=$4 deadline=$((SECONDS + $2))
    shift 4
    until "$@" >/dev/null 2>&1; do
        kill -0 "$pid" 2>/dev/null || fail "$what has ended at once: $(last_words "$log")" "read $log."
        ((SECONDS < deadline)) || fail "$what did not come up within $limit s: $(last_words "$log")" "read $log."
        sleep 0.2
    done
}

last_words() { # last_words LOG: its last line that says something
    grep -v '^[[:space:]]*$' "$1" 2>/dev/null | tail -n 1 | cut -c 1-300
}

open_port() { # open_port HOST PORT: whether somebody listens there
    timeout 3 bash -c "exec 3<>/dev/tcp/$1/$2" 2>/dev/null
}

free_port() { # free_port WHAT PORT: fail if it is taken
    ! open_port "$LISTEN" "$2" || fail "port $2 of $LISTEN ($1) is taken." "stop what listens there (ss -ltnp), or choose another port in $SITE/site.env."
}

value_of() { # value_of KEY: the first "KEY":"VALUE" of the JSON on standard input, or nothing
    sed -n "s/\"$1\":\"\([^\"]*\)\".*/\n\1/; s/.*\n//p" | head -n 1
}
