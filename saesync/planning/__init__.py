"""What the planner decides with: the table's rows, what a row may look at, and the basis plan files compare."""
