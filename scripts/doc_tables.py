"""Writes the pages of docs/ that are made of tables: python -m scripts.doc_tables"""

from pathlib import Path
from typing import Any

from configs.options import OPTIONS
from configs.schema import KEYS
from scripts.benchmarks.page import benchmarks_page
from utils.checkpoints.released import released_models

DOCS = Path(__file__).resolve().parent.parent / "docs"
SOURCES = DOCS / "benchmarks"
MODELS = """# Models

The released classifiers, under the names of their recipes (`--cfg swin_tiny_patch4_window7_224`) and of their
weights (`--resume hub:swin_tiny_patch4_window7_224`). Parameters and GFLOPs (multiply-adds) are exact; top-1 and top-5
are the published ImageNet-1K accuracies, %. This page is written by `python -m scripts.doc_tables`.

"""
EXPERTS = """
## Swin-MoE

Pre-trained on ImageNet-22K at 192 pixels. Published top-1 accuracies, %: on ImageNet-22K; on ImageNet-1K, fine-tuned
and with 5 images per class (5-shot). GFLOPs include the capacity factor of 1.25; parameters include biases of experts
that stay 0. Weights are sets of one file per rank: `--pretrained NAME.pth` reads `NAME.pth.rank0` and the others.

"""
FAMILIES = ("swin", "swinv2", "swin_mlp", "swin_moe")
CONFIGURATION = """# Configuration

Every key: its default, its meaning, and the option of the command line that sets it. Any key is set by
`--opts KEY VALUE`; an option overrides `--opts`, which overrides the YAML file, its `BASE` files, and the default.
`python main.py --cfg FILE --print-config` shows the result. Keys marked * may change between two starts of a run: they
do not affect its result. Names and defaults are the original repository's, but for keys marked "new"
([what differs](from_the_original.md)). This page is written by `python -m scripts.doc_tables`.
"""


def models_page() -> str:
    """Returns docs/models.md: a row per released recipe."""
    dense = [row for row in _sorted_models() if "experts" not in row]
    rows = ["| recipe | pixels | window | parameters | GFLOPs | top-1 | top-5 | weights |", "|---" * 8 + "|"]
    for row in dense:
        top1, top5 = row.get("imagenet1k_top1", ""), row.get("imagenet1k_top5", "")
        link = f"[file]({row['weights_url']})" if row.get("weights_url") else ""
        size = f"{row['img_size']} | {row['window']} | {row['params']:,} | {row['flops'] / 1e9:.1f}"
        rows.append(f"| {row['config']} | {size} | {top1} | {top5} | {link} |")
    return MODELS + "\n".join(rows) + "\n" + EXPERTS + _expert_rows() + "\n"


def _sorted_models() -> list[dict[str, Any]]:
    return sorted(released_models(), key=lambda row: (FAMILIES.index(row["type"]), row["params"]))


def _expert_rows() -> str:
    head = "| recipe | experts | router | parameters | GFLOPs | 22K top-1 | 1K fine-tuned | 1K 5-shot |"
    rows = [head, "|---" * 8 + "|"]
    for row in (row for row in _sorted_models() if "experts" in row):
        size = f"{row['experts'] or 'none'} | {row['router']} | {row['params']:,} | {row['flops'] / 1e9:.1f}"
        accuracies = f"{row['imagenet22k_top1']} | {row['finetuned_top1']} | {row['five_shot_top1']}"
        rows.append(f"| {row['config']} | {size} | {accuracies} |")
    return "\n".join(rows)


def configuration_page() -> str:
    """Returns docs/configuration.md: a table per group of keys."""
    options_of: dict[str, list[str]] = {}
    for name, option in OPTIONS.items():
        options_of.setdefault(option.key, []).append(f"`{name}`")
    groups: dict[str, list[str]] = {}
    for name, key in KEYS.items():
        if key.deprecated:
            continue
        group = name.rpartition(".")[0] or "General"
        options = ", ".join(options_of.get(name, []))
        row = f"| `{name}`{' *' if key.free else ''} | {_default(key.default)} | {key.about} | {options} |"
        groups.setdefault(group, []).append(row)
    parts = [CONFIGURATION]
    for group, rows in groups.items():
        parts += [f"\n## {group}\n\n| key | default | meaning | option |\n|---|---|---|---|\n", "\n".join(rows), "\n"]
    return "".join(parts)


def _default(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return f"`{value}`" if value else ""
    return f"`{value:.4g}`" if isinstance(value, float) else f"`{value}`"


PAGES = {
    "models.md": models_page,
    "configuration.md": configuration_page,
    "benchmarks.md": lambda: benchmarks_page(SOURCES),
}


def main() -> None:
    for name, page in PAGES.items():
        (DOCS / name).write_text(page())


if __name__ == "__main__":
    main()
