"""The quantized GRU as functions of tensors; `reference` is the definition."""
