"""Commands for those who change the project: figures of its structure, generated pages."""
