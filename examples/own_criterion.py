"""A criterion, a selection and a schedule of one's own.

python examples/own_criterion.py
"""

import lightning as L
import torch

from lit_prune import ChannelPruning
from lit_prune.criteria import Criterion
from lit_prune.data import DigitScenesDataModule
from lit_prune.schedule import Schedule
from lit_prune.select import MacsBudget
from lit_prune.yolo import LitYOLO


class WeightDeviation(Criterion):
    """Channels whose weights deviate most from their mean matter most."""

    def __call__(self, evidence):
        scores = {}
        for group in evidence.groups:
            total = torch.zeros(group.size)
            for slot, tensor in evidence.slots_of(group):
                if slot[1] == 0 and tensor.dim() == 4:
                    members = group.members[slot]
                    deviation = tensor.flatten(1).std(1, unbiased=False).cpu()[members.indices]
                    total.index_add_(0, torch.from_numpy(members.channels), deviation)
            scores[group.name] = total
        return scores


class Halfway(Schedule):
    """One event, in the middle of the run."""

    def events(self, length):
        return {length // 2: 1.0}


def main(scenes=512, max_epochs=4):
    L.seed_everything(0)
    pruning = ChannelPruning(0.4, Halfway(), criterion=WeightDeviation(), selection=MacsBudget("global"))
    trainer = L.Trainer(max_epochs=max_epochs, callbacks=[pruning], logger=False, enable_checkpointing=False, devices=1)
    data = DigitScenesDataModule(scenes=scenes, val_scenes=32, image_size=64)
    trainer.fit(LitYOLO("yolov8n.yaml", num_classes=10), data)
    return pruning


if __name__ == "__main__":
    main()
