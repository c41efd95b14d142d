"""Eight networks as a porter writes them: pairs that are equal, and pairs with a fault; `python -m support.porting`."""
