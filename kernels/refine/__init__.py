"""The last refinement: ISP head, residual on the base, radiance."""
