"""Upsampling by 2, including its convolution."""
