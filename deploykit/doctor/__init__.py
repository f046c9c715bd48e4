"""What is installed on this machine, what of it works, and what to type for the rest."""
