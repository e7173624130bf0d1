"""Records, parameters, paths, files and errors. Imports nothing else of this package."""
