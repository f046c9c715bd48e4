"""Files for servers around exported models: Triton's model repository, containers, Kubernetes, systemd."""
