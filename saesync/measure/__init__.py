"""The streaming measurement engine under validate."""
