#!/usr/bin/env bash
# The message broker of one site: RabbitMQ of the distribution (apt-get install rabbitmq-server), with data, ports
# and password of its own. FATE makes its virtual hosts, users and federation upstreams through the management port.
#
#     broker.sh start|stop|status SITE_FOLDER
#
# On a host of its own, the system's rabbitmq-server does just as well: enable the same plugins, add the user.
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
command=${1:?start, stop or status}
load_site "${2:?the folder of the site}"
home=$SITE/broker
pid_file=$home/pid
log=$home/log/console.log
server=/usr/lib/rabbitmq/bin/rabbitmq-server

answers() {
    # The password goes by a file, not by the command line, which everybody can read.
    curl -fsS -m 10 -K <(printf 'user = "fate:%s"\n' "$(secret broker)") "http://$LISTEN:$BROKER_MANAGEMENT_PORT/api/${1:-overview}"
}

case $command in
start)
    if alive "$pid_file"; then
        wait_for "the broker" 60 "$log" "$(cat "$pid_file")" answers
        exit 0
    fi
    [ -x $server ] || fail "RabbitMQ is not installed." "apt-get install rabbitmq-server, then repeat."
    "$0" stop "$SITE" # what an earlier start has left
    for port in "AMQP $BROKER_PORT" "management $BROKER_MANAGEMENT_PORT" "distribution $BROKER_DISTRIBUTION_PORT" "Erlang's names $BROKER_EPMD_PORT"; do
        free_port "broker, ${port% *}" "${port##* }"
    done
    mkdir -p "$home/mnesia" "$home/log"
    listeners=$(addresses | nl -w1 -s' ' | sed "s/\(.*\) \(.*\)/listeners.tcp.\1 = \2:$BROKER_PORT/")
    fill rabbitmq.conf "$home/rabbitmq.conf" LISTENERS="$listeners" LISTEN="$LISTEN" MANAGEMENT_PORT="$BROKER_MANAGEMENT_PORT" PASSWORD="$(secret broker)"
    echo '[rabbitmq_management,rabbitmq_federation,rabbitmq_federation_management].' >"$home/enabled_plugins"
    export HOME=$home ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT=$BROKER_EPMD_PORT
    export RABBITMQ_NODENAME="fate$PARTY_ID@localhost"
    export RABBITMQ_DIST_PORT=$BROKER_DISTRIBUTION_PORT RABBITMQ_PID_FILE=$pid_file
    export RABBITMQ_MNESIA_BASE=$home/mnesia RABBITMQ_LOG_BASE=$home/log
    export RABBITMQ_CONFIG_FILE=$home/rabbitmq.conf RABBITMQ_ENABLED_PLUGINS_FILE=$home/enabled_plugins
    export RABBITMQ_ADVANCED_CONFIG_FILE=$home/advanced.config RABBITMQ_CONF_ENV_FILE=/dev/null
    # One scheduler that does not spin while idle, and Erlang's own port for this machine only.
    export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +S ${BROKER_SCHEDULERS:-1}:${BROKER_SCHEDULERS:-1}"
    setsid "$server" >"$log" 2>&1 </dev/null &
    wait_for "the broker" 120 "$log" $! answers
    ;;
stop)
    stop_pid "$pid_file" 20
    # Erlang's name server starts with the first node of its port, and stays.
    for pid in $(named epmd); do
        ! ours "$pid" || end "$pid"
    done
    ;;
status)
    if found=$(answers 2>/dev/null); then
        echo "broker: RabbitMQ $(value_of rabbitmq_version <<<"$found") answers at $LISTEN:$BROKER_PORT (management $LISTEN:$BROKER_MANAGEMENT_PORT)"
        if answers nodes 2>/dev/null | grep -Eq '"(mem|disk_free)_alarm":true'; then
            echo "broker: it takes no messages, for lack of memory or disk (limits: $DEPLOY/templates/rabbitmq.conf)"
            exit 1
        fi
    else
        echo "broker: does not answer at $LISTEN:$BROKER_MANAGEMENT_PORT; log: $log"
        exit 1
    fi
    ;;
*) fail "there is no command $command." "start, stop or status." ;;
esac
