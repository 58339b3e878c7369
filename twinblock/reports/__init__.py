"""Reports: what came of runs as one HTML file that needs no server, no network and nothing beside it."""
