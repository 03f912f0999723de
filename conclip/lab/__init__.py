"""The embedded model: its problems, tokenizer, traces, and the recipe that makes its weights."""
