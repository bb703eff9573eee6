"""A synthetic country with physics: terrain, settlements, roads, lights, reflectance, and what a night
sensor sees.
"""

from deeplight.train.synth.country import Country, CountryConfig, CountrySample, Ground

__all__ = ["Country", "CountryConfig", "CountrySample", "Ground"]
