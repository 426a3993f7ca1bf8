"""Where results go: files that people open and programs read. Imports nothing heavy by itself."""
