"""What several critics need: asking in both orders, and how text is cut into words."""
