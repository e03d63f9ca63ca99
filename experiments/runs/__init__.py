"""One run: what it is made of, its folder, its seeds one after the other, what it costs, how it is measured."""
