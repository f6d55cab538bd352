"""What trials hold of a cluster, and what fits it."""
