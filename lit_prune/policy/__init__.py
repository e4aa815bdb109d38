"""One decision: which groups may lose channels, and which of them do."""
