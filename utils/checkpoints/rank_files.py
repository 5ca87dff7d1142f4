"""Checkpoints split across files: the original repository saves the experts of a Swin-MoE in one file per rank.

NAME.pth stands for NAME.pth.rank0, NAME.pth.rank1, ...; shared parameters are in each of them, or in NAME.pth.master.
NAME.pth.global is a single file with a model saved by one rank.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.checkpoints.safe_load import load_tensors
from utils.errors import CheckpointError, one_line

EXPERT = re.compile(r".*\.experts\.batched_(fc[12]_w|fc[12]_bias)")
_PART = re.compile(r"(.+)\.(?:rank(\d+)|master)")


@dataclass(frozen=True)
class RankFiles:
    """The files of a checkpoint: `ranks` by number; `shared` parameters, None if they are in the per-rank files."""

    path: Path
    ranks: dict[int, Path]
    shared: Path | None


def find_rank_files(path: Path) -> RankFiles | None:
    """Returns the set of files that `path` denotes or belongs to; None for an ordinary file, or a missing one."""
    part = _PART.fullmatch(path.name)
    if part is None and path.exists():
        return None
    whole = path.with_name(part[1]) if part else path
    found = [(_PART.fullmatch(each.name), each) for each in whole.parent.glob(f"{escape(whole.name)}.rank*")]
    ranks = {int(match[2]): each for match, each in found if match and match[2] and match[1] == whole.name}
    others = [whole.with_name(whole.name + ending) for ending in (".master", ".global")]
    shared = next((other for other in others if other.is_file()), None)
    return RankFiles(whole, ranks, shared) if ranks or shared else None


def read_rank_files(files: RankFiles) -> dict[str, Any]:
    """Merges a set of files into one model, {"model": ...}, in which every expert layer has all experts.

    Rank r holds experts r * n to r * n + n - 1; or, if experts are split, n consecutive ranks each hold a slice of one,
    along its hidden channels. The ranks' optimizers are dropped.
    Raises: CheckpointError if a file is missing (the error names it), or the files do not belong together.
    """
    _check_gaps(files)
    shared = {} if files.shared is None else _model(files.shared)
    if not files.ranks:
        return {"model": shared}
    layers: dict[str, dict[str, list[Tensor]]] = {}
    for rank in range(len(files.ranks)):
        own = _model(files.ranks[rank])
        shared = shared or {name: value for name, value in own.items() if not EXPERT.fullmatch(name)}
        for name, value in own.items():
            if EXPERT.fullmatch(name):
                layer, _, leaf = name.rpartition(".experts.")
                layers.setdefault(layer, {}).setdefault(leaf, []).append(value)
    merged = {}
    try:
        for layer, leaves in layers.items():
            slices = _slices(layer, leaves["batched_fc1_w"], shared, files)
            for leaf, parts in leaves.items():
                merged[f"{layer}.experts.{leaf}"] = _join(leaf, parts, slices, leaves["batched_fc1_w"][0].shape[-1])
    except CheckpointError:
        raise
    except Exception as e:  # tensors of any shape raise anything
        problem = f"the files do not belong together ({one_line(e)})"
        raise CheckpointError(f"{files.path}.rank*", problem, "choose another set") from e
    return {"model": {**shared, **merged}}


def _check_gaps(files: RankFiles) -> None:
    # the shared parameters are useless without the experts
    least = 1 if files.shared is not None and files.shared.suffix == ".master" else 0
    count = max([least, *(rank + 1 for rank in files.ranks)])
    missing = [rank for rank in range(count) if rank not in files.ranks]
    if missing:
        raise _missing(files, missing[0], count)


def _missing(files: RankFiles, rank: int, expected: int) -> CheckpointError:
    problem = f"the file is missing from a set of at least {expected}, one per rank"
    return CheckpointError(f"{files.path}.rank{rank}", problem, "add it")


def _model(path: Path) -> dict[str, Tensor]:
    """Loads the tensors of one file."""
    contents = load_tensors(path)
    model = contents.get("model", contents)
    if not isinstance(model, Mapping):
        raise CheckpointError(str(path), "the file has no weights", "choose another set")
    return {name: value for name, value in model.items() if isinstance(value, Tensor)}


def _slices(layer: str, parts: list[Tensor], shared: Mapping[str, Tensor], files: RankFiles) -> int:
    """Returns the number of ranks that share an expert. Raises: CheckpointError if files are missing or surplus.

    Args: parts: fc1 of every rank, (local experts, hidden / slices, C).
    """
    local, width, channels = parts[0].shape
    experts = _count_experts(layer, shared)
    dense = next((value for name, value in shared.items() if name.endswith(".mlp.fc1.weight")), None)
    hidden = channels * len(dense) // dense.shape[1] if dense is not None else width * len(parts) * local // experts
    slices = max(1, hidden // width)
    expected = experts * slices // local
    if len(parts) < expected:
        raise _missing(files, len(files.ranks), expected)
    if len(parts) > expected:
        problem = f"{len(parts)} files for {experts} experts, {expected} expected"
        raise CheckpointError(f"{files.path}.rank*", problem, "remove the files of other runs")
    return slices


def _count_experts(layer: str, shared: Mapping[str, Tensor]) -> int:
    """Returns the number of experts in a layer, from its router."""
    router = f"{layer}.gates.0"
    linear = shared.get(f"{router}.wg.weight")
    return len(linear) if linear is not None else shared[f"{router}.sim_matrix"].shape[1]


def _join(leaf: str, parts: list[Tensor], slices: int, channels: int) -> Tensor:
    """Joins the parts of a tensor in rank order, over all experts."""
    if slices == 1:
        return torch.cat(parts)
    by_expert = [parts[i : i + slices] for i in range(0, len(parts), slices)]
    experts = [torch.cat(each, 1 if leaf.endswith("_w") else -1) for each in by_expert]
    if leaf == "batched_fc2_bias":  # output bias: split and padded; in older files, whole in every slice
        experts = [bias[..., :channels] for bias in experts]
    return torch.cat(experts)
