"""LTX-2 with tiny random weights, in the formats in which Lightricks publishes it."""
