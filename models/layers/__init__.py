"""Building blocks that several model families share; their names and keys are those of the original projects."""
