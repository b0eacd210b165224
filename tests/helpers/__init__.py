"""What tests share: odd files, processes that may be killed, a server."""
