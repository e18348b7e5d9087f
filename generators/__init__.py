"""Where proposals come from: CO2-Net (video labels) and LAC (one point an instance)."""
