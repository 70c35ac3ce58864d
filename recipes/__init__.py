"""Tasks that need no download, each in float as anyone would write it: nothing here knows of quantization."""
