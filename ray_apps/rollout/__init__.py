"""How a new model becomes champion: shadow, then a share of traffic, then promotion; or it is withdrawn."""
