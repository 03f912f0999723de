"""Grading: the final answer of a response is found, read, and compared with the gold one."""
