"""Batch norm over two ranks equals torch's over the samples of both."""

import pytest
import torch

from models.heads.sync_norm import SyncBatchNorm
from tests.conftest import run_ranks
from tests.tools.ranks.norms import run, samples


@pytest.mark.slow
def test_two_ranks_normalise_like_one_with_all_samples(tmp_path):
    run_ranks("norms", tmp_path)
    parts = [torch.load(tmp_path / f"{rank}.pth") for rank in range(2)]
    whole = run(torch.nn.BatchNorm2d(3), samples())
    for name in ("out", "gradient"):
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name], rtol=1e-4, atol=1e-4)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        torch.testing.assert_close(parts[0][name], whole[name])
        assert torch.equal(parts[0][name], parts[1][name])


def test_one_rank_is_torchs_batch_norm():
    assert all(
        torch.equal(run(SyncBatchNorm(3), samples())[k], v) for k, v in run(torch.nn.BatchNorm2d(3), samples()).items()
    )
