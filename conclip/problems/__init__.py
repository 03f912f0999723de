"""Problems: files, the hub, generated ones; their prompts, and overlaps between sets."""
