"""Claims of the paper as experiments: what runs, what decides, and what came out."""
