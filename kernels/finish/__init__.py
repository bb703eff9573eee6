"""The end of the network: ISP head, refinement, output pixels."""
