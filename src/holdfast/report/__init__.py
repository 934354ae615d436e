"""The report: one HTML file that reads, prints and archives without anything else."""
