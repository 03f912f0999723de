"""The command line: subcommands, help, completion, exit codes."""
