"""The faster selves of operators, one file of the same name for each; imported where there is a GPU."""
