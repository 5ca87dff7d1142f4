"""Names of the parts of dense models beside the backbone: heads, and the norms of the backbone's maps.

The authors' files, mmsegmentation and mmdetection name them alike; transformers, which has no such detectors, differs.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from models.weights.layouts import Layout, Weights

HEAD_CLASSIFIERS = re.compile(r".*\.(conv_seg|fc_cls|fc_reg|conv_logits)\.")  # layers whose outputs belong to classes


def parts_to_original(parts: Mapping[str, Tensor], layout: Layout) -> Weights:
    """Translates the other parts of a model from a layout to the names of the authors' files."""
    if not layout.name.startswith("transformers"):
        return dict(parts)
    return {_from_transformers(name): value for name, value in parts.items()}


def parts_from_original(parts: Mapping[str, Tensor], layout: Layout) -> Weights:
    """Inverts `parts_to_original`."""
    if not layout.name.startswith("transformers"):
        return dict(parts)
    return {_to_transformers(name): value for name, value in parts.items()}


def whole_from_original(weights: Mapping[str, Tensor], layout: Layout, prefix: str) -> Weights:
    """Translates a whole dense model from the authors' names to a layout. Args: prefix: of the backbone's names."""
    apart = re.compile(rf"{re.escape(prefix)}norm\d+\.|(?!{re.escape(prefix)})")
    parts = {name: value for name, value in weights.items() if apart.match(name)}
    backbone = {name.removeprefix(prefix): value for name, value in weights.items() if name not in parts}
    stored = {prefix + name: value for name, value in layout.bare(backbone).items()}
    return stored | parts_from_original(parts, layout)


def split_norm(weights: Mapping[str, Tensor], dense: bool) -> tuple[Weights, Weights]:
    """Separates the last norm from the backbone's tensors, which a dense backbone does not have as such.

    Args: weights: under the names of a file; dense: whether they come from a dense model.
    Returns: the tensors without it; and, of a dense model whose layout names it like a classifier's, the norm of the
    last map, else nothing: a classifier's norm, or one that transformers stores and does not use.
    """
    norm = {name: value for name, value in weights.items() if re.fullmatch(r"(norm\d*|layernorm)\.\w+", name)}
    rest = {name: value for name, value in weights.items() if name not in norm}
    return rest, {name: value for name, value in norm.items() if dense and re.match(r"norm\d", name)}


def _from_transformers(name: str) -> str:
    name = name.replace(".batch_norm.", ".bn.").replace("_head.classifier.", "_head.conv_seg.")
    return re.sub(r"hidden_states_norms\.stage(\d+)\.", lambda m: f"norm{int(m[1]) - 1}.", name)


def _to_transformers(name: str) -> str:
    name = name.replace(".bn.", ".batch_norm.").replace("_head.conv_seg.", "_head.classifier.")
    return re.sub(r"^backbone\.norm(\d+)\.", lambda m: f"backbone.hidden_states_norms.stage{int(m[1]) + 1}.", name)
