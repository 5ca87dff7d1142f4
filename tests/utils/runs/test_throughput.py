"""Throughput is measured in rounds."""

from tests.tools.builders import CPU, configured
from tests.utils.test_cost import network
from utils.cost import peak_memory
from utils.runs.throughput import measure_throughput


def test_throughput_is_a_median_between_its_extremes():
    cfg = configured(DATA__BATCH_SIZE=4, DATA__IMG_SIZE=16, AMP_ENABLE=False)
    result = measure_throughput(cfg, network(), seconds=0.1)
    assert 0 < result.slowest <= result.median <= result.fastest and result.rounds >= 3
    assert "batch 4 at 16x16, float32, peak memory" in result.line()
    assert peak_memory(CPU) > 50
