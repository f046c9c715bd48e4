"""One job on many processes or machines: a folder of images in, parts and a manifest out; and the server on Ray."""
