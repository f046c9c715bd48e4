"""Whether files are what they were made as: hashes from file to file, and signatures."""
