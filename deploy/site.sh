#!/usr/bin/env bash
# One site: broker, FATE Flow, gateway.
#
#     site.sh install|start|stop|restart|status SITE_FOLDER
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
command=${1:?install, start, stop, restart or status}
load_site "${2:?the folder of the site}"

rest() { # rest [PATTERN]: processes of this site whose command matches
    local file pid
    for file in $(grep -lzxF "$MARK=$SITE" /proc/[0-9]*/environ 2>/dev/null); do
        pid=${file//[^0-9]/}
        case $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline") in
        *"$DEPLOY/"*) ;; # this script, and what has called it
        *${1:-}*) echo "$pid" ;;
        esac
    done
}

end() { # end PROCESS...
    [ $# = 0 ] || kill -9 "$@" 2>/dev/null || true
}

end_workers() { # what runs tasks outlives the server; it has the site's mark in its environment
    # shellcheck disable=SC2046
    end $(rest fate_flow) $(rest fate.components) $(rest fate_llm_ext)
}

end_rest() { # what a service leaves behind that was killed, or that was interrupted while it started
    # shellcheck disable=SC2046
    end $(rest)
    # nginx wipes its environment; its workers are known by their log.
    if [ -f "$SITE/proxy/error.log" ]; then
        # shellcheck disable=SC2046
        end $(lsof -t -a -c nginx "$SITE/proxy/error.log" 2>/dev/null)
    fi
}

case $command in
install)
    "$DEPLOY/server.sh" install "$SITE"
    "$DEPLOY/server.sh" init "$SITE"
    ;;
start)
    "$DEPLOY/broker.sh" start "$SITE"
    "$DEPLOY/proxy.sh" start "$SITE"
    "$DEPLOY/server.sh" start "$SITE"
    ;;
stop)
    "$DEPLOY/server.sh" stop "$SITE"
    end_workers
    "$DEPLOY/proxy.sh" stop "$SITE"
    "$DEPLOY/broker.sh" stop "$SITE"
    end_rest
    ;;
restart)
    "$0" stop "$SITE"
    "$0" start "$SITE"
    ;;
status)
    wrong=0
    for service in broker proxy server; do
        "$DEPLOY/$service.sh" status "$SITE" || wrong=1
    done
    exit $wrong
    ;;
*) fail "there is no command $command." "install, start, stop, restart or status." ;;
esac
