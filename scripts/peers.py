"""The same Swin in other libraries: built to compare outputs with, from our own model's arguments."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.weights.layouts import DERIVED

Forward = Callable[[Tensor], Tensor]
Loaded = tuple[nn.Module, list[str], list[str]]  # model, missing and unexpected names


def build_peer(layout: str, family: str, arguments: dict[str, Any], weights: dict[str, Tensor]) -> Forward | None:
    """A peer's forward pass with `weights` in its own layout; None where its library is not installed.

    Args: family: swin or swinv2; arguments: of our model.
    Raises: RuntimeError if the peer does not take exactly these weights.
    """
    if layout not in _PEERS or importlib.util.find_spec(layout) is None:
        return None
    model, missing, unexpected = _PEERS[layout](family, arguments, weights)
    missing = [name for name in missing if not name.endswith(DERIVED)]
    if missing or unexpected:
        raise RuntimeError(f"{layout} misses {missing[:3]} and does not know {list(unexpected)[:3]}")
    model.eval()

    @torch.no_grad()
    def forward(images: Tensor) -> Tensor:
        result = model(images)
        return result if isinstance(result, Tensor) else result.logits

    return forward


def _timm(family: str, a: dict[str, Any], weights: dict[str, Tensor]) -> Loaded:
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    same = ("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depths", "num_heads", "window_size")
    arguments = {key: a[key] for key in (*same, "mlp_ratio", "qkv_bias")}
    if family == "swin":
        model: nn.Module = SwinTransformer(**arguments)
    else:
        model = SwinTransformerV2(**arguments, pretrained_window_sizes=a["pretrained_window_sizes"])
    return model, *model.load_state_dict(weights, strict=False)


def _torchvision(family: str, a: dict[str, Any], weights: dict[str, Tensor]) -> Loaded:
    from torchvision.models import swin_transformer as peer

    v2 = {"block": peer.SwinTransformerBlockV2, "downsample_layer": peer.PatchMergingV2}
    model = peer.SwinTransformer(
        patch_size=[a["patch_size"]] * 2,
        embed_dim=a["embed_dim"],
        depths=list(a["depths"]),
        num_heads=list(a["num_heads"]),
        window_size=[a["window_size"]] * 2,
        mlp_ratio=a["mlp_ratio"],
        num_classes=a["num_classes"],
        **(v2 if family == "swinv2" else {}),
    )
    return model, *model.load_state_dict(weights, strict=False)


def _transformers(family: str, a: dict[str, Any], weights: dict[str, Tensor]) -> Loaded:
    transformers: Any = importlib.import_module("transformers")  # optional
    config = {
        "image_size": a["img_size"],
        "num_channels": a["in_chans"],
        "num_labels": a["num_classes"],
        "use_absolute_embeddings": a["ape"],
        "layer_norm_eps": 1e-5,
        **{key: a[key] for key in ("patch_size", "embed_dim", "depths", "num_heads", "window_size")},
        **{key: a[key] for key in ("mlp_ratio", "qkv_bias")},
    }
    if family == "swin":
        kind, peer_config = transformers.SwinForImageClassification, transformers.SwinConfig(**config)
    else:
        windows = {"pretrained_window_sizes": a["pretrained_window_sizes"]}
        kind, peer_config = transformers.Swinv2ForImageClassification, transformers.Swinv2Config(**config, **windows)
    # as a file is loaded: names of files and of modules differ there
    model, info = kind.from_pretrained(None, config=peer_config, state_dict=weights, output_loading_info=True)
    return model, list(info["missing_keys"]), list(info["unexpected_keys"])


_PEERS = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}
