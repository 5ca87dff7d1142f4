"""Publishes a model on the Hugging Face hub, for this program and for timm or transformers, if they have the model.

    python scripts/push_to_hub.py output/swin_tiny/mine OWNER/NAME --license mit
    python scripts/push_to_hub.py output/swin_tiny/mine OWNER/NAME --folder published      # writes it, uploads nothing

A repository contains model.safetensors, a model card and, if timm (for classifiers) or transformers (for segmenters)
computes the same, its config.json. It must reproduce the logits before anything is uploaded. `hf auth login` stores the
token required by the hub.
"""

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the program

from scripts.hub_folder import write_folder
from scripts.model_card import Card
from scripts.open_model import EXPORTED, ModelFile, open_model
from utils.checkpoints.downloads import is_reachable
from utils.errors import ConfigError, ResourceError, one_line, run_to_exit_code
from utils.files import write_errors
from utils.script_parser import ScriptParser
from utils.terminal import say


def publish(opened: ModelFile, card: Card, folder: Path, private: bool) -> str:
    """Writes `folder` and uploads it; returns the address. Raises: ConfigError, ResourceError, CheckpointError."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError  # errors of its HTTP library

    write(opened, card, folder)
    api = HfApi()
    try:
        api.create_repo(card.repository, private=private, exist_ok=True)
        message = f"Add {opened.cfg.MODEL.NAME}"
        stale = None if (folder / "config.json").exists() else "config.json"  # from an earlier model
        more: dict[str, Any] = {"commit_message": message, "delete_patterns": stale}
        return str(api.upload_folder(repo_id=card.repository, folder_path=folder, **more))
    except LocalTokenNotFoundError as e:
        raise ResourceError(card.repository, "the hub requires a token", "run hf auth login") from e
    except (HTTPError, OSError) as e:
        reason = one_line(e)[:200]
        raise ResourceError(card.repository, f"cannot be uploaded ({reason})", "check name, token and network") from e


def write(opened: ModelFile, card: Card, folder: Path) -> None:
    """Writes the files and prints log lines. Raises: ResourceError, CheckpointError."""
    if opened.task.card(opened.info) is None:
        raise ConfigError("TASK", f"a model of {opened.task.name} has no model card yet", "use a classifier")
    with write_errors(folder, "--folder"):
        for line in write_folder(opened, folder, card):
            say(line)


def _check_reachable(repository: str) -> None:
    """Raises: ResourceError without a connection to the hub, before anything slow."""
    from huggingface_hub import constants

    if not is_reachable(constants.ENDPOINT):
        upload = f"hf upload {repository} FOLDER"
        remedy = f"check the network, or write the files with --folder FOLDER and upload them later: {upload}"
        raise ResourceError(repository, f"{constants.ENDPOINT} cannot be reached", remedy)


def main(argv: list[str]) -> int:
    parser = ScriptParser(__doc__)
    parser.add_argument("model", help="a run's folder, a file, hub:NAME")
    parser.add_argument("repository", metavar="OWNER/NAME")
    parser.add_argument("--cfg", default="", metavar="FILE", help="recipe, for weights that do not store one")
    parser.add_argument("--license", default="", metavar="NAME", help="license of the weights, as on the hub: mit")
    parser.add_argument("--dataset", default="", metavar="NAME", help="training dataset, as on the hub")
    parser.add_argument("--private", action="store_true", help="visible only to its owner")
    parser.add_argument("--folder", type=Path, help="write the files there and upload nothing")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    options = parser.parse_args(argv)
    card = Card(options.repository, options.license, options.dataset)

    def run() -> None:
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", options.repository):
            raise ConfigError(options.repository, "not a repository", "name it OWNER/NAME")
        if options.model.endswith(EXPORTED):
            raise ConfigError(options.model, "an exported file cannot be published", "name its run or checkpoint")
        if not options.folder:
            _check_reachable(options.repository)
        opened = open_model(options.model, options.cfg)
        if options.folder:
            write(opened, card, options.folder)
            return
        with tempfile.TemporaryDirectory() as folder:
            say(f"published: {publish(opened, card, Path(folder), options.private)}")

    return run_to_exit_code(run, options.debug)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
