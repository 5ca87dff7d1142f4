"""Rewrites the column of tests in docs/faults.md: python -m tests.tools.list_faults"""

import re

from tests.conftest import ROOT
from tests.test_docs import all_fault_tests

if __name__ == "__main__":
    path, names = ROOT / "docs/faults.md", sorted(all_fault_tests())
    lines = path.read_text().splitlines()
    for i, line in enumerate(lines):
        row = re.match(r"\| (\d+) \|", line)
        if row:
            own = [f"`{name}`" for name in names if name.startswith(f"test_fault_{int(row[1]):02d}_")]
            lines[i] = line.rsplit("|", 2)[0] + f"| {'<br>'.join(own) or '*open*'} |"
    path.write_text("\n".join(lines) + "\n")
