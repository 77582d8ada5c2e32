"""Checkpoint loading, one lowering per runtime, artifact writing."""
