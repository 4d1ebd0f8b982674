#!/bin/sh
# Make or refresh the virtual environment DIR of one set: modern, compat, client, peer (fate-llm, to measure against),
# or serve (transformers serve, to test against).
#
#     sh tools/venv.sh SET DIR
#
# Repeats cost nothing: a stamp in DIR remembers what was installed from. Any failure ends in one
# line that says what is missing and how to get it. PYTHON names another interpreter.
set -u

set_name=${1:?usage: tools/venv.sh SET DIR}
dir=${2:?usage: tools/venv.sh SET DIR}
cd "$(dirname "$0")/.." || exit 1
constraints=fate_llm_ext/constraints
log=$dir/setup.log

fail() {  # fail PROBLEM NEXT_STEP
    printf 'setup: %s Next: %s\n' "$1" "$2" >&2
    exit 1
}

diagnose() {  # one line for a failed step, from its log
    if grep -qiE 'no space left on device|disk quota exceeded' "$log"; then
        fail "the disk of $dir is full." "free 4 GB (df -h .), then repeat; set TMPDIR if /tmp is the full one."
    elif grep -qiE "Python\.h: No such file" "$log"; then
        fail "the C headers of Python are missing (mmh3 3.0.0 is built from source)." "apt-get install python3.11-dev, then repeat."
    elif grep -qiE 'command .*(gcc|g\+\+|cc1plus).* failed|cc1plus|unable to execute|compiler not found' "$log"; then
        fail "mmh3 3.0.0 could not be built (log: $log)." "apt-get install g++ python3.11-dev, then repeat."
    elif grep -qiE 'name resolution|NewConnectionError|Connection (refused|timed out|reset)|Network is unreachable|dns error|error sending request|tcp connect error|ProxyError|Read timed out|client error \(Connect\)' "$log"; then
        fail "the package index cannot be reached (log: $log)." "check the network, or set PIP_INDEX_URL and UV_INDEX_URL to a mirror, then repeat."
    elif grep -qE '\(constraint\) torch==|No matching distribution found for (torch|uv)' "$log"; then
        fail "the package index cannot be reached, or it has no torch for this machine (log: $log)." "check the network, and on other machines than Linux x86_64 or arm64 whether PyPI has this torch."
    fi
    fail "$1 failed: $(grep -v '^[[:space:]]*$' "$log" | tail -n 1)" "read $log."
}

# --- which Python -----------------------------------------------------------------------------------
python=${PYTHON:-}
if [ -z "$python" ]; then
    for python in python3.11 python3; do
        "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null && break
        python=
    done
fi
[ -n "$python" ] || fail "Python 3.11 was not found (FATE 2.2 has wheels for 3.9 to 3.11 only)." \
    "apt-get install python3.11 python3.11-venv python3.11-dev (or pyenv install 3.11), or name one: make venv PYTHON=/path/to/python3.11"
version=$("$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) ||
    fail "$python does not run." "name a Python 3.11: make venv PYTHON=/path/to/python3.11"
case $version in
    3.11.*) ;;
    *) fail "$python is Python $version; the tested sets are for 3.11." "make venv PYTHON=/path/to/python3.11" ;;
esac
[ -f "$constraints/$set_name.txt" ] ||
    fail "there is no set $set_name." "choose modern, compat, client, peer or serve."

# --- nothing to do? ----------------------------------------------------------------------------------
key=$(cat "$constraints/$set_name"*.txt setup.py "$0" 2>/dev/null | cksum)
key="$set_name $version $(pwd) $key"
[ -x "$dir/bin/python" ] && [ "$(cat "$dir/.stamp" 2>/dev/null)" = "$key" ] && exit 0

# --- what must be there before a byte is downloaded ---------------------------------------------------
"$python" -c 'import venv, ensurepip' 2>/dev/null ||
    fail "$python has no venv module." "apt-get install python3.11-venv, then repeat."
mkdir -p "$dir" 2>/dev/null || fail "the folder $dir cannot be made." "check the permissions and the free space of $(pwd)."
free_mb=$(df -Pk "$dir" | awk 'NR == 2 { print int($4 / 1024) }')
need_mb=3000
if [ "$set_name" = client ]; then
    need_mb=200
elif [ "$set_name" = serve ]; then
    need_mb=1500
elif ! "$dir/bin/python" -c 'import mmh3' 2>/dev/null; then
    { command -v "${CC:-gcc}" && command -v "${CXX:-g++}"; } >/dev/null 2>&1 ||
        fail "no C++ compiler was found (FATE needs mmh3 3.0.0, which is built from source)." "apt-get install g++ python3.11-dev, then repeat."
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        fail "the C headers of $python are missing (mmh3 3.0.0 is built from source)." "apt-get install python3.11-dev, then repeat."
fi
[ -x "$dir/bin/uv" ] || [ "$free_mb" -ge "$need_mb" ] ||
    fail "$free_mb MB are free at $dir, $need_mb MB are needed." "free some space, then repeat."

# --- install -----------------------------------------------------------------------------------------
rm -f "$dir/.stamp"
step() {  # step WHAT COMMAND...
    what=$1
    shift
    echo "setup: $what" >&2
    "$@" >>"$log" 2>&1 </dev/null || diagnose "$what"
}

: >"$log"
# A moved folder or another Python: scripts in DIR would point elsewhere, so start anew.
made_for="$version $(cd "$dir" && pwd)"
found="$("$dir/bin/python" -c 'import pip, sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) $(sed -n '1s|^#!\(.*\)/bin/python.*|\1|p' "$dir/bin/pip" 2>/dev/null)"
if [ "$found" != "$made_for" ]; then
    cp "$log" "$dir.log.$$" && log=$dir.log.$$  # --clear empties DIR
    step "virtual environment $dir (Python $version)" "$python" -m venv --clear "$dir"
    mv "$log" "$dir/setup.log" && log=$dir/setup.log
fi
if [ "$set_name" = client ]; then
    step "fate-client without torch" "$dir/bin/python" -m pip install --no-input --no-deps -r "$constraints/client.txt"
else
    # torch by pip: it honours PIP_FIND_LINKS and PIP_EXTRA_INDEX_URL, where CPU builds are found. The
    # rest by uv: it can override FATE's pins, and is satisfied by the torch that is there.
    step "torch, uv" "$dir/bin/python" -m pip install --no-input -c "$constraints/$set_name.txt" torch uv
    overrides=
    [ -f "$constraints/$set_name-overrides.txt" ] && overrides="--override $constraints/$set_name-overrides.txt"
    set -- -e '.[fate,privacy,dev]'
    # examples/*.ipynb: FATE's Pipeline SDK next to torch and peft.
    [ "$set_name" = modern ] && set -- -e '.[fate,privacy,dev,notebook]'
    # Without this package: it and fate-llm ask for different releases of peft and opacus. fate-llm imports loguru
    # without asking for it.
    [ "$set_name" = peer ] && set -- pyfate==2.2.0 fate-llm==2.2.0 loguru
    what="FATE 2.2 and the $set_name set (about a minute)"
    # Nothing of FATE in it, which asks for pydantic 1.
    [ "$set_name" = serve ] && set -- 'transformers[serving]' && what="transformers serve"
    # shellcheck disable=SC2086  # two words or none
    step "$what" "$dir/bin/uv" pip install --python "$dir/bin/python" \
        --compile-bytecode $overrides -c "$constraints/$set_name.txt" "$@"
fi
printf '%s\n' "$key" >"$dir/.stamp" || fail "the stamp in $dir cannot be written." "free some space, then repeat."
echo "setup: $dir is ready" >&2
