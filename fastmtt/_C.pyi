"""Empty: importing it registers the compiled ops with torch."""
