"""Rewrites golden.yaml from schema and recipes: python -m tests.configs.golden. Read the difference it makes."""

import yaml

from configs.loading import load_config
from configs.schema import KEYS
from tests.configs.test_loading import GOLDEN, RECIPES, changed
from tests.conftest import ROOT

if __name__ == "__main__":
    recipes = {str(p.relative_to(ROOT / "configs")): changed(load_config(p)) for p in RECIPES}
    defaults = {name: key.default for name, key in KEYS.items()}
    GOLDEN.write_text(yaml.safe_dump({"defaults": defaults, "recipes": recipes}, sort_keys=False))
