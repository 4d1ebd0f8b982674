#!/usr/bin/env bash
# What the container runs: start the site in /site, register the provider of the image, stop all on TERM.
#
# /site holds site.env and partners (see deploy/site.env.example) and keeps all state. It ends with 1 when FATE Flow
# does, so that the container's restart policy sees it.
set -euo pipefail
site=${SITE_FOLDER:-/site}
server=${SERVER_ENVIRONMENT:-/opt/server}
deploy=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

finish() {
    trap '' INT TERM
    "$deploy/site.sh" stop "$site"
    exit "$1"
}
trap 'finish 0' INT TERM

# The image's server, which `init` tells where its home is.
[ -e "$site/server" ] || ln -sfn "$server" "$site/server"
# A container that was killed has left its pid files behind, and another process may have their numbers now.
"$deploy/site.sh" stop "$site"
"$deploy/site.sh" install "$site"
"$deploy/site.sh" start "$site" || finish 1
"$deploy/site.sh" provider "$site" || finish 1
echo "site: ready"
while "$deploy/server.sh" status "$site" >/dev/null; do
    sleep 10 &
    wait $!
done
"$deploy/server.sh" status "$site" || true
finish 1
