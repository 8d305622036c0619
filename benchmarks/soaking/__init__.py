"""The parts of soak.py: a place to serve from, an oracle, a client, traffic (honest and hostile), a watch on the process, a summary."""
