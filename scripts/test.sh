#!/usr/bin/env bash
# Sets up on first use, then runs all tests; --fast: only those under two seconds. Other arguments go to pytest:
# bash scripts/test.sh tests/models -k swin
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh requirements-optional.txt
export OMP_NUM_THREADS=1  # three test processes, of which one waits at most times
exec .venv/bin/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@"
