"""A blind arena where people judge lines on a web page: `humor-env arena`."""
