"""Sampling: the engine's interface, its implementations, and sampling with grading."""
