"""The proof that two stacks give the same numbers: capture, compare, locate, report."""
