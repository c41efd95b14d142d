"""The proof that two backends give the same numbers: capture, compare, locate, report."""
