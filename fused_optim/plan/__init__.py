"""From parameters to what one launch reads. Knows no optimizer class."""
