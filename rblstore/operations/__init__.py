"""One verb a file: commit, checkout, revert, verify, log, diff, fsck and the others."""
