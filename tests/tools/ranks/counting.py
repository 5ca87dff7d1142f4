"""Evaluates an image folder with a model of random weights, in batches of several sizes; the main rank prints counts.

python -m tests.tools.ranks.counting FOLDER
"""

import sys
from pathlib import Path

import torch

from data.loaders import EvalLoader
from tasks.classification.labels import ClassInfo
from tests.tools.builders import loading, objective, open_folder, pipeline, small
from utils.distributed.world import join_world
from utils.training.evaluate import evaluate


def main(folder: Path) -> None:
    world = join_world()
    source = open_folder(folder).val
    model = small(num_classes=7)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    task = objective()
    for batch in (1, 7, 64):
        loader = EvalLoader(source, pipeline(), loading(batch_size=batch), world)
        evaluator = task.evaluator(loader, ClassInfo(class_names=source.class_names))
        result = evaluate(model, loader, evaluator, task.forward, world).metrics
        if world.is_main:
            print("result", result["correct1"], result["correctk"], result["count"], f"{result['loss']:.5f}")
    world.leave()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
