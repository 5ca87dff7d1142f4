"""A table of the released models: recipe, cost, published accuracy, URL of the weights."""

import json
from functools import cache
from pathlib import Path
from typing import Any

from utils.errors import CheckpointError, did_you_mean


@cache
def _table() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("released.json").read_text())


def released_models() -> list[dict[str, Any]]:
    """Returns one row per recipe: config, type, dataset, classes, img_size, window, params, flops, ..."""
    return _table()["models"]


def released_url(name: str) -> str:
    """Returns the URL of a released model's weights. Raises: CheckpointError, suggesting the closest name."""
    known = {row["config"]: row["weights_url"] for row in released_models() if row.get("weights_url")}
    known |= _table()["weights_without_a_recipe"] | _table()["segmenters_and_detectors"]
    known |= {Path(url).stem: url for url in known.values()}  # file names may lack the suffix of the recipe's name
    if name not in known:
        hint = did_you_mean(name, known, "docs/models.md lists them all")
        raise CheckpointError(f"hub:{name}", f"unknown released model {name!r}", hint)
    return known[name]
