"""What `import deeplight` offers, over the same functions as the command line. Modules load when a name is used."""
