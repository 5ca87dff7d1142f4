#!/usr/bin/env bash
# Creates .venv with the requirements of the program and its checks; does nothing if it is up to date.
# Further requirement files may be named: bash scripts/setup.sh requirements-optional.txt
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: Python 3.11 or newer is required, not $("$python" --version): set PYTHON to one" >&2
  exit 2
}
# an interrupted venv has Python but no pip
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv

for wanted in requirements.txt "$@"; do
  stamp=.venv/.$wanted
  if ! cmp -s "$wanted" "$stamp"; then
    echo "Installing $wanted into .venv (requirements.txt: torch and the rest, several GB; once)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$wanted"
    cp "$wanted" "$stamp"  # last, so that an interrupted installation is repeated
  fi
done
