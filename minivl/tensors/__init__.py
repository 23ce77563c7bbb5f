"""Names of tensors, and what each one is: the catalogue, the parser of names, the texts of a walk."""
