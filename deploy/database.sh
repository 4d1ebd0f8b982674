#!/usr/bin/env bash
# The database of one site with DATABASE=mysql: MariaDB of the distribution (apt-get install mariadb-server), with data,
# socket, port and password of its own. With MYSQL_HOST in site.env it is somebody else's, and nothing is done here:
# that one needs a database and a user with all rights on it, and secrets/mysql holds the user's password.
#
#     database.sh start|stop|status SITE_FOLDER
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
command=${1:?start, stop or status}
load_site "${2:?the folder of the site}"
home=$SITE/database
pid_file=$home/pid
log=$home/error.log
server=$(command -v mariadbd || echo /usr/sbin/mariadbd)

answers() { # as FATE Flow asks it; the password by a file, not by the command line
    mariadb --defaults-extra-file=<(printf '[client]\npassword="%s"\n' "$(secret mysql)") --protocol=tcp --connect-timeout=5 \
        -h "${MYSQL_HOST:-$LISTEN}" -P "$MYSQL_PORT" -u "$MYSQL_USER" "$MYSQL_NAME" -BN -e 'select version()'
}

case $command in
start)
    own_database || exit 0
    if alive "$pid_file"; then
        wait_for "the database" 60 "$log" "$(cat "$pid_file")" answers
        exit 0
    fi
    command -v "$server" mariadb mariadb-install-db >/dev/null || fail "MariaDB is not installed." "apt-get install mariadb-server, then repeat."
    "$0" stop "$SITE"
    free_port database "$MYSQL_PORT"
    mkdir -p "$home/tmp"
    export TMPDIR=$home/tmp # each MariaDB removes what it takes for its own earlier files in there
    if [ ! -d "$home/data/mysql" ]; then
        rm -rf "$home/data" "$home/new"
        mariadb-install-db --no-defaults --datadir="$home/new" --user="$(id -un)" --skip-test-db >"$log" 2>&1 ||
            fail "MariaDB could not make its folder: $(grep -m 1 ERROR "$log" || last_words "$log")" "read $log."
        mv "$home/new" "$home/data"
    fi
    (umask 077 && cat >"$home/init.sql") <<END
create database if not exists \`$MYSQL_NAME\` character set utf8mb4;
drop user if exists '$MYSQL_USER'@'%';
$(for from in $(printf '%s\n' 127.0.0.1 "$LISTEN" | sort -u); do
        echo "create or replace user '$MYSQL_USER'@'$from' identified by '$(secret mysql)';"
        echo "grant all on \`$MYSQL_NAME\`.* to '$MYSQL_USER'@'$from';"
    done)
END
    # The socket's path is relative to the data: a path of the system may have 107 characters at most.
    setsid "$server" --no-defaults --datadir="$home/data" --user="$(id -un)" --socket=socket --pid-file="$pid_file" \
        --bind-address="$LISTEN" --port="$MYSQL_PORT" --init-file="$home/init.sql" --skip-name-resolve \
        --innodb-buffer-pool-size=64M --max-connections=300 >>"$log" 2>&1 </dev/null &
    wait_for "the database" 60 "$log" $! answers
    rm -f "$home/init.sql"
    ;;
stop) stop_pid "$pid_file" 20 ;;
status)
    [ "$DATABASE" = mysql ] || exit 0
    if found=$(answers 2>/dev/null); then
        echo "database: MySQL $found answers at ${MYSQL_HOST:-$LISTEN}:$MYSQL_PORT"
    else
        echo "database: $MYSQL_NAME does not answer at ${MYSQL_HOST:-$LISTEN}:$MYSQL_PORT as $MYSQL_USER; log: $log"
        exit 1
    fi
    ;;
*) fail "there is no command $command." "start, stop or status." ;;
esac
