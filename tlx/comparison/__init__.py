"""Many runs that differ in what a grid names, and the choice among them; and the search for a learning rate."""
