"""DeepLightSR: the network, its configuration, how far it sees. Its modules import torch."""
