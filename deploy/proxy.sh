#!/usr/bin/env bash
# The HTTP gateway of one site: nginx of the distribution (apt-get install nginx-light). The site's FATE Flow sends all
# requests for partners to it, and partners send theirs for this site to it; the header dest-party-id says whose it is.
#
#     proxy.sh start|stop|reload|status SITE_FOLDER
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
command=${1:?start, stop, reload or status}
load_site "${2:?the folder of the site}"
home=$SITE/proxy
pid_file=$home/nginx.pid
nginx=$(command -v nginx || echo /usr/sbin/nginx)

configure() {
    local routes="" party host port _broker
    while read -r party host port _broker; do
        [ "$party" = "$PARTY_ID" ] && host=$LISTEN port=$FLOW_HTTP_PORT
        routes+="        $party $host:$port;"$'\n'
    done < <(partners)
    mkdir -p "$home"
    fill nginx.conf "$home/nginx.conf" HOME="$home" LISTEN="$(addresses | sed "s/.*/        listen &:$PROXY_PORT;/")" ROUTES="$routes" \
        PARTY_ID="$PARTY_ID" OWN="$(printf '%s\n' 127.0.0.1 "$LISTEN" | sort -u | sed 's/.*/        & 0;/')"$'\n'
}

answer() { # answer PARTY: what its FATE Flow says of itself, through this gateway and the party's
    curl -fsS -m 10 -H "dest-party-id: $1" "http://$LISTEN:$PROXY_PORT/v2/server/fateflow"
}

case $command in
start)
    alive "$pid_file" && exit 0
    [ -x "$nginx" ] || fail "nginx is not installed." "apt-get install nginx-light, then repeat."
    free_port proxy "$PROXY_PORT"
    configure
    "$nginx" -p "$home" -e "$home/error.log" -c "$home/nginx.conf" || fail "nginx does not start: $(last_words "$home/error.log")" "read $home/error.log."
    ;;
reload)
    alive "$pid_file" || fail "the gateway does not run." "$0 start $SITE"
    configure
    "$nginx" -p "$home" -e "$home/error.log" -c "$home/nginx.conf" -s reload
    ;;
stop) stop_pid "$pid_file" 10 ;;
status)
    if answer "$PARTY_ID" >/dev/null 2>&1; then
        echo "proxy: $("$nginx" -v 2>&1 | sed 's/.*: //') reaches this site's FATE Flow through $LISTEN:$PROXY_PORT"
    else
        echo "proxy: no answer of this site's FATE Flow through $LISTEN:$PROXY_PORT; log: $home/error.log"
        exit 1
    fi
    ;;
partners) # for site.sh status
    wrong=0
    while read -r party host port broker; do
        [ "$party" != "$PARTY_ID" ] || continue
        if found=$(answer "$party" 2>&1); then
            flow="FATE Flow $(value_of version <<<"$found") answers through $host:$port"
        else
            flow="no FATE Flow answers through its gateway $host:$port (${found##*curl: })" wrong=1
        fi
        if open_port "$host" "$broker"; then
            echo "partner $party: $flow; its broker listens at $host:$broker"
        else
            echo "partner $party: $flow; its broker cannot be reached at $host:$broker"
            wrong=1
        fi
    done < <(partners)
    exit $wrong
    ;;
*) fail "there is no command $command." "start, stop, reload or status." ;;
esac
