#!/usr/bin/env bash
# The Debian packages that a site needs (on Debian or Ubuntu): those that are missing are installed.
#
#     packages.sh [PACKAGE...]     # further ones, e.g. mariadb-server for DATABASE=mysql
#
# A site starts broker and gateway itself, with folders and ports of its own. The distribution's services of the same
# programs are not started, and those that come with this are not enabled.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

missing=()
for package in rabbitmq-server nginx-light lsof curl "$@"; do
    [ "$package" = nginx-light ] && [ -x "$(command -v nginx || echo /usr/sbin/nginx)" ] && continue # any nginx will do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
done
((${#missing[@]})) || exit 0

command -v apt-get >/dev/null || fail "${missing[*]} are missing, and this is no Debian." "install them with the means of this system."
as_root=()
if [ "$(id -u)" != 0 ]; then
    sudo -n true 2>/dev/null || fail "${missing[*]} are missing, and you may not install them." "sudo $DEPLOY/packages.sh $*"
    as_root=(sudo -n)
fi
policy=/usr/sbin/policy-rc.d # what the packages ask before they start a service; 101: not allowed
if [ ! -e $policy ]; then
    trap '"${as_root[@]}" rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee $policy >/dev/null
    "${as_root[@]}" chmod 755 $policy
fi
echo "packages: ${missing[*]}" >&2
log=$(mktemp)
install() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}" >>"$log" 2>&1 </dev/null
}
# The lists of a fresh or long unused machine name packages that are no longer there.
install || { "${as_root[@]}" apt-get update -q >>"$log" 2>&1 && install; } ||
    fail "${missing[*]} could not be installed: $(grep -v '^[[:space:]]*$' "$log" | tail -n 1)" "read $log; or: apt-get update && apt-get install ${missing[*]}"
rm -f "$log"
if command -v systemctl >/dev/null; then
    for service in rabbitmq-server nginx mariadb; do
        case " ${missing[*]} " in *" $service"*) "${as_root[@]}" systemctl disable "$service" >/dev/null 2>&1 || true ;; esac
    done
fi
