"""Where frames and sound come from: files, folders and live devices. Imports nothing heavy by itself."""
