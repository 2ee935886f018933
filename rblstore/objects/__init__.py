"""Frozen records, typed ids, canonical encoding and the caps on what is read. No I/O, no torch, no SQL."""
