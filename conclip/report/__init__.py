"""What a run shows afterwards: the page, its charts, exports, and the model card."""
