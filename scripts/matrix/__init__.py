"""One command that installs deploykit beside old and new versions of what it needs, and runs checks there."""
