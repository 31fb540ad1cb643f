"""Import earlier runs from the files and tables that they left behind."""
