"""Headers of encoded images: what a file declares, and damage, before a pixel is decoded."""
