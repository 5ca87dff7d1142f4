"""The rank that a launcher sets, and what it cannot be."""

import pytest

from configs.options import check_command_line
from utils.rank import launched_rank


@pytest.mark.parametrize(
    ("variables", "rank"),
    [({}, 0), ({"RANK": "1"}, 0), ({"RANK": "1", "WORLD_SIZE": "2"}, 1), ({"RANK": "2", "WORLD_SIZE": "2"}, 0),
     ({"RANK": "x", "WORLD_SIZE": "2"}, 0)],
)  # fmt: skip
def test_the_rank_of_a_launcher(monkeypatch, variables, rank):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert launched_rank() == rank


def test_fault_64_a_rank_without_a_number_of_ranks_is_not_silent(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(SystemExit):
        check_command_line(["--cfg", "nowhere.yaml"])
    assert capsys.readouterr().err.startswith("error: --cfg: ")


@pytest.mark.parametrize(
    ("rank", "local", "waits", "reports"), [(0, 0, 0, 1), (1, 1, 1, 0), (2, 0, 1, 1), (3, 1, 1, 0)]
)
def test_a_mistake_is_reported_once_on_each_machine_and_first_by_rank_0(
    monkeypatch, capsys, rank, local, waits, reports
):
    slept = []
    monkeypatch.setattr("utils.rank.time.sleep", slept.append)
    for name, value in {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": 4}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(SystemExit) as ended:
        check_command_line(["--cfg", "nowhere.yaml"])
    assert ended.value.code == 2 and len(slept) == waits
    assert capsys.readouterr().err.count("error: ") == reports
