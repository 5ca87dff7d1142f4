"""Evaluates an image folder with a model of random weights, in batches of several sizes; the main rank prints counts.

python -m tests.tools.ranks.counting FOLDER
"""

import sys
from pathlib import Path

import torch

from data.loaders import build_eval_loader
from tests.tools.builders import FLOAT32, open_folder, pipeline, small
from utils.distributed.world import join_world
from utils.evaluation.metrics import evaluate


def main(folder: Path) -> None:
    world = join_world()
    source = open_folder(folder).val
    model = small(num_classes=7)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    for batch in (1, 7, 64):
        loader = build_eval_loader(source, world, pipeline(batch_size=batch))
        result, _ = evaluate(model, loader, 7, FLOAT32, world)
        if world.is_main:
            print("result", result.correct1, result.correctk, result.count, f"{result.loss:.5f}")
    world.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
