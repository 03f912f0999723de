"""Which problems to train on: pass rates, selection, and the order of steps."""
