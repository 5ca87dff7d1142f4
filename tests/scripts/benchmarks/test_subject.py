"""Every contender has the same weights; its errors reach the benchmark."""

import pytest
import torch

from scripts.benchmarks.subject import OURS, Contender, Ours, Peer, Setting, _build
from tests.conftest import ROOT
from tests.tools.errors import raises
from utils.errors import ResourceError

SETTING = Setting(ROOT / "configs" / "swin_tiny.yaml", batch=1, size=224, threads=1)
CPU = torch.device("cpu")


@pytest.mark.seconds
def test_contenders_have_the_same_weights():
    ours, timm = (_build(name, SETTING, CPU) for name in (OURS, "timm"))
    assert isinstance(ours, Ours) and isinstance(timm, Peer)
    images = torch.randn(1, 3, 224, 224)
    model = ours._state.model.eval()
    with torch.no_grad():
        torch.testing.assert_close(model(images), timm._model.eval()(images), atol=1e-4, rtol=1e-4)
    before = model.head.bias.clone()
    assert ours.train(torch.float32) > 0
    assert not torch.equal(before, model.head.bias)


@pytest.mark.seconds
def test_errors_of_a_contender_arrive():
    with pytest.raises(Exception, match="nothing"):
        Contender(OURS, Setting(ROOT / "nothing.yaml", 1, 32, 1)).measure("train")
    killed = Contender(OURS, SETTING)
    killed._process.kill()
    with raises(ResourceError, OURS, "-9", "--batch-size"):
        killed.measure("train")
