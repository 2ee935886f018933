"""Other tools call rblstore through here: a Trainer callback and friends."""
