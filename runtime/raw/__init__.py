"""RAW images: mosaics, the tags of TIFF, and DNG files."""
