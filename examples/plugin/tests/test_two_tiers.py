"""Two tiers keep the contract of strategies, and each request is served by its tier."""

from __future__ import annotations

import pytest
from simcluster_example.two_tiers import TwoTiers

from simcluster.runs.simulate import run
from simcluster.testing.contracts import StrategyContract
from simcluster.testing.toy import toy_environment, toy_workload

TIERS = TwoTiers(name="tiers", short_len=40, short_instances=2, long_tp_size=4, num_kv_blocks=24)


class TestTwoTiers(StrategyContract):
    """All that every strategy keeps."""

    @pytest.fixture
    def strategy(self) -> TwoTiers:
        """Return settings."""
        return TIERS


def test_long_prompts_are_served_by_the_large_instance() -> None:
    """Instances 0 and 1 have one GPU, instance 2 has four."""
    result = run(toy_environment(), TIERS, toy_workload([(0.001, 10 * k, 5) for k in range(1, 10)]))
    requests, instances = result.columns["requests"], result.columns["instances"]
    assert instances["tp_size"].tolist() == [1, 1, 4]
    is_long = requests["prompt_len"] > 40
    assert (requests["prefill_instance"][is_long] == 2).all()
    assert set(requests["prefill_instance"][~is_long]) == {0, 1}
