#!/bin/sh
# Runs sdk_test.py in an environment of its own, made once in the build folder. Exit code 77: it could not be made, and the
# test is skipped.
set -u
venv=$1 python=$2
here=$(dirname "$0")
wanted="openai==3.54.0 anthropic==2.12.0"
if [ "$(cat "$venv/complete" 2>/dev/null)" != "$wanted" ]; then
  rm -rf "$venv"
  "$python" -m venv "$venv" 2>&1 || { echo "skipped: no virtual environment can be made (package python3-venv)"; exit 77; }
  # shellcheck disable=SC2086 -- a list of words
  "$venv/bin/pip" install -q --disable-pip-version-check $wanted 2>&1 || { echo "skipped: pip cannot install $wanted"; exit 77; }
  echo "$wanted" > "$venv/complete"
fi
exec "$venv/bin/python" -B "$here/sdk_test.py"
