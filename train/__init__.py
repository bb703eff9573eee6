"""DeepLightSR: the network, its data, its objective and its training. Importing the package loads nothing heavy."""
