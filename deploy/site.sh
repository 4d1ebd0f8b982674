#!/usr/bin/env bash
# One site: broker, gateway, FATE Flow, and a database where DATABASE says so.
#
#     site.sh install|start|stop|restart|status|provider SITE_FOLDER
#
# status ends with 1 if something of this site is wrong, with 2 if a partner cannot be reached.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
command=${1:?install, start, stop, restart, status or provider}
load_site "${2:?the folder of the site}"

rest() { # rest PATTERN: processes of this site, other than those that have called this, whose command matches
    local pid
    for pid in $(marked "$(literal "$SITE")" | strangers); do
        # shellcheck disable=SC2254
        case $(command_line "$pid") in *$1*) echo "$pid" ;; esac
    done
}

end_starters() { # scripts that start this site still: of an `up` that was killed, they go on
    local pid
    for pid in $(named bash; named '*.sh'); do
        [[ $(command_line "$pid") =~ \.sh\ (install|init|start|provider)\ ([^ ]*/)?"${SITE##*/}"/?\ $ ]] && ours_script "$pid" && echo "$pid"
    done | strangers | xargs -r kill 2>/dev/null || true
}

ours_script() { # ours_script PID: the folder that it was given is this site's
    local folder
    folder=$(command_line "$1")
    folder=${folder% }
    folder=${folder##* }
    [ "$(cd "$(readlink "/proc/$1/cwd")" 2>/dev/null && cd "$folder" 2>/dev/null && pwd -P)" = "$(cd "$SITE" && pwd -P)" ]
}

end_rest() { # what a service leaves behind that was killed, or that was interrupted while it started
    local pid
    # shellcheck disable=SC2046
    end $(rest "")
    # nginx wipes its environment; its workers are known by their log.
    for pid in $(named nginx); do
        [ -z "$(find "/proc/$pid/fd" -lname "$SITE/proxy/*" -print -quit 2>/dev/null)" ] || end "$pid"
    done
}

case $command in
install)
    "$DEPLOY/server.sh" install "$SITE"
    "$DEPLOY/server.sh" init "$SITE"
    ;;
start)
    "$DEPLOY/broker.sh" start "$SITE"
    "$DEPLOY/proxy.sh" start "$SITE"
    "$DEPLOY/database.sh" start "$SITE"
    "$DEPLOY/server.sh" start "$SITE"
    ;;
stop)
    trap '' INT TERM HUP # to the end, or processes would stay
    wrong=0
    end_starters
    "$DEPLOY/server.sh" stop "$SITE" || wrong=1
    # What runs tasks outlives the server; it has the site's mark in its environment.
    # shellcheck disable=SC2046
    end $(rest fate_flow) $(rest fate.components) $(rest fate_llm_ext)
    for service in database proxy broker; do
        "$DEPLOY/$service.sh" stop "$SITE" || wrong=1
    done
    end_rest
    exit $wrong
    ;;
restart)
    "$0" stop "$SITE"
    "$0" start "$SITE"
    ;;
status)
    wrong=0
    for service in broker proxy database server; do
        "$DEPLOY/$service.sh" status "$SITE" || wrong=1
    done
    free=$(df -Pk "$SITE" | awk 'NR == 2 { print int($4 / 1024) }')
    echo "disk: $free MB free at $SITE$( ((free >= 1000)) || echo ' - too little')"
    ((free >= 1000)) || wrong=1
    if ((!wrong)); then "$DEPLOY/proxy.sh" partners "$SITE" || wrong=2; fi
    exit $wrong
    ;;
provider) "$DEPLOY/server.sh" provider "$SITE" ;;
*) fail "there is no command $command." "install, start, stop, restart, status or provider." ;;
esac
