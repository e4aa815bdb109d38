"""What was pruned, for people: tables, figures, inspection."""

from lit_prune.report.figures import channels_figure, history_figure
from lit_prune.report.tables import event_table, human, save_json

__all__ = ["channels_figure", "event_table", "history_figure", "human", "save_json"]
