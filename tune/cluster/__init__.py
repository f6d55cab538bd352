"""The Ray cluster: its nodes, hosts of slots, and what the driver asks of them."""
