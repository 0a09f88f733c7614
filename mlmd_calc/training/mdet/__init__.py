"""Training of MD-ET force fields."""
