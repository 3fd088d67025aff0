"""Where the platform runs."""
