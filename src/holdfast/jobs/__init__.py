"""Independent jobs in parallel, in processes of this machine or on a cluster."""
