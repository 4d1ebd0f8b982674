#!/usr/bin/env bash
# One site: broker, FATE Flow, gateway.
#
#     site.sh install|start|stop|restart|status SITE_FOLDER
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
command=${1:?install, start, stop, restart or status}
load_site "${2:?the folder of the site}"

end_workers() { # what runs tasks outlives the server; it has the site's mark in its environment
    local file pid
    for file in $(grep -lzxF "$MARK=$SITE" /proc/[0-9]*/environ 2>/dev/null); do
        pid=${file//[^0-9]/}
        # Not the shell that asks for this, nor broker and gateway, which end in their own way.
        case $(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) in
        *fate_flow* | *fate.components* | *fate_llm_ext*) kill -9 "$pid" 2>/dev/null || true ;;
        esac
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
    "$DEPLOY/server.sh" start "$SITE"
    ;;
stop)
    "$DEPLOY/server.sh" stop "$SITE"
    end_workers
    "$DEPLOY/proxy.sh" stop "$SITE"
    "$DEPLOY/broker.sh" stop "$SITE"
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
