"""A LoRA as a file: found, read in any format, written for WebUIs, inspected, merged. Nothing here trains."""
