"""Transfer learning for computer vision in one call."""
