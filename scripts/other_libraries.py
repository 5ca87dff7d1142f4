"""The same Swin in other libraries, built from the options of our model, to compare outputs."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from models.backbone import PyramidOptions
from models.swin_v2 import SwinV2Options
from models.weights.layouts import DERIVED
from utils.preprocessing import image_size

Forward = Callable[[Tensor], Tensor]
Loaded = tuple[nn.Module, list[str], list[str]]  # model, missing and unexpected names


def build_peer_model(layout: str, options: PyramidOptions, weights: dict[str, Tensor]) -> nn.Module | None:
    """Returns another library's model with `weights` in its layout; None if the library is not installed.

    Args: options: our model's options. Raises: RuntimeError if weights are missing or unexpected.
    """
    if layout not in _PEERS or importlib.util.find_spec(layout) is None:
        return None
    model, missing, unexpected = _PEERS[layout](options, weights)
    missing = [name for name in missing if not name.endswith(DERIVED)]
    if missing or unexpected:
        raise RuntimeError(f"{layout} misses {missing[:3]} and does not expect {list(unexpected)[:3]}")
    return model


def build_peer(layout: str, options: PyramidOptions, weights: dict[str, Tensor]) -> Forward | None:
    """Returns the forward pass of `build_peer_model` in evaluation mode, without gradients."""
    model = build_peer_model(layout, options, weights)
    if model is None:
        return None
    model.eval()
    return torch.no_grad()(lambda images: logits_of(model(images)))


def logits_of(output: Any) -> Tensor:
    """Returns the logits from the output of another library's model."""
    return output if isinstance(output, Tensor) else output.logits


def timm_arguments(o: PyramidOptions) -> dict[str, Any]:
    """Returns the options of a model as arguments of timm's V1 and V2 constructors."""
    same = ("img_size", "patch_size", "in_chans", "num_classes", "embed_dim", "depths", "num_heads", "window_size")
    arguments = {name: getattr(o, name) for name in (*same, "mlp_ratio", "qkv_bias")}
    if isinstance(o, SwinV2Options):
        arguments["pretrained_window_sizes"] = o.pretrained_window_sizes
    return arguments


def _timm(o: PyramidOptions, weights: dict[str, Tensor]) -> Loaded:
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2

    arguments = {**timm_arguments(o), "drop_path_rate": o.drop_path_rate}
    model: nn.Module = SwinTransformerV2(**arguments) if isinstance(o, SwinV2Options) else SwinTransformer(**arguments)
    return model, *model.load_state_dict(weights, strict=False)


def _torchvision(o: PyramidOptions, weights: dict[str, Tensor]) -> Loaded:
    from torchvision.models import swin_transformer as peer

    v2 = {"block": peer.SwinTransformerBlockV2, "downsample_layer": peer.PatchMergingV2}
    model = peer.SwinTransformer(
        patch_size=[o.patch_size] * 2,
        embed_dim=o.embed_dim,
        depths=list(o.depths),
        num_heads=list(o.num_heads),
        window_size=[o.window_size] * 2,
        mlp_ratio=o.mlp_ratio,
        stochastic_depth_prob=o.drop_path_rate,
        num_classes=o.num_classes,
        **(v2 if isinstance(o, SwinV2Options) else {}),
    )
    return model, *model.load_state_dict(weights, strict=False)


def _transformers(o: PyramidOptions, weights: dict[str, Tensor]) -> Loaded:
    transformers: Any = importlib.import_module("transformers")  # optional
    height, width = image_size(o.img_size)
    config = {
        "drop_path_rate": o.drop_path_rate,
        "image_size": height if height == width else (height, width),
        "num_channels": o.in_chans,
        "num_labels": o.num_classes,
        "use_absolute_embeddings": o.ape,
        "layer_norm_eps": 1e-5,
        **{name: getattr(o, name) for name in ("patch_size", "embed_dim", "window_size", "mlp_ratio", "qkv_bias")},
        **{name: list(getattr(o, name)) for name in ("depths", "num_heads")},
    }
    if isinstance(o, SwinV2Options):
        windows = {"pretrained_window_sizes": list(o.pretrained_window_sizes)}
        kind, peer_config = transformers.Swinv2ForImageClassification, transformers.Swinv2Config(**config, **windows)
    else:
        kind, peer_config = transformers.SwinForImageClassification, transformers.SwinConfig(**config)
    # loaded like a file, since names in files and modules differ
    model, info = kind.from_pretrained(None, config=peer_config, state_dict=weights, output_loading_info=True)
    return model, list(info["missing_keys"]), list(info["unexpected_keys"])


def build_upernet(model: Any, weights: dict[str, Tensor]) -> Forward | None:
    """Returns the forward pass of `upernet`, without gradients."""
    peer = upernet(model, weights)
    return None if peer is None else torch.no_grad()(lambda images: logits_of(peer(images)))


def upernet(model: Any, weights: dict[str, Tensor]) -> Any:
    """Returns transformers' UPerNet with `weights` in its layout; None if it is not installed or has no such model.

    Args: model: a segmenter, whose sizes are taken. Raises: RuntimeError if weights are missing or unexpected.
    """
    o: PyramidOptions = model.encoder.options
    if importlib.util.find_spec("transformers") is None or isinstance(o, SwinV2Options):
        return None
    transformers: Any = importlib.import_module("transformers")  # optional
    config = transformers.UperNetConfig(
        backbone_config=transformers.SwinConfig(
            num_channels=o.in_chans,
            depths=list(o.depths),
            num_heads=list(o.num_heads),
            use_absolute_embeddings=o.ape,
            out_features=[f"stage{i + 1}" for i in range(len(o.depths))],
            **{name: getattr(o, name) for name in ("patch_size", "embed_dim", "window_size", "mlp_ratio", "qkv_bias")},
        ),
        hidden_size=model.decode_head.conv_seg.in_channels,
        auxiliary_channels=model.auxiliary_head.conv_seg.in_channels,
        auxiliary_in_channels=model.auxiliary_head.convs[0].conv.in_channels,
        num_labels=model.num_classes,
    )
    kind = transformers.UperNetForSemanticSegmentation
    peer, info = kind.from_pretrained(None, config=config, state_dict=weights, output_loading_info=True)
    unused = ("layernorm.weight", "layernorm.bias", *DERIVED)  # the final norm, which it has but does not use
    missing = [name for name in info["missing_keys"] if not name.endswith(unused)]
    if missing or info["unexpected_keys"]:
        raise RuntimeError(f"transformers misses {missing[:3]} and does not expect {list(info['unexpected_keys'])[:3]}")
    return peer.eval()


_PEERS = {"timm": _timm, "torchvision": _torchvision, "transformers": _transformers}
