#!/usr/bin/env bash
# FATE Flow of one site: a stock server in an environment of its own (no torch), with home, ports and database of its own.
#
#     server.sh install|init|start|stop|restart|status|provider SITE_FOLDER
#
# install: FATE Flow 2.2 and its client into SITE_FOLDER/server, pinned; PYTHON names a Python 3.11, WHEELHOUSE a folder of
#     `fate-llm-ext provider wheelhouse` that takes the place of the package index
# init: `fate_flow init`, then what is ours in its conf/service_conf.yaml and conf/rabbitmq_route_table.yaml
# provider: build the provider of this checkout in SITE_FOLDER/provider, register it, bind the site file's tables;
#     PROVIDER_ENVIRONMENT names an environment to share (of another provider of this machine)
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
command=${1:?install, init, start, stop, restart, status or provider}
load_site "${2:?the folder of the site}"
home=$SITE/flow
environment=$SITE/server
pid_file=$SITE/flow.pid
log=$SITE/flow.log
requirements=$DEPLOY/../fate_llm_ext/constraints/server.txt

answers() {
    curl -fsS -m 10 "http://$LISTEN:$FLOW_HTTP_PORT/v2/server/fateflow"
}

install() { # install PYTHON
    local python=$1 from=()
    [ -z "${WHEELHOUSE:-}" ] || from=(--no-index --find-links "$WHEELHOUSE")
    # No resolver: every version is pinned, and the client's wish for torch is for components of its own only.
    if [ -n "${UV:-}" ]; then
        # Copies, not hard links: `fate_flow init` writes into the package.
        "$python" -m venv --clear --without-pip "$environment" &&
            "$UV" pip install --python "$environment/bin/python" --link-mode copy --no-deps "${from[@]}" -r "$requirements"
    else
        "$python" -m venv --clear "$environment" &&
            "$environment/bin/python" -m pip install --no-input --disable-pip-version-check --no-deps "${from[@]}" -r "$requirements"
    fi
}

extension() { # this checkout's command, with the server's Python, which has what it needs
    PYTHONPATH=$DEPLOY/.. "$environment/bin/python" -m fate_llm_ext.cli.main "$@"
}

case $command in
install)
    key=$(cksum <"$requirements")
    [ "$(cat "$environment/.installed" 2>/dev/null)" = "$key" ] && exit 0
    if alive "$pid_file"; then
        echo "server.sh: FATE Flow of $SITE runs; its environment is renewed at the next start after a stop" >&2
        exit 0
    fi
    python=${PYTHON:-python3.11}
    "$python" -c 'import sys, venv; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null ||
        fail "$python is no Python 3.11 with venv." "apt-get install python3.11-venv, or name one: PYTHON=... $0 install $SITE"
    install "$python" >"$SITE/install.log" 2>&1 || fail "FATE Flow could not be installed: $(last_words "$SITE/install.log")" "read $SITE/install.log."
    echo "$key" >"$environment/.installed"
    ;;
init)
    if [ ! -f "$home/conf/service_conf.yaml" ]; then
        rm -rf "$home/conf"
        "$environment/bin/fate_flow" init --ip "$LISTEN" --port "$FLOW_HTTP_PORT" --home "$home" >>"$SITE/install.log" 2>&1 ||
            fail "fate_flow init failed: $(last_words "$SITE/install.log")" "read $SITE/install.log."
    else # a new environment, or the folder was moved: the server's code names its home
        "$environment/bin/python" -c 'import sys; from fate_flow.commands.server_cli import replace_settings as r; r(sys.argv[1], sys.argv[1] + "/upload")' "$home"
    fi
    SECRET_BROKER=$(secret broker) SECRET_MYSQL=$([ "$DATABASE" = sqlite ] || secret mysql) MYSQL_HOST=${MYSQL_HOST:-$LISTEN} \
        PYTHONPATH='' "$environment/bin/python" "$DEPLOY/service_conf.py" "$home/conf" "$SITE/partners"
    ;;
start)
    if alive "$pid_file"; then
        wait_for "FATE Flow" 60 "$log" "$(cat "$pid_file")" answers
        exit 0
    fi
    [ -f "$home/conf/service_conf.yaml" ] || fail "there is no FATE Flow in $SITE." "$DEPLOY/site.sh install $SITE"
    free_port "FATE Flow, HTTP" "$FLOW_HTTP_PORT"
    free_port "FATE Flow, gRPC" "$FLOW_GRPC_PORT"
    entry=$("$environment/bin/python" -c 'import importlib.util as u; print(u.find_spec("fate_flow").submodule_search_locations[0])')
    # As `fate_flow start` does, which gives up after 5 s. Workers inherit this environment and FATE Flow writes it into
    # its logs: nothing is in it that they do not need.
    env -i HOME="$HOME" PATH="$environment/bin:$PATH" LANG="${LANG:-C.UTF-8}" "$MARK=$SITE" GRPC_ENABLE_FORK_SUPPORT=1 \
        FATE_LLM_EXT_SITE="${FATE_LLM_EXT_SITE:-}" \
        setsid "$environment/bin/python" "$entry/fate_flow_server.py" >>"$log" 2>&1 </dev/null &
    pid=$!
    echo $pid >"$pid_file"
    wait_for "FATE Flow" 120 "$log" $pid answers
    # The client of this environment, `flow`, speaks to this server.
    "$environment/bin/flow" init --ip "$LISTEN" --port "$FLOW_HTTP_PORT" >"$SITE/client.log"
    ;;
stop) stop_pid "$pid_file" 10 ;;
restart)
    "$0" stop "$SITE"
    "$0" start "$SITE"
    ;;
status)
    if found=$(answers 2>/dev/null); then
        echo "server: FATE Flow $(value_of version <<<"$found") answers at http://$LISTEN:$FLOW_HTTP_PORT"
        registered=$(curl -fsS -m 10 "http://$LISTEN:$FLOW_HTTP_PORT/v2/provider/query?name=fate&version=$PROVIDER_VERSION" | value_of venv) || true
        if [ -n "${registered:-}" ]; then
            echo "provider: fate:$PROVIDER_VERSION@local runs in ${registered%/bin/python}"
            [ -x "$registered" ] || { echo "provider: $registered is not there any more" && exit 1; }
        else
            echo "provider: fate:$PROVIDER_VERSION@local is not registered; $DEPLOY/site.sh provider $SITE"
        fi
    else
        echo "server: FATE Flow does not answer at http://$LISTEN:$FLOW_HTTP_PORT; log: $log"
        exit 1
    fi
    ;;
provider)
    options=()
    [ -z "${PROVIDER_ENVIRONMENT:-}" ] || options+=(--environment "$PROVIDER_ENVIRONMENT")
    [ -z "${WHEELHOUSE:-}" ] || options+=(--wheelhouse "$WHEELHOUSE")
    extension provider build "$SITE/provider" --server-python "$environment/bin/python" "${options[@]}"
    extension provider register "$SITE/provider" --server "$LISTEN:$FLOW_HTTP_PORT"
    [ -z "${FATE_LLM_EXT_SITE:-}" ] || PYTHONPATH=$DEPLOY/.. "$environment/bin/python" "$DEPLOY/tables.py" "$FATE_LLM_EXT_SITE" "$PARTY_ID" "$LISTEN:$FLOW_HTTP_PORT"
    ;;
*) fail "there is no command $command." "install, init, start, stop, restart, status or provider." ;;
esac
