"""One run: its parts, its folder, its seeds one after the other, its cost, and how it is measured."""
