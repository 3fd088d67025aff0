"""What the files and folders that parameters name hold, so that DVC sees them change."""
