"""Models: folders, architectures, chat templates, servers, loading, and the critic."""
