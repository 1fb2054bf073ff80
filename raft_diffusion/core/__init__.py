"""The algorithm, for any modality: records, the loop, selection, the run folder. Imports no torch."""
