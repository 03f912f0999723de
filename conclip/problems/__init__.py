"""Generated arithmetic and local files."""
