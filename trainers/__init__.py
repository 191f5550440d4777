"""Training methods, one per file; see `autoseg list trainers`."""
