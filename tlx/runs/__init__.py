"""A run: what it does, shows, saves and leaves behind."""
