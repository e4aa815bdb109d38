"""What is private in Lightning's command line, and used nevertheless, as in `lit_prune.common._compat`."""

from lightning.pytorch.cli import LightningCLI


class OwnCheckpointPath(LightningCLI):
    """Reads what `--ckpt_path` says of the model in a way of its own; Lightning has no other place for it.

    Its own reads nothing but weights, whatever `--weights_only` says, and replaces arguments without a word.
    """

    def read_ckpt_path(self) -> None:
        """Change the configuration by the checkpoint, before classes are built."""
        raise NotImplementedError

    def _parse_ckpt_path(self) -> None:
        self.read_ckpt_path()
