"""The `expo-ray` command: flags in, one call into the library, a table or one JSON object out."""
