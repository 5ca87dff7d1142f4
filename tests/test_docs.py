"""The documentation says what is there."""

import re
import shlex

import pytest
import torch

from configs.loading import load_config
from configs.options import OPTIONS, parse_command_line
from configs.schema import KEYS
from data.sources.open import SourceOptions
from tasks.classification.labels import open_train
from tests.conftest import ROOT
from utils.distributed.world import World, join_world
from utils.errors import ConfigError, RunError


def test_every_fault_of_the_table_is_tested():
    rows = re.findall(r"^\| (\d+) \|", (ROOT / "docs/faults.md").read_text(), re.MULTILINE)
    files = (ROOT / "tests").rglob("test_*.py")
    tested = {n for file in files for n in re.findall(r"^def test_fault_(\d\d)_\w+", file.read_text(), re.MULTILINE)}
    assert [int(number) for number in rows] == list(range(1, len(rows) + 1)) == sorted(map(int, tested))


def test_the_files_that_the_architecture_names_exist():
    text = (ROOT / "docs/architecture.md").read_text()
    named = set(re.findall(r"\b((?:configs|models|data|utils|tests|scripts)/[\w/]+\.(?:py|json|yaml))\b", text))
    assert len(named) > 20 and [name for name in named if not (ROOT / name).exists()] == []


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page):
    """The commands in the code blocks of a page, continued lines joined, comments removed."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
    lines = "".join(text for language, text in blocks if not language).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if re.match(r"(python|torchrun|bash) ", line)]


RECIPE_COMMANDS = [
    (page.name, words[words.index("main.py") + 1 :]) for page in PAGES for words in commands(page) if "main.py" in words
]


@pytest.mark.parametrize(
    ("page", "arguments"), RECIPE_COMMANDS, ids=[f"{page}:{i}" for i, (page, _) in enumerate(RECIPE_COMMANDS)]
)
def test_the_commands_of_the_documentation_are_valid(page, arguments):
    """Every option, key, recipe and value of the commands of main.py."""
    load_config(*parse_command_line(arguments))


def test_the_other_commands_name_files_that_are_there():
    found = [word for page in PAGES for words in commands(page) for word in words if word.startswith("scripts/")]
    assert len(found) >= 10 and all((ROOT / name).is_file() for name in found)


def test_keys_that_the_documentation_names_are_there():
    for page in PAGES:
        named = set(
            re.findall(
                r"`((?:AUG|DATA|DISTILLATION|LOG|LOSS|MODEL|TEST|TRAIN)(?:\.[A-Z0-9_]+)+)(?: [^`]*)?`", page.read_text()
            )
        )
        groups = {name.rpartition(".")[0] for name in KEYS}
        assert named <= set(KEYS) | groups, page


def test_the_options_of_timm_that_the_documentation_lists_are_options_or_answered():
    rows = re.findall(r"^\| (`--.*?) \| (.*) \|$", (ROOT / "docs/from_timm.md").read_text(), re.MULTILINE)
    words = [(word, right) for left, right in rows for word in re.findall(r"--[a-z][a-z-]*", left)]
    assert len(words) > 60
    for word, right in words:
        if word in OPTIONS or word == "--model":
            continue
        with pytest.raises(ConfigError) as caught:
            parse_command_line(["--cfg", "swin_tiny", word, "1"])
        answer = re.findall(r"--(?!opts)[a-z-]+|[A-Z_]+(?= )", caught.value.remedy)
        assert any(part in right for part in answer) or caught.value.remedy == "remove it", (word, caught.value)


MISTAKES = re.findall(r"^\| `?(--[^|`]*)`?[^|]* \| `([^|]*)` \|$", (ROOT / "docs/train.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize(("command", "answer"), MISTAKES)
def test_a_mistake_is_answered_as_the_documentation_says(command, answer, monkeypatch, tmp_path):
    """Without the mistakes that need weights or a GPU, which are tested elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (tmp_path / "images/train").mkdir(parents=True)
    (tmp_path / "images/val").mkdir()
    usual = [] if "--cfg" in command else ["--cfg", "swin_tiny"]
    with pytest.raises(RunError) as caught:
        cfg = load_config(*parse_command_line([*usual, *command.split()]))
        join_world(device_type=cfg.DEVICE)
        open_train(SourceOptions.from_config(cfg), World())
    assert str(caught.value) == answer
