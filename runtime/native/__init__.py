"""The native library: found, built, called."""
