"""Lossless translation of Swin weights between the original's layout, which this program uses, and other libraries'.

A layout is a table of renamings plus transforms of the tensors that it stores differently.
Sources: the published files, and timm 1.0, torchvision 0.29, transformers 5, mmdetection 3 and mmpretrain 1.
"""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

Weights = dict[str, Tensor]

# derived from the configuration, but present in files
DERIVED = ("relative_position_index", "relative_coords_table", "attn_mask", "k_bias", "_num_global_experts")
# never prefixed by a layout
CLASSIFIERS = ("head.", "classifier.")


@dataclass(frozen=True)
class Layout:
    """Storage format of a Swin in one library.

    `names`: pairs of templates, the original's first; {i} is a stage, {j} a block, {2i+1} an index computed from the
    stage. The first pair that matches the beginning of a name applies; other names are unchanged. `encode` and
    `decode` transform tensors, under the original's names, to this layout and back. `prefix` precedes all names
    but the classifier's; `find_weights` strips it before `to_original`. `stores`: DERIVED tensors in its files.
    """

    name: str
    names: tuple[tuple[str, str], ...] = ()
    encode: Callable[[Weights], Weights] = field(default=dict)
    decode: Callable[[Weights], Weights] = field(default=dict)
    prefix: str = ""
    prefix_v2: str = ""
    stores: tuple[str, ...] = ()

    def to_original(self, weights: Mapping[str, Tensor]) -> Weights:
        """Translates weights of this layout to the original's names."""
        return self.decode({_rename(k, [(b, a) for a, b in self.names]): v for k, v in weights.items()})

    def from_original(self, weights: Mapping[str, Tensor]) -> Weights:
        """Inverts `to_original`, with this layout's prefix."""
        prefix = self.prefix_v2 if any(name.endswith(".logit_scale") for name in weights) else self.prefix
        return {k if k.startswith(CLASSIFIERS) else prefix + k: v for k, v in self.bare(weights).items()}

    def shapes_of(self, weights: Mapping[str, Tensor]) -> Weights:
        """Translates names and shapes to this layout, without prefix, as tensors on the meta device."""
        return self.bare({name: value.to("meta") for name, value in weights.items()})

    def bare(self, weights: Mapping[str, Tensor]) -> Weights:
        """Translates weights to this layout, without prefix."""
        return {_rename(k, self.names): v for k, v in self.encode(dict(weights)).items()}

    def extras(self, names: Collection[str]) -> list[str]:
        """Returns the names that classifiers lack: the mask token, and norms that detectors apply to earlier stages."""
        stages = [int(m[1]) for name in names if (m := re.match(r"stages\.(\d+)\.", name))]
        pattern = re.compile(r"(embeddings\.)?mask_token$|hidden_states_norms\.|norm(\d+)\.")
        found = [(name, m) for name in names if (m := pattern.match(name))]
        return [name for name, m in found if m[2] is None or int(m[2]) != max(stages, default=-1)]


def recognise(names: Collection[str]) -> Layout:
    """Returns the layout of a file, recognised by its names without wrapper prefixes."""
    joined = "\n".join(names)
    if re.search(r"\.attention\.q_proj\.", joined):
        return TRANSFORMERS_5
    for sign, layout in _SIGNS.items():
        if re.search(sign, joined, re.MULTILINE):
            v2 = re.search(r"\.logit_scale$", joined, re.MULTILINE)
            return LAYOUTS["mmpretrain" if layout == "mmdetection" and v2 else layout]
    merging = [int(m) for m in re.findall(r"^layers\.(\d+)\.downsample", joined, re.MULTILINE)]
    return LAYOUTS["timm" if merging and 0 not in merging else "original"]


def _rename(name: str, pairs: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> str:
    for source, target in pairs:
        match = re.match(_pattern(source) + r"(?=\.|$)", name)
        if match:
            numbers = _solve(source, match.groups())
            if numbers is not None:
                return _fill(target, numbers) + name[match.end() :]
    return name


_INDEX = re.compile(r"\{(\d*)([ij])(?:\+(\d+))?\}")


def _pattern(template: str) -> str:
    pieces = _INDEX.split(template)  # text, factor, letter, offset, text, ...
    return r"(\d+)".join(re.escape(text) for text in pieces[::4])


def _solve(template: str, found: tuple[str, ...]) -> dict[str, int] | None:
    """Solves for the stage and block that yield the indices found; None if there is no solution."""
    numbers = {}
    for (factor, letter, offset), text in zip(_INDEX.findall(template), found, strict=True):
        value, rest = divmod(int(text) - int(offset or 0), int(factor or 1))
        if rest or value < 0:
            return None
        numbers[letter] = value
    return numbers


def _fill(template: str, numbers: dict[str, int]) -> str:
    return _INDEX.sub(lambda m: str(int(m[1] or 1) * numbers[m[2]] + int(m[3] or 0)), template)


def _each_attention(weights: Weights, leaf: str) -> list[str]:
    return [name.removesuffix(leaf) for name in weights if name.endswith(leaf)]


_QKV = ("query", "key", "value")


def _split_qkv(weights: Weights) -> Weights:
    """Splits qkv into query, key and value, as in transformers."""
    for attention in _each_attention(weights, ".qkv.weight"):
        for leaf in ("weight", "bias"):
            if f"{attention}.qkv.{leaf}" in weights:
                parts = zip(_QKV, weights.pop(f"{attention}.qkv.{leaf}").chunk(3), strict=True)
                weights |= {f"{attention}.{part}.{leaf}": value.clone() for part, value in parts}
        for letter, part in (("q", "query"), ("v", "value")):
            if f"{attention}.{letter}_bias" in weights:
                weights[f"{attention}.{part}.bias"] = weights.pop(f"{attention}.{letter}_bias")
    return weights


def _join_qkv(weights: Weights) -> Weights:
    for attention in _each_attention(weights, ".query.weight"):
        for leaf in ("weight", "bias"):  # joined if all three are present; missing ones are reported later
            names = [f"{attention}.{part}.{leaf}" for part in _QKV]
            if all(name in weights for name in names):
                weights[f"{attention}.qkv.{leaf}"] = torch.cat([weights.pop(name) for name in names])
        for letter, part in (("q", "query"), ("v", "value")):  # V2 has no bias on the keys
            if f"{attention}.{part}.bias" in weights:
                weights[f"{attention}.{letter}_bias"] = weights.pop(f"{attention}.{part}.bias")
    return weights


def _join_v2_bias(weights: Weights) -> Weights:
    """Joins the biases as in torchvision's V2, with zeros on the keys, and flattens the indices."""
    for attention in _each_attention(weights, ".q_bias"):
        query, value = weights.pop(f"{attention}.q_bias"), weights.pop(f"{attention}.v_bias", None)
        value = torch.zeros_like(query) if value is None else value
        weights[f"{attention}.qkv.bias"] = torch.cat([query, torch.zeros_like(query), value])
    return {k: v.flatten() if k.endswith(".relative_position_index") else v for k, v in weights.items()}


def _split_v2_bias(weights: Weights) -> Weights:
    for attention in _each_attention(weights, ".qkv.bias"):
        if f"{attention}.logit_scale" in weights:
            query, _, value = weights.pop(f"{attention}.qkv.bias").chunk(3)
            weights |= {f"{attention}.q_bias": query.clone(), f"{attention}.v_bias": value.clone()}
    return weights


def _to_mmdetection(weights: Weights) -> Weights:
    """Reorders the four merged patches like torch's Unfold, by channel, then row-major; names the norm by stage."""
    last = _last_stage(weights)
    weights = {re.sub(r"^norm\.", f"norm{last}.", name): value for name, value in weights.items()}
    return _reorder_merging(weights, lambda w: w.view(*w.shape[:-1], 4, -1)[..., [0, 2, 1, 3], :].transpose(-1, -2))


def _from_mmdetection(weights: Weights) -> Weights:
    last = _last_stage(weights)
    weights = {re.sub(rf"^norm{last}\.", "norm.", name): value for name, value in weights.items()}
    return _reorder_merging(weights, lambda w: w.view(*w.shape[:-1], -1, 4).transpose(-1, -2)[..., [0, 2, 1, 3], :])


def _last_stage(weights: Weights) -> int:
    return max((int(m[1]) for name in weights if (m := re.match(r"layers\.(\d+)\.", name))), default=0)


def _reorder_merging(weights: Weights, reorder: Callable[[Tensor], Tensor]) -> Weights:
    for merging in _each_attention(weights, ".downsample.reduction.weight"):
        matrix = weights[f"{merging}.downsample.reduction.weight"]
        for name in (f"{merging}.downsample.{leaf}" for leaf in ("reduction.weight", "norm.weight", "norm.bias")):
            value = weights.get(name)
            if value is not None and value.shape[-1] == matrix.shape[-1]:  # V2's norm follows the reduction
                weights[name] = reorder(value).reshape(value.shape)
    return weights


_BLOCK = "layers.{i}.blocks.{j}"
_TRANSFORMERS_BLOCK = "encoder.layers.{i}.blocks.{j}"
_MM_NAMES = (
    ("patch_embed.proj", "patch_embed.projection"),
    (f"{_BLOCK}.attn", "stages.{i}.blocks.{j}.attn.w_msa"),
    (f"{_BLOCK}.mlp.fc1", "stages.{i}.blocks.{j}.ffn.layers.0.0"),
    (f"{_BLOCK}.mlp.fc2", "stages.{i}.blocks.{j}.ffn.layers.1"),
    (_BLOCK, "stages.{i}.blocks.{j}"),
    ("head", "head.fc"),
)

_TRANSFORMERS_NAMES = (
    ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
    ("patch_embed.norm", "embeddings.norm"),
    ("absolute_pos_embed", "embeddings.position_embeddings"),
    (f"{_BLOCK}.norm1", f"{_TRANSFORMERS_BLOCK}.layernorm_before"),
    (f"{_BLOCK}.norm2", f"{_TRANSFORMERS_BLOCK}.layernorm_after"),
)
_TRANSFORMERS_END = (
    ("layers.{i}.downsample", "encoder.layers.{i}.downsample"),
    ("norm", "layernorm"),
    ("head", "classifier"),
)

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout("original", stores=("relative_coords_table",)),
        Layout("timm", (("layers.{i}.downsample", "layers.{i+1}.downsample"), ("head", "head.fc"))),
        Layout(
            "torchvision",
            (
                ("patch_embed.proj", "features.0.0"),
                ("patch_embed.norm", "features.0.2"),
                (f"{_BLOCK}.mlp.fc1", "features.{2i+1}.{j}.mlp.0"),
                (f"{_BLOCK}.mlp.fc2", "features.{2i+1}.{j}.mlp.3"),
                (_BLOCK, "features.{2i+1}.{j}"),
                ("layers.{i}.downsample", "features.{2i+2}"),
            ),
            _join_v2_bias,
            _split_v2_bias,
            stores=("relative_position_index", "relative_coords_table"),
        ),
        Layout(
            "transformers",
            (
                *_TRANSFORMERS_NAMES,
                (f"{_BLOCK}.attn.proj", f"{_TRANSFORMERS_BLOCK}.attention.output.dense"),
                (f"{_BLOCK}.attn.cpb_mlp", f"{_TRANSFORMERS_BLOCK}.attention.self.continuous_position_bias_mlp"),
                (f"{_BLOCK}.attn", f"{_TRANSFORMERS_BLOCK}.attention.self"),
                (f"{_BLOCK}.mlp.fc1", f"{_TRANSFORMERS_BLOCK}.intermediate.dense"),
                (f"{_BLOCK}.mlp.fc2", f"{_TRANSFORMERS_BLOCK}.output.dense"),
                *_TRANSFORMERS_END,
            ),
            _split_qkv,
            _join_qkv,
            "swin.",
            "swinv2.",
        ),
        Layout(
            "mmdetection",  # also mmsegmentation, and V1 in mmpretrain
            (*_MM_NAMES, ("layers.{i}.downsample", "stages.{i}.downsample")),
            _to_mmdetection,
            _from_mmdetection,
            "backbone.",
            stores=("relative_position_index",),
        ),
        Layout(
            "mmpretrain",  # V2; the merging is at the start of the next stage
            (*_MM_NAMES, ("layers.{i}.downsample", "stages.{i+1}.downsample")),
            _to_mmdetection,
            _from_mmdetection,
            "",
            "backbone.",
            stores=("relative_position_index", "relative_coords_table"),
        ),
    )
}

# V1 as held in memory by transformers 5, whose files have the layout above
TRANSFORMERS_5 = Layout(
    "transformers 5",
    (
        *_TRANSFORMERS_NAMES,
        (f"{_BLOCK}.attn.query", f"{_TRANSFORMERS_BLOCK}.attention.q_proj"),
        (f"{_BLOCK}.attn.key", f"{_TRANSFORMERS_BLOCK}.attention.k_proj"),
        (f"{_BLOCK}.attn.value", f"{_TRANSFORMERS_BLOCK}.attention.v_proj"),
        (f"{_BLOCK}.attn.proj", f"{_TRANSFORMERS_BLOCK}.attention.o_proj"),
        (f"{_BLOCK}.attn", f"{_TRANSFORMERS_BLOCK}.attention.relative_position_bias"),
        (f"{_BLOCK}.mlp", f"{_TRANSFORMERS_BLOCK}.mlp"),
        *_TRANSFORMERS_END,
    ),
    _split_qkv,
    _join_qkv,
    "swin.",
)

_SIGNS = {
    r"^features\.0\.0\.": "torchvision",
    r"\.attn\.w_msa\.": "mmdetection",
    r"\.layernorm_before\.": "transformers",
    r"^head\.fc\.": "timm",
}
