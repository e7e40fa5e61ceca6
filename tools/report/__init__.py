"""Pictures and pages of the figures that ``python -m bench`` measured."""
