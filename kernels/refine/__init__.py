"""The last refinement: the ISP head, the residual on the base, and the radiance."""
