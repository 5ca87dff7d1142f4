#!/usr/bin/env bash
# Makes .venv with what the program and its checks need; does nothing when that is current.
# More files of requirements may be named: bash scripts/setup.sh requirements-optional.txt
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: Python 3.11 or newer is needed, not $("$python" --version): set PYTHON to one" >&2
  exit 2
}
# an interrupted venv has a Python, but no pip yet
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv

for wanted in requirements.txt "$@"; do
  stamp=.venv/.$wanted
  if ! cmp -s "$wanted" "$stamp"; then
    echo "Installing $wanted into .venv (requirements.txt: torch and the rest, several GB; once)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$wanted"
    cp "$wanted" "$stamp"  # last: an interrupted installation is repeated
  fi
done
