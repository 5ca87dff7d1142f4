"""Writes the table of released models into README.md: python -m scripts.model_table"""

from pathlib import Path

from models.weights.released import released_models

BEGIN, END = "<!-- models: python -m scripts.model_table -->", "<!-- end of models -->"
README = Path(__file__).resolve().parent.parent / "README.md"
HEAD = "| recipe | pixels | window | parameters | GFLOPs | top-1 | top-5 | weights |\n" + "|---" * 8 + "|\n"


def table() -> str:
    """Returns a Markdown table with one row per released recipe."""
    rows = []
    for row in sorted(released_models(), key=lambda r: (("swin", "swinv2", "swin_mlp").index(r["type"]), r["params"])):
        top1, top5 = row.get("imagenet1k_top1", ""), row.get("imagenet1k_top5", "")
        link = f"[file]({row['weights_url']})" if row.get("weights_url") else ""
        size = f"{row['img_size']} | {row['window']} | {row['params']:,} | {row['flops'] / 1e9:.1f}"
        rows.append(f"| {row['config']} | {size} | {top1} | {top5} | {link} |\n")
    return HEAD + "".join(rows)


def main() -> None:
    before, rest = README.read_text().split(BEGIN)
    README.write_text(before + BEGIN + "\n" + table() + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
