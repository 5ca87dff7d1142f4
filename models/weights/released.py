"""The released models as a table: what each is, what it costs, what it reached, where its weights lie."""

import difflib
import json
from functools import cache
from pathlib import Path
from typing import Any

from models.errors import WeightsError


@cache
def _table() -> dict[str, Any]:
    return json.loads(Path(__file__).with_name("released.json").read_text())


def released_models() -> list[dict[str, Any]]:
    """One row a recipe: config, type, dataset, classes, img_size, window, params, flops, imagenet1k_top1, ..."""
    return _table()["models"]


def weights_address(name: str) -> str:
    """Published address of the weights of a released model. Raises: WeightsError with the nearest names."""
    known = {row["config"]: row["weights_url"] for row in released_models() if row.get("weights_url")}
    known |= _table()["weights_without_a_recipe"]
    # a file's name lacks the ending that its recipe's name has
    known |= {Path(address).stem: address for address in known.values()}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
        hint = f"did you mean {' or '.join(near)}?" if near else "README.md lists them all"
        raise WeightsError(f"no released model is called {name!r}: hub:{name}: {hint}")
    return known[name]
