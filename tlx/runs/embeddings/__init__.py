"""Vectors of images: written, searched, drawn."""
