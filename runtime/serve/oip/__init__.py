"""The Open Inference Protocol, version 2: tensors over HTTP and gRPC."""
