"""What the sensor sees of radiance, and the base: the lights enlarged, after steps towards what it saw."""
