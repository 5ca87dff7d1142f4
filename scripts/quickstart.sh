#!/usr/bin/env bash
# From a fresh clone to a trained Swin: sets up, trains on real handwritten digits, evaluates. Needs neither data nor GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh

run=output/quickstart/default
export OMP_NUM_THREADS=1  # two processes share the cores
# a rank needs a GPU of its own, or none at all
processes=$(.venv/bin/python -c "import torch; print(1 if torch.cuda.device_count() == 1 else 2)")
torchrun=(.venv/bin/python -m torch.distributed.run --standalone --nproc_per_node "$processes")
"${torchrun[@]}" main.py --cfg configs/quickstart.yaml
echo
echo "Evaluating $run/checkpoints/best.pth"
"${torchrun[@]}" main.py --cfg configs/quickstart.yaml --eval --resume "$run/checkpoints/best.pth"

cat <<TEXT

Trained and evaluated. The run is in $run:
  checkpoint    $run/checkpoints/best.pth
  log           $run/log.txt
  TensorBoard   $run/tensorboard      (.venv/bin/tensorboard --logdir output)
  curves        $run/curves.png

Three commands to try next (first: source .venv/bin/activate):
  python main.py --cfg configs/swin_tiny.yaml --throughput --batch-size 8
  torchrun --standalone main.py --cfg configs/quickstart.yaml --tag longer --opts TRAIN.EPOCHS 80
  torchrun --standalone --nproc_per_node 8 main.py --cfg configs/swin_tiny.yaml --data-path <imagenet>
TEXT
