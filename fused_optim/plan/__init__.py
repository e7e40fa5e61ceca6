"""The plan turns parameters into the tables that one launch reads. It knows no optimizer class."""
