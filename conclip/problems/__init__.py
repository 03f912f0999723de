"""Problems from files, the hub and generators; their prompts, and overlaps between sets."""
