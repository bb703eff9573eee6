"""What runs the network: the model folder, its checks, one backend a runtime."""
