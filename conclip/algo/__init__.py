"""Advantages, losses, log-probabilities and masks: pure functions of tensors."""
