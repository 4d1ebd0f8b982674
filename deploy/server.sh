#!/usr/bin/env bash
# FATE Flow of one site: a stock server in an environment of its own (no torch), with home, ports and database of its own.
#
#     server.sh install|init|start|stop|restart|status SITE_FOLDER
#
# install: FATE Flow 2.2 and its client into SITE_FOLDER/server, pinned; PYTHON names a Python 3.11
# init: `fate_flow init`, then what is ours in its conf/service_conf.yaml and conf/rabbitmq_route_table.yaml
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
command=${1:?install, init, start, stop, restart or status}
load_site "${2:?the folder of the site}"
home=$SITE/flow
environment=$SITE/server
pid_file=$SITE/flow.pid
log=$SITE/flow.log

answers() {
    curl -fsS "http://$LISTEN:$FLOW_HTTP_PORT/v2/server/fateflow"
}

case $command in
install)
    [ -x "$environment/bin/fate_flow" ] && exit 0
    requirements=$DEPLOY/../fate_llm_ext/constraints/server.txt
    python=${PYTHON:-python3.11}
    "$python" -c 'import sys, venv; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null ||
        fail "$python is no Python 3.11 with venv." "apt-get install python3.11-venv, or name one: PYTHON=... $0 install $SITE"
    # No resolver: every version is pinned, and the client's wish for torch is for components of its own only.
    mkdir -p "$SITE"
    if [ -n "${UV:-}" ]; then
        # Copies, not hard links: `fate_flow init` writes into the package.
        { "$python" -m venv --without-pip "$environment" &&
            "$UV" pip install --python "$environment/bin/python" --link-mode copy --no-deps -r "$requirements"; } >"$SITE/install.log" 2>&1 ||
            fail "FATE Flow could not be installed." "read $SITE/install.log."
    else
        { "$python" -m venv "$environment" && "$environment/bin/pip" install --no-deps -r "$requirements"; } >"$SITE/install.log" 2>&1 ||
            fail "FATE Flow could not be installed." "read $SITE/install.log."
    fi
    ;;
init)
    if [ ! -d "$home/conf" ]; then
        "$environment/bin/fate_flow" init --ip "$LISTEN" --port "$FLOW_HTTP_PORT" --home "$home" >>"$SITE/install.log"
    fi
    PYTHONPATH='' SECRET_BROKER=$(secret broker) SECRET_MYSQL=$([ "${DATABASE:-sqlite}" = sqlite ] || secret mysql) \
        "$environment/bin/python" "$DEPLOY/service_conf.py" "$home/conf" "$SITE/partners"
    ;;
start)
    alive "$pid_file" && exit 0
    free_port "FATE Flow, HTTP" "$FLOW_HTTP_PORT"
    free_port "FATE Flow, gRPC" "$FLOW_GRPC_PORT"
    entry=$("$environment/bin/python" -c 'import importlib.util as u; print(u.find_spec("fate_flow").submodule_search_locations[0])')
    # As `fate_flow start` does, which gives up after 5 s. Workers inherit this environment and FATE Flow writes it into
    # its logs: nothing is in it that they do not need.
    env -i HOME="$HOME" PATH="$environment/bin:$PATH" LANG="${LANG:-C.UTF-8}" "$MARK=$SITE" GRPC_ENABLE_FORK_SUPPORT=1 \
        FATE_LLM_EXT_SITE="${FATE_LLM_EXT_SITE:-}" \
        setsid "$environment/bin/python" "$entry/fate_flow_server.py" >>"$log" 2>&1 </dev/null &
    echo $! >"$pid_file"
    wait_for "FATE Flow" 90 "$log" answers
    # The client of this environment, `flow`, speaks to this server.
    "$environment/bin/flow" init --ip "$LISTEN" --port "$FLOW_HTTP_PORT" >"$SITE/client.log"
    ;;
stop) stop_pid "$pid_file" 10 ;;
restart)
    "$0" stop "$SITE"
    "$0" start "$SITE"
    ;;
status)
    if answers >/dev/null 2>&1; then
        echo "server: FATE Flow answers at http://$LISTEN:$FLOW_HTTP_PORT"
    else
        echo "server: FATE Flow does not answer at http://$LISTEN:$FLOW_HTTP_PORT; log: $log"
        exit 1
    fi
    ;;
*) fail "there is no command $command." "install, init, start, stop, restart or status." ;;
esac
