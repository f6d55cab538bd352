"""One self-contained HTML page about sweeps, and the same in Markdown, CSV and JSON."""
