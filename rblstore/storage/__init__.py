"""Content-addressed bytes: packs, frames, codecs and backends. No torch, no SQL."""
