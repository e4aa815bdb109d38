"""What is private in Lightning's command line, and used nevertheless, as in `lit_prune.common._compat`."""

from lightning.pytorch.cli import LightningCLI


class UnreadCheckpoint(LightningCLI):
    """Does not look by itself for what `--ckpt_path` says of the model.

    Lightning's own way, where a release has one, reads nothing but weights, whatever `--weights_only` says, and
    replaces arguments without a word.
    """

    def _parse_ckpt_path(self) -> None:
        pass
