"""Rewrites golden.yaml from the schema: python -m tests.configs.golden. Read the difference it makes."""

import yaml

from configs.schema import KEYS
from tests.configs.test_loading import GOLDEN

if __name__ == "__main__":
    GOLDEN.write_text(yaml.safe_dump({name: key.default for name, key in KEYS.items()}, sort_keys=False))
