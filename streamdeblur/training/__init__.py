"""Training: pairs, blur synthesis, shards of crops, losses, and a trainer that travels to bare machines."""
