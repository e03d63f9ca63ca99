"""For maintainers: speed, tables that are made from the code, the site."""
