"""The offload service: tails in worker processes, batches, fair shares of a device, a direct data plane."""
