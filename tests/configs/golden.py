"""Rewrites golden.yaml from the schema: python -m tests.configs.golden. Review the diff before committing."""

import yaml

from configs.schema import KEYS
from tests.configs.test_loading import GOLDEN

if __name__ == "__main__":
    GOLDEN.write_text(yaml.safe_dump({name: key.default for name, key in KEYS.items()}, sort_keys=False))
