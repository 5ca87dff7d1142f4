#!/usr/bin/env bash
# Sets up on first use, then runs all tests; arguments go to pytest: bash scripts/test.sh tests/models -k swin
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh requirements-optional.txt
exec .venv/bin/python -m pytest "$@"
