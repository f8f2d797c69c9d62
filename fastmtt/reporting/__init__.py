"""What `fastmtt.report` is made of: a run's folder read, pictures, curves, tables, the page."""
