"""For maintainers: speed, tables generated from the code, the site."""
