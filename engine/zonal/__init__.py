"""Tables of finished maps: sums, means, lit area by region and date."""
