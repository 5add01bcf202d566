"""What is measured of the peers: one module for each part of the record."""
