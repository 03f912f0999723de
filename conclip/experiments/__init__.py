"""What a subcommand does: its inputs, its stages, and the plan that --dry-run prints."""
