"""What frameworks with modules, autograd and in-place tensors share."""
