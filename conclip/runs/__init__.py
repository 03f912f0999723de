"""The run folder: everything that reads, writes or shows it while a run works."""
