"""Whether what is private in torchmetrics is there, and still means what it meant."""

import torch
from torchmetrics import Metric

from lit_prune.yolo._compat import OwnGathering


class Gathered(OwnGathering):
    def __init__(self):
        super().__init__(distributed_available_fn=lambda: True, process_group="some")
        self.add_state("values", default=[])
        self.add_state("number", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, value):
        self.values.append(value)

    def compute(self):
        return self.values

    def gather(self, names, group):
        assert (sorted(names), group) == (["number", "values"], "some")
        self.values = [*self.values, torch.tensor(2)]


def test_a_metric_gathers_in_its_own_way_and_goes_back_to_its_own_values():
    metric = Gathered()
    assert isinstance(metric, Metric)
    metric.update(torch.tensor(1))
    assert metric.compute() == [1, 2]
    assert metric.values == [1]
