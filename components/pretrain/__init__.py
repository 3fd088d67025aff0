"""The student-teacher method, its presets and its run."""
