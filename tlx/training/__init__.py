"""The training loop, what it is built from, and the cache of frozen features."""
