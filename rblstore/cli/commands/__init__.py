"""One file a command; `rbl VERB` is `commands/VERB.py`."""
