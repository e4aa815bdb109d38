"""Small sets of scenes, so that a training that is written for minutes takes seconds."""

FEW = {"train": 8, "val": 4}


def use_few_scenes():
    """Let every `DigitScenes` of this process be small, whatever number of scenes is asked for."""
    from lit_prune.data import DigitScenes

    whole = DigitScenes.__init__

    def few(self, split="train", scenes=2000, *others, **options):
        whole(self, split, min(scenes, FEW[split]), *others, **options)

    DigitScenes.__init__ = few
