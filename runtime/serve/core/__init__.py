"""What every protocol of the server uses: models, batches across requests, failures, metrics."""
