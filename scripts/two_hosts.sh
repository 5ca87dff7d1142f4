#!/usr/bin/env bash
# Trains on two machines without a scheduler. The same line on both, with the name of the first one:
#   bash scripts/two_hosts.sh FIRST_HOST --cfg configs/swin_tiny.yaml --data-path FOLDER
#
# The machines need the same repository and data, not a common disk: checkpoints and logs are on the machine of rank 0.
# Whatever ends a rank, torchrun restarts all of them, three times, even after an error that a restart cannot fix, and ends
# with 1. To stop the run, press Ctrl-C on both. GPUS is the number of processes on each machine.
set -euo pipefail
first=$1
shift
cd "$(dirname "$0")/.."
exec .venv/bin/python -m torch.distributed.run \
  --nnodes 2 --nproc_per_node "${GPUS:-8}" --max-restarts 3 \
  --rdzv_backend c10d --rdzv_endpoint "$first:${PORT:-29400}" --rdzv_id "${RUN_ID:-swin}" \
  main.py "$@"
