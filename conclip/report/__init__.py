"""Reports on a run: the page, its charts, exports, and the model card."""
