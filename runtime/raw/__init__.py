"""RAW images: mosaics, TIFF tags and DNG files."""
