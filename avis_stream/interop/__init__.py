"""Other systems' ways of calling this library."""
