"""Pictures, pages and documents of what ``python -m bench`` measured."""
