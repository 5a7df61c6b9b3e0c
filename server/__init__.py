"""The edge: HTTP and WebSocket in, HTTP and WebSocket out. The only package that builds anything."""
