"""×2 upsampling with its convolution."""
