"""The command line `humor-env`: one file for each family of commands."""
