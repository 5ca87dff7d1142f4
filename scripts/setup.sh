#!/usr/bin/env bash
# Makes .venv with everything the program, its tests and its checks need; does nothing when that is current.
set -euo pipefail
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: Python 3.11 or newer is needed: $("$python" --version): set PYTHON to one" >&2
  exit 2
}
stamp=.venv/.requirements
if [ -f "$stamp" ] && cmp -s requirements.txt "$stamp"; then
  exit 0
fi
echo "Setting up .venv (torch and the rest, several GB; once)"
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
cp requirements.txt "$stamp"  # last: an interrupted installation is repeated
