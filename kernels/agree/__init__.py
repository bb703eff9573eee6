"""One step that makes radiance agree with what the sensor saw."""
