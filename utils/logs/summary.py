"""summary.csv: one row per evaluation, with timm's column names."""

import csv
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import one_line
from utils.files import write_text
from utils.logs.metrics_file import RESERVED, read_records, read_times

log = logging.getLogger(__name__)


def metrics_of(record: Mapping[str, Any]) -> dict[str, float | None]:
    """Returns the metrics of a record of metrics.jsonl, without counts; topk is renamed by the field k, as to top5."""
    own = {name: v for name, v in record.items() if name not in RESERVED and (v is None or isinstance(v, float))}
    k = record.get("k")
    return {f"{name[:-1]}{k}" if k is not None and name == "topk" else name: value for name, value in own.items()}


def write_summary(metrics: Path, target: Path) -> None:
    """Writes one row per epoch from metrics.jsonl, with timm's column names; only warns if it fails."""
    try:
        rows, rate, times = [], None, read_times(metrics)
        for line in read_records(metrics):
            if line["kind"] == "train":
                rate = line["lr"]
                continue
            known = {"epoch": line["epoch"], "train_loss": line["train_loss"], "lr": rate}
            time = times.get(line["update"], {})
            own = {name: time.get(name) for name in ("seconds", "images_per_s")}
            rows.append(known | {f"eval_{name}": value for name, value in metrics_of(line).items()} | own)
        buffer = io.StringIO(newline="")
        head = list(dict.fromkeys(name for row in rows for name in row))
        writer = csv.DictWriter(buffer, head, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(target, buffer.getvalue())
    except (OSError, ValueError, KeyError, TypeError) as e:
        log.warning("cannot write %s (%s); training continues", target, one_line(e))
