"""A server of models over HTTP and gRPC: images in and results out, or tensors by the Open Inference Protocol."""
