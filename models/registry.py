"""The model families by the name that a config gives them in MODEL.TYPE."""

import difflib
from typing import Any

from models.backbone import SwinBackbone
from models.errors import ModelError
from models.swin import SwinTransformer
from models.swin_mlp import SwinMlp
from models.swin_v2 import SwinTransformerV2

MODELS: dict[str, type[SwinBackbone]] = {c.family: c for c in (SwinTransformer, SwinTransformerV2, SwinMlp)}


def build_model(name: str, **arguments: Any) -> SwinBackbone:
    """A freshly initialised model of family `name`; `arguments` are its constructor's.

    Raises: ModelError for an unknown name, or arguments that do not fit together.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(sorted(MODELS))}"
        raise ModelError(f"no model family is called {name!r}: MODEL.TYPE: {hint}")
    return MODELS[name](**arguments)
