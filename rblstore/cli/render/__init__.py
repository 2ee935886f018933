"""Text for people, drawn from the documents that ``--json`` prints. Pure functions; nothing here prints."""
