"""The Ray cluster: its nodes, slot hosts, and what the driver has them do."""
