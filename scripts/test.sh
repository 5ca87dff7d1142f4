#!/usr/bin/env bash
# Sets up on first use, then runs all tests; --fast: only those under two seconds. Other arguments go to pytest:
# bash scripts/test.sh tests/models -k swin
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh requirements-optional.txt
processes=3  # of which one waits for the program at most times
[[ " $* " == *" --fast "* ]] && processes=2
export OMP_NUM_THREADS=1
exec .venv/bin/python -m pytest -n $processes --dist loadfile --no-loadscope-reorder "$@"
