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
    curl -fsS -u "fate:$(secret broker)" "http://$LISTEN:$BROKER_MANAGEMENT_PORT/api/overview"
}

case $command in
start)
    alive "$pid_file" && exit 0
    [ -x $server ] || fail "RabbitMQ is not installed." "apt-get install rabbitmq-server, then repeat."
    for port in "AMQP $BROKER_PORT" "management $BROKER_MANAGEMENT_PORT" "distribution $BROKER_DISTRIBUTION_PORT"; do
        free_port "broker, ${port% *}" "${port##* }"
    done
    mkdir -p "$home/mnesia" "$home/log"
    fill rabbitmq.conf "$home/rabbitmq.conf" LISTEN="$LISTEN" MANAGEMENT_PORT="$BROKER_MANAGEMENT_PORT" PASSWORD="$(secret broker)"
    echo '[rabbitmq_management,rabbitmq_federation,rabbitmq_federation_management].' >"$home/enabled_plugins"
    export HOME=$home ERL_EPMD_ADDRESS=127.0.0.1 ERL_EPMD_PORT=$BROKER_EPMD_PORT
    export RABBITMQ_NODENAME="fate$PARTY_ID@localhost" RABBITMQ_NODE_IP_ADDRESS=$LISTEN RABBITMQ_NODE_PORT=$BROKER_PORT
    export RABBITMQ_DIST_PORT=$BROKER_DISTRIBUTION_PORT RABBITMQ_PID_FILE=$pid_file
    export RABBITMQ_MNESIA_BASE=$home/mnesia RABBITMQ_LOG_BASE=$home/log
    export RABBITMQ_CONFIG_FILE=$home/rabbitmq.conf RABBITMQ_ENABLED_PLUGINS_FILE=$home/enabled_plugins
    export RABBITMQ_ADVANCED_CONFIG_FILE=$home/advanced.config RABBITMQ_CONF_ENV_FILE=/dev/null
    # One scheduler that does not spin while idle, and Erlang's own port for this machine only.
    export RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS="-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +S ${BROKER_SCHEDULERS:-1}:${BROKER_SCHEDULERS:-1}"
    setsid "$server" >"$log" 2>&1 </dev/null &
    wait_for "the broker" 90 "$log" answers
    ;;
stop)
    stop_pid "$pid_file" 20
    # Erlang's name server starts with the first node of its port, and stays.
    ERL_EPMD_PORT=$BROKER_EPMD_PORT epmd -kill >/dev/null 2>&1 || true
    ;;
status)
    if answers >/dev/null 2>&1; then
        echo "broker: answers at $LISTEN:$BROKER_PORT (management $BROKER_MANAGEMENT_PORT)"
    else
        echo "broker: does not answer at $LISTEN:$BROKER_MANAGEMENT_PORT; log: $log"
        exit 1
    fi
    ;;
*) fail "there is no command $command." "start, stop or status." ;;
esac
