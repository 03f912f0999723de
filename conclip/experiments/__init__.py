"""Experiments: the inputs, stages and commands of subcommands, and the plan that --dry-run prints."""
