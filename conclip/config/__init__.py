"""A command line becomes a checked config: the schema, its rules, and the composition by Hydra."""
