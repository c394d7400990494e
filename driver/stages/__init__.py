"""The stages of a campaign: each one a function of (inputs, engine, settings) that yields results."""
