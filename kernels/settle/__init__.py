"""The last step: a refined radiance, believed as far as the lights allow, made consistent with the sensor."""
