"""The run folder: everything that reads, writes or shows it during a run."""
