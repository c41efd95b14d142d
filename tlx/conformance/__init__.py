"""What a backend must do: a reference backend in NumPy, and the tests that every backend passes."""
