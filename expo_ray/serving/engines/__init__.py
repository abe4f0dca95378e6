"""Engines: what turns token ids into responses inside one replica."""
