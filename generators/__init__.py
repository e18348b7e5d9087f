"""Where proposals come from: CO2-Net (weak labels) and LAC (one point an instance), each with what it needs to train."""
