"""The processes that a run is divided among."""
