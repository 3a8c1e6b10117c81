"""A folder for PYTHONPATH: it holds nothing but what Python looks for at its start."""
