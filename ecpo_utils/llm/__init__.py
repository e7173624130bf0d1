"""Models, their servers, and the one client that talks to endpoints. Imports core only."""
